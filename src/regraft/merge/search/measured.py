"""What is measured of a merge: scores under the inputs' heads, and what linear probes read from its encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.checkpoint.classifier import model_calls, softmax
from regraft.evaluate import metrics
from regraft.merge.search.models import Bench, Tick
from regraft.merge.search.space import Candidate
from regraft.task import Task
from regraft.task.rows import spread_rows
from regraft.train.logistic import Fitted, fit_logistic

# Training rows of a held-out task that a probe is fitted on: enough to tell encoders apart.
PROBE_ROWS = 2000


@dataclass(frozen=True)
class Held:
    """A held-out task: what probes are fitted on and read from."""

    task: Task
    texts: list[str]
    labels: np.ndarray

    @classmethod
    def of(cls, task: Task) -> Held:
        """The task with the training rows that probes see."""
        rows = spread_rows(task.train.labels, PROBE_ROWS)
        return cls(task, [task.train.texts[row] for row in rows], task.train.labels[rows])

    def fit(self, features: np.ndarray, seed: int) -> Fitted:
        """A linear probe on features of `texts`."""
        return fit_logistic(features, self.labels, len(self.task.label_names), seed=seed)


@dataclass(frozen=True)
class Measured:
    """A candidate with what the ledger has of it.

    Args:
        found: `status`, `reason`, `scores` [tasks], `predictions` [tasks][rows], `held_out` [held-out tasks] with `probe` and
            `base_probe`, `seconds` with `merge` and `evaluate`.
    """

    candidate: Candidate
    found: dict[str, Any]

    @property
    def usable(self) -> bool:
        """Whether it has scores."""
        return bool(self.found["status"] == "measured")

    @property
    def abandoned(self) -> bool:
        """Whether the time was over before it was measured."""
        return bool(self.found["status"] == "abandoned")


def evaluated(
    bench: Bench, tasks: Sequence[Task], held_out: Sequence[Held], split: str, probes: Sequence[Fitted] | None, seed: int,
    timed: Tick | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What the merge that is loaded reaches on a split: `scores`, `predictions`, `held_out`, and the `probabilities`.

    Args:
        bench: The models.
        tasks: The held-in tasks.
        held_out: Tasks that are measured and not chosen by.
        split: "validation" or "test".
        probes: On the base's features, one for each held-out task; None without a base.
        seed: Of the probes on the merge's own features.
        timed: Called with the rows that are done.
    """
    found: dict[str, Any] = {"scores": [], "predictions": [], "held_out": [], "probabilities": []}
    with model_calls("The merge"):
        for number, task in enumerate(tasks):
            rows = task.splits()[split]
            seen = bench.probabilities(number, task, rows.texts, timed)
            found["probabilities"].append(seen)
            found["predictions"].append(seen.argmax(axis=1).tolist())
            found["scores"].append(metrics(rows.labels, seen)[task.metric])
        for number, one in enumerate(held_out):
            rows = one.task.splits()[split]
            features = bench.features(rows.texts, timed)
            probe = one.fit(bench.features(one.texts, timed), seed)
            of = {"probe": probe} | ({} if probes is None else {"base_probe": probes[number]})
            found["held_out"].append({
                name: metrics(rows.labels, softmax(fitted.logits(features)))[one.task.metric]
                for name, fitted in of.items()
            })  # fmt: skip
    return found


def normalised(scores: Sequence[float], own: Sequence[float]) -> float:
    """The mean of score / own score."""
    return float(np.mean([score / mine for score, mine in zip(scores, own, strict=True)]))
