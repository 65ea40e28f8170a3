"""Checked inputs of the scores that read a source head's probabilities instead of features."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from regraft.errors import TaskError
from regraft.rank.scores.prepared import Floats, Labels, checked

# Half-precision softmax rows are off by this much; logits by far more.
SUM = 1e-2


def checked_outputs(outputs: ArrayLike, labels: ArrayLike) -> tuple[Floats, Labels]:
    """Source probabilities as fp64 [N, Z] whose rows sum to 1, and labels as int64 [N], 0..C-1 in order of appearance.

    Raises:
        TaskError: As `checked`, or rows that are no probabilities.
        NonFiniteError: NaN or infinite outputs.
    """
    given, classes = checked(outputs, labels)
    sums = given.sum(axis=1, keepdims=True)
    if given.min() < 0.0 or np.abs(sums - 1.0).max() > SUM:
        raise TaskError(
            f"Source outputs from {given.min():.4g} whose rows sum to {sums.min():.4g} .. {sums.max():.4g}.",
            "Expected probabilities: take the softmax of the logits.",
        )
    return given / sums, classes
