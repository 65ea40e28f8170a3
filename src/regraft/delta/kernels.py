"""The loops over words that numpy has no fast form for: byte planes apart and together, and words ordered by exponent.

They release the interpreter's lock and allocate nothing but a table of counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile a loop over arrays; compiled code is kept on disk, so that only the very first call waits."""
    compiled: Function = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    return compiled


@kernel
def apart(planes: np.ndarray, words: np.ndarray) -> None:
    """Byte p of every word, the most significant first, to row p of uint8 [bytes of a word, words]."""
    width = planes.shape[0]
    for plane in range(width):
        row = planes[plane]
        shift = np.uint64(8 * (width - 1 - plane))
        for at in range(words.size):
            row[at] = np.uint8((np.uint64(words[at]) >> shift) & np.uint64(0xFF))


@kernel
def apart_two(high: np.ndarray, low: np.ndarray, words: np.ndarray) -> None:
    """`apart` for words of two bytes, in one pass."""
    for at in range(words.size):
        word = words[at]
        high[at] = np.uint8(word >> np.uint16(8))
        low[at] = np.uint8(word & np.uint16(0xFF))


@kernel
def together_two(words: np.ndarray, high: np.ndarray, low: np.ndarray) -> None:
    """The inverse of `apart_two`."""
    for at in range(words.size):
        words[at] = np.uint16(np.uint16(high[at]) << np.uint16(8)) | np.uint16(low[at])


@kernel
def add_plane(words: np.ndarray, plane: np.ndarray, shift: int, first: bool) -> None:
    """words |= plane << shift (words = plane << shift for the first): the inverse of `apart`, a plane at a time."""
    by = np.uint64(shift)
    if first:
        for at in range(words.size):
            words[at] = np.uint64(plane[at]) << by
    else:
        for at in range(words.size):
            words[at] = np.uint64(words[at]) | (np.uint64(plane[at]) << by)


@kernel
def gather_by(out: np.ndarray, words: np.ndarray, keys: np.ndarray, shift: int, mask: int) -> None:
    """Words ordered by (key >> shift) & mask, ties in their old order: a counting sort."""
    places = _places(keys, shift, mask)
    by, bits, quarter = np.uint64(shift), np.uint64(mask), keys.size // 4
    for at in range(quarter):
        for part in range(4):
            here = part * quarter + at
            group = (np.uint64(keys[here]) >> by) & bits
            place = places[part, group]
            out[place] = words[here]
            places[part, group] = place + 1
    for here in range(4 * quarter, keys.size):
        group = (np.uint64(keys[here]) >> by) & bits
        out[places[3, group]] = words[here]
        places[3, group] += 1


@kernel
def scatter_by(out: np.ndarray, words: np.ndarray, keys: np.ndarray, shift: int, mask: int) -> None:
    """The inverse of `gather_by`."""
    places = _places(keys, shift, mask)
    by, bits, quarter = np.uint64(shift), np.uint64(mask), keys.size // 4
    for at in range(quarter):
        for part in range(4):
            here = part * quarter + at
            group = (np.uint64(keys[here]) >> by) & bits
            place = places[part, group]
            out[here] = words[place]
            places[part, group] = place + 1
    for here in range(4 * quarter, keys.size):
        group = (np.uint64(keys[here]) >> by) & bits
        out[here] = words[places[3, group]]
        places[3, group] += 1


@kernel
def _places(keys: np.ndarray, shift: int, mask: int) -> np.ndarray:
    """Where each group begins, for the words of each quarter (the last has the rest as well).

    Most weights share three or four exponents, so a loop over one table waits for its own last count at every step. Four
    quarters side by side do not.
    """
    by, bits, quarter = np.uint64(shift), np.uint64(mask), keys.size // 4
    places = np.zeros((4, mask + 1), np.int64)
    for at in range(quarter):
        for part in range(4):
            places[part, (np.uint64(keys[part * quarter + at]) >> by) & bits] += 1
    for at in range(4 * quarter, keys.size):
        places[3, (np.uint64(keys[at]) >> by) & bits] += 1
    total = 0
    for group in range(mask + 1):
        for part in range(4):
            count = places[part, group]
            places[part, group] = total
            total += count
    return places
