"""LEEP: the log likelihood of a classifier that only looks at the source head's probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from regraft.methods import Source, method
from regraft.rank.scores.outputs import checked_outputs
from regraft.rank.scores.prepared import Floats, Labels, one_hot


@method(
    "rank",
    "leep",
    source=Source(
        "Nguyen, Hassner, Seeger & Archambeau",
        2020,
        "2002.12462",
        "LEEP: a new measure to evaluate transferability of learned representations",
    ),
    claim="source probabilities that predict the target labels come from models that transfer well",
    needs=("source outputs", "labels"),
    invariances=("zero columns", "column permutation", "label permutation", "row permutation"),
)
def leep(outputs: ArrayLike, labels: ArrayLike, *, seed: int = 0) -> float:
    """Mean log likelihood of the labels under the expected empirical predictor; at most 0.

        1/N sum_i log sum_z P(y_i | z) theta(x_i)_z,   P(y, z) = 1/N sum_{i: y_i = y} theta(x_i)_z,   P(y | z) = P(y, z) / P(z)

    A source class that no example has any probability of adds nothing (copies divide 0 by 0).

    Args:
        outputs: Probabilities of the source head [N, Z].
        labels: [N].
        seed: Not used; the score is deterministic.
    """
    given, classes = checked_outputs(outputs, labels)
    return likelihood(given, classes)


def likelihood(given: Floats, classes: Labels) -> float:
    """LEEP of checked probabilities [N, Z] and labels [N]."""
    joint = one_hot(classes).T @ given
    conditional = joint / np.maximum(given.sum(axis=0), 1e-300)
    return float(np.log((conditional[classes] * given).sum(axis=1)).mean())
