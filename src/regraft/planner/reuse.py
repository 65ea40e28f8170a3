"""The main job: a task, a zoo and a budget in; a family of checked models out.

    read the task, open the zoo          what cannot be used is left out and listed
    baselines, models as they are        there is an answer from here on
    features, ranking, probe heads       cheap, for every checkpoint
    successive halving over fine-tunes   the expensive half: what the budget leaves
    soups of the fine-tunes              their averages, taken when they win
    front, members, test, report         chosen on validation data, tested once

Every time-dependent decision goes through the ledger, so a run that was killed is started again with the same arguments
and goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from regraft import faults
from regraft.budget import Budget
from regraft.errors import CheckpointError, RegraftError, RunError
from regraft.features import number_format
from regraft.planner.arms import Trainer
from regraft.planner.choose import choose_family, measure_speeds, reserve
from regraft.planner.family import Family
from regraft.planner.halving import train_best
from regraft.planner.heads import fit_heads, fit_scratch
from regraft.planner.job import Job
from regraft.planner.members import make_members, test_baselines
from regraft.planner.run import Run
from regraft.planner.soup import make_soups
from regraft.planner.survey import (
    choose_rows,
    measure_as_is,
    measure_baselines,
    measure_pace,
    rank_checkpoints,
)
from regraft.planner.writing import write_recipe, write_result
from regraft.progress import SILENT, Progress
from regraft.store import Store
from regraft.task import load_task
from regraft.version import __version__
from regraft.zoo import Zoo, open_zoo

# Importing the stock library, reading a small encoder and a few texts.
OPEN_S = 5.0
# Of what is left of the budget, what downloading the task may take, and then what downloading the zoo may.
DOWNLOAD_SHARE = 0.5


def reuse(
    task: str,
    zoo: str = "builtin:minilm",
    budget: str = "10m",
    *,
    out: str | Path | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    metric: str = "accuracy",
    max_rows: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    store: Store | None = None,
    progress: Progress = SILENT,
    started: float | None = None,
    write_report: Callable[[dict[str, Any], Path], Path] | None = None,
) -> Family:
    """Find, adapt, measure and certify the models that a task needs out of the checkpoints at hand.

    Args:
        task: `builtin:pydoc`, a file, a folder with train/validation/test files, or `hf:dataset`.
        zoo: `builtin:minilm`, `hf:org/name`, `hf-cache:`, a folder of checkpoints, or several with commas between.
        budget: `30s`, `10m`, `1h`, or `40trials` (then nothing depends on time).
        out: The run folder; the same folder and arguments go on with a run that was interrupted.
        text_column, label_column, metric, max_rows: How the task is read (see `load_task`).
        seed: Of everything random.
        device: `cpu`, `cuda`, `mps`.
        dtype: Number format of the features' forward passes; training is in float32.
        started: `time.monotonic()` at which the budget began; now, when None.
        write_report: Writes the HTML report; the command line and `regraft.reuse` pass the report's own.

    Returns:
        The family; its folders, recipe and report lie in the run folder.

    Raises:
        RegraftError: One of its sub-classes; nothing half-written is left behind.
    """
    begun = time.monotonic() if started is None else started
    limit = Budget.parse(budget)
    width = number_format(dtype)
    check_device(device)
    read = {
        "text_column": text_column,
        "label_column": label_column,
        "metric": metric,
        "max_rows": max_rows,
        "seed": seed,
    }
    arguments = {"task": task, "zoo": zoo, "budget": limit.text, "device": device, "dtype": dtype, **read}
    folder = Path(out) if out is not None else default_folder(arguments)
    with Run(folder, arguments) as run:
        deadline = run.deadline(limit, used_s=time.monotonic() - begun)
        finished = run.finished()
        if finished is not None:
            if write_report is not None and not Path(finished["report"]).is_file():
                write_report(finished, Path(finished["report"]))
            progress.say(f"{folder} holds this run, finished")
            return Family(finished)
        if run.resumed:
            progress.say(f"Going on with the run in {folder} ({deadline.spent():.0f} s used so far)")
        progress.say(f"Reading {task}")
        downloads = deadline.part(DOWNLOAD_SHARE * deadline.left())
        loaded = load_task(task, **read, deadline=downloads)  # type: ignore[arg-type]
        faults.point("task read")
        job = Job(loaded, Zoo(zoo, [], []), limit, deadline, run, store or Store(), progress, seed, device, width)
        result = work(job, arguments)
        if write_report is not None:
            write_report(result, Path(result["report"]))
        progress.say("Done")
    return Family(result)


def work(job: Job, arguments: dict[str, Any]) -> dict[str, Any]:
    """The steps, in order."""
    task = job.task
    job.progress.say(
        f"{task.name}: {len(task.label_names)} classes, {len(task.train):,} train, {len(task.validation):,} validation, "
        f"{len(task.test):,} test"
    )
    measure_baselines(job)
    trainer = Trainer(job)
    _open_zoo(job)
    _same_inputs(job)
    if job.zoo.checkpoints and job.decide("survey", "open the checkpoints", lambda: _has_time(job)):
        measure_pace(job)
        reserve(job)
        measure_as_is(job)
        choose_rows(job)
        rank_checkpoints(job)
        reserve(job)
        fit_heads(job)
        fit_scratch(job)
        reserve(job)
        train_best(job, trainer)
        reserve(job)
        make_soups(job, trainer)
    measure_speeds(job)
    job.reserve_s = 0.0
    family = choose_family(job)
    # Made in the order of need, so that time runs out on the least; shown from the best down.
    members = sorted(make_members(job, trainer, family), key=lambda one: -one["validation"][task.metric])
    baselines = test_baselines(job, trainer)
    write_recipe(job, arguments, family, members)
    return write_result(job, members, baselines)


def _has_time(job: Job) -> tuple[bool, str]:
    if job.affords(OPEN_S):
        return True, "there is time for it"
    return False, "the budget leaves no time to open a checkpoint: the best baseline is the answer"


def _same_inputs(job: Job) -> None:
    """Refuse to go on with a run whose data or checkpoints are others now: its measurements would not be theirs."""
    now = {
        "task": job.task.task_id,
        "checkpoints": {one.name: one.file_id for one in job.zoo.checkpoints},
        "regraft": __version__,
    }
    before = job.run.ledger.once("inputs", lambda: now)
    changed = sorted(key for key in now if now[key] != before[key])
    if changed:
        raise RunError(
            f"{job.run.folder} was begun with another {' and other '.join(changed)}: what it measured is not about these.",
            "Give --out a new folder.",
        )


def _open_zoo(job: Job) -> None:
    """Open the zoo; one that holds nothing usable leaves the baselines as the answer."""
    try:
        zoo = open_zoo(job.zoo.reference, job.deadline.part(DOWNLOAD_SHARE * job.deadline.left()))
    except CheckpointError as fault:
        job.leave_out(job.zoo.reference, fault)
        return
    job.zoo = zoo
    for left in zoo.left_out:
        job.left_out.append({"reference": left.reference, "problem": left.problem, "remedy": left.remedy})
    job.progress.say(f"{len(zoo.checkpoints)} checkpoints in {zoo.reference}, {len(zoo.left_out)} left out")


def check_device(device: str) -> None:
    """Refuse a device that is not there."""
    kind = device.split(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        usable = ", ".join(name for name, found in there.items() if found)
        raise RegraftError(f"There is no device {device!r} here.", f"Choose one of {usable}.")


def default_folder(arguments: dict[str, Any]) -> Path:
    """`runs/<task>-<hash of the arguments>`: the same command goes on with the same run."""
    import hashlib

    digest = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:8]
    stem = Path(arguments["task"].split(":")[-1].rstrip("/")).stem or "task"
    return Path("runs") / f"{stem}-{digest}"
