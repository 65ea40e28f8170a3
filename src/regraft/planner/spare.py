"""What time is left over once the family as it stands is provided for, and what cutting a model out of its best one takes."""

from __future__ import annotations

from regraft.adapt import Plan
from regraft.planner.arms import CHARACTER_S, Arm, Trainer
from regraft.planner.choose import MOST_MEMBERS
from regraft.planner.front import Point, front
from regraft.planner.halving import FEWEST_EPOCHS, FEWEST_SECONDS
from regraft.planner.job import Candidate, Job
from regraft.planner.pace import open_s
from regraft.planner.reserve import end_s, export_s, finishing_s
from regraft.planner.speed import speed_s

# Loading what cuts and measures importance; fitting the probe that scores a shape.
LOAD_S, PROBE_S = 3.0, 2.0


def held_s(job: Job) -> float:
    """Seconds that the family needs to its end, were it chosen now, and one more member of the size of the best."""
    metric = job.task.metric
    measured = [one for one in job.candidates.values() if one.competes]
    points = [Point(one.name, one.quality(metric), one.parameters(), None, at) for at, one in enumerate(measured)]
    kept = [job.candidates[point.name] for point in front(points)[0]]
    speeds = {one.checkpoint.name: speed_s(job, one.checkpoint) for one in kept if one.latency_ms is None}
    members = sorted((finishing_s(job, one) for one in kept), reverse=True)
    scratch = [finishing_s(job, one) + 2.0 for one in job.candidates.values() if one.checkpoint.random is not None]
    slowest = max(speeds.values(), default=0.0)
    ending = end_s(job) + sum(members[:MOST_MEMBERS]) + max(scratch, default=0.0)
    more = max(members, default=0.0) + slowest
    return sum(speeds.values()) + 2 * slowest + more + max(job.reserve_s, ending)


def shapes_s(job: Job, start: Candidate) -> float:
    """What finding the shapes takes: the model written, run over a few hundred texts, cut and scored a few times."""
    from regraft.planner.halves import MOST_SHAPES
    from regraft.planner.recovery import FITTED, SCORED
    from regraft.resize.classifier import TEXTS

    pace = job.pace[start.checkpoint.name]
    rows = min(FITTED, len(job.task.train)) + min(SCORED, len(job.task.validation))
    each = export_s(start.bytes()) + pace * rows + PROBE_S
    return LOAD_S + open_s(start.checkpoint) + 2 * pace * TEXTS + MOST_SHAPES * each


def one_s(job: Job, trainer: Trainer, start: Candidate) -> float:
    """What one candidate takes at least: cutting, tokenising, the shortest training that is of use, measuring it."""
    from regraft.resize.classifier import TEXTS

    arm = like(trainer, start)
    fewest = max(FEWEST_SECONDS, FEWEST_EPOCHS * trainer.steps_per_epoch(arm) * trainer.seconds_a_step(arm))
    cutting = open_s(start.checkpoint) + 2 * export_s(start.bytes()) + 2 * job.pace[start.checkpoint.name] * TEXTS
    characters = sum(map(len, job.task.train.texts)) + sum(map(len, job.task.validation.texts))
    return cutting + CHARACTER_S * characters + fewest + trainer.measuring_s(arm)


def like(trainer: Trainer, start: Candidate) -> Arm:
    """An arm that trains the whole of it, to ask what that takes."""
    assert start.head is not None
    return trainer.arm(start.checkpoint, start.head, Plan("full", {}, {}), start.name)
