"""The max-t bootstrap of a search: intervals that hold for all candidates at once."""

from __future__ import annotations

import numpy as np
import pytest

from regraft.evaluate import metrics, paired_difference
from regraft.merge.search.compare import Seen, differences, scores


def drawn(rows: int, rates: list[float], seed: int = 0, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N] and predictions [K, N] that are right at these rates, independently."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, rows)
    right = draw.random((len(rates), rows)) < np.array(rates)[:, None]
    return labels, np.where(right, labels, (labels + draw.integers(1, classes, (len(rates), rows))) % classes)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_scores_are_those_of_evaluate(metric: str) -> None:
    labels, predictions = drawn(60, [0.9, 0.5, 0.1])
    draws = np.random.default_rng(1).integers(0, 60, (5, 60))
    counts = np.stack([np.bincount(draw, minlength=60) for draw in draws]).astype(np.float64)
    found = scores(Seen(labels, predictions, metric, 1.0), counts)
    for resample, draw in enumerate(draws):
        for candidate in range(3):
            sure = np.eye(4)[predictions[candidate][draw]]
            assert found[resample, candidate] == pytest.approx(metrics(labels[draw], sure)[metric])


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_with_one_candidate_it_is_an_ordinary_paired_interval(metric: str) -> None:
    labels, predictions = drawn(400, [0.7, 0.8])
    one, other = differences([Seen(labels, predictions, metric, 1.0)], 0)
    assert (one.difference, one.low, one.high) == (0.0, 0.0, 0.0)
    value, low, high = paired_difference(labels, predictions[1], predictions[0], metric=metric)
    assert other.difference == pytest.approx(value)
    assert (other.low, other.high) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))
    assert not other.too_close


def test_tasks_count_by_their_share() -> None:
    first, second = drawn(300, [0.5, 0.7]), drawn(100, [0.9, 0.6], seed=1)
    tasks = [Seen(*first, "accuracy", 0.5 / 0.8), Seen(*second, "accuracy", 0.5 / 0.9)]
    expected = sum(
        one.share * float((one.predictions[1] == one.labels).mean() - (one.predictions[0] == one.labels).mean())
        for one in tasks
    )
    assert differences(tasks, 0)[1].difference == pytest.approx(expected)


def test_the_more_candidates_the_wider() -> None:
    labels, predictions = drawn(300, [0.7] * 41)
    widths = []
    for count in (2, 5, 41):
        found = differences([Seen(labels, predictions[:count], "accuracy", 1.0)], 0)[1]
        widths.append(found.high - found.low)
    assert widths == sorted(widths)
    assert widths[2] > 1.3 * widths[0]


def test_the_luckiest_of_many_equals_is_too_close_to_call() -> None:
    lucky, naive = 0, 0
    for seed in range(40):
        labels, predictions = drawn(200, [0.7] * 31, seed)
        tasks = [Seen(labels, predictions, "accuracy", 1.0)]
        found = differences(tasks, 0)
        best = int(np.argmax([one.difference for one in found]))
        lucky += not found[best].too_close
        naive += not differences([Seen(labels, predictions[[0, best]], "accuracy", 1.0)], 0)[1].too_close
    assert lucky <= 4  # 2 of 40 is what a 95 % interval promises
    assert naive >= 10  # what comes out without the correction


def test_one_that_is_much_better_is_not() -> None:
    labels, predictions = drawn(300, [0.6] * 20 + [0.9])
    assert not differences([Seen(labels, predictions, "accuracy", 1.0)], 0)[20].too_close


def test_candidates_that_predict_the_same_differ_by_nothing() -> None:
    labels, predictions = drawn(50, [0.6])
    found = differences([Seen(labels, np.repeat(predictions, 3, axis=0), "accuracy", 1.0)], 1)
    assert {(one.difference, one.low, one.high) for one in found} == {(0.0, 0.0, 0.0)}
    assert all(one.too_close for one in found)


def test_the_same_every_time() -> None:
    labels, predictions = drawn(100, [0.6, 0.7, 0.8])
    tasks = [Seen(labels, predictions, "accuracy", 1.0)]
    assert differences(tasks, 0, seed=3) == differences(tasks, 0, seed=3)
    assert differences(tasks, 0, seed=3) != differences(tasks, 0, seed=4)
