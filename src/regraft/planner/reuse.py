"""The main job: a task, a zoo and a budget in; a family of checked models out.

    read the task, open the zoo          what cannot be used is left out and listed
    baselines, models as they are        there is an answer from here on
    features, ranking, probe heads       cheap, for every checkpoint
    successive halving over fine-tunes   the expensive half: what the budget leaves
    soups of the fine-tunes              their averages, taken when they win
    cuts of the best of them             half of its encoder's blocks, where time is left over
    front, members, test, report         chosen on validation data, tested once

Every time-dependent decision goes through the ledger, so a run that was killed is started again with the same arguments
and goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from regraft import faults
from regraft.budget import Budget, Deadline
from regraft.checkpoint import Checkpoint, open_checkpoint
from regraft.checkpoint.device import check_device
from regraft.errors import CheckpointError, RegraftError, RunError
from regraft.features import number_format
from regraft.planner.arms import Trainer
from regraft.planner.baselines import measure_baselines
from regraft.planner.choose import choose_family
from regraft.planner.cuts import make_cuts
from regraft.planner.family import Family
from regraft.planner.halving import note_unused, train_best
from regraft.planner.heads import fit_heads, fit_scratch
from regraft.planner.job import Job
from regraft.planner.members import make_members, test_baselines
from regraft.planner.outlook import keep_results
from regraft.planner.pace import measure_pace
from regraft.planner.reserve import reserve
from regraft.planner.run import Beating, Run
from regraft.planner.scope import choose_rows, choose_validation, leave_out_slow
from regraft.planner.soup import make_soups
from regraft.planner.speed import measure_other_speeds, measure_speeds
from regraft.planner.survey import measure_as_is, rank_checkpoints
from regraft.planner.writing import write_recipe, write_result
from regraft.progress import SILENT, Progress
from regraft.store import Store
from regraft.task import check_metric, load_task
from regraft.version import __version__
from regraft.zoo import Zoo, open_zoo

# Importing the stock library, reading a small encoder and a few texts.
OPEN_S = 5.0
# What downloads may take to see whether the data and the checkpoints of a finished run are still the same.
CHECK_S = 60.0


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
        RunError: The run folder is in use, or was begun with other arguments, data or checkpoints.
        BadReferenceError: There is no such task or zoo (`HubError` when it is the Hub that says so).
        RegraftError: Another of its sub-classes; nothing half-written is left behind.
    """
    begun = time.monotonic() if started is None else started
    limit = Budget.parse(budget)
    width = number_format(dtype)
    check_device(device)
    check_metric(metric)
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
            deadline = Deadline(CHECK_S)
        else:
            progress = Beating(progress, run.ledger.beat)
            if run.resumed:
                progress.say(f"Going on with the run in {folder} ({deadline.spent():.0f} s used so far)")
        progress.say(f"Reading {task}")
        loaded = load_task(task, **read, deadline=deadline.for_download())  # type: ignore[arg-type]
        faults.point("task read")
        job = Job(loaded, Zoo(zoo, [], []), limit, deadline, run, store or Store(), progress, seed, device, width)
        _open_zoo(job)
        _same_inputs(job, finished=finished is not None)
        if finished is not None:
            if write_report is not None and not Path(finished["report"]).is_file():
                write_report(finished, Path(finished["report"]))
            progress.say(f"{folder} holds this run, finished")
            return Family(finished)
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
    if job.zoo.checkpoints and job.decide("survey", "open the checkpoints", lambda: _has_time(job)):
        measure_pace(job)
    if job.pace:
        _use_checkpoints(job, trainer)
    measure_speeds(job)
    job.reserve_s = 0.0
    family = choose_family(job)
    # Made in the order of need, so that time runs out on the least; shown from the best down.
    members = sorted(make_members(job, trainer, family), key=lambda one: -one["validation"][task.metric])
    baselines = test_baselines(job, trainer)
    measure_other_speeds(job)
    write_recipe(job, arguments, family, members)
    keep_results(job)
    return write_result(job, members, baselines)


def _use_checkpoints(job: Job, trainer: Trainer) -> None:
    """What needs a checkpoint that could be opened."""
    leave_out_slow(job)
    choose_validation(job)
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
    reserve(job)
    make_cuts(job, trainer)
    note_unused(job)


def _has_time(job: Job) -> tuple[bool, str]:
    if job.affords(OPEN_S):
        return True, "there is time for it"
    return False, "the budget leaves no time to open a checkpoint: the best baseline is the answer"


def _same_inputs(job: Job, *, finished: bool) -> None:
    """Keep to the checkpoints that the run was begun with; refuse data or checkpoints that are others now, for what was measured
    is not about these."""
    now = {
        "task": job.task.task_id,
        "checkpoints": {one.name: one.file_id for one in job.zoo.checkpoints},
        "references": {one.name: one.reference for one in job.zoo.checkpoints},
        "regraft": __version__,
    }
    before = job.run.ledger.once("inputs", lambda: now)
    kept = _as_begun(job, before)
    changed = []
    if before["task"] != now["task"]:
        changed.append(f"another task (the content of {job.task.reference} is not what it was)")
    lost = sorted(set(before["checkpoints"]) - {one.name for one in kept})
    if lost:
        changed.append(f"other checkpoints (changed, or gone: {', '.join(lost)})")
    if not before["checkpoints"] and job.zoo.checkpoints:
        changed.append(
            f"no checkpoint, for {job.zoo.reference} held none that could be used (now {len(job.zoo.checkpoints)})"
        )
    if before["regraft"] != __version__ and not finished:
        changed.append(f"Regraft {before['regraft']}, this is {__version__}")
    if changed:
        raise RunError(
            f"{job.run.folder} was begun with {', and with '.join(changed)}: what it measured is not about these.",
            "Give --out a new folder, or remove this one.",
        )
    later = RunError("It was not in the zoo when this run began.", "Give --out a new folder to use it.")
    for one in job.zoo.checkpoints:
        if one.name not in before["checkpoints"]:
            job.leave_out(one.reference, later)
    job.zoo = replace(job.zoo, checkpoints=kept)


def _as_begun(job: Job, before: dict[str, Any]) -> list[Checkpoint]:
    """The checkpoints that the run was begun with and that are still the same."""
    here = {one.name: one for one in job.zoo.checkpoints}
    kept = []
    for name, file_id in before["checkpoints"].items():
        one = here.get(name)
        if one is None:  # random weights are of the smallest architecture, which another may have become since
            with suppress(RegraftError):
                one = open_checkpoint(before["references"][name], job.deadline.for_download()).renamed(name)
        if one is not None and one.file_id == file_id:
            kept.append(one)
    return kept


def _open_zoo(job: Job) -> None:
    """Open the zoo; one that holds nothing usable leaves the baselines as the answer, one that is not there is an error."""
    try:
        zoo = open_zoo(job.zoo.reference, job.deadline.for_download())
    except CheckpointError as fault:
        job.leave_out(job.zoo.reference, fault)
        return
    job.zoo = zoo
    for left in zoo.left_out:
        job.left_out.append({"reference": left.reference, "problem": left.problem, "remedy": left.remedy})
    job.progress.say(f"{len(zoo.checkpoints)} checkpoints in {zoo.reference}, {len(zoo.left_out)} left out")


def default_folder(arguments: dict[str, Any]) -> Path:
    """`runs/<task>-<hash of the arguments>`: the same command goes on with the same run."""
    import hashlib

    digest = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:8]
    stem = Path(arguments["task"].split(":")[-1].rstrip("/")).stem or "task"
    return Path("runs") / f"{stem}-{digest}"
