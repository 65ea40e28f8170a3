"""TransRate: how many nats fewer the features need when the class is known, by coding rates."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from regraft.methods import Source, method
from regraft.rank.scores.prepared import Floats, Given, prepare

# Distortion; the authors' value.
EPSILON = 1e-4


@method(
    "rank",
    "transrate",
    source=Source(
        "Huang, Huang, Rong, Yang & Wei", 2022, "2106.09362", "Frustratingly easy transferability estimation"
    ),
    claim="the mutual information of features and labels, by coding rates, ranks models and layers",
    needs=("features", "labels"),
    invariances=("rotation", "zero columns", "column permutation", "label permutation", "row permutation"),
)
def transrate(features: Given, labels: ArrayLike | None = None, *, seed: int = 0, epsilon: float = EPSILON) -> float:
    """R(Z) - 1/C sum_c R(Z_c),   R(Z) = 1/2 log |I + Z^T Z / (n e)|, of the centred features Z [N, D] and their classes Z_c.

    Every class counts alike, as in the authors' listing; the mutual information that it stands for would weigh them by n_c / N,
    which is the same when they are balanced. The distortion e is absolute, so scaling the features moves the score.

    Args:
        features: [N, D], or prepared.
        labels: [N].
        seed: Not used; the score is deterministic.
        epsilon: e.
    """
    given = prepare(features, labels)
    found = given.spectrum
    whole = 0.5 * float(np.log1p(found.squares / (len(given.labels) * epsilon)).sum())
    points = found.points
    rates = [_rate(points[given.labels == label], epsilon) for label in range(len(given.counts))]
    return whole - float(np.mean(rates))


def _rate(points: Floats, epsilon: float) -> float:
    """R of some points [n, k], by the smaller Gram matrix."""
    gram = points @ points.T if len(points) < points.shape[1] else points.T @ points
    return 0.5 * float(np.linalg.slogdet(np.eye(len(gram)) + gram / (len(points) * epsilon))[1])
