"""LEEP and NCE against loops over their definitions, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest

from regraft.errors import NonFiniteError, TaskError
from regraft.rank.scores import leep, nce


def naive_leep(outputs: np.ndarray, labels: np.ndarray) -> float:
    count, sources = outputs.shape
    joint: dict[tuple[int, int], float] = {}
    for i in range(count):
        for z in range(sources):
            joint[int(labels[i]), z] = joint.get((int(labels[i]), z), 0.0) + outputs[i, z] / count
    total = 0.0
    for i in range(count):
        likely = 0.0
        for z in range(sources):
            marginal = sum(joint[int(y), z] for y in set(labels.tolist()))
            if marginal > 0:
                likely += joint[int(labels[i]), z] / marginal * outputs[i, z]
        total += math.log(likely)
    return total / count


def naive_nce(outputs: np.ndarray, labels: np.ndarray) -> float:
    pairs = [(int(y), int(np.argmax(row))) for row, y in zip(outputs, labels, strict=True)]
    total = 0.0
    for pair in set(pairs):
        p = pairs.count(pair) / len(pairs)
        marginal = sum(z == pair[1] for _, z in pairs) / len(pairs)
        total += p * math.log(p / marginal)
    return total


def test_leep_is_its_definition(probabilities) -> None:  # type: ignore[no-untyped-def]
    assert leep(*probabilities) == pytest.approx(naive_leep(*probabilities), rel=1e-12)


def test_nce_is_its_definition(probabilities) -> None:  # type: ignore[no-untyped-def]
    assert nce(*probabilities) == pytest.approx(naive_nce(*probabilities), rel=1e-12)


def test_a_perfect_head_has_no_uncertainty_and_a_blind_one_that_of_the_labels() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    assert leep(np.eye(3)[labels], labels) == pytest.approx(0.0)
    assert nce(np.eye(3)[labels], labels) == pytest.approx(0.0)
    blind = np.full((6, 4), 0.25)
    assert leep(blind, labels) == pytest.approx(-math.log(3))
    assert nce(blind, labels) == pytest.approx(-math.log(3))


def test_equally_probable_source_classes_share_the_example() -> None:
    outputs = np.array([[0.5, 0.5], [0.5, 0.5], [0.9, 0.1], [0.1, 0.9]])
    labels = [0, 0, 0, 1]
    assert nce(outputs, labels) == pytest.approx(nce(outputs[:, ::-1], labels))
    # P(z) = (1/2, 1/2); label 0 has all of z = 0 and half of z = 1.
    assert nce(outputs, labels) == pytest.approx(0.25 * math.log(0.5) * 2)


@pytest.mark.parametrize("score", [leep, nce])
def test_outputs_that_are_no_probabilities_are_refused(score) -> None:  # type: ignore[no-untyped-def]
    labels = [0, 1, 0]
    with pytest.raises(TaskError, match="take the softmax of the logits"):
        score([[2.0, -1.0], [0.0, 1.0], [0.5, 0.5]], labels)
    with pytest.raises(TaskError, match=r"rows sum to 1 \.\. 3"):
        score([[1.0, 2.0], [0.0, 1.0], [0.5, 0.5]], labels)
    with pytest.raises(NonFiniteError):
        score([[float("nan"), 1.0], [0.0, 1.0], [0.5, 0.5]], labels)
    with pytest.raises(TaskError, match=r"shape \(3, 2\) with labels of shape \(2,\)"):
        score(np.full((3, 2), 0.5), [0, 1])


def test_half_precision_rows_are_probabilities() -> None:
    rows = np.array([[0.3, 0.7], [0.6, 0.4], [0.2, 0.8]])
    labels = ["a", "b", "a"]
    assert leep(rows.astype(np.float16), labels) == pytest.approx(leep(rows, labels), abs=1e-3)
