"""PCB: scores of size and agreement over a whole task vector, the lowest dropped, the rest as weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.merge.methods.pcb import _exp, _halvings, limits_of, pcb, prepare
from regraft.merge.stack import GRAIN, Stack
from regraft.randomness import generator


def reference(deltas: np.ndarray, weights: np.ndarray, density: float) -> np.ndarray:
    """The merged change, float64 [size], from whole task vectors [n, size]: sorted lists, as published."""
    n, size = deltas.shape
    clipped, scores = [], []
    for delta in deltas:
        ordered = sorted(abs(delta))
        low, high = ordered[int(size * 0.0001)], ordered[int(size * (1 - 0.0001) - 1)]
        magnitude = np.clip(abs(delta), low, high)
        normed = (magnitude - low) / (high - low) if high > low else 0.0 * magnitude
        clipped.append(np.sign(delta) * magnitude)
        scores.append((np.exp(n * normed**2) * np.tanh(delta * deltas.sum(axis=0))).astype(np.float32).astype(float))
    shares = []
    for score in scores:
        cut, peak = sorted(score)[int(size * (1 - density))], max(score)
        shares.append((np.maximum(score, cut) - cut) / (peak - cut) if peak > cut else 0.0 * score)
    total = sum(w * share * change for w, share, change in zip(weights, shares, clipped, strict=True))
    return total / np.maximum(sum(shares), 1e-12)


def vectors(n: int, size: int, seed: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    draw = generator(seed, "pcb", n)
    base = draw.standard_normal(size).astype(np.float32)
    inputs = (base + spread * draw.standard_normal((n, size))).astype(np.float32)
    return inputs, base


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 4),
    size=st.integers(1, 40),
    density=st.sampled_from([0.05, 0.1, 0.3, 0.9, 1.0]),
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([1.0, 0.01]),
)
def test_it_balances_as_published(n: int, size: int, density: float, seed: int, spread: float) -> None:
    inputs, base = vectors(n, size, seed, spread)
    weights = np.linspace(0.8, 1.3, n)
    expected = base + 0.7 * reference(inputs.astype(np.float64) - base, weights, density)
    found = pcb(Stack.of(inputs, base, weights), density=density, scale=0.7)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * spread)


def test_scores_below_zero_can_be_the_cut() -> None:
    inputs = np.array([[1.0, 1.0, -2.0, 3.0], [-3.0, -2.0, 1.0, 1.0]], np.float32)  # mostly against each other
    expected = reference(inputs.astype(np.float64), np.ones(2), 0.9)
    np.testing.assert_allclose(pcb(Stack.of(inputs, np.zeros(4)), density=0.9), expected, rtol=1e-5)


def test_globally_the_tensors_of_a_task_are_one_vector() -> None:
    inputs, base = vectors(3, 600, 4)
    parts = [slice(0, 100), slice(100, 101), slice(101, 600)]
    stacks = [Stack.of(inputs[:, part], base[part], name=f"part {part.start}") for part in parts]
    limits = prepare(stacks, density=0.2)
    found = np.concatenate([pcb(stack, density=0.2, prepared=limits) for stack in stacks])
    np.testing.assert_allclose(found, base + reference(inputs.astype(float) - base, np.ones(3), 0.2), atol=1e-5)
    alone = np.concatenate([pcb(stack, density=0.2, scope="tensor") for stack in stacks])
    assert prepare(stacks, density=0.2, scope="tensor") is None
    assert not np.allclose(alone, found, atol=1e-3)


def test_limits_over_many_blocks_are_exact() -> None:
    inputs, base = vectors(2, 2 * GRAIN + 500, 1)
    limits = limits_of([Stack.of(inputs, base)], 0.1)
    size = base.size
    ordered = np.sort(np.abs(inputs - base), axis=1)
    assert np.array_equal(limits.low, ordered[:, int(size * 0.0001)])
    assert np.array_equal(limits.high, ordered[:, int(size * (1 - 0.0001) - 1)])
    expected = base + reference(inputs.astype(np.float64) - base, np.ones(2), 0.1)
    np.testing.assert_allclose(pcb(Stack.of(inputs, base)), expected, atol=2e-5)


def test_what_two_tasks_agree_on_is_kept_and_small_changes_are_not() -> None:
    inputs = np.array([[2.0, 0.1, 2.0, 0.0, 0.1], [2.0, 0.1, -2.0, 0.1, -0.1]], np.float32)
    found = pcb(Stack.of(inputs, np.zeros(5)), density=0.4)
    assert found == pytest.approx([2.0, 0.0, 0.0, 0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 30])
def test_the_exponential_is_exact_to_a_few_last_bits(count: int) -> None:
    exponents = np.linspace(0, count, 500)
    values = exponents / 2.0 ** _halvings(count)
    _exp(values, values.size, _halvings(count))
    np.testing.assert_allclose(values, np.exp(exponents), rtol=1e-13)
