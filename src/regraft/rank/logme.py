"""LogME: the log maximum evidence of a Bayesian linear model from features to labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from regraft.methods import Source, method
from regraft.rank.scores import Floats, checked, one_hot, spectrum

ITERATIONS = 200
# Precisions stay in this range: noiseless data have no largest evidence, and beta would grow for ever.
LEAST, MOST = 1e-8, 1e8


@method(
    "rank",
    "logme",
    source=Source("You, Liu, Wang & Long", 2021, "2102.11005", "LogME: practical assessment of pre-trained models for transfer learning"),
    claim="the evidence of a linear model on frozen features predicts the accuracy after fine-tuning",
    needs=("features", "labels"),
    invariances=("rotation", "zero columns", "label permutation", "row permutation"),
)
def logme(features: ArrayLike, labels: ArrayLike, *, seed: int = 0) -> float:
    """Log evidence per example, averaged over one-against-rest targets y in {0, 1}^N; higher is better.

        log p(y | F) = max over alpha, beta of
            N/2 log beta + D/2 log alpha - N/2 log 2 pi - beta/2 |F m - y|^2 - alpha/2 m^T m - 1/2 log |A|
        A = alpha I + beta F^T F,   m = beta A^-1 F^T y

    by the fixed point gamma = sum_i beta s_i^2 / (alpha + beta s_i^2), alpha = gamma / m^T m,
    beta = (N - gamma) / |F m - y|^2 (MacKay 1992). |A| counts the D - k directions that F does not have: leaving out their
    (D - k)/2 log alpha, as common copies do, makes the score grow when zero columns are appended.

    Args:
        features: [N, D].
        labels: [N].
        seed: Not used; the score is deterministic.
    """
    given, classes = checked(features, labels)
    found = spectrum(given)
    targets = one_hot(classes)
    projected = found.u.T @ targets
    rest = np.maximum((targets**2).sum(axis=0) - (projected**2).sum(axis=0), 0.0)
    scores = [_evidence(found.squares, z, left, len(given)) for z, left in zip(projected.T, rest, strict=True)]
    return float(np.mean(scores))


def _evidence(squares: Floats, z: Floats, rest: float, count: int) -> float:
    """Largest log evidence per example of one target: `z` = U^T y [k], `rest` = |y|^2 - |z|^2."""
    alpha = beta = 1.0
    for _ in range(ITERATIONS):
        shrunk = beta * squares / (alpha + beta * squares)
        gamma = shrunk.sum()
        norm, residual = _norms(squares, shrunk, z, rest)
        before = alpha, beta
        alpha = float(np.clip(gamma / max(norm, 1e-300), LEAST, MOST))
        beta = float(np.clip((count - gamma) / max(residual, 1e-300), LEAST, MOST))
        if abs(alpha / before[0] - 1) + abs(beta / before[1] - 1) < 1e-6:
            break
    shrunk = beta * squares / (alpha + beta * squares)
    norm, residual = _norms(squares, shrunk, z, rest)
    # D/2 log alpha - 1/2 log |A| = 1/2 sum over the k directions of log(alpha / (alpha + beta s^2)).
    log_ratio = -0.5 * np.log1p(beta * squares / alpha).sum()
    evidence = 0.5 * count * np.log(beta / (2 * np.pi)) + log_ratio - 0.5 * beta * residual - 0.5 * alpha * norm
    return float(evidence / count)


def _norms(squares: Floats, shrunk: Floats, z: Floats, rest: float) -> tuple[float, float]:
    """m^T m and |F m - y|^2."""
    return float((shrunk**2 * z**2 / squares).sum()), float((((1 - shrunk) * z) ** 2).sum() + rest)
