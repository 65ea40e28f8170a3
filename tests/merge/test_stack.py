"""The stack: what a method sees of a tensor, in blocks that nobody notices."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from regraft.errors import NonFiniteError
from regraft.merge import stack as module
from regraft.merge.stack import GRAIN, ArraySource, Stack

SHAPES = [(), (0,), (0, 4), (4, 0), (1,), (1, 1), (7,), (3, 5), (2, 3, 4)]


def example(shape: tuple[int, ...], n: int = 3, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    draw = np.random.default_rng(seed)
    made = [np.asarray(draw.standard_normal(shape), np.float32) for _ in range(n + 1)]
    return made[1:], made[0]


@contextmanager
def threads(stack: Stack, count: int) -> Iterator[Stack]:
    """The same stack, worked on by several threads."""
    with ThreadPoolExecutor(count) as pool:
        yield replace(stack, pool=pool, workers=count)


def halved(out: np.ndarray, base: np.ndarray, inputs: np.ndarray, start: int, factor: float) -> None:
    out[:] = base + factor * inputs.sum(axis=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_tensors_of_every_shape(shape: tuple[int, ...]) -> None:
    inputs, base = example(shape)
    stack = Stack.of(inputs, base, [1.0, 0.5, 2.0])
    assert (stack.shape, stack.n, stack.size, stack.has_base) == (shape, 3, np.asarray(base).size, True)
    assert np.array_equal(stack.inputs(), np.stack(inputs))
    assert np.array_equal(stack.base(), base)
    assert np.array_equal(stack.deltas(), np.stack(inputs) - base)
    merged = stack.map(halved, 0.5)
    assert merged is not None and (merged.shape, merged.dtype) == (shape, np.float32)
    np.testing.assert_allclose(merged, base + np.float32(0.5) * np.sum(inputs, axis=0), rtol=1e-6)
    combined = stack.combine(np.array([1.0, 0.0, -2.0]), base=0.5)
    assert combined is not None and combined.shape == shape
    np.testing.assert_allclose(combined, 0.5 * base + inputs[0] - 2.0 * inputs[2], rtol=1e-5, atol=1e-6)
    products = stack.gram()
    flat = (np.stack(inputs) - base).reshape(3, -1).astype(np.float64)
    np.testing.assert_allclose(products, flat @ flat.T, rtol=1e-12)


def test_without_a_base_there_are_zeros() -> None:
    inputs, _ = example((2, 3))
    stack = Stack.of(inputs)
    assert not stack.has_base and not stack.base().any()
    assert np.array_equal(stack.deltas(), stack.inputs())
    assert np.array_equal(stack.weights, np.ones(3))
    flat = np.stack(inputs).reshape(3, -1).astype(np.float64)
    np.testing.assert_allclose(stack.gram(), flat @ flat.T, rtol=1e-12)


def test_the_gram_matrix_of_the_inputs_themselves() -> None:
    inputs, base = example((5, 3))
    flat = np.stack(inputs).reshape(3, -1).astype(np.float64)
    np.testing.assert_allclose(Stack.of(inputs, base).gram(deltas=False), flat @ flat.T, rtol=1e-12)


def mean_of_row(out: np.ndarray, base: np.ndarray, inputs: np.ndarray, start: int, seen: list[Any]) -> None:
    seen.append((start, out.shape, base.shape, inputs.shape))
    out[:] = inputs.mean(axis=2, keepdims=True).sum(axis=0)


@pytest.mark.parametrize("shape", [(9, 4), (3, 3, 4), (4,), (), (1, 40), (0, 4)])
def test_rows_stay_whole(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of four in blocks of ten: two rows a block; a row that is longer than a block is one by itself."""
    monkeypatch.setattr(module, "GRAIN", 10)
    inputs, base = example(shape)
    seen: list[Any] = []
    merged = Stack.of(inputs, base).map(mean_of_row, seen, rows=True)
    rows = np.stack(inputs).reshape(3, -1, shape[-1] if shape else 1)
    expected = np.broadcast_to(rows.mean(axis=2, keepdims=True).sum(axis=0), rows.shape[1:]).reshape(shape)
    assert merged is not None
    np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-6)
    assert [start for start, *_ in seen] == list(range(0, rows.shape[1], max(1, 10 // rows.shape[2])))
    assert all(o == b == i[1:] and i[0] == 3 for _, o, b, i in seen)


def remember(out: np.ndarray, base: np.ndarray, inputs: np.ndarray, start: int, bits: np.ndarray) -> None:
    assert bits.dtype == np.uint32 and bits.shape == inputs.shape
    out[:] = (bits >> np.uint32(8)).astype(np.float32).sum(axis=0)


def test_random_bits_belong_to_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    """They follow seed, purpose, tensor, input and index; not blocks, threads, shape, or what the tensors hold."""
    inputs, base = example((30, 40))
    stack = Stack.of(inputs, base, name="a", seed=1)
    whole = stack.map(remember, noise="drop")
    assert whole is not None and len(np.unique(whole)) > 1100
    flat = Stack.of([one.reshape(-1) for one in inputs[::-1]], None, name="a", seed=1)
    for grain in (1, 7, 100, 1199):
        monkeypatch.setattr(module, "GRAIN", grain)
        assert np.array_equal(flat.map(remember, noise="drop"), whole.reshape(-1))
        assert np.array_equal(stack.map(remember, noise="drop", rows=True), whole)
        with threads(stack, 3) as shared:
            assert np.array_equal(shared.map(remember, noise="drop"), whole)
    for other in (replace(stack, seed=2), replace(stack, name="b")):
        assert not np.array_equal(other.map(remember, noise="drop"), whole)
    assert not np.array_equal(stack.map(remember, noise="keep"), whole)


def test_inputs_have_random_bits_of_their_own() -> None:
    kept: list[np.ndarray] = []

    def look(out: np.ndarray, base: np.ndarray, inputs: np.ndarray, start: int, bits: np.ndarray) -> None:
        kept.append(bits.copy())
        out[:] = 0

    inputs, _ = example((64,))
    Stack.of(inputs).map(look, noise="x")
    Stack.of(inputs[:2]).map(look, noise="x")
    assert len({row.tobytes() for row in kept[0]}) == 3
    assert np.array_equal(kept[0][:2], kept[1])  # a further input changes nothing for the others


def total(partial: np.ndarray, base: np.ndarray, inputs: np.ndarray, start: int) -> None:
    partial += [base.sum(dtype=np.float64), inputs.sum(dtype=np.float64), 1.0]


def bins(counts: np.ndarray, base: np.ndarray, inputs: np.ndarray, start: int) -> None:
    counts += np.bincount((inputs.reshape(-1) > 0).astype(np.int64), minlength=2)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_threads_change_no_bit(workers: int) -> None:
    inputs, base = example((2 * GRAIN + 4099,), seed=1)
    stack = Stack.of(inputs, base, [0.3, 0.5, 0.2])
    alone = stack.map(halved, 0.1), stack.combine(stack.weights), stack.reduce(total, 3), stack.gram()
    with threads(stack, workers) as shared:
        found = shared.map(halved, 0.1), shared.combine(stack.weights), shared.reduce(total, 3), shared.gram()
        counted = shared.count(bins, 2), shared.count(bins, 2, deltas=True)
    assert all(np.array_equal(*pair) for pair in zip(alone, found, strict=True))
    assert alone[2][2] == 3  # grains
    assert counted[0].tolist() == [(np.stack(inputs) <= 0).sum(), (np.stack(inputs) > 0).sum()]
    assert counted[1].tolist() == [(np.stack(inputs) <= base).sum(), (np.stack(inputs) > base).sum()]


def test_deltas_in_place_of_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRAIN", 4)
    inputs, base = example((11,))

    def largest(out: np.ndarray, origin: np.ndarray, deltas: np.ndarray, start: int) -> None:
        assert np.array_equal(origin, base[start : start + out.size])
        out[:] = deltas.max(axis=0)

    assert np.array_equal(Stack.of(inputs, base).map(largest, deltas=True), (np.stack(inputs) - base).max(axis=0))
    assert np.array_equal(Stack.of(inputs).map(lambda out, o, d, s: np.copyto(out, d[0]), deltas=True), inputs[0])


def test_buffers_of_one_stack_do_not_show_in_the_next() -> None:
    """Threads keep their buffers: a base that is not there is zero all the same."""
    inputs, base = example((50,))
    Stack.of(inputs, base).map(halved, 1.0)
    assert np.array_equal(Stack.of(inputs[:2]).combine(np.array([1.0, 0.0]), base=5.0), inputs[0])
    Stack.of(example((GRAIN + 1,))[0]).map(halved, 1.0)
    assert np.array_equal(Stack.of(inputs, base).combine(np.zeros(3), base=1.0), base)


@dataclass
class Memory:
    """A sink that keeps what it is given."""

    parts: dict[int, np.ndarray] = field(default_factory=dict)

    def write(self, values: np.ndarray, start: int) -> None:
        self.parts[start] = values.copy()


def test_a_sink_gets_every_element_once() -> None:
    inputs, _ = example((GRAIN + 10,))
    sink = Memory()
    with threads(replace(Stack.of(inputs), sink=sink), 2) as stack:
        assert stack.combine(np.array([1.0, 0.0, 0.0])) is None
    assert {start: part.size for start, part in sink.parts.items()} == {0: GRAIN, GRAIN: 10}
    assert np.array_equal(np.concatenate([sink.parts[start] for start in sorted(sink.parts)]), inputs[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["input 1", "base"])
def test_what_is_not_finite_is_named(bad: float, where: str) -> None:
    inputs, base = example((GRAIN + 100,))
    (base if where == "base" else inputs[1])[-1] = bad
    stack = Stack.of(inputs, base)
    with threads(stack, 2) as shared:
        for use in (
            lambda: stack.map(halved, 1.0), lambda: stack.map(halved, 1.0, deltas=True), lambda: stack.reduce(total, 3),
            lambda: stack.count(bins, 2, deltas=True), lambda: stack.deltas(), lambda: stack.gram(),
            lambda: shared.combine(stack.weights), lambda: stack.inputs() if where != "base" else stack.base(),
        ):  # fmt: skip
            with pytest.raises(NonFiniteError, match=f"^{where} holds NaN or infinite values"):
                use()


def test_an_error_of_a_method_comes_through_the_threads() -> None:
    def fails(out: np.ndarray, base: np.ndarray, inputs: np.ndarray, start: int) -> None:
        if start:
            raise ZeroDivisionError

    with threads(Stack.of(example((3 * GRAIN,))[0]), 2) as stack, pytest.raises(ZeroDivisionError):
        stack.map(fails)


def test_sources_need_not_be_arrays() -> None:
    """A constant, made up as it is read; and an array that is read in parts."""

    class Constant:
        def read(self, out: np.ndarray, start: int) -> bool:
            out[:] = 7.0
            return True

        def where(self) -> str:
            return "nowhere"

    values = np.arange(6, dtype=np.float32)
    stack = Stack("t", (2, 3), [Constant(), ArraySource(values)], None, np.ones(2))
    assert np.array_equal(stack.inputs()[0], np.full((2, 3), 7.0))
    assert np.array_equal(stack.combine(np.array([1.0, 1.0])), 7.0 + values.reshape(2, 3))
