"""The frame of a peer: its arguments, the clock from the start of its process, and what it reports."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import THREADS, Rows, read


@dataclass(frozen=True)
class Job:
    """One cell: a task, a budget in seconds counted from the start of the process, a seed."""

    train: Rows
    test: Rows
    budget_s: float
    seed: int
    started: float

    def spent(self) -> float:
        """Seconds since the process was started, its imports included."""
        return time.time() - self.started

    def left(self, reserve_s: float = 0.0) -> float:
        """Seconds left, keeping `reserve_s` back."""
        return self.budget_s - self.spent() - reserve_s


def started_at() -> float:
    """When this process was started, in seconds since the epoch (Linux; elsewhere now, after the imports)."""
    try:
        fields = Path("/proc/self/stat").read_text().rsplit(") ", 1)[1].split()
        up = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - (up - float(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, IndexError, ValueError):
        return time.time()


def main(learn: Callable[[Job], tuple[Sequence[str], dict[str, Any]]]) -> None:
    """Read the arguments, run `learn` (it returns the predicted labels of the test rows, and its settings), report."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--task", type=Path, required=True, help="folder with train.csv and test.csv (text,label)")
    parser.add_argument("--budget", type=float, required=True, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    started = started_at()
    job = Job(read(given.task / "train.csv"), read(given.task / "test.csv"), given.budget, given.seed, started)
    # The figure is the accuracy that the machine's cores can reach; the environment says the same to BLAS.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(THREADS)
    predicted, settings = learn(job)
    right = sum(a == b for a, b in zip(predicted, job.test.labels, strict=True))
    report = {"right": right, "of": len(job.test.labels), "spent_s": round(job.spent(), 2), "settings": settings}
    print("\n" + json.dumps(report))
