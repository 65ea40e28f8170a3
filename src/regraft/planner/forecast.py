"""`reuse --dry-run`: what each step would cost here, predicted from a few texts; nothing is trained or written."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from regraft.budget import Budget
from regraft.features import number_format, shared_passes
from regraft.planner.arms import STEP_PASSES
from regraft.planner.halving import MOST_EPOCHS
from regraft.planner.job import Job
from regraft.planner.pace import measure_pace
from regraft.planner.reserve import REPORT_S, STOCK_IMPORT_S, export_s
from regraft.planner.run import Run
from regraft.planner.scope import RANK_ROWS
from regraft.progress import SILENT, Progress
from regraft.store import Store
from regraft.task import Task, load_task
from regraft.zoo import Zoo, open_zoo

BASELINE_ROWS = 1000


def forecast(
    task: str,
    zoo: str,
    budget: str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    progress: Progress = SILENT,
    **read: Any,
) -> dict[str, Any]:
    """Predicted seconds of each step of `reuse`, and what the budget has room for.

    Args:
        dtype: Number format of the features' forward passes; training and testing are in float32.

    Returns:
        `steps` (a list of `step`, `seconds`, `what`), `budget_s` (None under a budget of trials), `verdict` in words.
    """
    limit = Budget.parse(budget)
    width = number_format(dtype)
    began = time.monotonic()
    loaded, opened = load_task(task, **read), open_zoo(zoo)
    reading = time.monotonic() - began
    job = _paced(loaded, opened, limit, device, torch.float32, progress)
    featuring = job if width == torch.float32 else _paced(loaded, job.zoo, limit, device, width, progress)
    passes = {one.name: job.pace[one.name] for one in job.zoo.checkpoints}
    train, validation, test = len(loaded.train), len(loaded.validation), len(loaded.test)
    baseline = _baseline_seconds(job) * max(1.0, train / BASELINE_ROWS)
    groups = [featuring.pace[group[0].name] for group in shared_passes(featuring.zoo.checkpoints).values()]
    best = max((name for name in passes if name in featuring.pace), key=lambda name: passes[name], default=None)
    steps = [
        ("read", reading, f"{train:,} train, {validation:,} validation, {test:,} test, {len(passes)} checkpoints"),
        ("baselines", baseline, "majority; TF-IDF with logistic regression"),
    ]
    verdict = "No checkpoint can be used."
    if best is not None:
        rank_rows = min(RANK_ROWS, train)
        epoch = STEP_PASSES * passes[best] * train
        size = next(one.member_bytes for one in job.zoo.checkpoints if one.name == best)
        end = REPORT_S + STOCK_IMPORT_S + 2 * export_s(size) + 1.6 * passes[best] * test
        steps += [
            (
                "rank",
                sum(groups) * (rank_rows + validation),
                f"features of every encoder on {rank_rows:,} texts, and probes",
            ),
            (
                "probe",
                featuring.pace[best] * (train - rank_rows),
                f"features of the rest of the training texts, {best}",
            ),
            ("train", epoch, f"one epoch of {best}, fully"),
            ("finish", end, "two members: test pass, export, check; the report"),
        ]
        verdict = _verdict(limit, steps, epoch)
    return {
        "steps": [{"step": step, "seconds": round(seconds, 1), "what": what} for step, seconds, what in steps],
        "budget_s": limit.seconds,
        "verdict": verdict,
    }


def _paced(task: Task, zoo: Zoo, limit: Budget, device: str, dtype: torch.dtype, progress: Progress) -> Job:
    """A job that knows how fast each encoder is in a number format; what cannot be computed is left out of its zoo."""
    with TemporaryDirectory() as folder, Run(Path(folder) / "run", {}) as run:
        zoo = Zoo(zoo.reference, list(zoo.checkpoints), zoo.left_out)
        job = Job(task, zoo, limit, run.deadline(limit), run, Store(), progress, device=device, dtype=dtype)
        measure_pace(job, dtype)
    return job


def _verdict(limit: Budget, steps: list[tuple[str, float, str]], epoch: float) -> str:
    if limit.seconds is None:
        return "A budget of trials does not depend on time."
    left = limit.seconds - sum(seconds for step, seconds, _ in steps if step != "train")
    if left < 0:
        return f"{limit.text} is short: fewer texts and checkpoints will be used, or only baselines."
    if left < 0.3 * epoch:
        return f"{limit.text} has room for probes; {left:.0f} s would remain, and an epoch takes {epoch:.0f} s."
    return (
        f"{limit.text} leaves about {left:.0f} s for training, {min(left / epoch, MOST_EPOCHS):.1f} "
        f"epochs of the largest checkpoint (at most {MOST_EPOCHS:.0f} are used)."
    )


def _baseline_seconds(job: Job) -> float:
    from regraft import methods
    from regraft.task.rows import spread_rows

    rows = spread_rows(job.task.train.labels, BASELINE_ROWS)
    began = time.monotonic()
    texts = [job.task.train.texts[row] for row in rows]
    methods.get("baseline", "tfidf")(texts, job.task.train.labels[np.asarray(rows)], job.classes)
    return time.monotonic() - began
