"""What the end of a run needs, held back from the start: test passes, folders of members, the report."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.checkpoint import Checkpoint
from regraft.planner.baselines import fit_again_s
from regraft.planner.job import Candidate, Job

# Writing a member, opening it in the stock library and comparing, beside its test pass: seconds, and bytes a second.
EXPORT_S = 1.0
EXPORT_BYTES = 1.5e8
# Scoring a test example and comparing it with the answer: 1,000 resamples each.
SCORE_S = 4e-5
# The baselines are tested as well: these, and the best of what started from random weights.
BASELINES = 3
STOCK_IMPORT_S = 3.0
REPORT_S = 2.5
# Time to make a second member is held back only where it is at most this share of the budget.
SECOND_SHARE = 0.06
# Measuring how fast a model is takes this many texts of it at least (see `evaluate.latency`).
SPEED_TEXTS = 4


def reserve(job: Job) -> None:
    """Hold back what the end of the run needs: test pass and export of the best member, and the report; those of a second
    member where they are a small part of the budget."""
    if job.timed:
        job.reserve_s = needed_s(job, may_be_members(job), test_rows(job))


def may_be_members(job: Job) -> list[Checkpoint]:
    """The checkpoints with a pace; random weights only where there is nothing else."""
    known = [one for one in job.zoo.checkpoints if one.name in job.pace]
    return [one for one in known if one.random is None] or known


def needed_s(job: Job, checkpoints: Sequence[Checkpoint], rows: int) -> float:
    """What the end takes when any of these checkpoints may become a member, with that many test examples."""
    costs = sorted(_member_s(job, one, one.member_bytes, rows) for one in checkpoints)
    if not costs:
        return REPORT_S
    second = costs[len(costs) // 2]
    held = second if second <= SECOND_SHARE * (job.budget.seconds or 0.0) else 0.0
    return _end_s(job, rows) + costs[-1] + held


def export_s(size: int) -> float:
    """What writing and checking a member of that many bytes takes."""
    return EXPORT_S + size / EXPORT_BYTES


def end_s(job: Job) -> float:
    """What the end of a run takes beside the members: baselines on test data, the first use of the stock library, the report."""
    return _end_s(job, test_rows(job))


def _end_s(job: Job, rows: int) -> float:
    return REPORT_S + STOCK_IMPORT_S + BASELINES * SCORE_S * rows + fit_again_s(job)


def member_s(job: Job, checkpoint: Checkpoint, size: int) -> float:
    """What making a member of that many bytes from a checkpoint takes: the test pass, its score, its speed, the folder."""
    return _member_s(job, checkpoint, size, test_rows(job))


def _member_s(job: Job, checkpoint: Checkpoint, size: int, rows: int) -> float:
    pace = job.pace.get(checkpoint.name, 0.01)
    return (1.15 * pace + SCORE_S) * rows + SPEED_TEXTS * pace + export_s(size)


def finishing_s(job: Job, candidate: Candidate) -> float:
    """What making a member of a candidate takes."""
    return member_s(job, candidate.checkpoint, candidate.bytes())


def test_rows(job: Job) -> int:
    """Test examples that are measured: all, unless one pass alone would take more than a quarter of the budget."""
    rows = len(job.task.test)
    if not job.timed or not job.pace:
        return rows
    return int(
        min(
            rows,
            job.decide("test rows", "test examples that are measured", lambda: tested_rows(job, may_be_members(job))),
        )
    )


def tested_rows(job: Job, checkpoints: Sequence[Checkpoint]) -> tuple[int, str]:
    """How many test examples there is time for when any of these checkpoints may become a member, and why."""
    rows = len(job.task.test)
    slowest = max((job.pace[one.name] for one in checkpoints), default=0.0)
    most = 0.25 * (job.budget.seconds or 0.0) / max(slowest, 1e-9)
    if rows <= most:
        return rows, "all of them"
    return max(100, int(most)), f"one pass over all {rows:,} would take more than a quarter of the budget"
