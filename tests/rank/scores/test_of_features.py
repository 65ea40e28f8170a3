"""H-score, TransRate, GBC, PARC, LFC and TMI against loops written from their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.covariance import LedoitWolf

from regraft.errors import TaskError
from regraft.rank.scores import gbc, h_score, h_score_shrunk, lfc, parc, tmi, transrate

EULER = 0.5772156649015329


def class_mean_rows(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.stack([features[labels == label].mean(axis=0) for label in labels])


def naive_h_score(features: np.ndarray, labels: np.ndarray) -> float:
    covariance = np.atleast_2d(np.cov(features, rowvar=False))
    between = np.atleast_2d(np.cov(class_mean_rows(features, labels), rowvar=False))
    return float(np.trace(np.linalg.pinv(covariance, rcond=1e-10) @ between))


def test_h_score_is_its_trace(case) -> None:  # type: ignore[no-untyped-def]
    assert h_score(*case) == pytest.approx(naive_h_score(*case), rel=1e-7)


def test_h_score_says_nothing_where_columns_outnumber_rows() -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(60) % 5
    assert h_score(draw.normal(size=(60, 59)), labels) == pytest.approx(4.0)
    assert h_score(draw.normal(size=(60, 400)), labels) == pytest.approx(4.0)
    assert h_score(draw.normal(size=(60, 8)), labels) < 1.5


def test_the_shrunk_h_score_is_its_trace(case) -> None:  # type: ignore[no-untyped-def]
    features, labels = case
    found = LedoitWolf().fit(features)
    between = np.cov(class_mean_rows(features, labels), rowvar=False, bias=True)
    wanted = np.trace(np.linalg.inv(found.covariance_) @ ((1 - found.shrinkage_) * between))
    assert 0 < found.shrinkage_ < 1
    assert h_score_shrunk(features, labels) == pytest.approx(wanted, rel=1e-7)


def test_the_shrunk_h_score_tells_features_apart_where_columns_outnumber_rows() -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(60) % 5
    noise = draw.normal(size=(60, 400))
    assert h_score_shrunk(noise + 2 * np.eye(400)[labels], labels) > h_score_shrunk(noise, labels) + 0.01


def naive_transrate(features: np.ndarray, labels: np.ndarray, epsilon: float) -> float:
    centred = features - features.mean(axis=0)

    def rate(points: np.ndarray) -> float:
        inside = np.eye(points.shape[1]) + points.T @ points / (len(points) * epsilon)
        return 0.5 * math.log(np.linalg.det(inside))

    classes = sorted(set(labels.tolist()))
    return rate(centred) - sum(rate(centred[labels == label]) for label in classes) / len(classes)


@pytest.mark.parametrize("epsilon", [1e-4, 0.5])
def test_transrate_is_the_difference_of_coding_rates(case, epsilon: float) -> None:  # type: ignore[no-untyped-def]
    assert transrate(*case, epsilon=epsilon) == pytest.approx(naive_transrate(*case, epsilon), rel=1e-9)


def naive_gbc(features: np.ndarray, labels: np.ndarray, gaussian: str, dimensions: int) -> float:
    """Dense covariance matrices, their determinants and inverses, pair by pair."""
    centred = features - features.mean(axis=0)
    _, s, vh = np.linalg.svd(centred, full_matrices=False)
    points = centred @ vh[: min(dimensions, int((s > 1e-5 * s[0]).sum()))].T
    floor = 1e-4 * (points**2).mean()
    total = 0.0
    for one in set(labels.tolist()):
        for other in set(labels.tolist()) - {one}:
            covariances = []
            for label in (one, other):
                variances = np.maximum(points[labels == label].var(axis=0), floor)
                flat = np.full_like(variances, variances.mean()) if gaussian == "spherical" else variances
                covariances.append(np.diag(flat))
            middle = (covariances[0] + covariances[1]) / 2
            apart = points[labels == one].mean(axis=0) - points[labels == other].mean(axis=0)
            logs = [np.linalg.slogdet(matrix)[1] for matrix in (middle, *covariances)]
            distance = apart @ np.linalg.inv(middle) @ apart / 8 + 0.5 * (logs[0] - (logs[1] + logs[2]) / 2)
            total += math.exp(-distance)
    return -total


@pytest.mark.parametrize(("gaussian", "dimensions"), [("spherical", 64), ("spherical", 3), ("diagonal", 64)])
def test_gbc_is_the_sum_over_pairs(case, gaussian, dimensions: int) -> None:  # type: ignore[no-untyped-def]
    wanted = naive_gbc(*case, gaussian, dimensions)
    assert gbc(*case, gaussian=gaussian, dimensions=dimensions) == pytest.approx(wanted, rel=1e-7)


def test_gbc_counts_the_spread_of_every_dimension() -> None:
    # Two classes with one mean and variances 1 and 4 in d dimensions: exp(-B) = (4 / 6.25)^(d / 4) each way.
    cross = np.concatenate([np.eye(6), -np.eye(6)]) * np.sqrt(6)
    features = np.concatenate([cross, 2 * cross])
    assert gbc(features, np.repeat([0, 1], 12)) == pytest.approx(-2 * (4 / 6.25) ** (6 / 4))


def naive_parc(features: np.ndarray, labels: np.ndarray) -> float:
    spread = features.std(axis=0)
    standard = (features - features.mean(axis=0)) / np.where(spread > 1e-12, spread, 1.0)
    target = np.eye(int(labels.max()) + 1)[labels]
    lower = [(i, j) for i in range(len(labels)) for j in range(i)]
    left = [round(1 - float(np.corrcoef(standard[i], standard[j])[0, 1]), 9) for i, j in lower]
    right = [round(1 - float(np.corrcoef(target[i], target[j])[0, 1]), 9) for i, j in lower]
    return float(spearmanr(left, right).statistic)


def test_parc_is_spearman_over_pairs(case) -> None:  # type: ignore[no-untyped-def]
    assert parc(*case) == pytest.approx(naive_parc(*case), abs=1e-9)


def test_parc_of_one_column_or_of_classes_of_one_example_is_zero() -> None:
    assert parc(np.arange(6.0)[:, None], [0, 1] * 3) == 0.0
    assert parc(np.random.default_rng(0).normal(size=(5, 4)), np.arange(5)) == 0.0


def naive_lfc(features: np.ndarray, labels: np.ndarray) -> float:
    kernel = features @ features.T
    same = np.where(labels[:, None] == labels[None], 1.0, -1.0)
    return float(np.corrcoef(kernel.ravel(), same.ravel())[0, 1])


def test_lfc_is_the_correlation_of_the_kernels(case) -> None:  # type: ignore[no-untyped-def]
    assert lfc(*case) == pytest.approx(naive_lfc(*case), rel=1e-8)


def test_lfc_keeps_its_digits_beside_a_large_mean() -> None:
    labels = np.arange(40) % 2
    features = np.random.default_rng(0).normal(size=(40, 6)) + np.eye(6)[labels] + 1e3
    exact = naive_lfc(features.astype(np.longdouble), labels)
    assert lfc(features, labels) == pytest.approx(exact, rel=1e-6)


def test_lfc_sees_where_the_features_are() -> None:
    features = np.random.default_rng(0).normal(size=(30, 5))
    labels = np.arange(30) % 3
    assert abs(lfc(features + 3.0, labels) - lfc(features, labels)) > 1e-3


def psi(whole: int) -> float:
    return -EULER + sum(1.0 / i for i in range(1, whole))


def naive_tmi(features: np.ndarray, labels: np.ndarray, k: int) -> float:
    total, counted = 0.0, 0
    for label in set(labels.tolist()):
        points = features[labels == label]
        n, near = len(points), min(k, len(points) - 1)
        if n < 2:
            continue
        logs = 0.0
        for i in range(n):
            distances = sorted(max(abs(points[i] - points[j])) for j in range(n) if j != i)
            logs += math.log(2 * distances[near - 1])
        total += n * (psi(n) - psi(near) + features.shape[1] * logs / n)
        counted += n
    return total / counted


@pytest.mark.parametrize("k", [1, 3])
def test_tmi_is_the_conditional_entropy_by_neighbours(case, k: int) -> None:  # type: ignore[no-untyped-def]
    assert tmi(*case, k=k) == pytest.approx(naive_tmi(*case, k), rel=1e-9)


def test_tmi_estimates_the_entropy_of_a_cube() -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(1200) % 2
    sides = np.where(labels[:, None] == 0, 3.0, 0.5)
    wanted = (math.log(3.0**2) + math.log(0.5**2)) / 2
    assert tmi(draw.uniform(size=(1200, 2)) * sides, labels) == pytest.approx(wanted, abs=0.1)


def test_equal_examples_leave_tmi_finite_and_low() -> None:
    labels = np.arange(20) % 2
    assert tmi(np.ones((20, 3)), labels) < tmi(np.random.default_rng(0).normal(size=(20, 3)), labels) - 50


def test_tmi_needs_a_class_of_two() -> None:
    with pytest.raises(TaskError, match="Every class has one example"):
        tmi(np.eye(4), [0, 1, 2, 3])


@pytest.mark.parametrize("score", [gbc, h_score, h_score_shrunk, lfc, parc, transrate])
def test_features_without_any_spread_get_a_number(score) -> None:  # type: ignore[no-untyped-def]
    assert np.isfinite(score(np.full((8, 3), 2.0), np.arange(8) % 2))


def test_a_constant_of_many_rows_is_worth_nothing_either() -> None:
    """The mean of 100,000 times 0.1 is off by 2e-12 of it."""
    labels = np.arange(100_000) % 2
    constant = np.full((100_000, 1), 0.1)
    assert h_score(constant, labels) == h_score_shrunk(constant, labels) == 0.0
    other = np.random.default_rng(0).normal(size=(100_000, 1)) + labels[:, None]
    assert h_score(np.hstack([other, constant]), labels) == pytest.approx(h_score(other, labels), rel=1e-9)


def test_a_constant_is_worth_nothing_whatever_it_rounds_to() -> None:
    """The mean of ten times 0.1 is not 0.1: what is left of it must not be taken for the classes."""
    labels = np.arange(10) % 2
    for value in (0.1, 0.3, 1e8 + 0.1):
        features = np.full((10, 3), value)
        assert h_score(features, labels) == h_score_shrunk(features, labels) == 0.0
        assert lfc(features, labels) == 0.0
