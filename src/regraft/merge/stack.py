"""What a merge method sees: one tensor of every input, and of the base, as float32, in blocks.

    map       write the merged tensor, block by block
    reduce    sums over the tensor            count    histograms over the tensor

Blocks (*grains*) have a fixed size, sums are added up in the order of the grains, and random bits are a function of the
element's index: the same bytes come out for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeVar

import numpy as np

from regraft.merge.blocks import (
    GRAIN,
    TOGETHER,
    ArraySink,
    ArraySource,
    Scratch,
    Sink,
    Source,
    Words,
    Work,
    read,
    read_delta,
    share_out,
)
from regraft.merge.kernels import inner_products, linear_combination, philox
from regraft.merge.stored import BITS, MOST, bits_as, combine_stored
from regraft.randomness import seed_of

__all__ = ["GRAIN", "ArraySink", "ArraySource", "Sink", "Source", "Stack"]

T = TypeVar("T")
Kernel = Callable[..., Any]
# From stored bits to stored bits: (out, base or None, inputs, start) of one block; whether all is finite.
Stored = Callable[[np.ndarray, np.ndarray | None, tuple[np.ndarray, ...], int], bool]


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
            read(source, values, 0)
        return out.reshape(self.n, *self.shape)

    def base(self) -> np.ndarray:
        """The base, float32 [*shape]; zeros without one."""
        out = np.zeros(self.size, np.float32)
        if self.base_source is not None:
            read(self.base_source, out, 0)
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
            read(self.sources[number], out, start)
        else:
            read_delta(self.sources[number], self.base_source, out, start)
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

        def work(_number: int, start: int, stop: int, scratch: Scratch) -> None:
            base, inputs, out = scratch.blocks(self, start, stop, rows, deltas)
            first = start // self.columns if rows else start
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
        zero = -0.0  # -0 + x is x, whatever its sign

        def stored(out: np.ndarray, origin: np.ndarray | None, inputs: tuple[np.ndarray, ...], _start: int) -> bool:
            return bool(combine_stored(out, inputs if origin is None else (origin, *inputs), factors, zero))

        return self.map(linear_combination, weights, float(base) if self.has_base else zero, stored=stored)

    def reduce(self, kernel: Kernel, size: int, *args: Any) -> np.ndarray:
        """Sums: `kernel(partial, base, inputs, start, *args)` adds to float64 [size]; added up in the grains' order."""
        partials = np.zeros((max(1, -(-self.size // GRAIN)), size))

        def work(number: int, start: int, stop: int, scratch: Scratch) -> None:
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

        def work(_number: int, start: int, stop: int, scratch: Scratch) -> None:
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
    def columns(self) -> int:
        """Elements of a row."""
        return self.shape[-1] if self.shape else 1

    def _width(self, rows: bool) -> int:
        """Elements of a grain."""
        return max(1, GRAIN // max(1, self.columns)) * max(1, self.columns) if rows else GRAIN

    def _lanes(self, width: int) -> int:
        """Threads that are worth it."""
        return max(1, min(self.workers if self.pool is not None else 1, -(-self.size // width)))

    def _words(self) -> Words | None:
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
        return Words(arrays.pop(0) if self.has_base else None, arrays)

    def _run_stored(self, work: Work, stored: Stored, words: Words) -> None:
        sink: Any = self.sink

        def at_once(number: int, start: int, stop: int, scratch: Scratch) -> None:
            out = scratch.out(sink.stored_as, stop - start)
            if stored(out, *words.part(start, stop), start):
                sink.write_stored(out, start)
            else:
                work(number, start, stop, scratch)  # says what is wrong

        self._run(at_once, TOGETHER * GRAIN)

    def _run(self, work: Work, width: int) -> None:
        """Give every block to one of the threads that are worth it."""
        share_out(work, self.size, width, self._lanes(width), self.pool)
