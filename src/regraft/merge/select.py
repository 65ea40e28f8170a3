"""The k largest magnitudes of a delta, exactly: by counting, never by sorting.

The bits of a non-negative float32 order as the number does. One pass counts the upper 15 of them, a second one the lower 16
among those that share the upper bits with the k-th largest: its exact value is then known. Where more elements than are
wanted have that very value, the first by index are kept, so that always exactly k are. A sample (`select_sampled`) spares
a large tensor most of that; it gives the same answer, or none.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from regraft.merge.kept import MAGNITUDE, Kept, last_index
from regraft.merge.kernels import kernel
from regraft.merge.select_sampled import among_sampled
from regraft.merge.stack import GRAIN, Stack

__all__ = ["Kept", "keep_share", "largest", "part_of"]

UPPER, LOWER = 2**15, 2**16


def part_of(size: int, share: np.ndarray) -> np.ndarray:
    """How many of `size` elements a share is, int64 [n]: rounded down, as the published codes do."""
    return np.floor(np.asarray(share, np.float64) * size).astype(np.int64)


def keep_share(size: int, density: np.ndarray) -> np.ndarray:
    """How many of `size` elements a density keeps, int64 [n]: rounded down, but at least one unless it is zero."""
    share = part_of(size, density)
    return np.where((np.asarray(density) > 0.0) & (size > 0), np.maximum(share, 1), share)


def largest(stacks: Stack | list[Stack], keep: np.ndarray) -> list[Kept]:
    """The `keep[i]` largest magnitudes of delta i, over one tensor or over several taken as one.

    Args:
        stacks: The tensors, in an order that decides on equal values.
        keep: int64 [n].

    Returns:
        One `Kept` a tensor.
    """
    parts = [stacks] if isinstance(stacks, Stack) else stacks
    n, keep = parts[0].n, np.asarray(keep, np.int64)
    if len(parts) == 1:
        found = among_sampled(parts[0], keep)
        if found is not None:
            return [found]
    upper = _summed(part.count(_count_upper, n * UPPER, deltas=True) for part in parts)
    place, above = _kth(upper.reshape(n, UPPER), keep)
    lower = _summed(part.count(_count_lower, n * LOWER, place.astype(np.uint32), deltas=True) for part in parts)
    fine, above_fine = _kth(lower.reshape(n, LOWER), keep - above)
    bits = (place.astype(np.uint32) << np.uint32(16)) | fine.astype(np.uint32)
    wanted = keep - above - above_fine
    bits = np.where(keep <= 0, MAGNITUDE, bits).astype(np.uint32)
    equal = lower.reshape(n, LOWER)[np.arange(n), fine]
    return _cut(parts, bits, np.where(keep <= 0, 0, wanted), np.where(keep <= 0, 0, equal))


def _summed(counts: Iterable[np.ndarray]) -> np.ndarray:
    several = iter(counts)
    total = next(several)
    for one in several:
        total += one
    return total


@kernel
def _kth(counts: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row the bin of the k-th largest, and how many lie in the bins above it."""
    places, above = np.zeros(counts.shape[0], np.int64), np.zeros(counts.shape[0], np.int64)
    for row in range(counts.shape[0]):
        wanted = max(keep[row], 1)
        seen = 0
        for place in range(counts.shape[1] - 1, -1, -1):
            if seen + counts[row, place] >= wanted:
                places[row] = place
                break
            seen += counts[row, place]
        above[row] = seen
    return places, above


def _cut(parts: list[Stack], bits: np.ndarray, wanted: np.ndarray, equal: np.ndarray) -> list[Kept]:
    """The index up to which elements equal to the threshold are kept, in each tensor."""
    n = len(bits)
    all_of_them = np.full(n, np.iinfo(np.int64).max)
    if (wanted == equal).all():  # nothing to choose among
        return [Kept(bits, np.where(wanted > 0, all_of_them, -1)) for _ in parts]
    kept, left = [], wanted.copy()
    for part in parts:
        grains = max(1, -(-part.size // GRAIN))
        counts = part.count(_count_equal, n * grains, bits, grains, GRAIN, deltas=True).reshape(n, grains)
        last = np.empty(n, np.int64)
        for number in range(n):
            last[number] = last_index(part, number, bits[number], counts[number], int(left[number]))
        left = np.maximum(0, left - counts.sum(axis=1))
        kept.append(Kept(bits, last))
    return kept


@kernel
def _count_upper(counts: np.ndarray, base: np.ndarray, deltas: np.ndarray, start: int) -> None:
    for number in range(deltas.shape[0]):
        mine = counts[number * 32768 : (number + 1) * 32768]
        bits = deltas[number].view(np.uint32)
        for at in range(bits.size):
            mine[(bits[at] & np.uint32(0x7FFFFFFF)) >> np.uint32(16)] += 1


@kernel
def _count_lower(counts: np.ndarray, base: np.ndarray, deltas: np.ndarray, start: int, place: np.ndarray) -> None:
    for number in range(deltas.shape[0]):
        mine = counts[number * 65536 : (number + 1) * 65536]
        bits = deltas[number].view(np.uint32)
        wanted = place[number]
        for at in range(bits.size):
            if (bits[at] & np.uint32(0x7FFFFFFF)) >> np.uint32(16) == wanted:
                mine[bits[at] & np.uint32(0xFFFF)] += 1


@kernel
def _count_equal(
    counts: np.ndarray, base: np.ndarray, deltas: np.ndarray, start: int, threshold: np.ndarray, grains: int, grain: int
) -> None:
    for number in range(deltas.shape[0]):
        bits = deltas[number].view(np.uint32)
        wanted, found = threshold[number], np.int32(0)
        for at in range(bits.size):
            found += np.int32((bits[at] & np.uint32(0x7FFFFFFF)) == wanted)
        counts[number * grains + start // grain] += found
