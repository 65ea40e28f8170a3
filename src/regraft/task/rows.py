"""Choosing rows of a split that stand for all of it."""

from __future__ import annotations

import numpy as np


def spread_rows(labels: np.ndarray, count: int) -> np.ndarray:
    """`count` rows that hold each class in proportion (at least one of each that has one), sorted by index.

    The order of a task's rows depends on their content alone, so taking the first of each class is a fair sample.
    """
    if count >= len(labels):
        return np.arange(len(labels))
    seen = np.zeros(int(labels.max()) + 1, dtype=np.int64)
    totals = np.bincount(labels, minlength=len(seen))
    place = np.empty(len(labels), dtype=np.float64)
    for row, label in enumerate(labels):
        place[row] = (seen[label] + 0.5) / totals[label] if seen[label] else 0.0
        seen[label] += 1
    return np.sort(np.argsort(place, kind="stable")[:count])
