"""How much data the budget of one adaptation has room for, from the pace of its encoder over a few texts of the task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from regraft.budget import Budget, Deadline
from regraft.checkpoint import Checkpoint
from regraft.errors import BudgetError, CheckpointError
from regraft.planner.job import Job
from regraft.planner.pace import measure_pace, open_s
from regraft.planner.reserve import STOCK_IMPORT_S, member_s, test_rows
from regraft.planner.run import Run
from regraft.progress import SILENT
from regraft.store import Store
from regraft.task import Task
from regraft.task.rows import spread_rows
from regraft.zoo import Zoo

# Of what is free, what features of the training texts may take: for the probe they are nearly all there is to do.
PROBE_SHARE, TRAIN_SHARE = 0.8, 0.4
# A pass that turns out slower is cut after this share.
CUT_SHARE = 0.9
# A head on fewer texts is no start.
FEWEST_ROWS = 100
# Measuring the median latency of one example.
LATENCY_S = 0.6


@dataclass(frozen=True)
class Room:
    """What there is room for.

    Attributes:
        rows: int64, the training texts whose features are computed.
        test_rows: How many test texts are measured.
        end_s: Seconds to hold back for that and for writing the model.
    """

    rows: np.ndarray
    test_rows: int
    end_s: float


def everything(task: Task) -> Room:
    """Without a budget."""
    return Room(np.arange(len(task.train)), len(task.test), 0.0)


def room_in(
    limit: Budget, deadline: Deadline, checkpoint: Checkpoint, task: Task, *, method: str, device: str = "cpu"
) -> Room:
    """What is left of the budget, shared out.

    Raises:
        BudgetError: It leaves no time to open the checkpoint, or no room for features of `FEWEST_ROWS` texts and a test pass.
        CheckpointError: The checkpoint cannot be computed.
    """
    if deadline.left() < open_s(checkpoint):
        raise BudgetError(
            f"Of {limit.text}, {deadline.left():.0f} s are left; opening {checkpoint.name} takes about "
            f"{open_s(checkpoint):.0f} s.",
            "Give a larger budget.",
        )
    with TemporaryDirectory() as folder, Run(Path(folder) / "run", {}) as run:
        zoo = Zoo(checkpoint.reference, [checkpoint], [])
        job = Job(task, zoo, limit, deadline, run, Store(), SILENT, device=device)
        measure_pace(job)
        for left in job.left_out:
            raise CheckpointError(left["problem"], left["remedy"])
        measured, pace = test_rows(job), job.pace[checkpoint.name]
        end_s = STOCK_IMPORT_S + LATENCY_S + member_s(job, checkpoint, checkpoint.member_bytes)
    share = PROBE_SHARE if method == "probe" else TRAIN_SHARE
    rows = int(min(len(task.train), share * max(0.0, deadline.left() - end_s) / (1.1 * pace)))
    fewest = min(len(task.train), FEWEST_ROWS)
    if rows < fewest:
        need = end_s + 1.1 * pace * fewest / share
        raise BudgetError(
            f"Of {limit.text}, {deadline.left():.0f} s are left; adapting {checkpoint.name} on {fewest} texts and testing it "
            f"on {measured:,} takes about {need:.0f} s.",
            "Give a larger budget.",
        )
    return Room(spread_rows(task.train.labels, rows), measured, end_s)
