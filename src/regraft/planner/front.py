"""The Pareto front: what is worth keeping of all that was measured on validation data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# Two latencies closer than this are the same: timing on a busy machine moves by as much.
LATENCY_MARGIN = 1.25


@dataclass(frozen=True)
class Point:
    """A candidate as the front sees it: higher quality is better, the rest lower."""

    name: str
    quality: float
    parameters: int
    latency_ms: float | None
    # Among equals the lower one wins: heads are measured before what was trained longer.
    place: int = 0


def dominates(a: Point, b: Point) -> bool:
    """Whether `a` is at least as good as `b` in everything and better in something.

    Latency speaks against a domination, when the two differ by more than `LATENCY_MARGIN`, and never for one: what is "about
    as fast" does not add up, so that points could beat each other in a circle.
    """
    if a.latency_ms is not None and b.latency_ms is not None and a.latency_ms > b.latency_ms * LATENCY_MARGIN:
        return False
    if a.quality < b.quality or a.parameters > b.parameters:
        return False
    return a.quality > b.quality or a.parameters < b.parameters or (a.place, a.name) < (b.place, b.name)


def front(points: Sequence[Point]) -> tuple[list[Point], dict[str, str]]:
    """The points that are kept, the best first, and for each of the others the name of a kept one that dominates it.

    From the best down, and against what is kept only: the latency margin makes dominance intransitive, and nothing may be
    dropped for the sake of a point that is dropped itself.
    """
    kept: list[Point] = []
    beaten: dict[str, str] = {}
    for point in sorted(points, key=_best_first):
        rival = next((other for other in kept if dominates(other, point)), None)
        if rival is None:
            kept.append(point)
        else:
            beaten[point.name] = rival.name
    return kept, beaten


def _best_first(point: Point) -> tuple[float, int, int, str]:
    return -point.quality, point.parameters, point.place, point.name


def few(points: Sequence[Point], count: int, keep: Sequence[str] = ()) -> list[Point]:
    """At most `count` of a front: the best, those named in `keep`, and others that spread the sizes most evenly.

    The one to drop next is the one whose neighbours in log size are closest together.
    """
    kept = sorted(points, key=_best_first)
    while len(kept) > max(count, 1):
        sizes = [math.log(max(point.parameters, 1)) for point in kept]
        gaps = [abs(before - after) for before, after in pairwise(sizes)]
        room = {i: gaps[i - 1] + (gaps[i] if i < len(gaps) else math.inf) for i in range(1, len(kept))}
        free = {i: gap for i, gap in room.items() if kept[i].name not in keep} or room
        kept.pop(min(free, key=lambda i: (free[i], i)))
    return kept
