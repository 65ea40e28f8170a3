"""Which elements of a delta are kept: a threshold on the magnitude, and where among equal ones the keeping ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from regraft.merge.stack import GRAIN, Stack

MAGNITUDE = np.uint32(0x7FFFFFFF)


@dataclass(frozen=True)
class Kept:
    """Which elements of each delta are kept.

    Args:
        bits: uint32 [n]: the threshold's bits; larger magnitudes are kept.
        last: int64 [n]: of the elements whose magnitude is the threshold, those up to this index are kept; -1 for none.
    """

    bits: np.ndarray
    last: np.ndarray


def last_index(stack: Stack, number: int, bits: np.uint32, counts: np.ndarray, wanted: int) -> int:
    """The index of the `wanted`-th element with that magnitude; -1 for none, the largest number for all."""
    if wanted <= 0:
        return -1
    reached = np.cumsum(counts)
    if reached[-1] <= wanted:
        return int(np.iinfo(np.int64).max)
    grain = int(np.searchsorted(reached, wanted))
    start = grain * GRAIN
    before = int(reached[grain] - counts[grain])
    values = stack.delta_part(number, start, min(GRAIN, stack.size - start))
    found = np.flatnonzero((values.view(np.uint32) & MAGNITUDE) == bits)
    return start + int(found[wanted - before - 1])


def pieces(kept: Kept, start: int, stop: int) -> Iterator[tuple[int, int, tuple[np.uint32, ...]]]:
    """Cut a block where the keeping of equal values ends: (start, stop, the least magnitude that is kept of each input)."""
    cuts = sorted({start, stop} | {int(last) + 1 for last in kept.last if start <= last < stop - 1})
    for first, end in pairwise(cuts):
        yield first, end, tuple(bits + np.uint32(last < first) for bits, last in zip(kept.bits, kept.last, strict=True))
