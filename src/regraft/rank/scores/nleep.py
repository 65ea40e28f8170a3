"""NLEEP: LEEP with the components of a Gaussian mixture in the place of source classes, so that no head is needed."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from regraft.methods import Source, method
from regraft.randomness import generator
from regraft.rank.scores.leep import likelihood
from regraft.rank.scores.prepared import Floats, Given, Labels, Prepared, drawn, prepare, renumbered

COMPONENTS_PER_CLASS = 5
ENERGY = 0.8
LIMIT = 2000
# Expectation maximisation ends when a round adds less than this to the mean log likelihood, as in scikit-learn.
GAIN = 1e-3
ROUNDS = 30
# Rounds of k-means before it.
MEANS_ROUNDS = 5
# Added to the variances, in units of the points' mean variance.
FLOOR = 1e-6


@method(
    "rank",
    "nleep",
    source=Source("Li, Jia, Sang, Zhu, Green, Wang & Gong", 2021, "2011.11200", "Ranking neural checkpoints"),
    claim="clusters of the features that predict the labels come from models that transfer well, with any head or none",
    needs=("features", "labels"),
    invariances=("rotation", "scaling", "zero columns", "column permutation", "label permutation"),
)
def nleep(
    features: Given, labels: ArrayLike | None = None, *, seed: int = 0, components: int = COMPONENTS_PER_CLASS
) -> float:
    """LEEP of P(z | x), the posterior of a mixture of 5 C Gaussians on the principal components that hold 80 % of the variance.

    The mixture has diagonal covariances in the principal axes (common copies: full ones, minutes at 100 classes; the paper does
    not say), starts from k-means, and is seeded (copies are not). At most one component for each example. The order of the rows
    decides where it starts, and so moves the score; so does the seed: at few examples for each component by several hundredths.
    Every example fits the mixture and is scored by it, so few examples for each component score too high.

    More than 2,000 examples are drawn from, each class in proportion; the principal components are those of all.

    Args:
        features: [N, D], or prepared.
        labels: [N].
        seed: Of the draw and of the mixture.
        components: Gaussians for each class.
    """
    given = prepare(features, labels)
    rows = drawn(given.labels, LIMIT, seed, "nleep")
    points, classes = leading(given, ENERGY)[rows], renumbered(given.labels[rows])
    if points.shape[1] == 0:
        return likelihood(np.ones((len(rows), 1)), classes)
    count = min(components * (int(classes.max()) + 1), len(rows))
    means, assigned = k_means(points, count, seed)
    return likelihood(posterior(points, assigned, len(means)), classes)


def leading(given: Prepared, energy: float) -> Floats:
    """The first principal components that hold more than this part of the variance [N, d], scaled to mean variance 1."""
    squares = given.spectrum.squares[::-1]
    if squares.size == 0:
        return np.zeros((len(given.labels), 0))
    held = np.cumsum(squares) / squares.sum()
    kept = min(int(np.searchsorted(held, energy, side="right")) + 1, len(squares))
    points = given.spectrum.points[:, ::-1][:, :kept]
    return np.asarray(points / np.sqrt((points**2).mean()))


def k_means(points: Floats, count: int, seed: int) -> tuple[Floats, Labels]:
    """At most `count` centres [K, d] and the nearest of them for each point [N]: k-means++ and a few rounds of Lloyd's."""
    draw = generator(seed, "nleep")
    norms = (points**2).sum(axis=1)
    nothing = 1e-12 * float(norms.max())  # what is left of equal points in the difference of their norms
    chosen = [int(draw.integers(len(points)))]
    distances = np.full(len(points), np.inf)
    while True:
        new = norms + norms[chosen[-1]] - 2.0 * points @ points[chosen[-1]]
        distances = np.minimum(distances, np.where(new > nothing, new, 0.0))
        if len(chosen) == count or distances.max() == 0.0:
            break
        total = np.cumsum(distances)
        chosen.append(min(int(np.searchsorted(total, draw.random() * total[-1], side="right")), len(points) - 1))
    means = points[chosen]
    assigned = _nearest(points, means)
    for _ in range(MEANS_ROUNDS):
        counts = np.bincount(assigned, minlength=len(means))
        sums = np.stack([np.bincount(assigned, column, minlength=len(means)) for column in points.T], axis=1)
        means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], means)
        assigned = _nearest(points, means)
    return means, assigned


def _nearest(points: Floats, means: Floats) -> Labels:
    return np.asarray(((means**2).sum(axis=1) - 2.0 * points @ means.T).argmin(axis=1), dtype=np.int64)


def posterior(points: Floats, assigned: Labels, count: int) -> Floats:
    """P(z | x) [N, K] of a Gaussian mixture with diagonal covariances, by expectation maximisation from hard assignments."""
    fitted, before = maximised(points, np.eye(count)[assigned]), -np.inf
    for _ in range(ROUNDS):
        shares, likely = expected(points, *fitted)
        fitted = maximised(points, shares)
        if abs(likely - before) < GAIN:
            break
        before = likely
    return expected(points, *fitted)[0]


def maximised(points: Floats, shares: Floats) -> tuple[Floats, Floats, Floats]:
    """Weights [K], means [K, d] and variances [K, d] that fit the shares [N, K] best."""
    sums = shares.sum(axis=0) + 10 * np.finfo(np.float64).eps
    means = shares.T @ points / sums[:, None]
    variances = shares.T @ points**2 / sums[:, None] - means**2
    return sums / sums.sum(), means, np.maximum(variances, 0.0) + FLOOR


def expected(points: Floats, weights: Floats, means: Floats, variances: Floats) -> tuple[Floats, float]:
    """P(z | x) [N, K], and the mean log likelihood of the points."""
    precisions = 1.0 / variances
    logs = np.log(weights) - 0.5 * (np.log(2 * np.pi * variances) + means**2 * precisions).sum(axis=1)
    logs = logs + points @ (means * precisions).T - 0.5 * points**2 @ precisions.T
    top = logs.max(axis=1, keepdims=True)
    shares = np.exp(logs - top)
    sums = shares.sum(axis=1, keepdims=True)
    return shares / sums, float((top + np.log(sums)).mean())
