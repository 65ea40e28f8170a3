"""k nearest neighbours: how often the examples around an example share its label."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from regraft.methods import Source, method
from regraft.rank.scores.prepared import Given, prepare

BLOCK = 1024  # rows whose similarities to all others are held at once,
CELLS = 2**21  # and similarities, of which there are two copies: memory does not grow with the number of examples
DIGITS = 9


@method(
    "rank",
    "knn",
    source=Source("Cover & Hart", 1967, "", "Nearest neighbor pattern classification"),
    claim="neighbours in the feature space vote without any training",
    needs=("features", "labels"),
    invariances=(
        "rotation",
        "scaling",
        "zero columns",
        "column permutation",
        "label permutation",
        "row permutation",
    ),
)
def knn(features: Given, labels: ArrayLike | None = None, *, seed: int = 0, k: int = 10) -> float:
    """Leave-one-out accuracy of the k nearest neighbours by cosine, each vote weighed by its similarity (plus one).

    Neighbours as near as the k-th vote, too, and classes with equal votes share the credit: the order of rows or classes
    never decides.

    Args:
        features: [N, D], or prepared; a row of zeros has similarity 0 to all.
        labels: [N].
        seed: Not used; the score is deterministic.
        k: Neighbours that vote; fewer when there are fewer.
    """
    ready = prepare(features, labels)
    given, classes = ready.features, ready.labels
    norms = np.linalg.norm(given, axis=1, keepdims=True)
    unit = given / np.where(norms > 0, norms, 1.0)
    count, width, credit = len(unit), int(classes.max()) + 1, 0.0
    k = min(k, count - 1)
    block = max(1, min(BLOCK, CELLS // count))
    for start in range(0, count, block):
        rows = np.arange(start, min(start + block, count))
        # Rounded, so that equal similarities stay equal when the features are rotated or the rows come in another order.
        similar = np.round(unit[rows] @ unit.T, DIGITS)
        similar[np.arange(len(rows)), rows] = -np.inf
        row, near = np.nonzero(similar >= np.partition(similar, count - k, axis=1)[:, count - k, None])
        cells = np.bincount(row * width + classes[near], 1.0 + similar[row, near], minlength=len(rows) * width)
        votes = np.round(cells.reshape(len(rows), width), DIGITS)
        winners = votes == votes.max(axis=1, keepdims=True)
        credit += float((winners[np.arange(len(rows)), classes[rows]] / winners.sum(axis=1)).sum())
    return credit / count
