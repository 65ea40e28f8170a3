"""Model Stock: the angle between the deltas decides how far to go from the base to the average."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.merge.methods.model_stock import interpolation_ratio, model_stock
from regraft.merge.stack import Stack
from regraft.randomness import generator


def ratio(deltas: np.ndarray) -> float:
    """t from the pairs' angles, one after another; float64."""
    cosines = []
    for first in range(len(deltas)):
        for second in range(first):
            lengths = np.linalg.norm(deltas[first]) * np.linalg.norm(deltas[second])
            cosines.append(deltas[first] @ deltas[second] / lengths if lengths else 0.0)
    mean = sum(cosines) / len(cosines)
    return max(0.0, len(deltas) * mean / (1 + (len(deltas) - 1) * mean)) if mean > 0 else 0.0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(2, 5), size=st.integers(1, 30), seed=st.integers(0, 10**6), shared=st.sampled_from([0.0, 0.5, 3.0])
)
def test_it_goes_from_the_base_towards_the_average(n: int, size: int, seed: int, shared: float) -> None:
    draw = generator(seed, "stock")
    base = draw.standard_normal(size).astype(np.float32)
    common = shared * draw.standard_normal(size)
    inputs = [(base + 0.1 * (common + draw.standard_normal(size))).astype(np.float32) for _ in range(n)]
    t = ratio(np.stack([one.astype(np.float64) - base for one in inputs]))
    expected = t * np.mean(np.stack(inputs).astype(np.float64), axis=0) + (1 - t) * base
    np.testing.assert_allclose(model_stock(Stack.of(inputs, base)), expected, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize(("degrees", "t"), [(0, 1.0), (60, 2 / 3), (90, 0.0), (120, 0.0)])
def test_the_ratio_of_two_by_hand(degrees: float, t: float) -> None:
    angle = np.radians(degrees)
    deltas = np.array([[2.0, 0.0], [3 * np.cos(angle), 3 * np.sin(angle)]])
    assert interpolation_ratio(deltas @ deltas.T) == pytest.approx(t, abs=1e-15)


def test_more_inputs_at_one_angle_are_trusted_more() -> None:
    def gram(count: int) -> np.ndarray:
        return np.full((count, count), 0.5) + 0.5 * np.eye(count)

    assert [interpolation_ratio(gram(count)) for count in (2, 3, 9)] == pytest.approx([2 / 3, 3 / 4, 9 / 10])


def test_equal_inputs_come_back_where_they_are_zero_and_the_base_is_not() -> None:
    base, one = np.array([0.7, -3.0, 0.1], np.float32), np.array([0.0, 1.1, 0.3], np.float32)
    assert np.array_equal(model_stock(Stack.of([one, one, one], base)), one)


def test_an_input_that_changed_nothing_keeps_two_at_the_base() -> None:
    base, one = np.ones(4, np.float32), np.arange(4, dtype=np.float32)
    assert np.array_equal(model_stock(Stack.of([one, base], base)), base)


def test_every_tensor_has_a_ratio_of_its_own() -> None:
    base = np.zeros(2, np.float32)
    alike = model_stock(Stack.of([np.array([1.0, 0.0]), np.array([2.0, 0.0])], base))
    across = model_stock(Stack.of([np.array([1.0, 0.0]), np.array([0.0, 2.0])], base))
    assert alike.tolist() == [1.5, 0.0]
    assert across.tolist() == [0.0, 0.0]
