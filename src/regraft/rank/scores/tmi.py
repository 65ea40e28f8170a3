"""TMI: the entropy of the features within each class."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from regraft.errors import TaskError
from regraft.methods import Source, method
from regraft.randomness import permutation
from regraft.rank.scores.prepared import Floats, Given, Labels, prepare

NEIGHBOURS = 3
# Pairs of examples of one class whose distances are computed, over all classes.
PAIRS = 1_000_000
# Least distance, in units of the spread within the classes: equal examples would make the entropy minus infinity.
FLOOR = 1e-9


@method(
    "rank",
    "tmi",
    source=Source(
        "Xu & Kang",
        2023,
        "2308.05986",
        "Fast and accurate transferability measurement by evaluating intra-class feature variance",
    ),
    claim="models whose features vary more within a class generalise better to a new task",
    needs=("features", "labels"),
    invariances=("column permutation", "label permutation", "row permutation", "class means"),
)
def tmi(features: Given, labels: ArrayLike | None = None, *, seed: int = 0, k: int = NEIGHBOURS) -> float:
    """H(F | Y) = sum_c n_c / N H(F_c) in nats, by the nearest neighbour estimator of Kozachenko & Leonenko in the largest norm:

        H(F_c) = psi(n_c) - psi(k) + D / n_c sum_i log(2 r_i),   r_i the distance to the k-th nearest example of the class

    It measures variance, not separation: moving whole classes apart changes nothing. It grows with D and with the scale of the
    features: compare models whose features are of one size and unit. The authors' code takes every distance below 1 for 1, which
    leaves D log 2 and no information of features of unit length, and divides by the number of classes once more. A class of one
    example has no neighbour and is left out.

    More than a million pairs within classes are drawn from, each class in proportion: up to there the order of the rows does not
    matter.

    Args:
        features: [N, D], or prepared.
        labels: [N].
        seed: Of the draw.
        k: Neighbours; fewer in a class of no more examples.

    Raises:
        TaskError: No class has two examples.
    """
    given = prepare(features, labels)
    within = given.features - given.class_means[given.labels]
    floor = max(FLOOR * float(np.sqrt((within**2).mean())), 1e-150)
    total = weight = 0.0
    for label, rows in enumerate(_members(given.labels, k, seed)):
        if len(rows) > 1:
            total += given.counts[label] * _entropy(within[rows], min(k, len(rows) - 1), floor)
            weight += given.counts[label]
    if weight == 0:
        raise TaskError("Every class has one example; an entropy needs two of one class.", "Give more examples.")
    return float(total / weight)


def _members(labels: Labels, k: int, seed: int) -> list[Labels]:
    """The rows of each class, fewer of each where they would make too many pairs."""
    counts = np.bincount(labels)
    share = min(1.0, float(np.sqrt(PAIRS / (counts.astype(np.float64) ** 2).sum())))
    order = permutation(len(labels), seed, "tmi") if share < 1.0 else np.arange(len(labels))
    classes = [order[labels[order] == label] for label in range(len(counts))]
    return [rows[: max(int(np.ceil(share * len(rows))), k + 1)] for rows in classes]


def _entropy(points: Floats, k: int, floor: float) -> float:
    """H of the points [n, D], n > k."""
    from scipy.spatial.distance import cdist
    from scipy.special import digamma

    distances = cdist(points, points, "chebyshev")
    np.fill_diagonal(distances, np.inf)
    nearest = np.maximum(np.partition(distances, k - 1, axis=1)[:, k - 1], floor)
    return float(digamma(len(points)) - digamma(k) + points.shape[1] * np.log(2.0 * nearest).mean())
