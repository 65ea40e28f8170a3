"""Rank checkpoints by their features: the accuracy that a linear probe reaches on each, with an interval.

Cheap scores come first for every checkpoint, dear ones while time is left. Only what was computed for every checkpoint decides:
a checkpoint is not placed higher because the clock allowed it more views. Checkpoints whose accuracy cannot be told from the
leader's of their group are *too close to call* and share the group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from regraft.budget import Deadline
from regraft.errors import TaskError
from regraft.evaluate.metrics import mean_interval
from regraft.rank.knn import knn
from regraft.rank.logme import logme
from regraft.rank.probe import left_out_correct

# Fewer examples than this are not worth a probe, however short the time.
FEWEST_ROWS = 100


class FeatureView(Protocol):
    """Features of N examples, fp32: mean-pooled last layer [N, D], mean over layers [N, D], all layers [N, (L+1) D]."""

    @property
    def last(self) -> NDArray[np.float32]: ...

    @property
    def mean(self) -> NDArray[np.float32]: ...

    @property
    def all(self) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Ranking:
    """Where a checkpoint stands.

    Attributes:
        checkpoint: Its name.
        rank: 1 is the best.
        group: Checkpoints of one group are too close to call.
        score: Left-out accuracy of the best probe among those that every checkpoint has.
        low, high: 95 % bootstrap interval of the score.
        scores: What was computed: `probe_last`, `probe_mean`, `probe_all`, `knn`, `logme`.
        seconds: What that took.
    """

    checkpoint: str
    rank: int
    group: int
    score: float
    low: float
    high: float
    scores: Mapping[str, float]
    seconds: float


@dataclass
class _Entry:
    name: str
    scores: dict[str, float] = field(default_factory=dict)
    correct: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class _Rows:
    """Some rows of a view."""

    view: FeatureView
    rows: NDArray[np.int64]

    @property
    def last(self) -> NDArray[np.float32]:
        return self.view.last[self.rows]

    @property
    def mean(self) -> NDArray[np.float32]:
        return self.view.mean[self.rows]

    @property
    def all(self) -> NDArray[np.float32]:
        return self.view.all[self.rows]


def rank(
    features: Mapping[str, FeatureView],
    labels: NDArray[np.int64],
    *,
    n_classes: int,
    seed: int = 0,
    deadline: Deadline | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> list[Ranking]:
    """Rank checkpoints; all views hold the same examples in the same order.

    Args:
        features: By checkpoint name.
        labels: int64 [N].
        n_classes: Classes of the task (some may be absent here).
        seed: Of the bootstrap.
        deadline: A score is left out when less time is left than the longest one so far took; the probe on the last layer
            of the first checkpoint (by name) is always computed. When its time says that the others would not be ready, all
            are ranked on fewer examples. Checkpoints without a score come last, with interval (0, 1).
        progress: Told the name of each checkpoint that a score was computed for, and how far the whole is (0 to 1).

    Raises:
        TaskError: A label is outside [0, n_classes), or only one class occurs.
        NonFiniteError: NaN or infinite features.
    """
    if not np.isin(labels, np.arange(n_classes)).all():
        raise TaskError(f"Labels from {labels.min()} to {labels.max()} for {n_classes} classes.", "Number them from 0.")
    clock = time.monotonic if deadline is None else deadline.spent
    names = sorted(features)
    if deadline is not None and len(names) > 1:
        started = clock()
        left_out_correct(features[names[0]].last, labels)
        rows = _affordable(len(labels), (clock() - started) * len(names), deadline.left())
        if rows < len(labels):
            chosen = _spread(labels, rows)
            features, labels = {name: _Rows(features[name], chosen) for name in names}, labels[chosen]
    return _ordered(_scored(features, labels, deadline, clock, progress), seed)


def _too_close(leader: NDArray[np.bool_], other: NDArray[np.bool_], seed: int) -> bool:
    low, _ = mean_interval(leader.astype(np.float64) - other.astype(np.float64), seed)
    return low <= 0.0
