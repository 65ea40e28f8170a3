"""KnOTS: held to its formula with one full decomposition in float64, to its global trim, and to its edges."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.merge.methods.knots import knots, prepare
from regraft.merge.methods.task_arithmetic import task_arithmetic
from regraft.merge.methods.ties import ties
from regraft.merge.register import traits_of
from regraft.merge.stack import Stack


def draw(seed: int, count: int, shape: tuple[int, ...], rank: int | None = None) -> tuple[list[np.ndarray], np.ndarray]:
    """Inputs and a base; the changes of full or low rank."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape).astype(np.float32)
    inputs = []
    for _ in range(count):
        full = rank is None or len(shape) != 2
        change = (
            rng.normal(size=shape) if full else rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))
        )
        inputs.append(np.asarray(base + 0.3 * change, np.float32))
    return inputs, base


def parts(inputs: list[np.ndarray], base: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """U and the S V_i of the changes side by side."""
    changes = [x.astype(np.float64) - base for x in inputs]
    u, s, vt = np.linalg.svd(np.concatenate(changes, axis=1), full_matrices=False)
    kept = s > 1e-5 * s[0]
    return u[:, kept], np.split((s[:, None] * vt)[kept], len(inputs), axis=1)


def trimmed(part: np.ndarray, threshold: float) -> np.ndarray:
    return np.where(np.abs(part) >= threshold, part, 0.0)


def kth(part: np.ndarray, density: float) -> float:
    """The smallest magnitude that is kept; infinite when none is."""
    keep = max(1, int(density * part.size)) if density and part.size else 0
    return float(np.sort(np.abs(part).ravel())[::-1][keep - 1]) if keep else np.inf


def merge(kept: list[np.ndarray], weights: list[float]) -> np.ndarray:
    """Elect by mass, average by count."""
    stack = np.array(kept)
    sign = np.where(stack.sum(axis=0) >= 0, 1.0, -1.0)
    agree = stack * sign > 0
    total = (np.array(weights).reshape(-1, 1, 1) * stack * agree).sum(axis=0)
    return np.asarray(total / np.maximum(agree.sum(axis=0), 1))


def reference(inputs: list[np.ndarray], base: np.ndarray, weights: list[float], density: float) -> np.ndarray:
    u, svs = parts(inputs, base)
    return np.asarray(base + u @ merge([trimmed(one, kth(one, density)) for one in svs], weights))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999), rows=st.integers(2, 8), columns=st.integers(2, 8), density=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    weights=st.lists(st.sampled_from([0.5, 1.0, -1.0, 2.0]), min_size=1, max_size=4),
)  # fmt: skip
def test_equals_its_formula(seed: int, rows: int, columns: int, density: float, weights: list[float]) -> None:
    inputs, base = draw(seed, len(weights), (rows, columns))
    found = knots(Stack.of(inputs, base, weights), density=density)
    np.testing.assert_allclose(found, reference(inputs, base, weights, density), atol=2e-5)


@pytest.mark.parametrize("shape", [(20, 30), (530, 520)])
def test_the_density_counts_in_the_rank_of_the_adapters(shape: tuple[int, int]) -> None:
    """The rounding of the weights to float32 adds no directions, on small matrices and on those that are projected."""
    inputs, base = draw(1, 3, shape, rank=2)
    assert len(parts(inputs, base)[1][0]) == 6
    found = knots(Stack.of(inputs, base), density=0.1)
    np.testing.assert_allclose(found, reference(inputs, base, [1.0] * 3, 0.1), atol=1e-4)


def test_sums_are_not_touched_by_turning() -> None:
    inputs, base = draw(2, 3, (9, 7))
    weights = [0.4, -0.3, 1.0]
    expected = task_arithmetic(Stack.of(inputs, base, weights), scale=0.5)
    found = knots(Stack.of(inputs, base, weights), rule="task_arithmetic", scale=0.5)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    u, svs = parts(inputs, base)
    summed = u @ sum(w * one for w, one in zip(weights, svs, strict=True))
    np.testing.assert_allclose(found, base + 0.5 * summed, atol=1e-5)


def test_the_other_side_is_the_transpose() -> None:
    inputs, base = draw(3, 2, (6, 9))
    found = knots(Stack.of(inputs, base), density=0.4, side="columns")
    turned = knots(Stack.of([one.T for one in inputs], base.T), density=0.4)
    np.testing.assert_allclose(found, np.asarray(turned).T, atol=1e-6)


def test_a_global_trim_takes_all_tensors_as_one_vector() -> None:
    weights, density = [1.0, 0.5, 2.0], np.array([0.3, 0.1, 0.6])
    tensors: dict[str, Any] = {"a": draw(4, 3, (6, 5), 1), "b": draw(5, 3, (4, 9), 2)}
    tensors["c"] = ([10 * one for one in draw(6, 3, (7,))[0]], np.zeros(7, np.float32))
    stacks = [Stack.of(inputs, base, weights, name) for name, (inputs, base) in tensors.items()]
    prepared = prepare(stacks, density=density, trim="global")
    turned = {name: parts(*tensors[name]) for name in "ab"}
    thresholds = [
        kth(np.concatenate([turned["a"][1][i].ravel(), turned["b"][1][i].ravel(), tensors["c"][0][i]]), density[i])
        for i in range(3)
    ]
    for name, stack in zip("ab", stacks, strict=False):
        found = knots(stack, density=density, trim="global", prepared=prepared)
        u, svs = turned[name]
        kept = [trimmed(one, 0.999999 * limit) for one, limit in zip(svs, thresholds, strict=True)]
        np.testing.assert_allclose(found, tensors[name][1] + u @ merge(kept, weights), atol=2e-5)
    vector = knots(stacks[2], density=density, trim="global", prepared=prepared)
    kept = [trimmed(one[None], limit) for one, limit in zip(tensors["c"][0], thresholds, strict=True)]
    np.testing.assert_allclose(vector, merge(kept, weights)[0], atol=1e-5)
    assert prepare(stacks, density=density) is None
    none = prepare(stacks, density=np.zeros(3), trim="global")
    assert none is not None
    np.testing.assert_array_equal(knots(stacks[0], density=0.0, trim="global", prepared=none), tensors["a"][1])


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (2, 3, 4), (0, 3), (1, 1)])
def test_what_is_no_matrix_is_merged_as_it_is(shape: tuple[int, ...]) -> None:
    inputs, base = draw(7, 2, shape)
    found = knots(Stack.of(inputs, base, [1.0, 0.5]), density=0.5)
    np.testing.assert_allclose(found, ties(Stack.of(inputs, base, [1.0, 0.5]), density=0.5), atol=1e-6)


def test_promises() -> None:
    inputs, base = draw(8, 3, (8, 6))
    np.testing.assert_array_equal(knots(Stack.of([base, base], base)), base)
    np.testing.assert_array_equal(knots(Stack.of(inputs, base, [0.0] * 3)), base)
    two = knots(Stack.of(inputs[:2], base, [1.0, 0.5]), density=np.array([0.3, 0.6]))
    three = knots(Stack.of(inputs, base, [1.0, 0.5, 0.0]), density=np.array([0.3, 0.6, 0.9]))
    np.testing.assert_array_equal(two, three)
    turned = knots(Stack.of(inputs[::-1], base), density=0.5)
    np.testing.assert_allclose(turned, knots(Stack.of(inputs, base), density=0.5), atol=1e-6)


def test_not_an_identity() -> None:
    inputs, base = draw(9, 1, (8, 6))
    assert not np.allclose(knots(Stack.of(inputs * 2, base)), inputs[0])
    np.testing.assert_allclose(knots(Stack.of(inputs * 2, base), density=1.0), inputs[0], atol=1e-6)


@pytest.mark.parametrize(("shape", "rank"), [((530, 700), None), ((530, 700), 2), ((700, 300), None)])
def test_working_memory_is_what_it_says(shape: tuple[int, int], rank: int | None) -> None:
    working = traits_of("knots").working
    assert working is not None and working((100,), 3) == 0
    inputs, base = draw(1, 2, shape, rank)
    stack = Stack.of(inputs, base)
    tracemalloc.start()
    knots(stack)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < working(shape, 2)
