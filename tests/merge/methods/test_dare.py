"""DARE: random drops, exact rescaling, and the two ways of adding up what is left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge

from regraft.merge.kernels import philox
from regraft.merge.methods.dare import dare_linear, dare_ties, last_kept
from regraft.merge.methods.task_arithmetic import task_arithmetic
from regraft.merge.stack import Stack
from regraft.randomness import generator, seed_of


def changed(n: int, shape: tuple[int, ...], seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Inputs and a base whose deltas are whole numbers of 1/8, zero among them."""
    draw = generator(seed, "dare", n)
    base = np.round(draw.standard_normal(shape) * 8) / 8
    return [(base + draw.integers(-4, 5, shape) / 8).astype(np.float32) for _ in range(n)], base.astype(np.float32)


def dropped(inputs: list[np.ndarray], base: np.ndarray, density: object, seed: int = 0) -> np.ndarray:
    """What is left of each delta, float64 [n, *shape]: `dare_linear` of one weight at a time over a base of zero."""
    deltas = [one - base for one in inputs]
    ones = np.eye(len(inputs))
    return np.stack(
        [dare_linear(Stack.of(deltas, np.zeros_like(base), one, seed=seed), density=density) for one in ones]
    )


def test_what_is_kept_is_the_delta_over_the_density_exactly() -> None:
    draw = generator(0, "kept")
    delta = draw.standard_normal(64).astype(np.float32)
    found = dare_linear(Stack.of([delta], np.zeros(64)), density=0.1)
    kept = found != 0
    assert 0 < kept.sum() < 20
    assert np.array_equal(found[kept], (delta[kept].astype(np.float64) * (1 / 0.1)).astype(np.float32))


@pytest.mark.parametrize("density", [0.1, 0.5, 0.8, 0.99])
def test_as_many_are_kept_as_the_density_says(density: float) -> None:
    size = 100_000
    found = dare_linear(Stack.of([np.ones(size)], np.zeros(size)), density=density)
    assert abs((found != 0).sum() - size * density) < 4 * np.sqrt(size * density * (1 - density))
    assert found.mean(dtype=np.float64) == pytest.approx(1.0, abs=4 * np.sqrt((1 / density - 1) / size))


def test_the_share_of_random_words_is_the_density() -> None:
    shares = (last_kept(np.array([1.0, 0.5, 0.25, 0.3])).astype(np.float64) + 1) / 2**32
    np.testing.assert_allclose(shares, [1.0, 0.5, 0.25, 0.3], atol=2**-32, rtol=0)


def test_a_density_of_one_is_task_arithmetic() -> None:
    inputs, base = changed(3, (40, 7))
    stack = Stack.of(inputs, base, [0.5, 1.0, -0.3])
    assert np.array_equal(dare_linear(stack, density=1.0, scale=0.7), task_arithmetic(stack, scale=0.7))


def test_inputs_are_dropped_apart_from_each_other() -> None:
    ones = [np.ones(1000, np.float32)] * 2
    first, second = dropped(ones, np.zeros(1000, np.float32), 0.5) != 0
    assert 380 < (first == second).sum() < 620


def test_drops_follow_seed_and_name_alone() -> None:
    inputs, base = changed(2, (300,))

    def merged(**changes: object) -> np.ndarray:
        return dare_linear(Stack.of(inputs, base, **changes))  # type: ignore[arg-type]

    assert np.array_equal(merged(), merged())
    assert not np.array_equal(merged(), merged(seed=1))
    assert not np.array_equal(merged(), merged(name="another"))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=st.integers(1, 4), seed=st.integers(0, 10**6), scale=st.sampled_from([1.0, 0.3]), normalize=st.booleans())
def test_linear_adds_up_what_is_left(n: int, seed: int, scale: float, normalize: bool) -> None:
    inputs, base = changed(n, (3, 7), seed)
    weights, density = np.linspace(0.5, 2, n), np.linspace(0.3, 0.9, n)
    left = dropped(inputs, base, density, seed)
    expected = base + scale * np.einsum("i,i...->...", weights / (weights.sum() if normalize else 1), left)
    stack = Stack.of(inputs, base, weights, seed=seed)
    found = dare_linear(stack, density=density, scale=scale, normalize=normalize)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_ties_with_mass_and_count_is_pefts(n: int, seed: int) -> None:
    inputs, base = changed(n, (4, 6), seed)
    weights = np.linspace(0.5, 2, n)
    left = torch.from_numpy(dropped(inputs, base, 0.5, seed)).double()
    mask = calculate_majority_sign_mask(left, method="total")
    expected = base + disjoint_merge(left * torch.from_numpy(weights)[:, None, None], mask).numpy()
    found = dare_ties(Stack.of(inputs, base, weights, seed=seed), density=0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(1, 5), seed=st.integers(0, 10**6), divide=st.sampled_from(["weight", "none"]))
def test_ties_with_weighted_election_is_mergekits(n: int, seed: int, divide: str) -> None:
    inputs, base = changed(n, (5,), seed)
    weights = np.array([0.5, 2.0, 1.0, -0.25, 0.125])[:n]
    left = dropped(inputs, base, 0.5, seed).astype(np.float64)
    expected = base.astype(np.float64)
    for at in range(5):
        votes = [(weight * value, weight) for weight, value in zip(weights, left[:, at], strict=True) if value]
        plus = sum(vote for vote, _ in votes) >= 0
        agreeing = [(vote, weight) for vote, weight in votes if (vote > 0) == plus]
        divisor = sum(weight for _, weight in agreeing) if divide == "weight" else 1.0
        expected[at] += 0.9 * sum(vote for vote, _ in agreeing) / divisor if agreeing and divisor else 0.0
    stack = Stack.of(inputs, base, weights, seed=seed)
    found = dare_ties(stack, density=0.5, elect="weighted", divide=divide, scale=0.9)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_both_drop_the_same() -> None:
    inputs, base = changed(1, (500,))
    assert np.array_equal(dare_ties(Stack.of(inputs, base)), dare_linear(Stack.of(inputs, base)))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 3), size=st.integers(1, 300), seed=st.integers(0, 10**6), density=st.sampled_from([0.1, 0.5, 0.9])
)
def test_what_is_kept_is_drawn_by_seed_tensor_input_and_element(n: int, size: int, seed: int, density: float) -> None:
    """Element i of input k is kept where word i of the Philox stream of (seed, "dare", name, k) is among the lowest."""
    deltas = np.ones((n, size), np.float32)
    kept = dropped(list(deltas), np.zeros(size, np.float32), density, seed) != 0
    for number in range(n):
        words = np.empty(size, np.uint32)
        philox(words, 0, np.uint64(seed_of(seed, "dare", "tensor", number)))
        assert np.array_equal(kept[number], words < density * 2**32)
