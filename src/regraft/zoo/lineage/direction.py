"""Which of two neighbours came first: training adds to weights what is independent of them.

For a parent a and its child b, d = b - a is a sum of updates that hardly know the weights that they are added to; so the
squared length grows by |d|^2. For two children of one lost parent it does not: what a has of its own is in d, reversed. Weight
decay shrinks all weights by one factor. Both are fitted at once, over rows r of the blocks' matrices, with m_r = (a_r + b_r)/2:

    <d_r, m_r> = s |m_r|^2 + tau |d_r|^2 + noise        variance of the noise: |d_r|^2 |m_r|^2 / columns

    tau = 1/2: a is b's ancestor;  -1/2: b is a's;  0: both descend from another, at equal distances
    s     the shrinkage of decoupled weight decay; a prior of mean 0 and deviation `SHRINKAGE` keeps it small

Rows differ in length, which tells s from tau. It is the idea of the direction by kurtosis of Horwitz et al. (2025),
Unsupervised model tree heritage recovery, arXiv 2405.18432 (training moves the weights' distribution one way), carried by
second moments, which have an error that can be stated; and of additive-noise models (Hoyer et al. 2008, Nonlinear causal
discovery with additive noise models). What training does along the weights themselves makes tau larger, seldom smaller: on
fine-tunes of MiniLM it is 0.3 to 1.6. A lost parent with one child much nearer than the other looks like that child.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from regraft.checkpoint.headers import TensorInfo
from regraft.zoo.lineage.sample import matrix_of
from regraft.zoo.lineage.thresholds import ELEMENTS, LOST, MODEL_ERROR, SHRINKAGE


@dataclass(frozen=True)
class Direction:
    """tau with its standard error, from `rows` rows; the kurtosis is lower in the second one in so many of the matrices."""

    tau: float
    error: float
    rows: int
    flatter: float

    @property
    def likelihoods(self) -> tuple[float, float, float]:
        """Of: the first is the ancestor; the second is; neither."""
        if not math.isfinite(self.error):
            return 1.0, 1.0, 1.0
        spread = math.hypot(MODEL_ERROR, self.error)
        return (
            _normal(min(self.tau, 0.5) - 0.5, spread),
            _normal(max(self.tau, -0.5) + 0.5, spread),
            _normal(self.tau, math.hypot(LOST, self.error)),
        )


def direction(pairs: Iterable[tuple[TensorInfo, TensorInfo]]) -> Direction:
    """Fit tau over matrices of two checkpoints: up to `ELEMENTS` elements of each, in whole rows from all matrices."""
    pairs = list(pairs)
    share = min(1.0, ELEMENTS / max(1, sum(first.elements for first, _ in pairs)))
    lengths, changes, products, weights = [], [], [], []
    lower = counted = 0
    for first, second in pairs:
        rows = max(1, math.ceil(first.shape[0] * share))
        mine, theirs = (matrix_of(one, rows).astype(np.float64) for one in (first, second))
        pruned = (mine == 0) != (theirs == 0)  # what pruning takes away is no training
        mine[pruned] = theirs[pruned] = 0.0
        delta, middle = theirs - mine, (theirs + mine) / 2
        change = np.square(delta).sum(axis=1)
        length = np.square(middle).sum(axis=1)
        good = (change > 0) & (length > 0)
        if not good.any():
            continue
        changes.append(change[good])
        lengths.append(length[good])
        products.append((delta * middle).sum(axis=1)[good])
        weights.append(first.shape[1] / (change[good] * length[good]))
        lower += kurtosis(theirs) < kurtosis(mine)
        counted += 1
    if not changes:
        return Direction(0.0, math.inf, 0, 0.5)
    length, change, product, weight = map(np.concatenate, (lengths, changes, products, weights))
    design = np.stack([length, change], axis=1)
    information = (design * weight[:, None]).T @ design
    information[0, 0] += SHRINKAGE**-2
    inverse = np.linalg.inv(information)
    fitted = inverse @ ((design * weight[:, None]).T @ product)
    misfit = math.sqrt(float((np.square(product - design @ fitted) * weight).mean()))
    error = math.sqrt(float(inverse[1, 1])) * max(1.0, misfit)
    return Direction(float(fitted[1]), error, len(length), lower / counted)


def kurtosis(values: np.ndarray) -> float:
    """The fourth standardised moment of all elements; 0 of constant ones."""
    centred = values - values.mean()
    square = np.square(centred)
    variance = float(square.mean())
    return float(np.square(square).mean()) / variance**2 if variance > 0 else 0.0


def _normal(value: float, deviation: float) -> float:
    return math.exp(-0.5 * (value / deviation) ** 2) / deviation
