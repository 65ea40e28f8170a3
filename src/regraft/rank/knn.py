"""k nearest neighbours: how often the examples around an example share its label."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from regraft.methods import Source, method
from regraft.rank.scores import checked

BLOCK = 1024


@method(
    "rank",
    "knn",
    source=Source("Cover & Hart", 1967, "", "Nearest neighbor pattern classification"),
    claim="neighbours in the feature space vote without any training",
    needs=("features", "labels"),
    invariances=("rotation", "scaling", "zero columns", "label permutation", "row permutation"),
)
def knn(features: ArrayLike, labels: ArrayLike, *, seed: int = 0, k: int = 10) -> float:
    """Leave-one-out accuracy of the k nearest neighbours by cosine, each vote weighed by its similarity (plus one).

    Args:
        features: [N, D]; a row of zeros has similarity 0 to all.
        labels: [N].
        seed: Not used; the score is deterministic.
        k: Neighbours that vote; fewer when there are fewer.
    """
    given, classes = checked(features, labels)
    # Rounded, so that equal similarities stay equal when the features are rotated or the rows come in another order.
    norms = np.linalg.norm(given, axis=1, keepdims=True)
    unit = (given / np.where(norms > 0, norms, 1.0)).astype(np.float64)
    count, right = len(unit), 0
    k = min(k, count - 1)
    for start in range(0, count, BLOCK):
        rows = np.arange(start, min(start + BLOCK, count))
        similar = np.round(unit[rows] @ unit.T, 9)
        similar[np.arange(len(rows)), rows] = -np.inf
        near = np.argpartition(-similar, k - 1, axis=1)[:, :k]
        votes = np.zeros((len(rows), int(classes.max()) + 1))
        np.add.at(votes, (np.arange(len(rows))[:, None], classes[near]), 1.0 + np.take_along_axis(similar, near, axis=1))
        right += int((votes.argmax(axis=1) == classes[rows]).sum())
    return right / count
