"""What the steps of the main job share: the inputs, the clock, the ledger, and what has been found so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regraft import faults
from regraft.adapt import Head, Plan
from regraft.budget import Budget, Deadline
from regraft.checkpoint import Checkpoint
from regraft.features import Features
from regraft.planner.run import Run
from regraft.progress import Progress
from regraft.store import Store
from regraft.task import Task
from regraft.train.loop import Leg
from regraft.zoo import Zoo


@dataclass(frozen=True)
class CutFrom:
    """Where a cut candidate comes from.

    Args:
        name: Of the trained candidate that was cut.
        checkpoint: Of the zoo, that one's own.
        sizes: Units that stay, by axis.
        step: The record of the cut (see `resize.certificate.steps`).
    """

    name: str
    checkpoint: Checkpoint
    sizes: Mapping[str, int]
    step: Mapping[str, Any]

    def said(self) -> str:
        """In words: cut from minilm-l6-full, ffn 1536 to 864, layer 6 to 4."""
        before = self.step["before"]
        words = ", ".join(f"{axis} {before[axis]} to {keep}" for axis, keep in self.step["after"].items())
        return f"cut from {self.name}, {words}"


@dataclass
class Candidate:
    """Something that was tried on a checkpoint and measured on validation data."""

    name: str
    checkpoint: Checkpoint
    method: str
    head: Head | None = None
    plan: Plan | None = None
    legs: list[Leg] = field(default_factory=list)
    # Of a soup: the candidates whose weights it averages.
    parts: list[str] = field(default_factory=list)
    # Of one that was cut out of another: its checkpoint is what was left.
    cut: CutFrom | None = None
    validation: dict[str, Any] | None = None
    curve: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    latency_ms: float | None = None
    throughput: float | None = None
    status: str = "measured"
    reason: str = ""

    def quality(self, metric: str) -> float:
        """Validation score under the task's metric; -1 when it was not measured."""
        return -1.0 if self.validation is None else float(self.validation[metric])

    @property
    def parent(self) -> Checkpoint:
        """The checkpoint of the zoo that it was made from."""
        return self.checkpoint if self.cut is None else self.cut.checkpoint

    @property
    def competes(self) -> bool:
        """Whether it may become a member; a soup that is no better than its ingredients is "not kept" before that is asked."""
        return self.validation is not None and self.status not in ("failed", "baseline", "not kept")

    def parameters(self) -> int:
        """Parameters of the stored model, head included."""
        if self.head is None:
            return self.checkpoint.parameters
        return self.checkpoint.parameters + self.head.weight.size + self.head.bias.size

    def bytes(self) -> int:
        """Bytes of the model as it would be written, head and tokenizer included."""
        return self.checkpoint.member_bytes + 4 * (self.parameters() - self.checkpoint.parameters)


@dataclass
class Job:
    """The state of a run of the main job in this process; all of it can be made again from the ledger."""

    task: Task
    zoo: Zoo
    budget: Budget
    deadline: Deadline
    run: Run
    store: Store
    progress: Progress
    seed: int = 0
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    candidates: dict[str, Candidate] = field(default_factory=dict)
    baselines: list[dict[str, Any]] = field(default_factory=list)
    fitted: dict[str, Any] = field(default_factory=dict)
    left_out: list[dict[str, str]] = field(default_factory=list)
    ranking: list[dict[str, Any]] = field(default_factory=list)
    features: dict[str, Features] = field(default_factory=dict)
    # Seconds a text takes in a forward pass, by checkpoint: measured once, what every prediction of cost stands on.
    pace: dict[str, float] = field(default_factory=dict)
    # Whether anything will be measured on features of validation texts; `regraft rank` ends before that.
    validates: bool = True
    # Further scores that the ranking shall show.
    more_scores: tuple[str, ...] = ()
    rank_random: bool = True
    rank_rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    # The training rows beside those that checkpoints are ranked on, and how many of them features were planned for.
    other_rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    rest_planned: int = 0
    # How many validation rows are used, where that is not all of them.
    validation_rows: int | None = None
    reserve_s: float = 0.0

    @property
    def timed(self) -> bool:
        """Whether time is what limits this run; under a work budget no decision may look at the clock."""
        return self.budget.seconds is not None

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.task.label_names)

    def free_s(self) -> float:
        """Seconds left for anything but the end of the run."""
        return max(0.0, self.deadline.left() - self.reserve_s)

    def affords(self, predicted_s: float) -> bool:
        """Whether work of that length fits before the end of the run; always, under a work budget."""
        return not self.timed or predicted_s <= self.free_s()

    def decide(self, key: str, what: str, choose: Callable[[], tuple[Any, str]]) -> Any:
        """Make a decision once: `choose` gives the value and the reason; both are logged before it is acted on."""

        def compute() -> dict[str, Any]:
            value, reason = choose()
            return {"what": what, "reason": reason, "value": value}

        entry = self.run.ledger.once(f"decision/{key}", compute)
        faults.point("decision logged")
        return entry["value"]

    def note(self, key: str, what: str, reason: str) -> None:
        """Log something that happened for the report."""
        self.decide(key, what, lambda: (None, reason))

    def timed_once(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Measure something once; `seconds` it took is logged with it."""

        def run() -> dict[str, Any]:
            started = time.monotonic()
            value = compute()
            return {"seconds": time.monotonic() - started, **value}

        value: dict[str, Any] = self.run.ledger.once(key, run)
        return value

    def leave_out(self, reference: str, fault: Exception) -> None:
        """List something that cannot be used; the rest goes on."""
        problem = getattr(fault, "problem", str(fault)) or type(fault).__name__
        entry = {"reference": reference, "problem": problem, "remedy": getattr(fault, "remedy", "")}
        if entry not in self.left_out:
            self.left_out.append(entry)
            self.progress.say(f"Left out {reference}: {problem}")

    def trial_folder(self, name: str) -> Path:
        """Where the states of a candidate are kept."""
        return self.run.trials / name
