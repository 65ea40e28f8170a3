"""What there is time for: which checkpoints are ranked, on how many rows, and how many validation rows are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from regraft.checkpoint import Checkpoint
from regraft.errors import BudgetError
from regraft.features import shared_passes
from regraft.planner.baselines import measure_on_part
from regraft.planner.job import Job
from regraft.planner.reserve import needed_s, tested_rows
from regraft.task import Split
from regraft.task.rows import spread_rows

# Shares of the budget; what they buy was measured on banking77, hwu64 and snips (docs/diary.md).
RANK_SHARE = 0.10
# Random weights are worth this share; beyond it they are only measured on a few texts.
SCRATCH_SHARE = 0.03
RANK_ROWS = 2000
FEWEST_ROWS = 100
# Of what is free, the most that the smallest ranking may take: heads must still be fitted.
RANK_FREE = 0.8
# Validation rows that are always used where they fit: as many as are held out of train when a task brings none. More are
# used when a pass over them by every encoder takes at most this share of the budget.
VALIDATION_ROWS = 2000
VALIDATION_SHARE = 0.10
# Where the smallest ranking takes more than this share of what is free, fewer are used, but not fewer than these.
VALIDATION_FREE = 0.5
FEWEST_VALIDATION = 200


def leave_out_slow(job: Job, *, ends: bool = True) -> None:
    """Leave out the slowest checkpoints until the smallest ranking of the others, and the end of the run, fit in the budget.

    One is always kept. Of checkpoints that share a pass the deepest goes first. `ends` says whether the run goes on to make
    members.
    """
    if not job.timed:
        return

    def choose() -> tuple[list[str], str]:
        kept = [one for one in job.zoo.checkpoints if one.random is None]
        slow: list[str] = []
        texts = FEWEST_ROWS + min(len(job.task.validation), VALIDATION_ROWS)
        while len(kept) > 1 and texts * _pass_s(job, kept) > RANK_FREE * _free_s(job, kept, ends):
            slowest = max(kept, key=lambda one: (job.pace[one.name], one.name))
            kept.remove(slowest)
            slow.append(slowest.name)
        return slow, f"ranking the others on {texts:,} texts takes about {texts * _pass_s(job, kept):.0f} s"

    slow = job.decide("too slow", "checkpoints that there is no time to rank", choose)
    for checkpoint in [one for one in job.zoo.checkpoints if one.name in slow]:
        pace = f"{1000 * job.pace[checkpoint.name]:.0f} ms a text"
        job.leave_out(
            checkpoint.reference,
            BudgetError(f"It takes {pace}: the budget has no time to rank it.", "Give a larger budget."),
        )
        job.zoo.checkpoints.remove(checkpoint)


def _free_s(job: Job, checkpoints: Sequence[Checkpoint], ends: bool) -> float:
    """What is left, without what the end of a run with these checkpoints needs."""
    end_s = needed_s(job, checkpoints, tested_rows(job, checkpoints)[0]) if ends else 0.0
    return max(0.0, job.deadline.left() - end_s)


def _pass_s(job: Job, checkpoints: Sequence[Checkpoint]) -> float:
    """Seconds a text takes in all encoders together."""
    return sum(job.pace[group[0].name] for group in shared_passes(checkpoints).values())


def smallest_ranking_s(job: Job) -> float:
    """Seconds that have to be free to rank the checkpoints that are left, on as few texts as make sense."""
    texts = FEWEST_ROWS + min(len(job.task.validation), FEWEST_VALIDATION)
    return texts * _pass_s(job, [one for one in job.zoo.checkpoints if one.random is None]) / RANK_FREE


def choose_validation(job: Job, *, ends: bool = True) -> None:
    """Under a time budget, use a stratified part of validation data that are too many; the baselines are scored on it, too."""
    if not job.timed:
        return
    whole = job.task.validation

    def choose() -> tuple[int, str]:
        checkpoints = [one for one in job.zoo.checkpoints if one.random is None] or job.zoo.checkpoints
        a_text, free = max(_pass_s(job, checkpoints), 1e-9), _free_s(job, checkpoints, ends)
        rows = min(len(whole), max(VALIDATION_ROWS, int(VALIDATION_SHARE * (job.budget.seconds or 0.0) / a_text)))
        if a_text * (FEWEST_ROWS + rows) > VALIDATION_FREE * free:
            rows = min(rows, max(FEWEST_VALIDATION, int(VALIDATION_FREE * free / a_text) - FEWEST_ROWS))
        if rows == len(whole):
            return rows, "all of them"
        return (
            rows,
            f"{1000 * a_text:.1f} ms a text: all {len(whole):,} would take too much of the budget, again and again",
        )

    rows = job.decide("validation rows", "validation examples that are used", choose)
    if rows >= len(whole):
        return
    part = spread_rows(whole.labels, rows)
    note = (
        f"validation: {rows:,} of {len(whole):,} rows used, a stratified part: the budget has no time for all of them."
    )
    job.task = replace(
        job.task,
        validation=Split([whole.texts[row] for row in part], whole.labels[part]),
        notes=(*job.task.notes, note),
    )
    job.validation_rows = rows
    job.progress.say(note)
    measure_on_part(job)


def choose_rows(job: Job) -> None:
    """How many training rows every checkpoint is ranked on, and whether random weights are ranked with the others."""
    labels, validation = job.task.train.labels, len(job.task.validation) if job.validates else 0
    budget = job.budget.seconds or 0.0

    def ranks_random() -> tuple[bool, str]:
        cost = sum(job.pace[one.name] for one in job.zoo.checkpoints if one.random is not None) * (
            RANK_ROWS + validation
        )
        if not job.timed or cost <= SCRATCH_SHARE * budget:
            return True, "it is cheap"
        return (
            False,
            f"{cost:.0f} s would be more than {SCRATCH_SHARE:.0%} of the budget; a few texts are enough to compare",
        )

    job.rank_random = job.decide("rank random", "rank random weights with the others", ranks_random)
    a_row = _pass_s(job, contenders(job))

    def choose() -> tuple[int, str]:
        most = min(RANK_ROWS, len(labels))
        if not job.timed:
            return most, "the most that ranking uses"
        share = min(RANK_SHARE * budget, 0.5 * job.free_s())
        rows = int(min(most, share / max(a_row, 1e-9) - validation))
        rows = max(rows, min(most, FEWEST_ROWS)) if job.affords(a_row * (FEWEST_ROWS + validation)) else 0
        return rows, f"{share:.0f} s for all encoders together, {1000 * a_row:.1f} ms a text"

    rows = job.decide("rank rows", "training rows that checkpoints are ranked on", choose)
    job.rank_rows = spread_rows(labels, rows) if rows else np.zeros(0, np.int64)
    job.other_rows = np.setdiff1d(np.arange(len(labels)), job.rank_rows)


def contenders(job: Job) -> list[Checkpoint]:
    """The checkpoints that are ranked."""
    return [one for one in job.zoo.checkpoints if one.random is None or job.rank_random]
