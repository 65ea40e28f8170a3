"""Rank checkpoints by their features: the accuracy that a linear probe reaches on each, with an interval.

Cheap scores come first for every checkpoint, dear ones while time is left. Only what was computed for every checkpoint decides:
a checkpoint is not placed higher because the clock allowed it more views. Checkpoints whose accuracy cannot be told from the
leader's of their group are *too close to call* and share the group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from regraft import methods
from regraft.budget import Deadline
from regraft.errors import MethodError, TaskError
from regraft.evaluate.metrics import mean_interval, proportion_interval
from regraft.rank.scores.knn import knn
from regraft.rank.scores.logme import logme
from regraft.rank.scores.prepared import prepare
from regraft.rank.scores.probe import left_out_correct

# Fewer examples than this are not worth a probe, however short the time.
FEWEST_ROWS = 100
# Of the time that is left, when it is short: a probe's time is only known from one checkpoint's.
SHARE = 0.8


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
        low, high: 95 % interval of the score (`evaluate.proportion_interval`).
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
    more: Collection[str] = (),
    deadline: Deadline | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> list[Ranking]:
    """Rank checkpoints; all views hold the same examples in the same order.

    Args:
        features: By checkpoint name.
        labels: int64 [N].
        n_classes: Classes of the task (some may be absent here).
        seed: Of the bootstrap.
        more: Names of further scores (`regraft methods rank`) to compute of the last layer, last of all. They decide nothing.
        deadline: A score is left out when less time is left than the longest one so far took; the probe on the last layer
            of the first checkpoint (by name) is always computed. When its time says that the others would not be ready, all
            are ranked on fewer examples. Checkpoints without a score come last, with interval (0, 1).
        progress: Told the name of each checkpoint that a score was computed for, and how far the whole is (0 to 1).

    Raises:
        TaskError: A label is outside [0, n_classes), or only one class occurs.
        NonFiniteError: NaN or infinite features.
        MethodError: There is no such score, or it needs more than features and labels.
    """
    check_scores(more)
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
    if more:
        jobs.append(("more", lambda view: _further(view, labels, more, seed)))
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
            if first and deadline is not None:
                rows = _affordable(len(labels), len(entries), took, deadline.left())
                if rows < len(labels):
                    chosen = _spread(labels, rows)
                    fewer = {name: _Rows(view, chosen) for name, view in features.items()}
                    return rank(
                        fewer, labels[chosen], n_classes=n_classes, seed=seed, more=more, deadline=deadline,
                        progress=progress,
                    )  # fmt: skip
            if name.startswith("probe"):
                entry.scores[name] = float(value.mean())
                entry.correct[name] = value
            elif name == "more":
                entry.scores |= value
            else:
                entry.scores[name] = float(value)
            if progress is not None:
                progress(entry.name, (index * len(entries) + at + 1) / (len(jobs) * len(entries)))
    return _ordered(entries, seed)


def check_scores(names: Collection[str]) -> None:
    """Refuse names that are no scores of features and labels.

    Raises:
        MethodError: The first of them, and what there is.
    """
    for name in names:
        lacking = methods.get("rank", name).needs - {"features", "labels"}
        if lacking:
            known = [one.name for one in methods.methods("rank") if one.needs <= {"features", "labels"}]
            raise MethodError(
                f"The score {name!r} needs {' and '.join(sorted(lacking))}, and a ranking has features and labels only.",
                f"Choose among {', '.join(known)}; `regraft.rank.scores.{name}` takes what it needs.",
            )


def _further(view: FeatureView, labels: NDArray[np.int64], names: Collection[str], seed: int) -> dict[str, float]:
    """Scores by name, of the last layer: what several of them need is computed once."""
    given = prepare(view.last, labels)
    return {name: float(methods.get("rank", name)(given, seed=seed)) for name in names}


def _affordable(rows: int, checkpoints: int, took: float, left: float) -> int:
    """How many of the rows to rank on, when the first checkpoint's probe on all of them took `took` seconds.

    All of them where the other checkpoints are ready in time; where even the fewest are too many, too: then as many
    checkpoints as possible get a probe. A probe's time grows at least in proportion to its rows.
    """
    if took * (checkpoints - 1) < left:
        return rows
    fitting = int(SHARE * rows * left / (took * checkpoints))
    return fitting if fitting >= FEWEST_ROWS else rows


def _spread(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` rows that hold each class in proportion, the first and the last class at least once."""
    by_class = np.argsort(labels, kind="stable")
    return np.sort(by_class[np.linspace(0, len(labels) - 1, count).round().astype(np.int64)])


def _ordered(entries: list[_Entry], seed: int) -> list[Ranking]:
    probed = [entry for entry in entries if entry.correct]
    shared = set.intersection(*(set(entry.correct) for entry in probed)) if probed else set()
    best = {entry.name: max((entry.correct[view] for view in sorted(shared)), key=np.sum) for entry in probed}

    def accuracy(entry: _Entry) -> float:
        return float(best[entry.name].mean()) if entry.name in best else -1.0

    ordered = sorted(entries, key=lambda entry: (-accuracy(entry), entry.name))
    found: list[Ranking] = []
    group, leader = 0, None
    for place, entry in enumerate(ordered, start=1):
        correct = best.get(entry.name)
        if correct is None:  # time ran out before it: known to be in the zoo, not known to be any good
            found.append(Ranking(entry.name, place, group + 1, 0.0, 0.0, 1.0, entry.scores, entry.seconds))
            continue
        if leader is None or not _too_close(leader, correct, seed):
            group, leader = group + 1, correct
        low, high = proportion_interval(correct, seed)
        found.append(Ranking(entry.name, place, group, accuracy(entry), low, high, entry.scores, entry.seconds))
    return found


def _too_close(leader: NDArray[np.bool_], other: NDArray[np.bool_], seed: int) -> bool:
    """Whether the paired bootstrap interval of the difference holds 0; the leader's accuracy is never the lower."""
    low, _ = mean_interval(leader.astype(np.float64) - other.astype(np.float64), seed)
    return low <= 0.0
