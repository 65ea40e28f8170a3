"""The k-th largest magnitude of a large tensor in one pass: a sample says between which two values it must lie.

    sample        |----------lo====hi------|        magnitudes, upwards; the k-th largest is most likely between lo and hi
    one pass      count those above hi, and those equal to hi or to lo; set apart those in between (a few per cent)
    selection     among those set apart (introselect)

When the k-th largest lies elsewhere after all, or more were set apart than there is room for, there is no answer, and
counting (`select`) gives it. What the sample holds changes the time, never the result.

Source: Floyd and Rivest (1975), Expected time bounds for selection.
"""

from __future__ import annotations

import numpy as np

from regraft.merge.kept import MAGNITUDE, Kept, last_index
from regraft.merge.kernels import bits_of, kernel
from regraft.merge.stack import GRAIN, Stack
from regraft.merge.stored import decoded

# A tensor of fewer elements is counted as fast.
LEAST = 2**17
# The sample: so many runs of neighbours, evenly spread.
RUNS, RUN = 8, 4096
# How far from its expected rank in the sample the k-th largest is looked for, as a share of the sample. Rows of a matrix
# differ, so runs of neighbours say less than as many independent elements would.
MARGIN = 0.01
# Elements that are sorted out at a time: they stay in the first-level cache.
LONG = 2048
# Elements of a block that are set apart at most, as a share of the block, and bytes for all of them.
SHARE = 8
ROOM = 2**27


def among_sampled(stack: Stack, keep: np.ndarray) -> Kept | None:
    """The `keep[i]` largest magnitudes of delta i; None when counting has to find them."""
    n, grains = stack.n, -(-stack.size // GRAIN)
    if (
        stack.size < LEAST
        or 4 * n * grains * (GRAIN // SHARE) > ROOM
        or (keep <= 0).any()
        or (keep >= stack.size).any()
    ):
        return None
    low, high = _bounds(stack, keep)
    apart = np.empty((n, grains, GRAIN // SHARE), np.uint32)
    settings = (low, high, apart, grains, GRAIN)

    def stored(counts: np.ndarray, base: np.ndarray | None, inputs: tuple[np.ndarray, ...], start: int) -> bool:
        return base is not None and all(
            _divide_stored(counts, base, words, number, start, *settings) for number, words in enumerate(inputs)
        )

    counts = stack.count(_divide, n * 4 * grains, *settings, deltas=True, stored=stored).reshape(n, 4, grains)
    found = stack.each(
        lambda number: _resolve(stack, number, keep[number], low[number], high[number], counts[number], apart[number])
    )
    if any(one is None for one in found):
        return None
    return Kept(
        np.array([one[0] for one in found if one], np.uint32), np.array([one[1] for one in found if one], np.int64)
    )


def _resolve(
    stack: Stack, number: int, keep: np.int64, low: np.uint32, high: np.uint32, counts: np.ndarray, apart: np.ndarray
) -> tuple[np.uint32, int] | None:
    """The threshold of one delta, and the index of the last element equal to it that is kept; None if it lies elsewhere."""
    above, equal_high, equal_low, between = counts
    wanted = int(keep - above.sum())
    if wanted <= 0 or (between > apart.shape[1]).any():
        return None
    if wanted <= equal_high.sum():
        return high, last_index(stack, number, high, equal_high, wanted)
    wanted -= int(equal_high.sum())
    if wanted <= between.sum():
        together = np.empty(int(between.sum()), np.uint32)
        _put_together(together, apart, between)
        place = together.size - wanted
        threshold = np.partition(together, place)[place]
        equal, larger = _count_those(apart, between, threshold)
        return threshold, last_index(stack, number, threshold, equal, wanted - larger)
    wanted -= int(between.sum())
    if wanted <= equal_low.sum():
        return low, last_index(stack, number, low, equal_low, wanted)
    return None


@kernel
def _put_together(out: np.ndarray, apart: np.ndarray, between: np.ndarray) -> None:
    """What was set apart in all blocks, one block after another."""
    reached = 0
    for place in range(between.size):
        out[reached : reached + between[place]] = apart[place, : between[place]]
        reached += between[place]


@kernel
def _count_those(apart: np.ndarray, between: np.ndarray, threshold: np.uint32) -> tuple[np.ndarray, int]:
    """How many set apart in each block are equal to a threshold, int64 [blocks], and how many in all are larger."""
    equal, larger = np.zeros(between.size, np.int64), 0
    for place in range(between.size):
        for at in range(between[place]):
            equal[place] += apart[place, at] == threshold
            larger += apart[place, at] > threshold
    return equal, larger


def _bounds(stack: Stack, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Between which two magnitudes, as bits, the k-th largest of each delta is looked for: uint32 [n], uint32 [n]."""
    starts = [run * (stack.size - RUN) // (RUNS - 1) for run in range(RUNS)]

    def bounds(number: int) -> tuple[np.uint32, np.uint32]:
        drawn = np.concatenate([stack.delta_part(number, start, RUN) for start in starts]).view(np.uint32) & MAGNITUDE
        place = drawn.size * (1.0 - keep[number] / stack.size)
        below, over = int(place - MARGIN * drawn.size), int(place + MARGIN * drawn.size) + 1
        drawn.partition([max(below, 0), min(over, drawn.size - 1)])
        return drawn[below] if below > 0 else np.uint32(0), drawn[over] if over < drawn.size else MAGNITUDE

    found = stack.each(bounds)
    return np.array([one[0] for one in found], np.uint32), np.array([one[1] for one in found], np.uint32)


@kernel
def _divide(
    counts: np.ndarray, base: np.ndarray, deltas: np.ndarray, start: int, low: np.ndarray, high: np.ndarray,
    apart: np.ndarray, grains: int, grain: int,
) -> None:  # fmt: skip
    """Count magnitudes above `high`, equal to it, equal to `low` (if that is another), and set apart those in between."""
    nothing = np.zeros(LONG, np.uint32)  # as bits of float32: a delta less nothing is itself
    for number in range(deltas.shape[0]):
        words = deltas[number].view(np.uint32)
        mine = counts[number * 4 * grains : (number + 1) * 4 * grains]
        for first in range(0, words.size, LONG):
            part = words[first : first + LONG]
            _divide_part(mine, part, nothing, low[number], high[number], apart[number], start // grain, grains)


@kernel
def _divide_stored(
    counts: np.ndarray, base: np.ndarray, words: np.ndarray, number: int, start: int, low: np.ndarray, high: np.ndarray,
    apart: np.ndarray, grains: int, grain: int,
) -> bool:  # fmt: skip
    """`_divide` for one input from stored bits; whether it and the base are finite."""
    mine = counts[number * 4 * grains : (number + 1) * 4 * grains]
    first, fine = 0, True
    while first < words.size:
        stop = first + min(LONG, words.size - first, grain - (start + first) % grain)
        place, part, origin = (start + first) // grain, words[first:stop], base[first:stop]
        fine = _divide_part(mine, part, origin, low[number], high[number], apart[number], place, grains) and fine
        first = stop
    return fine


@kernel
def _divide_part(
    counts: np.ndarray, words: np.ndarray, base: np.ndarray, least: np.uint32, most: np.uint32, apart: np.ndarray,
    place: int, grains: int,
) -> bool:  # fmt: skip
    """`_divide` for at most `LONG` stored elements of one input, which belong to the block number `place`.

    Those in between are marked first, and looked for eight marks at a time: they are few.
    """
    between, exponent, worst = np.empty(LONG, np.uint8), np.uint32(0x7F800000), np.uint32(0)
    above, equal_high, equal_low = np.int32(0), np.int32(0), np.int32(0)
    for at in range(words.size):
        mine, origin = decoded(words[at]), decoded(base[at])
        worst = max(worst, max(bits_of(mine) & exponent, bits_of(origin) & exponent))
        magnitude = bits_of(mine - origin) & np.uint32(0x7FFFFFFF)
        above = np.int32(above + np.int32(magnitude > most))  # a sum of int32 is int64: half as many in a vector
        equal_high = np.int32(equal_high + np.int32(magnitude == most))
        equal_low = np.int32(equal_low + np.int32(magnitude == least))
        between[at] = np.uint8((magnitude > least) & (magnitude < most))
    between[words.size : -(-words.size // 8) * 8] = 0
    marks, target = between.view(np.uint64), apart[place]
    reached, end = counts[3 * grains + place], target.size - 1
    for eight in range(-(-words.size // 8)):
        if marks[eight]:
            for at in range(8 * eight, min(8 * eight + 8, words.size)):
                change = decoded(words[at]) - decoded(base[at])
                if reached <= end:
                    target[reached] = bits_of(change) & np.uint32(0x7FFFFFFF)
                reached += between[at]
    counts[place] += above
    counts[grains + place] += equal_high
    counts[2 * grains + place] += equal_low if least < most else np.int32(0)
    counts[3 * grains + place] = reached
    return bool(worst != exponent)
