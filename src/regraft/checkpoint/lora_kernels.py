"""The loop that adds a low-rank product to the elements of a tensor, compiled by numba."""

from __future__ import annotations

import numba
import numpy as np

# Elements whose float64 sums stay in a core's first-level cache while one factor after another is added.
STRIP = 512


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def add_product(out: np.ndarray, start: int, left: np.ndarray, right: np.ndarray, scale: float) -> bool:
    """out[e] += scale * sum_k left[row, k] * right[k, column] for the elements e from `start` on; whether all are finite.

    Every element is summed by itself, in float64, in the order of k, and rounded once: its bits depend neither on where a
    block starts or ends nor on threads. (A matrix product of BLAS promises no such thing.)

    Args:
        out: float32 [g], the elements `start` to `start + g` of a tensor of rows of `right.shape[1]`.
        left: float64 [rows, r].
        right: float64 [r, columns].
    """
    width = right.shape[1]
    total = np.empty(STRIP)
    bits = out.view(np.uint32)
    highest = np.uint32(0)
    at = 0
    while at < out.size:
        row, column = (start + at) // width, (start + at) % width
        size = min(STRIP, width - column, out.size - at)
        total[:size] = 0.0
        for k in range(right.shape[0]):
            factor, line = left[row, k], right[k, column : column + size]
            for place in range(size):
                total[place] += factor * line[place]
        target, words = out[at : at + size], bits[at : at + size]
        for place in range(size):
            target[place] = np.float32(np.float64(target[place]) + scale * total[place])
        for place in range(size):
            highest = max(highest, words[place] & np.uint32(0x7F800000))
        at += size
    return bool(highest != np.uint32(0x7F800000))
