"""The blocks of a tensor: where they are read from and written to, the buffers of a thread, and which thread has which.

Blocks (*grains*) have a fixed size, so that what is added up grain by grain is the same for any number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from regraft.errors import NonFiniteError
from regraft.merge.kernels import from_float32
from regraft.merge.stored import BITS

if TYPE_CHECKING:
    from regraft.merge.stack import Stack

# Elements of a block: with a few inputs all of its float32 values stay in a core's own cache.
GRAIN = 2**16

# Grains that are merged at once where a method goes from stored bits to stored bits.
TOGETHER = 2


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
class Words:
    """Base (or None) and inputs as they are stored."""

    base: np.ndarray | None
    inputs: list[np.ndarray]

    def part(self, start: int, stop: int) -> tuple[np.ndarray | None, tuple[np.ndarray, ...]]:
        """Those of one block."""
        base = None if self.base is None else self.base[start:stop]
        return base, tuple(one[start:stop] for one in self.inputs)


class Scratch:
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
            read(origin, base, start)
        for values, source in zip(inputs, stack.sources, strict=True):
            if deltas and origin is not None:
                read_delta(source, origin, values, start)
            else:
                read(source, values, start)
        if not rows:
            return base, inputs, out
        shape = (-1, stack.columns)
        return base.reshape(shape), inputs.reshape(stack.n, *base.reshape(shape).shape), out.reshape(shape)


# (number of the block, its first element, the one after its last, the thread's buffers)
Work = Callable[[int, int, int, Scratch], None]

_local = threading.local()


def share_out(work: Work, size: int, width: int, lanes: int, pool: ThreadPoolExecutor | None) -> None:
    """Give every block to one of the lanes: each takes every k-th, so that they read near each other."""
    starts = list(enumerate(range(0, size, width)))

    def run(lane: int) -> None:
        scratch = _scratch(lane)
        for number, start in starts[lane::lanes]:
            work(number, start, min(size, start + width), scratch)

    if lanes == 1 or pool is None:
        run(0)
    else:
        list(pool.map(run, range(lanes)))


def read(source: Source, out: np.ndarray, start: int) -> None:
    """Fill `out` (float32) with the elements from `start` on.

    Raises:
        NonFiniteError: NaN or infinity among them.
    """
    if not source.read(out, start):
        raise NonFiniteError(f"{source.where()} holds NaN or infinite values.", "Use an intact copy of the checkpoint.")


def read_delta(source: Source, base: Source, out: np.ndarray, start: int) -> None:
    """The difference of two sources: read at once where the input knows how.

    Raises:
        NonFiniteError: NaN or infinity in one of them.
    """
    at_once = getattr(source, "read_delta", None)
    if at_once is not None and at_once(base, out, start):
        return
    origin = np.empty_like(out)
    read(base, origin, start)
    read(source, out, start)
    out -= origin


def _scratch(lane: int) -> Scratch:
    """This thread's buffers."""
    found: Scratch | None = getattr(_local, "scratch", None)
    if found is None:
        found = _local.scratch = Scratch()
    found.lane = lane
    return found
