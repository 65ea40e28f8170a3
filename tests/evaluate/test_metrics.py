"""Scores against scikit-learn and a loop; intervals against what they promise."""

from __future__ import annotations

import json
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score

from regraft.errors import NonFiniteError, TaskError
from regraft.evaluate import (
    bootstrap_intervals,
    mean_interval,
    metrics,
    paired_difference,
    proportion_interval,
    score,
    wilson_interval,
)
from regraft.evaluate.metrics import BINS, METRICS


def predictions(rows: int, classes: int, seed: int, skill: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, rows)
    logits = draw.normal(size=(rows, classes)) + skill * np.eye(classes)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def naive_calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    total = 0.0
    top, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    for place in range(BINS):
        inside = (top > place / BINS) & (top <= (place + 1) / BINS)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - top[inside].mean())
    return float(total)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=st.integers(1, 60), classes=st.integers(2, 9), seed=st.integers(0, 10**6))
def test_metrics_are_those_of_scikit_learn(rows: int, classes: int, seed: int) -> None:
    labels, probabilities = predictions(rows, classes, seed)
    found = metrics(labels, probabilities)
    predicted = probabilities.argmax(axis=1)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0))
    assert found["calibration_error"] == pytest.approx(naive_calibration_error(labels, probabilities))


def test_perfect_predictions_are_perfect() -> None:
    labels = np.array([0, 1, 2, 1])
    assert metrics(labels, np.eye(3)[labels]) == {"accuracy": 1.0, "macro_f1": 1.0, "calibration_error": 0.0}


def test_confidence_without_being_right_is_the_calibration_error() -> None:
    assert metrics([0, 1], [[0.2, 0.8], [0.8, 0.2]])["calibration_error"] == pytest.approx(0.8)


def test_the_first_of_equal_classes_is_predicted() -> None:
    assert metrics([0, 1], [[0.5, 0.5], [0.5, 0.5]])["accuracy"] == 0.5


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1])
def test_probabilities_that_are_none_are_refused(value: float) -> None:
    labels, probabilities = predictions(5, 3, seed=0)
    probabilities[3, 1] = value
    for measure in (metrics, bootstrap_intervals, score):
        with pytest.raises(NonFiniteError, match=r"1 of 5 predictions .* \(the first is example 3\)"):
            measure(labels, probabilities)


def test_inputs_that_do_not_fit_are_refused() -> None:
    _, probabilities = predictions(4, 3, seed=0)
    with pytest.raises(TaskError, match=r"labels of shape \(3,\) against probabilities of shape \(4, 3\)"):
        metrics([0, 1, 2], probabilities)
    with pytest.raises(TaskError, match=r"N and C at least 1"):
        metrics([], np.zeros((0, 3)))
    with pytest.raises(TaskError, match="Labels run from 0 to 3, but the predictions have 3 classes"):
        metrics([0, 1, 2, 3], probabilities)
    with pytest.raises(TaskError, match="Labels run from -1"):
        metrics([0, 1, 2, -1], probabilities)
    labels = np.array([0, 1, 2, 0])
    with pytest.raises(TaskError, match="Unknown metric 'calibration_error'"):
        paired_difference(labels, labels, labels, metric="calibration_error")
    with pytest.raises(TaskError, match="Cannot compare 4 with 3 predictions for 4 labels"):
        paired_difference(labels, labels, labels[:3])


def test_a_score_is_metrics_and_intervals_ready_for_json() -> None:
    labels, probabilities = predictions(80, 4, seed=1)
    found = score(labels, probabilities, seed=3)
    assert {name: found[name] for name in METRICS} == metrics(labels, probabilities)  # type: ignore[literal-required]
    ends = bootstrap_intervals(labels, probabilities, seed=3)
    assert found["intervals"] == {name: list(pair) for name, pair in ends.items()}
    assert json.loads(json.dumps(found)) == found
    for name in ("accuracy", "macro_f1"):
        low, high = found["intervals"][name]
        assert low < found[name] < high  # type: ignore[literal-required]


def test_intervals_are_the_same_whatever_was_drawn_before() -> None:
    labels, probabilities = predictions(50, 3, seed=2)
    first = bootstrap_intervals(labels, probabilities, seed=5)
    bootstrap_intervals(labels, probabilities, seed=6)
    np.random.default_rng(0).normal(size=9)
    assert bootstrap_intervals(labels, probabilities, seed=5) == first
    assert bootstrap_intervals(labels, probabilities, seed=6) != first


def test_the_order_of_the_examples_changes_no_interval() -> None:
    labels, probabilities = predictions(50, 3, seed=2)
    _, other = predictions(50, 3, seed=3)
    order = np.random.default_rng(0).permutation(50)
    assert bootstrap_intervals(labels[order], probabilities[order]) == bootstrap_intervals(labels, probabilities)
    first, second = probabilities.argmax(1), other.argmax(1)
    there = paired_difference(labels, first, second, metric="macro_f1")
    assert paired_difference(labels[order], first[order], second[order], metric="macro_f1") == there
    assert mean_interval(probabilities[order, 0]) == mean_interval(probabilities[:, 0])


def test_intervals_in_blocks_of_bounded_memory_cover_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, probabilities = predictions(100, 3, seed=2)
    whole = bootstrap_intervals(labels, probabilities)
    monkeypatch.setattr(sys.modules["regraft.evaluate.metrics"], "_DRAWS_AT_ONCE", 1500)
    parts = bootstrap_intervals(labels, probabilities)
    for name in METRICS:
        assert parts[name] == pytest.approx(whole[name], abs=0.03)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    draw, covered, trials = np.random.default_rng(0), 0, 200
    for trial in range(trials):
        low, high = mean_interval(draw.random(100) < 0.8, seed=trial, resamples=300)
        covered += low <= 0.8 <= high
    assert 0.89 <= covered / trials <= 0.99  # 95 % nominal, and a standard error of 1.5 %


def test_a_wider_level_gives_a_wider_interval_and_more_examples_a_narrower_one() -> None:
    def width(rows: int, level: float) -> float:
        low, high = bootstrap_intervals(*predictions(rows, 3, seed=4), level=level)["accuracy"]
        return high - low

    assert width(100, 0.99) > width(100, 0.8) > width(1000, 0.8)


def test_the_bootstrap_has_the_standard_error_of_a_proportion() -> None:
    values = np.arange(400) < 300
    low, high = mean_interval(values, resamples=4000)
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(0.75 * 0.25 / 400), rel=0.08)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_a_paired_difference_is_narrower_than_two_intervals(metric: str) -> None:
    labels, good = predictions(300, 3, seed=6)
    worse = good.copy()
    worse[:30] = np.roll(worse[:30], 1, axis=1)
    difference, low, high = paired_difference(labels, good.argmax(1), worse.argmax(1), metric=metric)
    assert difference == pytest.approx(metrics(labels, good)[metric] - metrics(labels, worse)[metric])
    assert 0 < low < difference < high
    alone = bootstrap_intervals(labels, good)[metric]
    assert high - low < alone[1] - alone[0]


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_a_model_does_not_differ_from_itself(metric: str) -> None:
    labels, probabilities = predictions(40, 3, seed=7)
    predicted = probabilities.argmax(1)
    assert paired_difference(labels, predicted, predicted, metric=metric) == (0.0, 0.0, 0.0)


def test_a_paired_difference_changes_its_sign_with_the_order() -> None:
    labels, first = predictions(60, 3, seed=8)
    _, second = predictions(60, 3, seed=9)
    there = paired_difference(labels, first.argmax(1), second.argmax(1))
    back = paired_difference(labels, second.argmax(1), first.argmax(1))
    assert there[0] == -back[0]
    assert there[1] == pytest.approx(-back[2], abs=0.05)


def test_the_ranking_means_the_same_by_too_close() -> None:
    labels, first = predictions(200, 3, seed=8)
    _, second = predictions(200, 3, seed=9)
    right = [(found.argmax(1) == labels).astype(float) for found in (first, second)]
    _, low, high = paired_difference(labels, first.argmax(1), second.argmax(1), resamples=4000)
    assert mean_interval(right[0] - right[1], resamples=4000) == pytest.approx((low, high), abs=0.01)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("right", "of"), [(0, 1), (1, 1), (0, 12), (12, 12), (7, 12), (500, 500), (931, 1000)])
def test_wilsons_interval_is_that_of_scipy(right: int, of: int, level: float) -> None:
    expected = binomtest(right, of).proportion_ci(level, "wilson")
    assert wilson_interval(right, of, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("right", [True, False])
def test_all_right_on_a_few_examples_is_not_certain(right: bool) -> None:
    labels = np.arange(20) % 4
    found = bootstrap_intervals(labels, np.eye(4)[labels if right else (labels + 1) % 4])
    assert found["accuracy"] == wilson_interval(20 * right, 20)
    assert proportion_interval(np.full(20, right)) == found["accuracy"]
    assert found["macro_f1"] == (float(right), float(right))
    mixed = np.arange(20) < 19
    assert proportion_interval(mixed) == mean_interval(mixed)


def test_many_classes_take_little_memory() -> None:
    """1,000 classes, all confused: a square of pairs and classes would be a gigabyte."""
    draw = np.random.default_rng(0)
    labels, predicted = draw.integers(0, 1000, size=(2, 20_000))
    tracemalloc.start()
    difference, low, high = paired_difference(labels, predicted, np.roll(labels, 1), resamples=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert low <= difference <= high
    assert peak < 200 * 2**20
