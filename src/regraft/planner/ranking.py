"""`regraft rank`: the survey of the main job on its own, and the check of what it learned."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.budget import Budget
from regraft.errors import BudgetError, CheckpointError, RegraftError
from regraft.progress import SILENT, Progress
from regraft.store import Store

if TYPE_CHECKING:
    from regraft.planner.job import Job


def rank_zoo(
    task: str, zoo: str, budget: str, *, device: str = "cpu", progress: Progress = SILENT, started: float | None = None,
    dtype: str = "float32", store: Store | None = None, scores: Sequence[str] = (), **read: Any,
) -> dict[str, Any]:  # fmt: skip
    """Rank the checkpoints of a zoo for a task: the ranking, baselines where there was time, and what was left out.

    Raises:
        BudgetError: It leaves no time to rank even one checkpoint.
        MethodError: `scores` names one that there is not.
        RegraftError: There is no such device.
    """
    from tempfile import TemporaryDirectory

    from regraft.checkpoint.device import check_device
    from regraft.features import number_format
    from regraft.planner.baselines import BASELINE_SHARE, measure_baselines
    from regraft.planner.job import Job
    from regraft.planner.pace import measure_pace, open_s
    from regraft.planner.run import Run
    from regraft.planner.scope import choose_rows, choose_validation, leave_out_slow
    from regraft.planner.survey import rank_checkpoints
    from regraft.rank.rank import check_scores
    from regraft.task import load_task
    from regraft.zoo import open_zoo

    check_scores(scores)
    limit = Budget.parse(budget)
    if limit.seconds is None:
        raise BudgetError(f"Ranking trains nothing, so {budget!r} means nothing to it.", "Give seconds or minutes: 2m.")
    width = number_format(dtype)
    check_device(device)  # before the zoo: it is no fault of the checkpoints
    used = 0.0 if started is None else time.monotonic() - started
    with TemporaryDirectory() as folder, Run(Path(folder) / "run", {}) as run:
        deadline = run.deadline(limit, used_s=used)
        opened = open_zoo(zoo, deadline.for_download())
        loaded = load_task(task, **read, deadline=deadline.for_download())
        seed = read.get("seed", 0)
        job = Job(loaded, opened, limit, deadline, run, store or Store(), progress, seed, device, width)
        job.more_scores, job.validates = tuple(scores), False
        job.left_out = [vars(one) for one in opened.left_out]
        least = min(map(open_s, opened.checkpoints))
        measure_pace(job)
        if job.pace:
            leave_out_slow(job, ends=False)
            choose_validation(job, ends=False)
            choose_rows(job)
            rank_checkpoints(job)
        if not job.ranking:
            raise _nothing_ranked(job, least)
        if job.affords(2 * BASELINE_SHARE * limit.seconds):
            measure_baselines(job)
        return {
            "task": job.task.name, "rows": len(job.rank_rows), "ranking": job.ranking, "left_out": job.left_out,
            "baselines": job.baselines, "history": job.run.ledger.look("decision/history")[1],
            "same_weights": _same_weights(job),
        }  # fmt: skip


def _same_weights(job: Job) -> list[list[str]]:
    """The names of ranked checkpoints whose weights are equal, byte for byte; a list for each such weights."""
    names: dict[str, list[str]] = {}
    for one in job.zoo.checkpoints:
        if one.name in job.features:  # their weights were read
            names.setdefault(one.weights_id, []).append(one.name)
    return [alike for alike in names.values() if len(alike) > 1]


def selfcheck_history(
    leave_out: str = "task", *, store: Store | None = None, seed: int = 0, progress: Progress = SILENT
) -> list[dict[str, Any]]:
    """How good the fusion, the prior and every score would have been on this installation's history: a row each.

    Lines of it that are no results are told to `progress`.

    Raises:
        TaskError: Too little history, or `leave_out` is neither task nor family.
    """
    from regraft.rank.fusion.history import history_file, in_words_passed, latest, read_history
    from regraft.rank.fusion.selfcheck import selfcheck

    path, passed = history_file((store or Store()).root), list[int]()
    history = latest(read_history(path, passed))
    if passed:
        progress.say(in_words_passed(passed, path))
    return [dataclasses.asdict(one) for one in selfcheck(history, leave_out=leave_out, seed=seed)]


def _nothing_ranked(job: Job, opening_s: float) -> RegraftError:
    """Why there is no ranking: no time, with what would do, or no checkpoint that can be computed."""
    from regraft.planner.scope import smallest_ranking_s

    if not job.zoo.checkpoints and not any("no time" in one["problem"] for one in job.left_out):
        reasons = " ".join(f"{one['reference']}: {one['problem']}" for one in job.left_out)
        remedies = {one["remedy"] for one in job.left_out}
        remedy = remedies.pop() if len(remedies) == 1 else ""
        return CheckpointError(f"No checkpoint can be ranked. {reasons}", remedy or "Give another zoo.")
    needed = smallest_ranking_s(job) if job.zoo.checkpoints else opening_s
    return BudgetError(
        f"Of {job.budget.text}, {job.deadline.left():.0f} s are left: too little to rank a checkpoint.",
        f"Give --budget at least {math.ceil(job.deadline.spent() + needed)}s.",
    )
