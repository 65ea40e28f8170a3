"""Slerp: an arc between two tensors, a line where there is no arc."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.merge.methods.slerp import arc_coefficients, slerp
from regraft.merge.stack import Stack
from regraft.randomness import generator


def pair(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = generator(seed, "slerp")
    return draw.standard_normal(size).astype(np.float32), draw.standard_normal(size).astype(np.float32)


def turned(one: np.ndarray, other: np.ndarray, t: float) -> np.ndarray:
    """In the plane of the two: the part of the second across the first, turned to by t of the angle; float64."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    angle = np.arccos(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    return np.cos(t * angle) * one + np.sin(t * angle) / np.sin(angle) * (other - np.cos(angle) * one)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(size=st.integers(2, 40), seed=st.integers(0, 10**6), t=st.floats(0, 1))
def test_it_turns_from_one_to_the_other(size: int, seed: int, t: float) -> None:
    one, other = pair(size, seed)
    cosine = abs(one @ other) / np.linalg.norm(one) / np.linalg.norm(other)
    found = slerp(Stack.of([one, other]), t=t)
    expected = turned(one, other, t) if cosine < 0.999 else (1 - t) * one + t * other
    np.testing.assert_allclose(found, expected, rtol=1e-4 if cosine > 0.99 else 2e-6, atol=2e-6 * np.abs(other).max())


@pytest.mark.parametrize(("t", "which"), [(0.0, 0), (1.0, 1)])
def test_the_ends_are_the_inputs_bit_for_bit(t: float, which: int) -> None:
    inputs = pair(1000, 3)
    assert np.array_equal(slerp(Stack.of(inputs), t=t), inputs[which])


def test_tensors_of_equal_length_keep_it_and_the_line_does_not() -> None:
    one, other = pair(500, 1)
    other *= np.linalg.norm(one) / np.linalg.norm(other)
    found = slerp(Stack.of([one, other]))
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(one), rel=1e-6)
    assert np.linalg.norm((one + other) / 2) < 0.8 * np.linalg.norm(one)


@pytest.mark.parametrize("other", [[2.0, 4.0], [1.0, 2.0001], [-2.0, -4.0], [0.0, 0.0]])
def test_parallel_opposite_and_zero_tensors_are_joined_by_a_line(other: list[float]) -> None:
    inputs = np.array([[1.0, 2.0], other], np.float32)
    found = slerp(Stack.of(inputs), t=0.25)
    np.testing.assert_allclose(found, 0.75 * inputs[0].astype(np.float64) + 0.25 * inputs[1], rtol=1e-7, atol=1e-7)


def test_a_right_angle_by_hand() -> None:
    found = arc_coefficients(np.array([[4.0, 0.0], [0.0, 9.0]]), 1 / 3)
    np.testing.assert_allclose(found, [np.sqrt(3) / 2, 0.5], rtol=1e-15)


def test_the_angle_is_that_of_the_whole_tensor() -> None:
    one, other = pair(60, 5)
    flat = slerp(Stack.of([one, other]))
    shaped = slerp(Stack.of([one.reshape(3, 4, 5), other.reshape(3, 4, 5)]))
    assert shaped.shape == (3, 4, 5)
    assert np.array_equal(shaped.reshape(-1), flat)


def test_weights_have_no_say() -> None:
    inputs = pair(20, 2)
    assert np.array_equal(slerp(Stack.of(inputs, weights=[5.0, 0.0])), slerp(Stack.of(inputs)))
