"""Choose the family on validation data: the front, without what a baseline beats, as many as can be finished in time."""

from __future__ import annotations

from typing import Any

from regraft import faults
from regraft.adapt import classifier_from
from regraft.checkpoint import Checkpoint
from regraft.checkpoint.export import load_classifier
from regraft.planner.front import Point, few, front
from regraft.planner.halving import half_size
from regraft.planner.job import Candidate, Job
from regraft.planner.survey import measure_speed

MOST_MEMBERS = 5
# Writing a member, opening it in the stock library and comparing, beside its test pass: seconds, and bytes a second.
EXPORT_S = 1.0
EXPORT_BYTES = 1.5e8
# Scoring a test example and comparing it with the answer: 1,000 resamples each.
SCORE_S = 4e-5
# The baselines are tested as well: these, and the best of what started from random weights.
BASELINES = 3
STOCK_IMPORT_S = 3.0
REPORT_S = 2.5
SPEED_S = 2.0
# Time to make a second member is held back only where it is at most this share of the budget.
SECOND_SHARE = 0.06


def reserve(job: Job) -> None:
    """Hold back what the end of the run needs: test pass and export of the best member, and the report; those of a second
    member where they are a small part of the budget."""
    if not job.timed:
        return
    costs = sorted(member_s(job, one, one.member_bytes) for one in job.zoo.checkpoints if one.name in job.pace)
    if not costs:
        job.reserve_s = REPORT_S
        return
    second = costs[len(costs) // 2]
    job.reserve_s = end_s(job) + costs[-1] + (second if second <= SECOND_SHARE * (job.budget.seconds or 0.0) else 0.0)


def export_s(size: int) -> float:
    """What writing and checking a member of that many bytes takes."""
    return EXPORT_S + size / EXPORT_BYTES


def end_s(job: Job) -> float:
    """What the end of a run takes beside the members: baselines on test data, the first use of the stock library, the report."""
    return REPORT_S + STOCK_IMPORT_S + BASELINES * SCORE_S * test_rows(job)


def member_s(job: Job, checkpoint: Checkpoint, size: int) -> float:
    """What making a member of that many bytes from a checkpoint takes: the test pass, its score, the folder."""
    rows = test_rows(job)
    return (1.15 * job.pace.get(checkpoint.name, 0.01) + SCORE_S) * rows + export_s(size)


def test_rows(job: Job) -> int:
    """Test examples that are measured: all, unless one pass alone would take more than a quarter of the budget."""
    rows = len(job.task.test)
    if not job.timed or not job.pace:
        return rows
    most = 0.25 * (job.budget.seconds or 0.0) / max(job.pace.values())

    def choose() -> tuple[int, str]:
        if rows <= most:
            return rows, "all of them"
        return max(100, int(most)), f"one pass over all {rows:,} would take more than a quarter of the budget"

    return int(min(rows, job.decide("test rows", "test examples that are measured", choose)))


def finishing_s(job: Job, candidate: Candidate) -> float:
    """What making a member of a candidate takes."""
    return member_s(job, candidate.checkpoint, candidate.bytes())


def measure_speeds(job: Job) -> None:
    """Latency and throughput of every checkpoint that has a candidate on the front of quality and size."""
    metric = job.task.metric
    measured = _competing(job)
    kept, _ = front([Point(one.name, one.quality(metric), one.parameters(), None) for one in measured])
    speeds: dict[str, dict[str, float]] = {}
    for one in (job.candidates[point.name] for point in kept):
        name = one.checkpoint.name
        known = job.run.ledger.look(f"speed/{name}")[0]
        if name in speeds or (not known and job.timed and job.deadline.left() < job.reserve_s + 2 * SPEED_S):
            continue
        classifier = None if known else _any_classifier(job, one)
        speeds[name] = measure_speed(job, one.checkpoint, classifier, job.task.validation)
    for one in measured:
        if one.checkpoint.name in speeds:
            one.latency_ms = speeds[one.checkpoint.name]["latency_ms"]
            one.throughput = speeds[one.checkpoint.name]["throughput"]


def _competing(job: Job) -> list[Candidate]:
    """What may become a member; a soup that is no better than its ingredients is "not kept" before that is asked."""
    out = {"failed", "baseline", "not kept"}
    return [one for one in job.candidates.values() if one.validation is not None and one.status not in out]


def _any_classifier(job: Job, one: Candidate) -> Any:
    """A classifier of the candidate's shape; what its weights are does not change its speed."""
    if one.head is None:
        return load_classifier(one.checkpoint, job.device)
    return classifier_from(one.checkpoint, job.task.label_names, one.head, device=job.device)


def choose_family(job: Job) -> list[Candidate]:
    """The members, the best first. The order is that in which they are made, so that time runs out on the least."""
    metric = job.task.metric
    measured = _competing(job)
    points = [Point(one.name, one.quality(metric), one.parameters(), one.latency_ms) for one in measured]
    on_front, beaten = front(points)
    strongest = max(job.baselines, key=lambda one: one["validation"][metric])
    floor = strongest["validation"][metric]
    by_name = {one.name: one for one in measured}

    def choose() -> tuple[list[str], str]:
        worth = [point for point in on_front if point.quality >= floor] or on_front
        if not worth:
            return [], "nothing but baselines was measured"
        best = by_name[worth[0].name]
        half = half_size([by_name[point.name] for point in worth], best, metric)
        chosen = few(worth, MOST_MEMBERS, keep=[half.name] if half else [])
        order = [
            chosen[0],
            *sorted(chosen[1:], key=lambda point: (half is None or point.name != half.name, -point.quality)),
        ]
        names: list[str] = []
        left = job.deadline.left() - end_s(job)
        for point in order:
            left -= finishing_s(job, by_name[point.name])
            if job.timed and names and left < 0:
                break
            names.append(point.name)
        return names, f"{len(on_front)} of {len(points)} candidates are on the front of quality, size and latency"

    kept: list[str] = job.decide("family", "which candidates become members", choose)
    faults.point("family chosen")
    for one in measured:
        _explain(one, kept, beaten, {point.name for point in on_front}, strongest, floor, metric)
    return [by_name[name] for name in kept]


def _explain(
    one: Candidate, names: list[str], beaten: dict[str, str], on_front: set[str], strongest: dict[str, Any], floor: float,
    metric: str,
) -> None:  # fmt: skip
    made = f"{one.reason}; " if one.parts else ""
    if one.name in names:
        one.status, one.reason = "in family", f"{made}on the front of quality, size and latency"
    elif one.status == "stopped":
        return
    elif one.name in beaten:
        one.status, one.reason = "dominated", f"{made}{beaten[one.name]} is at least as good and no larger"
    elif one.name in on_front and one.quality(metric) < floor:
        one.status, one.reason = "dominated", f"{made}the baseline {strongest['name']} is better"
    else:
        one.status, one.reason = (
            "not kept",
            f"{made}on the front, but close to a member in size, or no time was left to make it",
        )
