"""Task arithmetic: the sum of the deltas, rounded once."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from peft.utils.merge_utils import task_arithmetic as weighted_sum

from regraft.merge.methods.task_arithmetic import task_arithmetic
from regraft.merge.stack import Stack

SHAPES = st.sampled_from([(), (0,), (1,), (2, 0), (7,), (3, 5), (2, 3, 3)])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_it_adds_the_deltas(data: st.DataObject) -> None:
    """Against rational arithmetic: within half a place of float32 of the exact sum, and a hair."""
    shape, n = data.draw(SHAPES), data.draw(st.integers(1, 4))
    values = arrays.arrays(np.float32, shape, elements=st.floats(-1e4, 1e4, width=32))
    base, *inputs = [np.asarray(data.draw(values)) for _ in range(n + 1)]
    weights = data.draw(st.lists(st.floats(-3, 3), min_size=n, max_size=n))
    scale, normalize = data.draw(st.floats(-2, 2)), data.draw(st.booleans())
    found = task_arithmetic(Stack.of(inputs, base, weights), scale=scale, normalize=normalize)
    assert found is not None and found.shape == shape and found.dtype == np.float32
    whole = float(np.array(weights).sum()) if normalize else 1.0
    factors = [Fraction(weight) * Fraction(scale) / (Fraction(whole) or 1) for weight in weights]
    for place in np.ndindex(shape):
        origin = Fraction(float(base[place]))
        terms = [factor * (Fraction(float(one[place])) - origin) for factor, one in zip(factors, inputs, strict=True)]
        exact, size = float(origin + sum(terms)), float(abs(origin) + sum(map(abs, terms)))
        assert abs(found[place] - exact) <= abs(exact) * 2.0**-24 + size * 1e-14 + 2.0**-149


def test_by_hand() -> None:
    base, inputs = np.array([1.0, 2.0]), [np.array([3.0, 2.0]), np.array([1.0, 0.0])]
    assert np.array_equal(task_arithmetic(Stack.of(inputs, base)), [3.0, 0.0])
    assert np.array_equal(task_arithmetic(Stack.of(inputs, base), scale=0.5), [2.0, 1.0])
    assert np.array_equal(task_arithmetic(Stack.of(inputs, base, [1.0, -1.0])), [3.0, 4.0])
    assert np.array_equal(task_arithmetic(Stack.of(inputs, base, [3.0, 1.0]), normalize=True), [2.5, 1.5])


def test_taking_a_task_away_undoes_adding_it() -> None:
    draw = np.random.default_rng(0)
    base = draw.integers(-50, 50, 300).astype(np.float32)
    tuned = base + draw.integers(-5, 6, 300).astype(np.float32)
    found = task_arithmetic(Stack.of([tuned], base, [-1.0]))
    assert np.array_equal(task_arithmetic(Stack.of([tuned], found, [0.5])), (tuned + found) / 2)
    assert np.array_equal(found, 2 * base - tuned)


def test_the_deltas_sum_is_pefts() -> None:
    draw = np.random.default_rng(1)
    deltas, weights = draw.standard_normal((3, 40, 7)).astype(np.float32), [0.5, -0.25, 2.0]
    theirs = weighted_sum([torch.from_numpy(one) for one in deltas], torch.tensor(weights))
    found = task_arithmetic(Stack.of(list(deltas), np.zeros((40, 7)), weights))
    np.testing.assert_allclose(found, theirs.numpy(), rtol=1e-6, atol=1e-6)


def test_small_changes_of_large_weights_add_up() -> None:
    """Each of the deltas alone is lost in float32; together they are not."""
    base = np.array([2.0**25], np.float32)
    one = np.nextafter(base, np.float32(np.inf), dtype=np.float32)  # a delta of 4
    found = task_arithmetic(Stack.of([one] * 4, base, [0.25] * 4))
    assert np.array_equal(found, one)


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0]])
def test_weights_that_sum_to_zero_are_not_divided(weights: list[float]) -> None:
    base, inputs = np.array([1.0]), [np.array([3.0]), np.array([0.0])]
    found = task_arithmetic(Stack.of(inputs, base, weights), normalize=True)
    assert np.array_equal(found, task_arithmetic(Stack.of(inputs, base, weights)))
