"""LFC: the correlation of the features' Gram matrix with the labels'."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from regraft.methods import Source, method
from regraft.rank.scores.prepared import Given, prepare


@method(
    "rank",
    "lfc",
    source=Source(
        "Deshpande, Achille, Ravichandran, Li, Zancato, Fowlkes, Bhotika, Soatto & Perona",
        2021,
        "2102.00084",
        "A linearized framework and a new benchmark for model selection for fine-tuning",
    ),
    claim="a feature kernel that is like the label kernel is one that fine-tunes fast and well",
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
def lfc(features: Given, labels: ArrayLike | None = None, *, seed: int = 0) -> float:
    """Correlation of T = F F^T and K = (1 of one class, else -1) over all N x N entries, in [-1, 1].

        <T - mean T, K - mean K> / (|T - mean T|_F |K - mean K|_F)

    Copies divide by spectral norms and exceed 1. No N x N matrix is made: with a = C m for the centred features C and their
    mean m, T - mean T = a_i + a_j + C C^T, whose three parts are orthogonal. Features without any spread get 0.

    Args:
        features: [N, D], or prepared.
        labels: [N].
        seed: Not used; the score is deterministic.
    """
    given = prepare(features, labels)
    count, counts, found = len(given.labels), given.counts, given.spectrum
    offsets = given.centred @ given.mean
    sums = np.sqrt(found.squares)[:, None] * given.projected
    products = 4.0 * float(offsets @ counts[given.labels]) + 2.0 * float((sums**2).sum())
    kernel = 2.0 * count * float(offsets @ offsets) + float((found.squares**2).sum())
    same = float((counts**2).sum())
    similar = count**2 - ((2.0 * same - count**2) / count) ** 2
    scale = np.sqrt(kernel * similar)
    return products / float(scale) if scale > 0 else 0.0
