"""Choosing rows by what they say, never by where they stand.

Each row gets a 64-bit number that is a hash of (seed, purpose, label, text). Of each class the rows with the smallest
numbers are taken. So the choice is random, stratified, and the same whatever the order of rows or the number of files.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

MAX_VALIDATION = 2000

Keys = npt.NDArray[np.uint64]
Codes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def row_key(seed: int, purpose: str, text: str, label: str) -> int:
    """64 bits of BLAKE2b over (seed, purpose, label, text)."""
    name = f"{seed}\0{purpose}\0{len(label)}\0{label}".encode()
    return int.from_bytes(hashlib.blake2b(name + text.encode(), digest_size=8).digest(), "little")


def quotas(available: Codes, total: int, least: int = 0) -> Codes:
    """Shares of `total` for each class, in proportion to what is available (largest remainders).

    Args:
        available: int64, shape (classes,): rows that may be taken.
        total: Rows to take in all; less is taken when less is available.
        least: Rows that each class gets before the rest is shared, as far as it has them. If that alone is more than
            `total`, it is what comes back.

    Returns:
        int64, shape (classes,): never more than `available`.
    """
    base = np.minimum(available, least)
    rest = available - base
    left = min(total - int(base.sum()), int(rest.sum()))
    if left <= 0:
        return base
    # Integer arithmetic, so that ties are ties on every machine.
    share, remainder = np.divmod(rest * left, int(rest.sum()))
    missing = left - int(share.sum())
    # Largest remainder first; the lower class number wins a tie. A class with a remainder has a row left.
    order = np.lexsort((np.arange(len(rest)), -remainder))
    share[order[:missing]] += 1
    return base + share


def smallest(codes: Codes, keys: Keys, share: Codes) -> Mask:
    """The `share[c]` rows of each class c with the smallest keys.

    Of rows with equal keys (the same text and label) the first are taken.

    Args:
        codes: int64, shape (rows,): class of each row, -1 for rows that are never taken.
        keys: uint64, shape (rows,).
        share: int64, shape (classes,): how many rows of each class, at most as many as it has.

    Returns:
        bool, shape (rows,).
    """
    chosen = np.zeros(len(codes), dtype=np.bool_)
    by_class = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes[codes >= 0], minlength=len(share))) + int((codes < 0).sum())
    for code in np.flatnonzero(share):
        start = ends[code - 1] if code else int((codes < 0).sum())
        rows = by_class[start : ends[code]]
        mine = keys[rows]
        count = int(share[code])
        threshold = np.partition(mine, count - 1)[count - 1]
        below = mine < threshold
        ties = np.flatnonzero(mine == threshold)[: count - int(below.sum())]
        chosen[rows[below]] = True
        chosen[rows[ties]] = True
    return chosen


def sample(codes: Codes, keys: Keys, total: int) -> Mask:
    """A stratified sample of `total` rows; every class keeps two rows if `total` allows.

    Shapes as in `smallest`.
    """
    counts = np.bincount(codes[codes >= 0])
    least = 2 if 2 * len(counts) <= total else 0
    return smallest(codes, keys, quotas(counts, total, least))


def hold_out(codes: Codes, keys: Keys, fraction: float, most: int | None = None) -> Mask:
    """The rows to hold out of training: stratified, at least 2 of each class where that leaves twice as many.

    Training always keeps at least two thirds of a class. If all classes are too small for that (1 or 2 rows each), a
    tenth of the rows of classes with 2 is taken, at least 2 if there are, so that something can be measured.

    Args:
        codes, keys: As in `smallest`.
        fraction: Of all rows.
        most: Upper limit on rows.
    """
    counts = np.bincount(codes[codes >= 0])
    total = round(fraction * int(counts.sum()))
    if most is not None:
        total = min(total, most)
    share = quotas(counts // 3, total, least=2)
    if share.sum() < 2:
        share = quotas(np.where(counts >= 2, 1, 0), max(2, total))
    return smallest(codes, keys, share)
