"""SFDA: how sure a regularised Fisher discriminant is of the right class after every hard example was made harder."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regraft.methods import Source, method
from regraft.rank.scores.prepared import Floats, Given, Labels, Prepared, drawn, largest_eigenvalue, prepare, renumbered

# Regularisation is exp(-5 x largest eigenvalue of the within-class scatter), not less than the second; the authors' values.
STEEPNESS = 5.0
WEAKEST = 1e-10
LIMIT = 5000


@method(
    "rank",
    "sfda",
    source=Source(
        "Shao, Zhao, Ge, Zhang, Yang, Wang, Shan & Luo",
        2022,
        "2207.03036",
        "Not all models are equal: predicting model transferability in a self-challenging Fisher space",
    ),
    claim="separation in a Fisher space that challenges itself with hard examples follows the accuracy after fine-tuning",
    needs=("features", "labels"),
    invariances=("rotation", "column permutation", "label permutation", "row permutation", "saturates at N < D"),
)
def sfda(features: Given, labels: ArrayLike | None = None, *, seed: int = 0) -> float:
    """Mean probability of the right class by the second of two discriminants; in (0, 1).

        p(c | x) = softmax_c(x^T W^-1 m_c - 1/2 m_c^T W^-1 m_c + log n_c / N),   W = (1 - l) S_w + l tr(S_w) / D I
        l = max(exp(-5 s), 1e-10),   s the largest eigenvalue of the within-class scatter S_w = 1/N sum_i (x_i - m_y)(x_i - m_y)^T

    The first discriminant's probabilities, softened by another softmax, mix each example with the mean o of the other classes'
    means, x' = p x + (1 - p) o; the second is fitted to the x' with the same l. As in the authors' code, which takes the mean
    of the probabilities and not of their logarithms. That code also writes the x' into the features it was given (a second score
    on them is another number), and takes three power rounds from the row sums for s, which depend on the basis.

    s has the unit of the features, so their scale moves the score; zero columns move it through D. It saturates: where the rows
    within classes are independent (N - C < D) and l is tiny the score is 1 for all features, they separate whatever they are.

    More than 5,000 examples are drawn from, each class in proportion: up to there the order of the rows does not matter.

    Args:
        features: [N, D], or prepared.
        labels: [N].
        seed: Of the draw.
    """
    given = prepare(features, labels)
    rows, points = drawn_points(given, seed, "sfda")
    return separation(points, renumbered(given.labels[rows]), given.features.shape[1])


def drawn_points(given: Prepared, seed: int, purpose: str) -> tuple[NDArray[np.int64], Floats]:
    """At most 5,000 rows, and those of the centred features in the basis of the shared spectrum [n, k]."""
    rows = drawn(given.labels, LIMIT, seed, purpose)
    return rows, given.spectrum.points[rows]


def separation(points: Floats, labels: Labels, width: int) -> float:
    """SFDA of points [N, k] that hold all distances of the features; the other `width` - k directions of those are constant."""
    if points.shape[1] == 0:
        return float(((np.bincount(labels) / len(labels)) ** 2).sum())
    first, strength = discriminant(points, labels, width)
    rows = np.arange(len(labels))
    confidence = _softmax(first)[rows, labels][:, None]
    means = class_means(points, labels)
    others = (means.sum(axis=0) - means) / (len(means) - 1)
    mixed = confidence * points + (1.0 - confidence) * others[labels]
    second, _ = discriminant(mixed, labels, width, strength)
    return float(second[rows, labels].mean())


def discriminant(points: Floats, labels: Labels, width: int, strength: float | None = None) -> tuple[Floats, float]:
    """p(c | x) [N, C] of a linear discriminant regularised by `strength` (default: from the scatter), and the strength."""
    means = class_means(points, labels)
    within = points - means[labels]
    scatter = within.T @ within / len(points)
    if strength is None:
        strength = max(float(np.exp(-STEEPNESS * largest_eigenvalue(scatter))), WEAKEST)
    # Classes without any spread separate perfectly; a trace of the whole scatter keeps W invertible.
    ridge = max(float(np.trace(scatter)), 1e-12 * float((points**2).sum()) / len(points)) / width
    regular = (1.0 - strength) * scatter + strength * ridge * np.eye(len(scatter))
    directions = np.linalg.solve(regular, means.T)
    logits = points @ directions - 0.5 * (means.T * directions).sum(axis=0)
    return _softmax(logits + np.log(np.bincount(labels) / len(labels))), strength


def class_means(points: Floats, labels: Labels) -> Floats:
    """[C, k]."""
    counts = np.bincount(labels)
    return np.asarray((np.eye(len(counts))[labels].T @ points) / counts[:, None])


def _softmax(logits: Floats) -> Floats:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
