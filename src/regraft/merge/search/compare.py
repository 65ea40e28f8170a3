"""Whether the winner of a search is better than the plain average, or only the luckiest of many.

The best of K candidates on the same rows looks better than it is: with 40 equal candidates one is ahead "significantly". So
the interval of a difference is widened until those of all K hold at once (max-t bootstrap: White 2000, "A reality check for
data snooping", Econometrica 68; Romano & Wolf 2005, "Stepwise multiple testing as formalized data snooping",
Econometrica 73):

    d_k     score_k - score_reference                  rows are resampled within each task, the same for all candidates
    s_k     standard deviation of d_k over resamples
    c       95 % quantile over resamples of max_k |d_k* - d_k| / s_k
    d_k - c s_k .. d_k + c s_k                         with one candidate: an ordinary paired bootstrap interval
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regraft.randomness import integers

RESAMPLES, LEVEL = 1000, 0.95
# Rows times resamples that are drawn at once.
_DRAWS = 4_000_000
Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Seen:
    """What K candidates predict on the rows of one task.

    Args:
        labels: int64 [N].
        predictions: int64 [K, N].
        metric: "accuracy" or "macro_f1".
        share: What a point of the metric counts in the score: 1 / (tasks * the input's own score).
    """

    labels: Labels
    predictions: Labels
    metric: str
    share: float


@dataclass(frozen=True)
class Difference:
    """How much better one candidate is than the reference, with an interval that holds for all candidates at once."""

    difference: float
    low: float
    high: float

    @property
    def too_close(self) -> bool:
        """Whether the interval holds 0."""
        return self.low <= 0.0 <= self.high


def differences(tasks: Sequence[Seen], reference: int, seed: int = 0) -> list[Difference]:
    """Every candidate against candidate number `reference`: differences of sum_i share_i * metric_i.

    A candidate that predicts the same as the reference has the interval 0 to 0.
    """
    values = sum(one.share * scores(one, np.ones((1, len(one.labels))))[0] for one in tasks)
    spread = np.asarray(sum(one.share * _resampled(one, seed, number) for number, one in enumerate(tasks)))
    point = np.asarray(values - values[reference])
    moved = np.asarray(spread - spread[:, [reference]])
    deviation = moved.std(axis=0, ddof=1)
    moves = deviation > 0.0
    if not moves.any():
        return [Difference(float(value), float(value), float(value)) for value in point]
    largest = (np.abs(moved - point)[:, moves] / deviation[moves]).max(axis=1)
    room = float(np.quantile(largest, LEVEL)) * deviation
    return [Difference(float(at), float(at - width), float(at + width)) for at, width in zip(point, room, strict=True)]


def scores(task: Seen, counts: Floats) -> Floats:
    """The metric of every candidate in every resample, float64 [B, K].

    Args:
        counts: float64 [B, N]: how often each row is in each resample.
    """
    right = (task.predictions == task.labels).astype(np.float64)
    if task.metric == "accuracy":
        return np.asarray(counts @ right.T / counts.sum(axis=1, keepdims=True))
    total = np.zeros((len(counts), len(task.predictions)))
    present = np.zeros_like(total)
    for label in np.union1d(task.labels, task.predictions):
        is_label = task.labels == label
        involved = counts @ (is_label + (task.predictions == label).astype(np.float64)).T  # support + predicted
        total += 2.0 * (counts @ (right * is_label).T) / np.maximum(involved, 1.0)
        present += involved > 0.0
    return np.asarray(total / present)


def _resampled(task: Seen, seed: int, number: int) -> Floats:
    """The metric in `RESAMPLES` resamples of the rows, float64 [B, K]."""
    return np.concatenate([scores(task, counts) for counts in _counts(len(task.labels), seed, number)])


def _counts(size: int, seed: int, number: int) -> Iterator[Floats]:
    """How often each row is drawn in each resample, in blocks of bounded memory."""
    block = max(1, _DRAWS // size)
    for start in range(0, RESAMPLES, block):
        made = min(block, RESAMPLES - start)
        draws = integers(size, size * made, seed, "search", number, start).reshape(made, size)
        draws += np.arange(made)[:, None] * size
        yield np.bincount(draws.ravel(), minlength=made * size).reshape(made, size).astype(np.float64)
