"""The scores against brute force: dense evidence, refits without each example, loops over neighbours."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from regraft.errors import NonFiniteError, TaskError
from regraft.rank import knn, left_out_correct, linear_probe, logme
from regraft.rank.scores import checked, spectrum
from regraft.rank.scores.probe import STRENGTHS

SHAPES = ((40, 8), (30, 60))


def data(rows: int, columns: int, seed: int, signal: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(3), draw.integers(0, 3, rows - 3)])
    features = draw.normal(size=(rows, columns)) + 0.2
    features[:, :3] += signal * np.eye(3)[labels]
    return features, labels


def dense_evidence(features: np.ndarray, target: np.ndarray) -> float:
    """max over log alpha, log beta of log N(y; 0, I / beta + F F^T / alpha), per example, by simplex from many starts."""
    kernel = features @ features.T

    def negative(logs: np.ndarray) -> float:
        alpha, beta = np.exp(np.clip(logs, -40, 40))
        covariance = np.eye(len(target)) / beta + kernel / alpha
        _, determinant = np.linalg.slogdet(covariance)
        return 0.5 * float(determinant + target @ np.linalg.solve(covariance, target) + len(target) * np.log(2 * np.pi))

    options = {"xatol": 1e-6, "fatol": 1e-11, "maxiter": 2000}
    starts = ([0.0, 0.0], [5.0, 2.0], [-3.0, 3.0])
    return -min(minimize(negative, start, method="Nelder-Mead", options=options).fun for start in starts) / len(target)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_logme_is_the_largest_evidence(rows: int, columns: int, scale: float) -> None:
    features, labels = data(rows, columns, seed=1)
    wanted = np.mean([dense_evidence(scale * features, (labels == label).astype(float)) for label in range(3)])
    assert logme(scale * features, labels) == pytest.approx(wanted, abs=1e-7)


def test_logme_of_noise_is_the_largest_evidence() -> None:
    features, labels = data(30, 60, seed=0, signal=0.0)
    wanted = np.mean([dense_evidence(features, (labels == label).astype(float)) for label in range(3)])
    assert logme(features, labels) == pytest.approx(wanted, abs=1e-7)


@pytest.mark.parametrize("columns", [8, 60])
def test_zero_columns_do_not_move_logme(columns: int) -> None:
    features, labels = data(30, columns, seed=2)
    padded = np.concatenate([features, np.zeros((30, 1000))], axis=1)
    assert logme(padded, labels) == pytest.approx(logme(features, labels), abs=1e-9)


def test_logme_of_labels_without_noise_is_finite_and_high() -> None:
    labels = np.arange(30) % 3
    assert np.isfinite(exact := logme(np.eye(3)[labels], labels))
    assert exact > logme(*data(30, 8, seed=0)) + 1


def test_logme_of_features_that_are_all_zero_is_that_of_noise_alone() -> None:
    labels = np.arange(30) % 3
    # y ~ N(0, I / beta) with beta = N / |y|^2.
    wanted = 0.5 * np.log(30 / (2 * np.pi * 10)) - 0.5
    assert logme(np.zeros((30, 4)), labels) == pytest.approx(wanted)


def brute_force_probe(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Ridge with an unpenalised intercept, fitted again without each example, for the best of the strengths."""
    count, columns = features.shape
    targets = np.eye(int(labels.max()) + 1)[labels]
    scale = ((features - features.mean(axis=0)) ** 2).sum() / count
    best = np.zeros(count, dtype=bool)
    for strength in STRENGTHS:
        right = np.zeros(count, dtype=bool)
        for out in range(count):
            rest = np.arange(count) != out
            design = np.concatenate([features[rest], np.ones((count - 1, 1))], axis=1)
            penalty = strength * scale * np.diag([*np.ones(columns), 0.0])
            solution = np.linalg.solve(design.T @ design + penalty, design.T @ targets[rest])
            right[out] = np.argmax(np.append(features[out], 1.0) @ solution) == labels[out]
        if right.sum() > best.sum():
            best = right
    return best


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_probe_is_refitting_without_each_example(rows: int, columns: int, seed: int) -> None:
    features, labels = data(rows, columns, seed)
    wanted = brute_force_probe(features, labels)
    assert 0.3 < wanted.mean() < 1.0
    assert np.array_equal(left_out_correct(features, labels), wanted)
    assert linear_probe(features, labels) == wanted.mean()


def test_a_class_of_one_example_is_never_predicted_without_it() -> None:
    features, labels = data(40, 8, seed=3, signal=5.0)
    correct = left_out_correct(np.concatenate([features, features[:1] + 1]), np.append(labels, 3))
    assert not correct[-1]
    assert correct[:-1].mean() > 0.9


def test_the_probe_of_constant_features_says_the_most_frequent_class() -> None:
    labels = np.array([0] * 6 + [1] * 3)
    assert left_out_correct(np.ones((9, 4)), labels).tolist() == [True] * 6 + [False] * 3


def naive_knn(features: np.ndarray, labels: np.ndarray, k: int) -> float:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    right = 0
    for i in range(len(unit)):
        near = sorted((j for j in range(len(unit)) if j != i), key=lambda j: -float(unit[i] @ unit[j]))[:k]
        votes = {label: sum(1 + float(unit[i] @ unit[j]) for j in near if labels[j] == label) for label in set(labels)}
        right += max(votes, key=votes.__getitem__) == labels[i]
    return right / len(unit)


@pytest.mark.parametrize("k", [1, 5, 10, 100])
def test_knn_is_the_naive_loop(k: int) -> None:
    features, labels = data(60, 8, seed=4)
    assert knn(features, labels, k=k) == pytest.approx(naive_knn(features, labels, min(k, 59)))


def test_knn_in_blocks_is_knn(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = data(60, 8, seed=5)
    whole = knn(features, labels)
    monkeypatch.setattr(sys.modules["regraft.rank.scores.knn"], "BLOCK", 7)
    assert knn(features, labels) == whole


def test_equal_neighbours_and_equal_votes_share_the_credit() -> None:
    # All rows are alike: whatever k is, everyone votes, and the classes have 3 and 2 votes, or 2 and 3.
    labels = np.array([0, 0, 0, 1, 1, 1])
    assert knn(np.ones((6, 2)), labels, k=1) == 0.0
    # One class has 1 of 1 other votes left, the other 2: a tie for the two, a win against the one.
    assert knn(np.ones((3, 2)), np.array([0, 0, 1]), k=1) == pytest.approx((0.5 + 0.5 + 0.0) / 3)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from(["knn", "linear_probe", "logme"]))
def test_the_order_of_rows_and_the_numbers_of_classes_change_nothing(seed: int, name: str) -> None:
    score = {"knn": knn, "linear_probe": linear_probe, "logme": logme}[name]
    draw = np.random.default_rng(seed)
    features, labels = data(int(draw.integers(6, 40)), int(draw.integers(3, 50)), seed)
    order = draw.permutation(len(labels))
    assert score(features[order], (labels * 7 + 3)[order]) == pytest.approx(score(features, labels), abs=1e-7)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_the_spectrum_is_that_of_the_singular_value_decomposition(rows: int, columns: int) -> None:
    features, _ = data(rows, columns, seed=6)
    found = spectrum(features)
    u, s, _ = np.linalg.svd(features, full_matrices=False)
    assert np.allclose(np.sort(found.squares)[::-1], s**2)
    assert np.allclose(found.u @ np.diag(found.squares) @ found.u.T, u @ np.diag(s**2) @ u.T)


def test_labels_are_numbered_in_the_order_of_their_first_example() -> None:
    _, labels = checked(np.zeros((4, 1)), np.array([9, 2, 9, 5]))
    assert labels.tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize("score", [knn, linear_probe, logme])
def test_what_cannot_be_scored_is_refused(score) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TaskError, match=r"shape \(3,\) with labels of shape \(2,\)"):
        score(np.zeros(3), [0, 1])
    with pytest.raises(TaskError, match="D at least 1"):
        score(np.zeros((2, 0)), [0, 1])
    with pytest.raises(TaskError, match="at least two classes"):
        score(np.zeros((2, 3)), [1, 1])
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        score(np.array([[0.0], [np.nan]]), [0, 1])
