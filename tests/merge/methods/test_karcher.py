"""The Karcher mean: the point of the sphere with the least sum of squared angles, at the inputs' mean size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from regraft.errors import MethodError
from regraft.merge.methods.karcher import karcher
from regraft.merge.methods.slerp import slerp
from regraft.merge.stack import Stack
from regraft.randomness import generator


def tensors(n: int, size: int, seed: int, spread: float = 0.7) -> list[np.ndarray]:
    draw = generator(seed, "karcher")
    centre = draw.standard_normal(size)
    return [
        ((centre + spread * draw.standard_normal(size)) * draw.uniform(0.5, 2)).astype(np.float32) for _ in range(n)
    ]


def logarithms(point: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The tangent vectors at a point that lead to others, float64 [n, size]: in full space, not in coefficients."""
    cosine = np.clip(units @ point, -1, 1)
    across = units - cosine[:, None] * point
    return across / np.linalg.norm(across, axis=1, keepdims=True) * np.arccos(cosine)[:, None]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=st.integers(2, 5), size=st.integers(3, 30), seed=st.integers(0, 10**6))
def test_the_tangent_vectors_to_the_inputs_cancel(n: int, size: int, seed: int) -> None:
    inputs, weights = tensors(n, size, seed), np.linspace(1, 2, n)
    norms = np.array([np.linalg.norm(one.astype(np.float64)) for one in inputs])
    units = np.stack([one.astype(np.float64) / norm for one, norm in zip(inputs, norms, strict=True)])
    found = karcher(Stack.of(inputs, weights=weights)).astype(np.float64)
    assert np.linalg.norm(found) == pytest.approx(weights @ norms / weights.sum(), rel=1e-6)
    pull = weights @ logarithms(found / np.linalg.norm(found), units) / weights.sum()
    assert np.linalg.norm(pull) < 1e-5


def test_no_point_is_nearer() -> None:
    inputs, weights = tensors(4, 3, 1, spread=0.5), np.array([1.0, 2.0, 3.0, 0.5])
    units = np.stack([one / np.linalg.norm(one) for one in inputs]).astype(np.float64)

    def distance(angles: np.ndarray) -> float:
        polar, around = angles
        point = np.array([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)])
        return float(weights @ np.arccos(np.clip(units @ point, -1, 1)) ** 2)

    starts = [(polar, around) for polar in (0.5, 1.5, 2.5) for around in (0.0, 2.0, 4.0)]
    best = min(
        (minimize(distance, start, method="Nelder-Mead", tol=1e-12) for start in starts), key=lambda one: one.fun
    )
    found = karcher(Stack.of(inputs, weights=weights))
    polar, around = np.arccos(found[2] / np.linalg.norm(found)), np.arctan2(found[1], found[0])
    assert distance(np.array([polar, around])) <= best.fun + 1e-6  # the mean is float32


def test_of_two_tensors_of_equal_length_it_is_slerp_halfway() -> None:
    one, other = tensors(2, 50, 2)
    other *= np.linalg.norm(one) / np.linalg.norm(other)
    np.testing.assert_allclose(karcher(Stack.of([one, other])), slerp(Stack.of([one, other])), atol=2e-6)


def test_random_directions_converge_too() -> None:
    draw = generator(0, "far apart")
    inputs = [draw.standard_normal(200).astype(np.float32) for _ in range(6)]
    units = np.stack([one / np.linalg.norm(one) for one in inputs]).astype(np.float64)
    found = karcher(Stack.of(inputs)).astype(np.float64)
    assert np.linalg.norm(logarithms(found / np.linalg.norm(found), units).mean(axis=0)) < 1e-6


def test_a_tensor_of_zeros_counts_in_the_size_alone() -> None:
    one = np.array([3.0, 4.0], np.float32)
    np.testing.assert_allclose(karcher(Stack.of([one, np.zeros(2, np.float32)])), one / 2, rtol=1e-6)
    assert np.array_equal(karcher(Stack.of([np.zeros(2)] * 2)), np.zeros(2))


@pytest.mark.parametrize("other", [[-1.0, -2.0], [-2.0, -4.0]])
@pytest.mark.parametrize("share", [0.5, 0.75])
def test_opposite_tensors_are_averaged(other: list[float], share: float) -> None:
    found = karcher(Stack.of(np.array([[1.0, 2.0], other], np.float32), weights=[4 * share, 4 - 4 * share]))
    np.testing.assert_allclose(found, share * np.array([1.0, 2.0]) + (1 - share) * np.array(other), rtol=1e-6)


def test_single_numbers_of_one_sign_are_averaged() -> None:
    assert karcher(Stack.of([np.float32(2.0), np.float32(4.0)], weights=[1.0, 3.0])) == pytest.approx(3.5)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -0.5]])
def test_weights_must_be_positive(weights: list[float]) -> None:
    with pytest.raises(MethodError, match="expected positive ones"):
        karcher(Stack.of(tensors(2, 3, 0), weights=weights))
