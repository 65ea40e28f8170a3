"""Choose the family on validation data: the front, without what a baseline beats, as many as can be finished in time."""

from __future__ import annotations

from typing import Any

from regraft import faults
from regraft.planner.front import Point, few, front
from regraft.planner.halving import half_size
from regraft.planner.job import Candidate, Job
from regraft.planner.reserve import end_s, finishing_s

MOST_MEMBERS = 5


def choose_family(job: Job) -> list[Candidate]:
    """The members, the best first. The order is that in which they are made, so that time runs out on the least."""
    metric = job.task.metric
    measured = [one for one in job.candidates.values() if one.competes]
    # Under a work budget the choice must not depend on a stopwatch: size stands for speed.
    points = [
        Point(one.name, one.quality(metric), one.parameters(), one.latency_ms if job.timed else None, place)
        for place, one in enumerate(measured)
    ]
    sides = "quality, size and latency" if job.timed else "quality and size"
    on_front, beaten = front(points)
    strongest = max(job.baselines, key=lambda one: one["validation"][metric])
    floor = strongest["validation"][metric]
    by_name = {one.name: one for one in measured}

    def choose() -> tuple[list[str], str]:
        worth = [point for point in on_front if point.quality >= floor] or on_front
        if not worth:
            return [], "nothing but baselines was measured"
        best = by_name[worth[0].name]
        half = half_size([by_name[point.name] for point in worth], best, {point.name: point.quality for point in worth})
        chosen = few(worth, MOST_MEMBERS, keep=[half.name] if half else [])
        order = [
            chosen[0],
            *sorted(chosen[1:], key=lambda point: half is None or point.name != half.name),
        ]
        names: list[str] = []
        left = job.deadline.left() - end_s(job)
        for point in order:
            left -= finishing_s(job, by_name[point.name])
            if job.timed and names and left < 0:
                break
            names.append(point.name)
        return names, f"{len(on_front)} of {len(points)} candidates are on the front of {sides}"

    kept: list[str] = job.decide("family", "which candidates become members", choose)
    faults.point("family chosen")
    for one in measured:
        _explain(one, kept, beaten, {point.name for point in on_front}, strongest, floor, metric, sides)
    return [by_name[name] for name in kept]


def _explain(
    one: Candidate, names: list[str], beaten: dict[str, str], on_front: set[str], strongest: dict[str, Any], floor: float,
    metric: str, sides: str,
) -> None:  # fmt: skip
    made = f"{one.reason}; " if one.parts or one.cut is not None else ""
    if one.name in names:
        one.status, one.reason = "in family", f"{made}on the front of {sides}"
    elif one.status in ("stopped", "cut short"):
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
