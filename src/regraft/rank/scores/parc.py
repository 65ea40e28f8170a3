"""PARC: whether examples of different classes are far apart, by the rank correlation of their distances."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from regraft.methods import Source, method
from regraft.rank.scores.prepared import Floats, Given, fewer, prepare

# Examples whose pairs are compared; the authors use 500.
LIMIT = 2000
DIGITS = 9


@method(
    "rank",
    "parc",
    source=Source(
        "Bolya, Mittapalli & Hoffman",
        2021,
        "2111.06977",
        "Scalable diverse model selection for accessible transfer learning",
    ),
    claim="distances of features that order pairs as distances of labels do come from models that transfer well",
    needs=("features", "labels"),
    invariances=("scaling", "column permutation", "label permutation", "row permutation"),
)
def parc(features: Given, labels: ArrayLike | None = None, *, seed: int = 0) -> float:
    """Spearman's correlation, over pairs of examples, of 1 - r(f_i, f_j) and 1 - r(y_i, y_j); in [-1, 1] (authors: times 100).

    r is Pearson's correlation across the columns; the columns of the features are standardised first, the labels are one-hot. Two
    different one-hot labels have r = -1 / (C - 1) always, so the second distance is ranked as "of another class" is. Constant
    columns stay 0, constant rows have r = 0.

    More than 2,000 examples are drawn from, each class in proportion: up to there the order of the rows does not matter.

    Args:
        features: [N, D], or prepared.
        labels: [N].
        seed: Of the draw.
    """
    given = fewer(prepare(features, labels), LIMIT, seed, "parc")
    spread = given.centred.std(axis=0)
    flat = spread <= 1e-12 * np.abs(given.features).max(axis=0)
    rows = given.centred / np.where(flat, 1.0, spread) * ~flat
    rows = rows - rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.where(norms > 1e-12, norms, 1.0)
    first, second = np.triu_indices(len(rows), 1)
    distances = np.round(1.0 - (rows @ rows.T)[first, second], DIGITS)
    different = (given.labels[first] != given.labels[second]).astype(np.float64)
    return _correlation(ranks(distances), different)


def ranks(values: Floats) -> Floats:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2.0)[inverse])


def _correlation(left: Floats, right: Floats) -> float:
    """Pearson's; 0 where one side is constant."""
    left, right = left - left.mean(), right - right.mean()
    scale = np.sqrt(float(left @ left) * float(right @ right))
    return float(left @ right) / scale if scale > 0 else 0.0
