"""The linear probe, cross-validated exactly: ridge regression onto the classes, every example left out once.

    prediction for i without i  =  y_i - (y_i - f_i) / (1 - h_ii),   H = 1/N + F_c (F_c^T F_c + lambda I)^-1 F_c^T

(PRESS; Allen 1974). One eigendecomposition gives it for every lambda, where k folds would need k fits each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regraft.methods import Source, method
from regraft.rank.scores.prepared import Given, prepare

# In units of the mean squared norm of a centred example, so that scaling the features changes nothing.
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


@method(
    "rank",
    "linear_probe",
    source=Source(
        "Alain & Bengio", 2016, "1610.01644", "Understanding intermediate layers using linear classifier probes"
    ),
    claim="the accuracy of a linear classifier on frozen features ranks models by what a fine-tune reaches",
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
def linear_probe(features: Given, labels: ArrayLike | None = None, *, seed: int = 0) -> float:
    """Leave-one-out accuracy of the best ridge strength.

    Args:
        features: [N, D], or prepared.
        labels: [N].
        seed: Not used; the score is deterministic.
    """
    return float(left_out_correct(features, labels).mean())


def left_out_correct(features: Given, labels: ArrayLike | None = None) -> NDArray[np.bool_]:
    """Whether each example is predicted right without it, bool [N], for the strength that is right most often."""
    ready = prepare(features, labels)
    given, classes, targets, found = ready.features, ready.labels, ready.one_hot, ready.spectrum
    # A class that an example is alone in cannot be predicted without it; its other errors still count.
    mean = targets.mean(axis=0)
    projected = found.u.T @ (targets - mean)
    scale = float((ready.centred**2).sum()) / len(given)
    best: NDArray[np.bool_] = np.zeros(len(given), dtype=bool)
    for strength in STRENGTHS:
        shrunk = found.squares / (found.squares + strength * max(scale, 1e-300))
        fitted = mean + (found.u * shrunk) @ projected
        leverage = 1.0 / len(given) + (found.u**2) @ shrunk
        left_out = targets - (targets - fitted) / np.maximum(1.0 - leverage, 1e-9)[:, None]
        correct = np.round(left_out, 9).argmax(axis=1) == classes
        if correct.sum() > best.sum():
            best = correct
    return best
