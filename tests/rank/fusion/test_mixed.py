"""The mixed model against the normal distribution of the observations written out, N x N."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from regraft.errors import NonFiniteError
from regraft.rank.fusion import mixed
from regraft.rank.fusion.mixed import fit


def example(seed: int, groups: int = 4, each: int = 6, numbers: int = 2) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """A mean, groups with an effect of their own, and numbers with a slope."""
    rng = np.random.default_rng(seed)
    levels = np.repeat(np.arange(groups), each)
    design = np.concatenate(
        [np.ones((groups * each, 1)), np.eye(groups)[levels], rng.normal(size=(groups * each, numbers))], axis=1
    )
    effects = np.concatenate([[2.0], rng.normal(0, 1.5, groups), rng.normal(0, 0.7, numbers)])
    return design, design @ effects + rng.normal(0, 0.5, len(design)), [1, groups, numbers]


def covariance_of_values(design: np.ndarray, blocks: list[int], variances: np.ndarray) -> np.ndarray:
    return design @ np.diag(np.repeat(variances, blocks)) @ design.T


@given(st.integers(0, 10**6))
def test_evidence_and_prediction_are_those_of_the_whole_normal_distribution(seed: int) -> None:
    design, target, blocks = example(seed)
    known, new = slice(0, 18), slice(18, 24)  # the last group was never seen
    found = fit(design[known], target[known], blocks, fixed=[100.0])
    between = covariance_of_values(design, blocks, np.array(found.variances))
    observed = between[known, known] + found.noise * np.eye(18)
    assert found.evidence == pytest.approx(multivariate_normal(np.zeros(18), observed).logpdf(target[known]), rel=1e-6)
    gain = np.linalg.solve(observed, between[known, new]).T
    mean, covariance = found.predict(design[new])
    np.testing.assert_allclose(mean, gain @ target[known], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(covariance, between[new, new] - gain @ between[known, new], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_variances_are_better(seed: int) -> None:
    design, target, blocks = example(seed)
    found = fit(design, target, blocks, fixed=[100.0])

    def cost(logs: np.ndarray) -> float:
        variances = np.array([100.0, *np.exp(logs[:2])])
        observed = covariance_of_values(design, blocks, variances) + np.exp(logs[2]) * np.eye(len(target))
        return -float(multivariate_normal(np.zeros(len(target)), observed).logpdf(target)) - 0.5 * logs[:2].sum()

    best = min(
        (
            minimize(cost, start, method="Nelder-Mead", options={"maxiter": 2000})
            for start in (np.zeros(3), -np.ones(3))
        ),
        key=lambda one: one.fun,
    )
    assert cost(np.log([*found.variances[1:], found.noise])) <= best.fun + 1e-3


@given(st.integers(0, 10**6), st.booleans())
def test_known_variances_are_part_of_the_normal_distribution(seed: int, equal: bool) -> None:
    design, target, blocks = example(seed)
    sampling = np.random.default_rng(seed).uniform(0, 3, len(target)) * (1.0 if not equal else 0.0) + equal * 0.4
    known, new = slice(0, 18), slice(18, 24)
    found = fit(design[known], target[known], blocks, fixed=[100.0], sampling=sampling[known])
    between = covariance_of_values(design, blocks, np.array(found.variances))
    observed = between[known, known] + np.diag(found.noise + sampling[known])
    assert found.evidence == pytest.approx(multivariate_normal(np.zeros(18), observed).logpdf(target[known]), rel=1e-6)
    gain = np.linalg.solve(observed, between[known, new]).T
    mean, covariance = found.predict(design[new])
    np.testing.assert_allclose(mean, gain @ target[known], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(covariance, between[new, new] - gain @ between[known, new], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_no_other_variances_are_better_beside_known_ones(seed: int) -> None:
    design, target, blocks = example(seed)
    sampling = np.random.default_rng(seed).uniform(0, 0.5, len(target))
    found = fit(design, target, blocks, fixed=[100.0], sampling=sampling)

    def cost(logs: np.ndarray) -> float:
        variances = np.array([100.0, *np.exp(logs[:2])])
        observed = covariance_of_values(design, blocks, variances) + np.diag(np.exp(logs[2]) + sampling)
        return -float(multivariate_normal(np.zeros(len(target)), observed).logpdf(target)) - 0.5 * logs.sum()

    best = min(
        (
            minimize(cost, start, method="Nelder-Mead", options={"maxiter": 2000})
            for start in (np.zeros(3), -np.ones(3))
        ),
        key=lambda one: one.fun,
    )
    assert cost(np.log([*found.variances[1:], found.noise])) <= best.fun + 1e-3


def test_with_flat_priors_it_is_weighted_least_squares() -> None:
    """Meta-regression: slopes of studies, each weighed by 1 / (between-study + its own variance)."""
    rng = np.random.default_rng(5)
    design = np.column_stack([np.ones(20), rng.normal(size=20)])
    sampling = rng.uniform(0.01, 4.0, 20)
    target = design @ [1.0, -2.0] + rng.normal(size=20) * np.sqrt(0.2 + sampling)
    found = fit(design, target, [2], fixed=[1e9], sampling=sampling)
    root = 1 / np.sqrt(found.noise + sampling)
    oracle, *_ = np.linalg.lstsq(design * root[:, None], target * root, rcond=None)
    np.testing.assert_allclose(found.mean, oracle, rtol=1e-6)
    np.testing.assert_allclose(found.covariance, np.linalg.inv((design.T * root**2) @ design), rtol=1e-5)
    # The moment estimate of DerSimonian and Laird (1986), for regression (Jackson et al. 2014): of the same size.
    plain = np.diag(1 / sampling)
    hat = plain - plain @ design @ np.linalg.inv(design.T @ plain @ design) @ design.T @ plain
    moment = max(0.0, (target @ hat @ target - (20 - 2)) / np.trace(hat))
    assert found.noise == pytest.approx(moment, abs=0.5)


def test_a_large_table_whose_zeros_are_left_out_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    design, target, blocks = example(7)
    sampling = np.linspace(0, 1, len(target))
    one = fit(design, target, blocks, fixed=[100.0], sampling=sampling)
    monkeypatch.setattr(mixed, "DENSE", 0)
    other = fit(design, target, blocks, fixed=[100.0], sampling=sampling)
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-5, atol=1e-7)
    assert one.evidence == pytest.approx(other.evidence)


def test_few_levels_that_happen_to_agree_leave_their_variance_open() -> None:
    design = np.column_stack([np.ones(12), np.eye(3)[np.repeat(np.arange(3), 4)]])
    target = np.tile([1.0, -1.0, 0.5, -0.5], 3)  # every level has the same mean
    assert fit(design, target, [1, 3], fixed=[100.0]).variances[1] > 1e-2


def test_what_explains_nothing_gets_no_variance() -> None:
    rng = np.random.default_rng(0)
    levels = np.repeat(np.arange(50), 6)
    useful = rng.normal(size=300)
    design = np.column_stack([np.ones(300), np.eye(50)[levels], useful])
    found = fit(design, 3.0 * useful + rng.normal(0, 0.1, 300), [1, 50, 1], fixed=[100.0])
    assert found.variances[1] < 3e-3
    assert found.noise == pytest.approx(0.01, rel=0.3)


def test_scaling_the_target_scales_the_prediction() -> None:
    design, target, blocks = example(3)
    one, ten = fit(design, target, blocks), fit(design, 10 * target, blocks)
    np.testing.assert_allclose(10 * one.mean, ten.mean, rtol=1e-4, atol=1e-6)
    assert ten.noise == pytest.approx(100 * one.noise, rel=1e-3)


def test_bad_input() -> None:
    design, target, blocks = example(0)
    with pytest.raises(NonFiniteError):
        fit(design, np.where(np.arange(24) == 3, np.nan, target), blocks)
    with pytest.raises(ValueError, match="blocks of 3 columns"):
        fit(design, target, [1, 2])
    with pytest.raises(ValueError, match="known variances"):
        fit(design, target, blocks, sampling=np.full(24, -1.0))
    with pytest.raises(NonFiniteError):
        fit(design, target, blocks, sampling=np.full(24, np.inf))
