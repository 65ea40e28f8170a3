"""GBC: how little the classes overlap as Gaussians, by Bhattacharyya coefficients."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from regraft.methods import Source, method
from regraft.rank.scores.prepared import Floats, Given, Prepared, prepare

# Principal components that are kept.
DIMENSIONS = 64
# Least variance of a class, in units of the mean variance: a class of one example has none.
FLOOR = 1e-4


@method(
    "rank",
    "gbc",
    source=Source(
        "Pandy, Agostinelli, Uijlings, Ferrari & Mensink",
        2022,
        "2111.12780",
        "Transferability estimation using Bhattacharyya class separability",
    ),
    claim="the less the classes overlap in the source model's features, the better it transfers",
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
def gbc(
    features: Given,
    labels: ArrayLike | None = None,
    *,
    seed: int = 0,
    gaussian: Literal["spherical", "diagonal"] = "spherical",
    dimensions: int = DIMENSIONS,
) -> float:
    """-sum_{i != j} exp(-B_ij) over ordered pairs of classes; from -C (C - 1), all alike, to 0, all apart.

        B_ij = 1/8 (m_i - m_j)^T S^-1 (m_i - m_j) + 1/2 log(|S| / sqrt(|S_i| |S_j|)),   S = (S_i + S_j) / 2

    of the class means m and covariances S_i, spherical or diagonal, of the first principal components. |S_i| of a spherical
    covariance v I is v^d: a widespread copy takes v, and so counts the second term once instead of d times. The least variance
    is relative (copies: 1e-4), so that the unit of the features does not matter.

    Args:
        features: [N, D], or prepared.
        labels: [N].
        seed: Not used; the score is deterministic.
        gaussian: Shape of the covariances.
        dimensions: d, principal components that are kept; fewer where there are fewer.
    """
    means, variances = class_gaussians(prepare(features, labels), dimensions)
    if gaussian == "spherical":
        variances = np.broadcast_to(variances.mean(axis=1, keepdims=True), variances.shape)
    logs, overlap = np.log(variances), 0.0
    for label in range(len(means)):
        middle = (variances + variances[label]) / 2
        distance = ((means - means[label]) ** 2 / middle).sum(axis=1) / 8
        distance += 0.5 * (np.log(middle) - (logs + logs[label]) / 2).sum(axis=1)
        overlap += float(np.exp(-distance).sum()) - 1.0
    return -overlap


def class_gaussians(given: Prepared, dimensions: int) -> tuple[Floats, Floats]:
    """Means and variances of each class in the leading principal components, [C, d] each; d = 1 of zeros and ones if none."""
    points = given.spectrum.points[:, ::-1][:, :dimensions]
    if points.shape[1] == 0:
        shape = (len(given.counts), 1)
        return np.zeros(shape), np.ones(shape)
    counts = given.counts[:, None]
    means = given.one_hot.T @ points / counts
    variances = given.one_hot.T @ (points - means[given.labels]) ** 2 / counts
    return means, np.maximum(variances, FLOOR * float((points**2).mean()))
