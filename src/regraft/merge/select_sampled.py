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
from regraft.merge.kernels import kernel
from regraft.merge.stack import GRAIN, Stack

# A tensor of fewer elements is counted as fast.
LEAST = 2**17
# The sample: so many runs of neighbours, evenly spread.
RUNS, RUN = 8, 4096
# How far from its expected rank in the sample the k-th largest is looked for, as a share of the sample. Rows of a matrix
# differ, so runs of neighbours say less than as many independent elements would.
MARGIN = 0.01
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
    counts = stack.count(_divide, n * 4 * grains, low, high, apart, grains, GRAIN, deltas=True).reshape(n, 4, grains)
    bits, last = np.empty(n, np.uint32), np.empty(n, np.int64)
    for number in range(n):
        above, equal_high, equal_low, between = counts[number]
        wanted = int(keep[number] - above.sum())
        if wanted <= 0 or (between > apart.shape[2]).any():
            return None
        if wanted <= equal_high.sum():
            threshold, equal = high[number], equal_high
        elif wanted <= equal_high.sum() + between.sum():
            wanted -= int(equal_high.sum())
            blocks = [apart[number, grain, : between[grain]] for grain in range(grains)]
            together = np.concatenate(blocks)
            threshold = np.partition(together, together.size - wanted)[together.size - wanted]
            wanted -= int((together > threshold).sum())
            equal = np.array([(block == threshold).sum() for block in blocks])
        elif wanted <= equal_high.sum() + between.sum() + equal_low.sum():
            wanted -= int(equal_high.sum() + between.sum())
            threshold, equal = low[number], equal_low
        else:
            return None
        bits[number] = threshold
        last[number] = last_index(stack, number, threshold, equal, wanted)
    return Kept(bits, last)


def _bounds(stack: Stack, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Between which two magnitudes, as bits, the k-th largest of each delta is looked for: uint32 [n], uint32 [n]."""
    low, high = np.empty(stack.n, np.uint32), np.empty(stack.n, np.uint32)
    starts = [run * (stack.size - RUN) // (RUNS - 1) for run in range(RUNS)]
    for number in range(stack.n):
        drawn = np.concatenate([stack.delta_part(number, start, RUN) for start in starts]).view(np.uint32) & MAGNITUDE
        place = drawn.size * (1.0 - keep[number] / stack.size)
        below, over = int(place - MARGIN * drawn.size), int(place + MARGIN * drawn.size) + 1
        drawn.partition([max(below, 0), min(over, drawn.size - 1)])
        low[number] = drawn[below] if below > 0 else 0
        high[number] = drawn[over] if over < drawn.size else MAGNITUDE
    return low, high


@kernel
def _divide(
    counts: np.ndarray,
    base: np.ndarray,
    deltas: np.ndarray,
    start: int,
    low: np.ndarray,
    high: np.ndarray,
    apart: np.ndarray,
    grains: int,
    grain: int,
) -> None:
    """Count magnitudes above `high`, equal to it, equal to `low` (if that is another), and set apart those in between."""
    place = start // grain
    room = apart.shape[2]
    for number in range(deltas.shape[0]):
        bits = deltas[number].view(np.uint32)
        least, most = low[number], high[number]
        above, equal_high, equal_low = np.int32(0), np.int32(0), np.int32(0)
        for at in range(bits.size):
            magnitude = bits[at] & np.uint32(0x7FFFFFFF)
            above += np.int32(magnitude > most)
            equal_high += np.int32(magnitude == most)
            equal_low += np.int32(magnitude == least)
        target = apart[number, place]
        first = number * 4 * grains + place
        between = counts[first + 3 * grains]  # of the block, when it comes in pieces
        if least < most:
            for at in range(bits.size):
                magnitude = bits[at] & np.uint32(0x7FFFFFFF)
                if magnitude > least and magnitude < most:
                    if between < room:
                        target[between] = magnitude
                    between += 1
        else:
            equal_low = np.int32(0)
        counts[first] += above
        counts[first + grains] += equal_high
        counts[first + 2 * grains] += equal_low
        counts[first + 3 * grains] = between
