"""H-score: how much of the feature covariance the class means explain; plain, and with a shrunk covariance.

With U the left singular vectors of the centred features and s their singular values, S_f = V diag(s^2 / N) V^T and

    tr(S_f^+ S_z) = sum_c |U^T 1_c|^2 / n_c

so the plain score is the overlap of the feature space with the class space. Where the N centred rows are independent (N <= D)
the feature space is everything: the score is C - 1 whatever the features are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from regraft.methods import Source, method
from regraft.rank.scores.prepared import Floats, Given, prepare


@method(
    "rank",
    "h_score",
    source=Source(
        "Bao, Li, Huang, Zhang, Zheng, Zamir & Guibas",
        2019,
        "2212.10082",
        "An information-theoretic approach to transferability in task transfer learning",
    ),
    claim="features whose class means explain much of their covariance transfer well",
    needs=("features", "labels"),
    invariances=(
        "rotation",
        "scaling",
        "zero columns",
        "column permutation",
        "label permutation",
        "row permutation",
        "any labels at N < D",
    ),
)
def h_score(features: Given, labels: ArrayLike | None = None, *, seed: int = 0) -> float:
    """tr(S_f^+ S_z), with S_f the covariance of the features and S_z that of each example's class mean; in [0, C - 1].

    At N <= D it is C - 1 for all features in general position, and says nothing: use `h_score_shrunk`.

    Args:
        features: [N, D], or prepared.
        labels: [N].
        seed: Not used; the score is deterministic.
    """
    given = prepare(features, labels)
    return float((given.projected**2 / given.counts).sum())


@method(
    "rank",
    "h_score_shrunk",
    source=Source(
        "Ibrahim, Ponomareva & Mazumder",
        2021,
        "2110.06893",
        "Newer is not always better: rethinking transferability metrics, their peculiarities, stability and performance",
    ),
    claim="a shrunk covariance makes the H-score follow the accuracy after fine-tuning where features outnumber examples",
    needs=("features", "labels"),
    invariances=("rotation", "scaling", "column permutation", "label permutation", "row permutation"),
)
def h_score_shrunk(features: Given, labels: ArrayLike | None = None, *, seed: int = 0) -> float:
    """tr(S_a^-1 (1 - a) S_z),   S_a = (1 - a) S_f + a tr(S_f) / D I,   a by Ledoit & Wolf (2004).

    Both covariances divide by N (copies divide one by N - 1). Appended zero columns move it: D is in the target of the shrinkage.

    Args:
        features: [N, D], or prepared.
        labels: [N].
        seed: Not used; the score is deterministic.
    """
    given = prepare(features, labels)
    found, (count, width) = given.spectrum, given.features.shape
    values = found.squares / count
    shrinkage = ledoit_wolf(values, (found.u**2) @ found.squares, width)
    weights = (1.0 - shrinkage) * values / ((1.0 - shrinkage) * values + shrinkage * values.sum() / width)
    return float(weights @ (given.projected**2 / given.counts).sum(axis=1))


def ledoit_wolf(values: Floats, norms: Floats, width: int) -> float:
    """The shrinkage a that is best in expected squared error, min(b, d) / d.

        d = |S - m I|_F^2 / D,   b = (mean_i |x_i|^4 - |S|_F^2) / (N D),   m = tr(S) / D

    Args:
        values: Eigenvalues of S = X^T X / N other than zero.
        norms: |x_i|^2 of the centred examples [N].
        width: D.
    """
    squared = float((values**2).sum())
    distance = squared / width - (float(values.sum()) / width) ** 2
    noise = (float((norms**2).mean()) - squared) / (len(norms) * width)
    return float(np.clip(noise / distance, 0.0, 1.0)) if distance > 1e-12 * squared else 0.0
