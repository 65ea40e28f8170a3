"""What is common to the scores: prepared inputs, one computation for several, bad input, many examples, labels of any kind."""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import pytest
from scipy.optimize import minimize

from regraft import methods
from regraft.errors import NonFiniteError, TaskError
from regraft.rank.scores import knn, logme, logme_regression, prepare
from regraft.rank.scores import prepared as shared
from regraft.rank.scores.prepared import drawn

ALL = [one for one in methods.methods("rank") if one.function.__module__.startswith("regraft.")]
OF_FEATURES = [one for one in ALL if {"features", "labels"} <= one.needs]
OF_CLASSES = [one for one in ALL if "labels" in one.needs]


def data(rows: int = 40, columns: int = 6, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    labels = np.arange(rows) % classes
    return draw.normal(size=(rows, columns)) + np.eye(max(columns, classes))[labels, :columns], labels


def given(method: methods.Method, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    features, labels = data(*shape)
    if "source outputs" in method.needs:
        odds = np.exp(features)
        return odds / odds.sum(axis=1, keepdims=True), labels
    return features, labels


@pytest.mark.parametrize("score", OF_FEATURES, ids=lambda one: one.name)
def test_prepared_features_give_the_same_number(score: methods.Method) -> None:
    features, labels = data()
    ready = prepare(features, labels)
    assert score(ready) == score(ready, labels) == score(features, labels)


def test_one_decomposition_serves_all_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    whole = shared.spectrum
    monkeypatch.setattr(shared, "spectrum", lambda features: seen.append(features.shape) or whole(features))
    ready = prepare(*data())
    for score in OF_FEATURES:
        score(ready)
    # The features as they are (LogME), and centred (all others); PED decomposes what it has moved by itself.
    assert len(seen) == 2


def test_what_is_prepared_is_not_written_to() -> None:
    features, labels = data()
    ready = prepare(features, labels)
    for array in (ready.features, ready.labels, ready.centred, ready.one_hot, ready.class_means, ready.projected):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    features[0, 0] += 1.0  # the caller's array stays the caller's


def test_other_labels_than_the_prepared_ones_are_refused() -> None:
    features, labels = data()
    ready = prepare(features, labels)
    assert prepare(ready, [f"class {label}" for label in labels]) is ready
    with pytest.raises(TaskError, match="prepared with other labels"):
        prepare(ready, np.roll(labels, 1) * (labels > 0))
    with pytest.raises(TaskError, match="Features without labels"):
        prepare(features)


@pytest.mark.parametrize("score", ALL, ids=lambda one: one.name)
@pytest.mark.parametrize(
    ("features", "labels", "error", "words"),
    [
        (np.zeros((3, 2)), [0, 1], TaskError, r"shape \(3, 2\)"),
        (np.zeros(3), [0, 1, 0], TaskError, r"shape \(3,\)"),
        (np.zeros((2, 0)), [0, 1], TaskError, "D at least 1"),
        (np.array([[0.5, 0.5], [np.nan, 1.0]]), [0, 1], NonFiniteError, "NaN or infinite"),
        (np.array([[0.5, 0.5], [np.inf, 1.0]]), [0, 1], NonFiniteError, "NaN or infinite"),
        (np.full((2, 2), 0.5), [0.0, np.nan], NonFiniteError, "NaN or infinite"),
        (np.full((1, 2), 0.5), [1], TaskError, "at least two"),
        (np.full((0, 2), 0.5), [], TaskError, "at least two"),
        ([["a", "b"], ["c", "d"]], [0, 1], TaskError, "not an array of numbers"),
    ],
)
def test_bad_input_is_refused_in_words(score: methods.Method, features, labels, error, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=words):
        score(features, labels)


@pytest.mark.parametrize("score", OF_CLASSES, ids=lambda one: one.name)
def test_one_class_is_refused(score: methods.Method) -> None:
    with pytest.raises(TaskError, match="at least two classes"):
        score(np.full((3, 2), 0.5), [4, 4, 4])
    with pytest.raises(TaskError, match="Labels of several kinds"):
        score(np.full((3, 2), 0.5), np.array([4, "a", 4], dtype=object))


@pytest.mark.parametrize("score", OF_CLASSES, ids=lambda one: one.name)
def test_classes_may_have_names(score: methods.Method) -> None:
    features, labels = given(score)
    names = np.array(["zebra", "ant", "mule"])[labels]
    assert score(features, names) == pytest.approx(score(features, labels), abs=1e-9)


@pytest.mark.parametrize("score", OF_CLASSES, ids=lambda one: one.name)
@pytest.mark.parametrize(("rows", "columns", "classes"), [(2, 3, 2), (7, 1, 2), (9, 4, 8)])
def test_small_inputs_get_a_finite_number(score: methods.Method, rows: int, columns: int, classes: int) -> None:
    if score.name == "tmi" and rows == 2:
        pytest.skip("no class has two examples")
    features, labels = given(score, rows, columns, classes)
    assert np.isfinite(score(features, labels))


@pytest.mark.parametrize(
    ("name", "module", "limit", "value"),
    [("nleep", "nleep", "LIMIT", 100), ("parc", "parc", "LIMIT", 100), ("ped", "sfda", "LIMIT", 100),
     ("sfda", "sfda", "LIMIT", 100), ("tmi", "tmi", "PAIRS", 2000)],
)  # fmt: skip
def test_many_examples_are_drawn_from_with_the_seed(
    name: str, module: str, limit: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = methods.get("rank", name)
    features, labels = data(rows=300)
    whole = score(features, labels, seed=1)
    monkeypatch.setattr(sys.modules[f"regraft.rank.scores.{module}"], limit, value)
    first, again, other = (score(features, labels, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len({whole, first, other}) == 3
    assert first == pytest.approx(whole, rel=0.5)


def test_the_memory_of_knn_does_not_grow_with_the_square_of_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = data(rows=3000, columns=4)
    whole = knn(features, labels)
    monkeypatch.setattr(sys.modules["regraft.rank.scores.knn"], "CELLS", 3000 * 10)
    tracemalloc.start()
    assert knn(features, labels) == whole
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20, "1,024 rows of similarities take 23 MiB"


def test_a_draw_holds_the_classes_in_proportion() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    rows = drawn(labels, 50, seed=0, purpose="test")
    assert np.bincount(labels[rows]).tolist() == [30, 15, 5]
    assert np.array_equal(rows, np.unique(rows))
    assert not np.array_equal(rows, drawn(labels, 50, seed=1, purpose="test"))
    assert np.array_equal(drawn(labels, 2000, seed=0, purpose="test"), np.arange(1000))


def dense_evidence(features: np.ndarray, target: np.ndarray) -> float:
    """max over alpha, beta of log N(y; 0, I / beta + F F^T / alpha) per example, by simplex from several starts."""
    kernel, count = features @ features.T, len(target)

    def unlikely(logs: np.ndarray) -> float:
        alpha, beta = np.exp(np.clip(logs, -40, 40))
        covariance = np.eye(count) / beta + kernel / alpha
        determinant = np.linalg.slogdet(covariance)[1]
        return 0.5 * float(determinant + target @ np.linalg.solve(covariance, target) + count * np.log(2 * np.pi))

    options = {"xatol": 1e-6, "fatol": 1e-11, "maxiter": 2000}
    starts = ([0.0, 0.0], [5.0, 2.0], [-3.0, 3.0])
    return -min(minimize(unlikely, start, method="Nelder-Mead", options=options).fun for start in starts) / count


def test_logme_is_the_largest_evidence_of_each_class(case) -> None:  # type: ignore[no-untyped-def]
    features, labels = case
    wanted = [dense_evidence(features, (labels == label).astype(float)) for label in range(int(labels.max()) + 1)]
    assert logme(features, labels) == pytest.approx(np.mean(wanted), abs=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(30, 5), (15, 25)])
def test_logme_of_real_values_is_the_largest_evidence(rows: int, columns: int) -> None:
    draw = np.random.default_rng(2)
    features = draw.normal(size=(rows, columns)) + 0.2
    targets = np.stack([features[:, 0] - features[:, 1] + draw.normal(size=rows), draw.normal(size=rows)], axis=1)
    wanted = [dense_evidence(features, column) for column in targets.T]
    assert logme_regression(features, targets[:, 0]) == pytest.approx(wanted[0], abs=1e-6)
    assert logme_regression(features, targets) == pytest.approx(np.mean(wanted), abs=1e-6)


def test_logme_of_real_values_is_logme_for_one_hot_labels() -> None:
    features, labels = data()
    ready = prepare(features, labels)
    assert logme_regression(ready, np.eye(3)[labels]) == logme_regression(features, np.eye(3)[labels]) == logme(ready)


def test_real_values_in_thousandths_cost_log_1000_each() -> None:
    features, _ = data()
    values = np.random.default_rng(1).normal(size=40)
    assert logme_regression(features, 1e3 * values) == pytest.approx(
        logme_regression(features, values) - np.log(1e3), abs=1e-9
    )


def test_real_values_that_are_zero_are_refused() -> None:
    with pytest.raises(TaskError, match="zero throughout"):
        logme_regression(data()[0], np.zeros(40))
    with pytest.raises(NonFiniteError, match="targets hold NaN"):
        logme_regression(data()[0], np.full(40, np.nan))
