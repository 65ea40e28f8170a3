"""Rank checkpoints by their features: the accuracy that a linear probe reaches on each, with an interval.

Cheap scores come first for every checkpoint, dear ones while time is left. Checkpoints whose accuracy cannot be told from
the leader's of their group are *too close to call* and share the group.
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
        score: Left-out accuracy of the best probe.
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
    correct: NDArray[np.bool_] | None = None
    seconds: float = 0.0


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
            of the first checkpoint (by name) is always computed. Checkpoints without a score come last, with interval (0, 1).
        progress: Told the name of each checkpoint that a score was computed for, and how far the whole is (0 to 1).

    Raises:
        TaskError: A label is outside [0, n_classes), or only one class occurs.
        NonFiniteError: NaN or infinite features.
    """
    if not np.isin(labels, np.arange(n_classes)).all():
        raise TaskError(f"Labels from {labels.min()} to {labels.max()} for {n_classes} classes.", "Number them from 0.")
    clock = time.monotonic if deadline is None else deadline.spent
    entries = [_Entry(name) for name in sorted(features)]
    jobs: list[tuple[str, Callable[[FeatureView], Any]]] = [
        ("probe_last", lambda view: left_out_correct(view.last, labels)),
        ("probe_mean", lambda view: left_out_correct(view.mean, labels)),
        ("knn", lambda view: knn(view.last, labels)),
        ("logme", lambda view: logme(view.last, labels)),
        ("probe_all", lambda view: left_out_correct(view.all, labels)),
    ]
    longest = 0.0
    for index, (name, compute) in enumerate(jobs):
        for at, entry in enumerate(entries):
            first = index == 0 and at == 0
            if not first and deadline is not None and deadline.left() <= longest:
                break
            started = clock()
            value = compute(features[entry.name])
            took = clock() - started
            longest, entry.seconds = max(longest, took), entry.seconds + took
            if name.startswith("probe"):
                entry.scores[name] = float(value.mean())
                if entry.correct is None or value.sum() > entry.correct.sum():
                    entry.correct = value
            else:
                entry.scores[name] = float(value)
            if progress is not None:
                progress(entry.name, (index * len(entries) + at + 1) / (len(jobs) * len(entries)))
    return _ordered(entries, seed)


def _ordered(entries: list[_Entry], seed: int) -> list[Ranking]:
    def accuracy(entry: _Entry) -> float:
        return -1.0 if entry.correct is None else float(entry.correct.mean())

    ordered = sorted(entries, key=lambda entry: (-accuracy(entry), entry.name))
    found: list[Ranking] = []
    group, leader = 0, None
    for place, entry in enumerate(ordered, start=1):
        if entry.correct is None:  # time ran out before it: known to be in the zoo, not known to be any good
            found.append(Ranking(entry.name, place, group + 1, 0.0, 0.0, 1.0, entry.scores, entry.seconds))
            continue
        if leader is None or not _too_close(leader, entry.correct, seed):
            group, leader = group + 1, entry.correct
        low, high = mean_interval(entry.correct.astype(np.float64), seed)
        found.append(Ranking(entry.name, place, group, accuracy(entry), low, high, entry.scores, entry.seconds))
    return found


def _too_close(leader: NDArray[np.bool_], other: NDArray[np.bool_], seed: int) -> bool:
    low, _ = mean_interval(leader.astype(np.float64) - other.astype(np.float64), seed)
    return low <= 0.0
