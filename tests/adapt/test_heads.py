"""Probe heads: the candidate they stand for computes what they computed on the features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regraft.adapt import VIEWS, Head, classifier_from, load_head, probe, save_head
from regraft.adapt.heads import View
from regraft.checkpoint import open_checkpoint
from regraft.checkpoint.classifier import logits_of
from regraft.features import extract
from regraft.task import load_task


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("fixture", "fragment"), [("tiny_bert", ""), ("tiny_bert", "#layers=2"), ("tiny_gpt2", "")])
def test_a_probe_candidate_is_its_head_on_the_features(
    fixture: str, fragment: str, view: View, toy_task_files: Path, request: pytest.FixtureRequest
) -> None:
    task = load_task(str(toy_task_files))
    checkpoint = open_checkpoint(f"{request.getfixturevalue(fixture)}{fragment}")
    train, test = (extract(checkpoint, split.texts) for split in (task.train, task.test))
    head = probe(train, task.train.labels, 3, view=view)
    classifier = classifier_from(checkpoint, task.label_names, head)
    assert not classifier.training
    assert classifier.labels == task.label_names
    np.testing.assert_allclose(logits_of(classifier, task.test.texts), head.logits(test), atol=1e-4, rtol=1e-4)
    right = (head.logits(train).argmax(1) == task.train.labels).mean()
    assert right > 0.6  # three balanced classes, of which random weights already tell a good part apart


class Views:
    """Made-up features: the classes are told apart by the first column of `last`, the second of `mean`."""

    def __init__(self, labels: np.ndarray) -> None:
        noise = np.random.default_rng(0).normal(size=(2, len(labels), 5)).astype(np.float32)
        noise[0, :, 0] += 4 * labels
        noise[1, :, 1] += 4 * labels
        self.last, self.mean = noise


def test_a_head_reads_its_own_view() -> None:
    labels = np.tile([0, 1, 2], 40)
    views = Views(labels)
    for view, column in (("last", 0), ("mean", 1)):
        head = probe(views, labels, 3, view=view)  # type: ignore[arg-type]
        given = views.last if view == "last" else views.mean
        np.testing.assert_allclose(head.logits(views), given @ head.weight.T + head.bias, rtol=1e-5)
        assert np.abs(head.weight).sum(0).argmax() == column
        assert (head.logits(views).argmax(1) == labels).mean() > 0.85


def test_a_fit_is_made_again_from_what_the_head_records() -> None:
    labels = np.tile([0, 1, 2], 40)
    head = probe(Views(labels), labels, 3, seed=4)
    again = probe(Views(labels), labels, 3, seed=4, l2=head.l2, iterations=head.iterations)
    assert np.array_equal(again.weight, head.weight)
    assert np.array_equal(again.bias, head.bias)


def test_layer_weights_stand_for_the_view() -> None:
    weight: Any = np.zeros((2, 3), np.float32)
    assert Head("last", weight, weight[:, 0]).layer_weights(6) is None
    assert Head("mean", weight, weight[:, 0]).layer_weights(6) == [1.0] * 7


def test_a_head_survives_the_disk(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(3, 4)).astype(np.float32), random.normal(size=3).astype(np.float32)
    head = Head("mean", weight, bias, 3e-3, 17)
    save_head(head, tmp_path / "head")
    again = load_head(tmp_path / "head")
    assert np.array_equal(again.weight, weight)
    assert np.array_equal(again.bias, bias)
    assert (again.view, again.l2, again.iterations) == ("mean", 3e-3, 17)
