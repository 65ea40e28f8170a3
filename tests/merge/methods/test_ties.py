"""TIES: trim, elect, merge, in every published way, against a reference that goes element by element in float64."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils

from regraft.merge import kept, select, stack
from regraft.merge.methods.ties import prepare, ties
from regraft.merge.stack import Stack

WAYS = list(product(("mass", "weighted"), ("count", "weight", "none")))
SHAPES = [(), (0,), (1,), (1, 1), (2, 0), (7,), (3, 5), (2, 3, 3), (31,)]


def trimmed(delta: list[float], count: int) -> list[float]:
    """The largest magnitudes, of equal ones the first."""
    order = sorted(range(len(delta)), key=lambda at: (-abs(delta[at]), at))[:count]
    return [value if at in order else 0.0 for at, value in enumerate(delta)]


def share(size: int, density: float) -> int:
    return 0 if density == 0 or size == 0 else max(1, int(density * size))


def reference(
    inputs: list[np.ndarray], base: np.ndarray, weights: list[float], keep: list[int], elect: str, divide: str,
    scale: float,
) -> np.ndarray:  # fmt: skip
    """In float64, element by element."""
    origin = [float(value) for value in base.reshape(-1)]
    used = [number for number in range(len(inputs)) if weights[number] != 0]
    deltas = {n: [float(v) - o for v, o in zip(inputs[n].reshape(-1), origin, strict=True)] for n in used}
    kept = {n: trimmed(deltas[n], keep[n]) for n in used}
    out = []
    for at, value in enumerate(origin):
        votes = {n: kept[n][at] * (weights[n] if elect == "weighted" else 1.0) for n in used}
        sign = 1.0 if sum(votes.values()) >= 0 else -1.0
        agreeing = [n for n in used if votes[n] * sign > 0]
        change = sum(weights[n] * kept[n][at] for n in agreeing)
        whole = {"count": float(len(agreeing)), "weight": sum(weights[n] for n in agreeing), "none": 1.0}[divide]
        out.append(value + scale * change / (whole or 1.0))
    return np.array(out).reshape(base.shape)


def on_a_grid(shape: tuple[int, ...], n: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Few different magnitudes, zero among them: sums are exact, and thresholds are met by many."""
    draw = np.random.default_rng(seed)
    base = draw.integers(-4, 5, shape) / 4
    inputs = [np.asarray(base + draw.integers(-3, 4, shape) / 8, np.float32) for _ in range(n)]
    return inputs, np.asarray(base, np.float32)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from(SHAPES), n=st.integers(1, 4), way=st.sampled_from(WAYS), scale=st.sampled_from([1.0, 0.5, -2.0]),
    weights=st.lists(st.sampled_from([1.0, 0.5, 2.0, 0.0, -1.0, -0.5]), min_size=4, max_size=4),
    densities=st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.99, 1.0]), min_size=4, max_size=4), seed=st.integers(0, 999),
)  # fmt: skip
def test_every_published_way(
    shape: tuple[int, ...], n: int, way: tuple[str, str], scale: float, weights: list[float], densities: list[float],
    seed: int,
) -> None:  # fmt: skip
    """On a grid, where all but the division is exact in float32."""
    inputs, base = on_a_grid(shape, n, seed)
    elect, divide = way
    found = ties(
        Stack.of(inputs, base, weights[:n]), density=np.array(densities[:n]), elect=elect, divide=divide, scale=scale
    )
    assert found is not None and found.shape == shape and found.dtype == np.float32
    keep = [share(base.size, density) for density in densities]
    np.testing.assert_allclose(
        found, reference(inputs, base, weights, keep, elect, divide, scale), rtol=3e-7, atol=3e-7
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), size=st.integers(0, 60), way=st.sampled_from(WAYS), density=st.floats(0, 1))
def test_any_numbers(seed: int, size: int, way: tuple[str, str], density: float) -> None:
    draw = np.random.default_rng(seed)
    base = draw.standard_normal(size).astype(np.float32)
    inputs = [(base + 0.1 * draw.standard_normal(size)).astype(np.float32) for _ in range(3)]
    weights = [0.3, 1.1, 0.7]
    found = ties(Stack.of(inputs, base, weights), density=density, elect=way[0], divide=way[1])
    exact = [(one - base).astype(np.float32) for one in inputs]  # as float32 has them: votes of zero are rare
    keep = [share(size, density)] * 3
    zeros = np.zeros(size, np.float32)
    np.testing.assert_allclose(found, base + reference(exact, zeros, weights, keep, *way, 1.0), rtol=1e-6, atol=1e-6)


def test_by_hand() -> None:
    """The figure of the module, with a density that keeps two of three."""
    deltas = [np.array([3.0, -1.0, 2.0]), np.array([-2.0, -4.0, 1.0]), np.array([1.0, -1.0, -5.0])]
    base = np.array([10.0, 20.0, 30.0])
    found = ties(Stack.of([base + one for one in deltas], base), density=0.67)
    # kept: (3, 0, 2), (-2, -4, 0), (1, 0, -5); elected: +, -, -
    assert np.array_equal(found, [12.0, 16.0, 25.0])


@pytest.mark.parametrize("count", range(1, 41))
def test_exactly_as_many_are_kept_as_asked_the_first_of_equal_ones(count: int) -> None:
    """All magnitudes are equal; torch and sorting codes keep whichever come first in their own order, or all of them."""
    delta = np.where(np.arange(40) % 3, 0.5, -0.5)
    found = ties(Stack.of([delta], np.zeros(40)), density=count / 40 + 1e-9)
    assert np.array_equal(found, np.where(np.arange(40) < count, delta, 0.0))


def test_a_threshold_within_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    delta = np.tile(np.array([1.0, 2.0], np.float32), 50)
    for grain in (3, 10, 64, 1000):
        for module in (stack, select, kept):
            monkeypatch.setattr(module, "GRAIN", grain)
        found = ties(Stack.of([delta, -delta], np.zeros(100)), density=np.array([0.6, 0.0]))
        assert np.array_equal(found, np.where((delta == 2) | (np.arange(100) < 20), delta, 0.0))


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_with_mass_and_count_it_is_pefts(density: float) -> None:
    draw = np.random.default_rng(0)
    deltas, weights = draw.standard_normal((4, 30, 11)).astype(np.float32), [0.4, 1.0, 0.7, -0.2]
    theirs = merge_utils.ties([torch.from_numpy(one) for one in deltas], torch.tensor(weights), density)
    found = ties(Stack.of(list(deltas), np.zeros((30, 11)), weights), density=density)
    np.testing.assert_allclose(found, theirs.numpy(), rtol=1e-5, atol=1e-6)


def test_a_density_of_one_and_of_none() -> None:
    inputs, base = on_a_grid((20,), 2, 0)
    assert np.array_equal(ties(Stack.of(inputs, base), density=0.0), base)
    assert np.array_equal(ties(Stack.of(inputs[:1], base), density=1.0), inputs[0])


def test_a_sum_of_zero_elects_plus() -> None:
    inputs, base = [np.array([1.0]), np.array([-1.0])], np.zeros(1)
    assert np.array_equal(ties(Stack.of(inputs, base), density=1.0), [1.0])
    assert np.array_equal(ties(Stack.of(inputs[::-1], base), density=1.0), [1.0])


def test_a_negative_weight_votes_against_its_delta_when_votes_are_weighted() -> None:
    inputs, base = [np.array([1.0]), np.array([3.0])], np.zeros(1)
    stack = Stack.of(inputs, base, [1.0, -1.0])
    assert np.array_equal(ties(stack, density=1.0, elect="mass", divide="none"), [1.0 - 3.0])
    assert np.array_equal(ties(stack, density=1.0, elect="weighted", divide="none"), [-3.0])
    assert np.array_equal(ties(stack, density=1.0, elect="weighted", divide="weight"), [3.0])


def test_weights_that_cancel_out_divide_by_nothing() -> None:
    """The first is for plus with weight 1, the second against minus with weight -1."""
    stack = Stack.of([np.array([1.0]), np.array([-3.0])], np.zeros(1), [1.0, -1.0])
    assert np.array_equal(ties(stack, density=1.0, elect="weighted", divide="weight"), [4.0])


def test_an_input_of_weight_zero_neither_votes_nor_counts() -> None:
    inputs, base = on_a_grid((200,), 3, 5)
    for elect, divide in WAYS:
        ways: dict[str, Any] = {"density": 0.4, "elect": elect, "divide": divide}
        found = ties(Stack.of(inputs, base, [1.0, 0.0, 2.0]), **ways)
        assert np.array_equal(found, ties(Stack.of([inputs[0], inputs[2]], base, [1.0, 2.0]), **ways))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=4), density=st.sampled_from([0.0, 0.05, 0.3, 0.8, 1.0]),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_a_global_trim_takes_all_tensors_as_one(sizes: list[int], density: float, seed: int) -> None:
    parts = [on_a_grid((size,), 2, seed + at) for at, size in enumerate(sizes)]
    stacks = [Stack.of(inputs, base, name=str(at)) for at, (inputs, base) in enumerate(parts)]
    prepared = prepare(stacks, density=density, trim="global")
    found = [ties(one, density=density, trim="global", prepared=prepared) for one in stacks]
    inputs = [np.concatenate([part[0][number] for part in parts]) for number in range(2)]
    base = np.concatenate([part[1] for part in parts])
    expected = reference(inputs, base, [1.0, 1.0], [share(base.size, density)] * 2, "mass", "count", 1.0)
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=3e-7, atol=3e-7)


def test_without_a_global_trim_there_is_nothing_to_prepare() -> None:
    assert prepare([Stack.of([np.ones(3)], np.zeros(3))], trim="tensor") is None
    assert prepare([], trim="global") is None
