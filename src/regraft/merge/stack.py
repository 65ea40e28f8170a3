"""What a merge method sees: one tensor of every input, and of the base, as float32, in blocks.

    map       write the merged tensor, block by block
    reduce    sums over the tensor            count    histograms over the tensor

Blocks (*grains*) have a fixed size, sums are added up in the order of the grains, and random bits are a function of the
element's index: the same bytes come out for any number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol, TypeVar

import numpy as np

from regraft.errors import NonFiniteError
from regraft.merge.kernels import from_float32, inner_products, linear_combination, philox
from regraft.merge.stored import BITS, MOST, bits_as, combine_stored
from regraft.randomness import seed_of

# Elements of a block: with a few inputs all of its float32 values stay in a core's own cache.
GRAIN = 2**16

# Grains that are merged at once where a method goes from stored bits to stored bits.
TOGETHER = 2

T = TypeVar("T")
Kernel = Callable[..., Any]
# From stored bits to stored bits: (out, base or None, inputs, start) of one block; whether all is finite.
Stored = Callable[[np.ndarray, np.ndarray | None, tuple[np.ndarray, ...], int], bool]


class Source(Protocol):
    """A tensor that can be read in parts."""

    def read(self, out: np.ndarray, start: int) -> bool:
        """Fill `out` (float32) with the elements from `start` on; whether all of them are finite."""
        ...

    def where(self) -> str:
        """The tensor and its file, for errors."""
        ...


class Sink(Protocol):
    """Where the merged tensor goes."""

    def write(self, values: np.ndarray, start: int) -> None:
        """Take float32 values as the elements from `start` on."""
        ...


@dataclass(frozen=True)
class ArraySource:
    """A tensor in memory."""

    values: np.ndarray
    name: str = "array"

    def read(self, out: np.ndarray, start: int) -> bool:
        """See `Source`."""
        return bool(from_float32(out, self.values[start : start + out.size]))

    def where(self) -> str:
        """See `Source`."""
        return self.name


@dataclass(frozen=True)
class ArraySink:
    """A merged tensor in memory."""

    values: np.ndarray

    def write(self, values: np.ndarray, start: int) -> None:
        """See `Sink`."""
        self.values[start : start + values.size] = values


@dataclass(frozen=True)
class Stack:
    """One tensor of every input and of the base.

    Args:
        name: The tensor's name.
        shape: Its shape.
        sources: One an input.
        base_source: The base's, or None without a base.
        weights: float64 [n], as given; not normalised.
        seed: Of everything random.
        sink: Where `map` and `combine` write; None gives the merged array back.
        pool: Threads that share the grains; None works in this one.
        workers: How many.
    """

    name: str
    shape: tuple[int, ...]
    sources: Sequence[Source]
    base_source: Source | None
    weights: np.ndarray
    seed: int = 0
    sink: Sink | None = None
    pool: ThreadPoolExecutor | None = field(default=None, repr=False)
    workers: int = 1

    @classmethod
    def of(
        cls,
        arrays: Sequence[np.ndarray],
        base: np.ndarray | None = None,
        weights: Sequence[float] | np.ndarray | None = None,
        name: str = "tensor",
        seed: int = 0,
    ) -> Stack:
        """A stack of arrays in memory; `map` and `combine` then return the merged float32 array."""
        shape = np.shape(arrays[0])

        def source(values: np.ndarray, where: str) -> ArraySource:
            return ArraySource(np.ascontiguousarray(values, np.float32).reshape(-1), where)

        return cls(
            name,
            shape,
            [source(values, f"input {number}") for number, values in enumerate(arrays)],
            None if base is None else source(base, "base"),
            np.ones(len(arrays)) if weights is None else np.asarray(weights, np.float64),
            seed,
        )

    @property
    def n(self) -> int:
        """Inputs."""
        return len(self.sources)

    @property
    def size(self) -> int:
        """Elements of the tensor."""
        return prod(self.shape)

    @property
    def has_base(self) -> bool:
        """Whether there is a base."""
        return self.base_source is not None

    def inputs(self) -> np.ndarray:
        """All inputs, float32 [n, *shape]: in memory as a whole."""
        out = np.empty((self.n, self.size), np.float32)
        for values, source in zip(out, self.sources, strict=True):
            _read(source, values, 0)
        return out.reshape(self.n, *self.shape)

    def base(self) -> np.ndarray:
        """The base, float32 [*shape]; zeros without one."""
        out = np.zeros(self.size, np.float32)
        if self.base_source is not None:
            _read(self.base_source, out, 0)
        return out.reshape(self.shape)

    def deltas(self) -> np.ndarray:
        """Inputs minus the base, float32 [n, *shape]."""
        found = self.inputs()
        if self.base_source is not None:
            found -= self.base()
        return found

    def delta_part(self, number: int, start: int, size: int) -> np.ndarray:
        """Some elements of one delta, float32 [size]."""
        out = np.empty(size, np.float32)
        if self.base_source is None:
            _read(self.sources[number], out, start)
        else:
            _read_delta(self.sources[number], self.base_source, out, start)
        return out

    def map(
        self, kernel: Kernel, *args: Any, rows: bool = False, noise: str | None = None, deltas: bool = False,
        stored: Stored | None = None,
    ) -> np.ndarray | None:  # fmt: skip
        """Write the merged tensor: `kernel(out, base, inputs, start[, bits], *args)` fills `out` for every grain.

        Args:
            kernel: `out` and `base` are float32 [g], `inputs` float32 [n, g], `start` the index of the first element.
            rows: Grains are whole rows (of the last axis): `out` and `base` [r, c], `inputs` [n, r, c], `start` a row.
            noise: A purpose: the kernel gets uniform `bits`, uint32 of the shape of `inputs`, which depend on seed,
                purpose, tensor, input and element alone.
            deltas: The kernel gets the deltas in place of the inputs.
            stored: The same from stored bits to stored bits (see `regraft.merge.stored`), for a few inputs of one format;
                where it finds a value that is not finite, `kernel` says which.

        Returns:
            The merged array, float32 [*shape]; None where the stack has a sink.
        """
        merged = np.empty(self.size, np.float32) if self.sink is None else None
        sink = self.sink if merged is None else ArraySink(merged)
        keys = [np.uint64(seed_of(self.seed, noise, self.name, n)) for n in range(self.n)] if noise else []

        def work(_number: int, start: int, stop: int, scratch: _Scratch) -> None:
            base, inputs, out = scratch.blocks(self, start, stop, rows, deltas)
            first = start // self._columns if rows else start
            if noise:
                bits = scratch.bits(self.n, stop - start)
                for number, key in enumerate(keys):
                    philox(bits[number], start, key)
                kernel(out, base, inputs, first, bits.reshape(inputs.shape), *args)
            else:
                kernel(out, base, inputs, first, *args)
            assert sink is not None
            sink.write(out.reshape(-1), start)

        words = None if stored is None else self._words()
        if words is not None and stored is not None and getattr(sink, "stored_as", None) in BITS:
            self._run_stored(work, stored, words)
        else:
            self._run(work, self._width(rows))
        return None if merged is None else merged.reshape(self.shape)

    def combine(self, coefficients: np.ndarray, base: float = 0.0) -> np.ndarray | None:
        """Write base * base tensor + sum_i coefficients[i] * input_i: summed in float64, rounded once."""
        weights = np.asarray(coefficients, np.float64)
        factors = (*((float(base),) if self.has_base else ()), *map(float, weights))
        zero = -0.0 if self.has_base else 0.0  # -0 + x is x, whatever its sign

        def stored(out: np.ndarray, origin: np.ndarray | None, inputs: tuple[np.ndarray, ...], _start: int) -> bool:
            return bool(combine_stored(out, inputs if origin is None else (origin, *inputs), factors, zero))

        return self.map(linear_combination, weights, float(base), stored=stored)

    def reduce(self, kernel: Kernel, size: int, *args: Any) -> np.ndarray:
        """Sums: `kernel(partial, base, inputs, start, *args)` adds to float64 [size]; added up in the grains' order."""
        partials = np.zeros((max(1, -(-self.size // GRAIN)), size))

        def work(number: int, start: int, stop: int, scratch: _Scratch) -> None:
            base, inputs, _ = scratch.blocks(self, start, stop, rows=False)
            kernel(partials[number], base, inputs, start, *args)

        self._run(work, GRAIN)
        total = np.zeros(size)
        for partial in partials:  # not np.sum, whose order is its own affair
            total += partial
        return total

    def count(
        self, kernel: Kernel, bins: int, *args: Any, deltas: bool = False, stored: Kernel | None = None
    ) -> np.ndarray:
        """Counts: `kernel(counts, base, inputs, start, *args)` adds to int64 [bins].

        With `deltas` the kernel gets the deltas in place of the inputs, and no base (an array of zeros). `stored` does the
        same from stored bits, and says whether all is finite: `stored(counts, base or None, inputs, start)`.
        """
        words = None if stored is None else self._words()
        width = GRAIN if words is None else TOGETHER * GRAIN
        counts = [np.zeros(bins, np.int64) for _ in range(self._lanes(width))]

        def work(_number: int, start: int, stop: int, scratch: _Scratch) -> None:
            mine = counts[scratch.lane]
            if words is not None and stored is not None and stored(mine, *words.part(start, stop), start):
                return
            base, inputs, _ = scratch.blocks(self, start, stop, rows=False, deltas=deltas, with_base=not deltas)
            kernel(mine, base, inputs, start, *args)

        self._run(work, width)
        for more in counts[1:]:
            counts[0] += more
        return counts[0]

    def each(self, work: Callable[[int], T]) -> list[T]:
        """`work(number)` for every input, side by side on the threads."""
        return list((map if self.pool is None else self.pool.map)(work, range(self.n)))

    def gram(self, deltas: bool = True) -> np.ndarray:
        """Inner products of the deltas, or of the inputs themselves: float64 [n, n]."""
        stack = self if deltas else Stack(**{**self.__dict__, "base_source": None})
        upper = stack.reduce(inner_products, self.n * (self.n + 1) // 2)
        found = np.zeros((self.n, self.n))
        found[np.triu_indices(self.n)] = upper
        return np.asarray(np.triu(found) + np.triu(found, 1).T)

    @property
    def _columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    def _width(self, rows: bool) -> int:
        """Elements of a grain."""
        return max(1, GRAIN // max(1, self._columns)) * max(1, self._columns) if rows else GRAIN

    def _lanes(self, width: int) -> int:
        """Threads that are worth it."""
        return max(1, min(self.workers if self.pool is not None else 1, -(-self.size // width)))

    def _words(self) -> _Words | None:
        """Base and inputs as they are stored; None where they are too many, or not all in one format that loops can read."""
        sources = self.sources if self.base_source is None else (self.base_source, *self.sources)
        known = [getattr(source, "stored", None) for source in sources]
        found = [one for one in known if one is not None]
        if (
            len(found) < len(known)
            or len(found) > MOST
            or len({form for _, form in found}) != 1
            or found[0][1] not in BITS
        ):
            return None
        arrays = [bits_as(raw, form) for raw, form in found]
        return _Words(arrays.pop(0) if self.has_base else None, arrays)

    def _run_stored(self, work: _Work, stored: Stored, words: _Words) -> None:
        sink: Any = self.sink

        def at_once(number: int, start: int, stop: int, scratch: _Scratch) -> None:
            out = scratch.out(sink.stored_as, stop - start)
            if stored(out, *words.part(start, stop), start):
                sink.write_stored(out, start)
            else:
                work(number, start, stop, scratch)  # says what is wrong

        self._run(at_once, TOGETHER * GRAIN)

    def _run(self, work: _Work, width: int) -> None:
        """Give every block to one of the lanes: each takes every k-th, so that they read near each other."""
        lanes = self._lanes(width)
        starts = list(enumerate(range(0, self.size, width)))

        def run(lane: int) -> None:
            scratch = _scratch(lane)
            for number, start in starts[lane::lanes]:
                work(number, start, min(self.size, start + width), scratch)

        if lanes == 1 or self.pool is None:
            run(0)
        else:
            list(self.pool.map(run, range(lanes)))


@dataclass(frozen=True)
class _Words:
    """Base (or None) and inputs as they are stored."""

    base: np.ndarray | None
    inputs: list[np.ndarray]

    def part(self, start: int, stop: int) -> tuple[np.ndarray | None, tuple[np.ndarray, ...]]:
        """Those of one block."""
        base = None if self.base is None else self.base[start:stop]
        return base, tuple(one[start:stop] for one in self.inputs)


class _Scratch:
    """The buffers of one thread, used again for every grain of every tensor."""

    def __init__(self) -> None:
        self.lane = 0
        self._out = np.empty(0, np.float32)
        self._buffer = np.empty((0, 0), np.float32)
        self._bits = np.empty((0, 0), np.uint32)

    def out(self, form: str, size: int) -> np.ndarray:
        """Room for a block of the output in its format."""
        if self._out.size < size:
            self._out = np.empty(size, np.float32)
        return self._out.view(BITS[form])[:size]

    def bits(self, n: int, size: int) -> np.ndarray:
        """Room for random bits."""
        if self._bits.shape[0] != n or self._bits.shape[1] < size:
            self._bits = np.empty((n, size), np.uint32)
        return self._bits[:, :size]

    def blocks(
        self, stack: Stack, start: int, stop: int, rows: bool, deltas: bool = False, with_base: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Base, inputs (or deltas) and room for the output of one grain."""
        size = stop - start
        if self._buffer.shape[0] != stack.n + 2 or self._buffer.shape[1] < size:
            self._buffer = np.zeros((stack.n + 2, max(size, GRAIN)), np.float32)
        used = self._buffer[:, :size]
        out, base, inputs = used[0], used[1], used[2:]
        origin = stack.base_source
        if origin is None or not with_base:
            base[:] = 0.0
        else:
            _read(origin, base, start)
        for values, source in zip(inputs, stack.sources, strict=True):
            if deltas and origin is not None:
                _read_delta(source, origin, values, start)
            else:
                _read(source, values, start)
        if not rows:
            return base, inputs, out
        shape = (-1, stack._columns)
        return base.reshape(shape), inputs.reshape(stack.n, *base.reshape(shape).shape), out.reshape(shape)


_Work = Callable[[int, int, int, _Scratch], None]

_local = threading.local()


def _scratch(lane: int) -> _Scratch:
    """This thread's buffers."""
    found: _Scratch | None = getattr(_local, "scratch", None)
    if found is None:
        found = _local.scratch = _Scratch()
    found.lane = lane
    return found


def _read(source: Source, out: np.ndarray, start: int) -> None:
    if not source.read(out, start):
        raise NonFiniteError(f"{source.where()} holds NaN or infinite values.", "Use an intact copy of the checkpoint.")


def _read_delta(source: Source, base: Source, out: np.ndarray, start: int) -> None:
    """The difference of two sources: read at once where the input knows how."""
    read = getattr(source, "read_delta", None)
    if read is not None and read(base, out, start):
        return
    origin = np.empty_like(out)
    _read(base, origin, start)
    _read(source, out, start)
    out -= origin
