"""Breadcrumbs: exact shares off both ends of every delta."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.merge.methods.breadcrumbs import breadcrumbs
from regraft.merge.methods.task_arithmetic import task_arithmetic
from regraft.merge.stack import GRAIN, Stack
from regraft.randomness import generator


def masked(delta: np.ndarray, beta: float, gamma: float) -> np.ndarray:
    """A delta, float64 [size], in one sorted list: outliers first, then what is kept, then the small ones."""
    size = delta.size
    ranked = sorted(range(size), key=lambda at: (-abs(delta[at]), at))
    top, bottom = int(gamma * size), int(beta * size)
    kept = ranked[top : max(top, size - bottom)]
    out = np.zeros(size)
    out[kept] = delta[kept]
    return out


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 3),
    size=st.integers(0, 30),
    beta=st.sampled_from([0.0, 0.2, 0.5, 0.85, 1.0]),
    gamma=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_the_ends_are_left_out(n: int, size: int, beta: float, gamma: float, seed: int) -> None:
    draw = generator(seed, "breadcrumbs")
    base = draw.integers(-8, 9, size) / 4
    inputs = [base + draw.integers(-3, 4, size) / 8 for _ in range(n)]  # many equal magnitudes
    weights = np.linspace(0.5, 2, n)
    expected = base + 0.3 * sum(w * masked(one - base, beta, gamma) for w, one in zip(weights, inputs, strict=True))
    found = breadcrumbs(Stack.of(inputs, base, weights), beta=beta, gamma=gamma, scale=0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [5, 50, 5000])
def test_without_gamma_and_beta_nothing_is_left_out(size: int) -> None:
    draw = generator(size, "none left out")
    inputs, base = draw.standard_normal((2, size)), draw.standard_normal(size)
    stack = Stack.of(inputs, base, [0.5, 0.7])
    assert np.array_equal(breadcrumbs(stack, beta=0.0, gamma=0.0), task_arithmetic(stack))


def test_counts_are_exact_over_many_blocks_with_many_equal_magnitudes() -> None:
    size = 2 * GRAIN + 777
    delta = generator(0, "ties").integers(-2, 3, size).astype(np.float32)
    found = breadcrumbs(Stack.of([delta], np.zeros(size)), beta=0.7, gamma=0.1)
    assert np.array_equal(found, masked(delta, 0.7, 0.1).astype(np.float32))
    assert (found != 0).sum() == size - int(0.7 * size) - int(0.1 * size)


def test_an_outlier_goes_and_the_next_ones_stay() -> None:
    delta = np.array([0.1, -9.0, 0.2, 3.0, -2.0, 0.0, 0.1, 0.3, -0.2, 1.0], np.float32)
    found = breadcrumbs(Stack.of([delta], np.zeros(10)), beta=0.6, gamma=0.1)
    assert np.array_equal(found, [0, 0, 0, 3, -2, 0, 0, 0, 0, 1])


def test_inputs_may_have_their_own_shares() -> None:
    draw = generator(1, "own shares")
    inputs, base = draw.standard_normal((2, 40)), np.zeros(40)
    found = breadcrumbs(Stack.of(inputs, base), beta=np.array([0.5, 0.0]), gamma=np.array([0.1, 0.0]))
    expected = masked(inputs[0].astype(np.float32), 0.5, 0.1) + inputs[1]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
