"""DELLA: probabilities by rank within a row, rescaling by each element's own, then sign election."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.errors import MethodError
from regraft.merge.kernels import philox
from regraft.merge.methods.della import della, sorted_by_magnitude
from regraft.merge.stack import Stack
from regraft.randomness import generator, seed_of


def changed(n: int, shape: tuple[int, ...], seed: int = 0, grid: float = 8) -> tuple[list[np.ndarray], np.ndarray]:
    draw = generator(seed, "della", n)
    base = np.round(draw.standard_normal(shape) * 8) / 8
    inputs = [base + np.round(grid * draw.standard_normal(shape)) / grid / 4 for _ in range(n)]
    return [one.astype(np.float32) for one in inputs], base.astype(np.float32)


def pruned(stack: Stack, density: float, epsilon: float) -> np.ndarray:
    """Every delta after MAGPRUNE, float64 [n, *shape], row by row with Python's own sort."""
    left = np.zeros((stack.n, stack.size))
    width = stack.shape[-1] if stack.shape else 1
    for number, delta in enumerate(stack.deltas().reshape(stack.n, -1)):
        bits = np.empty(stack.size, np.uint32)
        philox(bits, 0, np.uint64(seed_of(stack.seed, "della", stack.name, number)))
        for row in range(0, stack.size, width):
            for rank, column in enumerate(sorted(range(width), key=lambda at, row=row: abs(delta[row + at]))):
                where = rank / (width - 1) if width > 1 else 0.5
                chance = density - epsilon + 2 * epsilon * where
                if bits[row + column] / 2**32 < chance:
                    left[number, row + column] = delta[row + column] / chance
    return left.reshape(stack.n, *stack.shape)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 4),
    shape=st.sampled_from([(), (1,), (9,), (4, 6), (2, 3, 5), (3, 1)]),
    seed=st.integers(0, 10**6),
    epsilon=st.sampled_from([0.0, 0.07, 0.25]),
)
def test_it_prunes_elects_and_averages(n: int, shape: tuple[int, ...], seed: int, epsilon: float) -> None:
    inputs, base = changed(n, shape, seed)
    weights = np.linspace(0.5, 2, n)
    stack = Stack.of(inputs, base, weights, seed=seed)
    votes = np.einsum("i,i...->i...", weights, pruned(stack, 0.7, epsilon))
    agrees = np.where(votes.sum(axis=0) >= 0, votes > 0, votes < 0)
    divisor = np.einsum("i,i...->...", weights, agrees)
    expected = base + 1.1 * (votes * agrees).sum(axis=0) / np.where(divisor > 0, divisor, 1)
    found = della(stack, density=0.7, epsilon=epsilon, scale=1.1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_larger_changes_of_a_row_are_kept_more_often_and_the_mean_is_kept() -> None:
    delta = np.tile(np.array([0.3, -0.1, 0.5, -0.2, 0.4], np.float32), (4000, 1))
    found = della(Stack.of([delta], np.zeros_like(delta)), density=0.5, epsilon=0.4)
    share = (found != 0).mean(axis=0)
    np.testing.assert_allclose(share, [0.5, 0.1, 0.9, 0.3, 0.7], atol=0.04)
    np.testing.assert_allclose(found.mean(axis=0), delta[0], atol=0.03)


def test_a_density_of_one_keeps_everything() -> None:
    inputs, base = changed(1, (6, 5))
    assert np.array_equal(della(Stack.of(inputs, base), density=1.0), inputs[0])


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.1), (0.1, 0.2), (0.95, 0.1)])
def test_probabilities_outside_are_refused(density: float, epsilon: float) -> None:
    inputs, base = changed(2, (6, 5))
    with pytest.raises(MethodError, match="expected above 0 and up to 1"):
        della(Stack.of(inputs, base), density=density, epsilon=epsilon)


def test_inputs_may_differ_in_both_numbers() -> None:
    inputs, base = changed(2, (6, 50))
    density, epsilon = np.array([0.3, 1.0]), np.array([0.2, 0.5])
    first, second = np.eye(2)
    assert np.array_equal(della(Stack.of(inputs, base, second), density=density, epsilon=epsilon), inputs[1])
    one = della(Stack.of(inputs, base, first), density=density, epsilon=epsilon)
    assert np.array_equal(one, della(Stack.of(inputs, base, first), density=0.3, epsilon=0.2))


@pytest.mark.parametrize("size", [0, 1, 2, 255, 3000])
@pytest.mark.parametrize("grid", [0.0, 4.0])
def test_the_radix_sort_is_a_stable_sort_by_magnitude(size: int, grid: float) -> None:
    values = generator(size, "radix").standard_normal(size).astype(np.float32)
    if grid:
        values = np.round(values * np.float32(grid)) / np.float32(grid)
    magnitude = np.abs(values)
    packed = (magnitude.view(np.uint32).astype(np.uint64) << np.uint64(32)) | np.arange(size, dtype=np.uint64)
    order = sorted_by_magnitude(packed, np.empty_like(packed), np.empty((4, 256), np.int64)) & np.uint64(2**32 - 1)
    assert np.array_equal(order.astype(np.int64), np.argsort(magnitude, kind="stable"))
