"""SCE: select by variance, calculate coefficients from what is selected, erase the minority."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.merge.methods.sce import sce
from regraft.merge.stack import GRAIN, Stack
from regraft.randomness import generator


def reference(inputs: list[np.ndarray], base: np.ndarray, density: float, scale: float) -> np.ndarray:
    """Element by element in float64; of equal spreads (as float32) the first is kept."""
    deltas = np.stack([np.asarray(one, np.float64) - base for one in inputs])
    spread = deltas.std(axis=0).astype(np.float32)
    differ = np.count_nonzero(spread)
    count = deltas.shape[1] if density >= 1 else max(min(1, differ), int(density * differ)) if density else 0
    chosen = sorted(range(deltas.shape[1]), key=lambda at: (-spread[at], at))[:count]
    energy = [sum(one[at] ** 2 for at in chosen) for one in deltas]
    out = base.astype(np.float64)
    for at in chosen:
        plus = deltas[:, at].sum() >= 0
        agreeing = [(c, d) for c, d in zip(energy, deltas[:, at], strict=True) if d and (d > 0) == plus and c]
        if agreeing:
            out[at] += scale * sum(c * d for c, d in agreeing) / sum(c for c, _ in agreeing)
    return out


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    n=st.integers(2, 4),
    size=st.integers(0, 24),
    density=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_it_selects_calculates_and_erases(n: int, size: int, density: float, seed: int) -> None:
    draw = generator(seed, "sce")
    base = (draw.integers(-8, 9, size) / 4).astype(np.float32)
    inputs = [(base + draw.integers(-4, 5, size) / 8).astype(np.float32) for _ in range(n)]
    found = sce(Stack.of(inputs, base), density=density, scale=0.8)
    np.testing.assert_allclose(found, reference(inputs, base, density, 0.8), rtol=1e-6, atol=1e-6)


def test_counts_are_exact_over_many_blocks() -> None:
    size = 2 * GRAIN + 99
    draw = generator(0, "sce blocks")
    inputs = [(draw.integers(1, 4, size) / 8).astype(np.float32) for _ in range(2)]
    found = sce(Stack.of(inputs, np.zeros(size)), density=0.3)
    differ = int((inputs[0] != inputs[1]).sum())
    assert (found != 0).sum() == int(0.3 * differ)
    assert not (found != 0)[inputs[0] == inputs[1]].any()


def test_coefficients_do_not_depend_on_the_size_of_the_changes() -> None:
    draw = generator(0, "sce small")
    deltas = [draw.standard_normal(200).astype(np.float32), 3 * draw.standard_normal(200).astype(np.float32)]
    large = sce(Stack.of(deltas, np.zeros(200)), density=0.5)
    small = sce(Stack.of([one * np.float32(2.0**-60) for one in deltas], np.zeros(200)), density=0.5)
    assert np.array_equal(small, large * np.float32(2.0**-60))


def test_the_larger_change_has_the_larger_coefficient() -> None:
    found = sce(Stack.of([np.array([1.0, 0.0]), np.array([3.0, 1.0])], np.zeros(2)), density=1.0)
    assert found == pytest.approx([(1 * 1 + 10 * 3) / 11, 1.0])


def test_the_minority_is_erased() -> None:
    inputs = [np.array([1.0]), np.array([2.0]), np.array([-2.5])]
    found = sce(Stack.of(inputs, np.zeros(1)), density=1.0)
    assert found == pytest.approx([(1 * 1 + 4 * 2) / 5])


def test_equal_inputs_select_nothing_unless_everything_is_kept() -> None:
    one, base = np.array([1.0, 2.0], np.float32), np.zeros(2, np.float32)
    assert np.array_equal(sce(Stack.of([one, one], base), density=0.9), base)
    assert np.array_equal(sce(Stack.of([one, one], base), density=1.0), one)


@pytest.mark.parametrize(("density", "kept"), [(0.0, 0), (0.01, 1), (0.19, 1), (0.2, 2), (0.59, 5), (0.99, 9)])
def test_a_share_is_rounded_down_but_one_is_kept(density: float, kept: int) -> None:
    """Of ten elements that differ, among twelve."""
    first = np.arange(12, dtype=np.float32)
    second = np.where(first < 10, first + 1 + first, first).astype(np.float32)
    found = sce(Stack.of([first, second], np.zeros(12)), density=density)
    assert (found != 0).sum() == kept
