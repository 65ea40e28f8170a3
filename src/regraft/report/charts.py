"""Quality against size, latency and seconds: one small plot each, with the same marks in all three.

    family     filled circle with its key (A, B ...)    error bar: 95 % interval
    baseline   filled square with its name              error bar; the best one also as a dashed line
    candidate  hollow diamond                           measured, but dominated or stopped

Shapes, not colours, tell them apart. The quality is the one on validation data, the only one that every candidate has.
Plots are rendered here, by altair and vl-convert, into SVG: the page needs no script, prints, and follows the theme.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from regraft.report import svg, words
from regraft.report.drawing import Mark, draw
from regraft.report.verdict import best_baseline, keys


@dataclass(frozen=True)
class Axis:
    """What a plot has on its horizontal axis: the key in the result, headings, and how to write a value and a tick."""

    field: str
    heading: str
    title: str
    tick: str
    write: Callable[[float | None], str]


AXES = (
    Axis("parameters", "Size", "parameters", "replace(format(datum.value, '~s'), 'G', 'B')", words.format_count),
    Axis("latency_ms", "Latency", "milliseconds for one example", "format(datum.value, '~g')", words.format_latency),
    Axis("seconds", "Time to make", "seconds spent on it", "format(datum.value, '~g')", words.format_seconds),
)


@dataclass(frozen=True)
class Plot:
    """A plot for the page, and the marks below its lower edge, in words."""

    heading: str
    svg: str
    missing: tuple[str, ...]


def plots(result: Mapping[str, Any]) -> list[Plot]:
    """The three plots of a result, as far as there is a model with a place in them: baselines alone say nothing."""
    found = [_plot(axis, _marks(result, axis.field), result) for axis in AXES]
    return [plot for plot in found if plot is not None]


def _marks(result: Mapping[str, Any], field: str) -> list[Mark]:
    """Every measured model, the candidates first so that the family is drawn over them."""
    members = {member["name"] for member in result["family"]}
    others = [one for one in result["candidates"] if one["name"] not in members]
    groups = (
        ("candidate", others, [""] * len(others)),
        ("baseline", result["baselines"], [words.short_baseline(one["name"]) for one in result["baselines"]]),
        ("member", result["family"], keys(result["family"])),
    )
    metric = result["task"]["metric"]
    marks = []
    for kind, entries, labels in groups:
        for entry, label in zip(entries, labels, strict=True):
            value = words.value_of(entry["validation"], metric)
            if value is None:
                continue
            low, high = words.interval_of(entry["validation"], metric) or (value, value)
            x = entry.get(field)
            name = words.baseline_name(entry["name"]) if kind == "baseline" else entry["name"]
            marks.append(Mark(kind, name, label, x if x is not None and x > 0 else None, value, low, high))
    return marks


def floor(marks: list[Mark]) -> float:
    """The lower edge: below the family and the best baseline, above what lies far beneath (majority, failed trials).

    The edge is one and a half times as far below the best value as the worst member or the best baseline is.
    """
    top = max(mark.high for mark in marks)
    members = [mark.low for mark in marks if mark.kind == "member"]
    baselines = [mark for mark in marks if mark.kind == "baseline"]
    if baselines:
        members.append(max(baselines, key=lambda mark: mark.y).low)
    lowest = min(members, default=min(mark.low for mark in marks))
    return max(0.0, top - 1.5 * max(top - lowest, 0.02))


def _plot(axis: Axis, marks: list[Mark], result: Mapping[str, Any]) -> Plot | None:
    lower = floor(marks) if marks else 0.0
    shown = [mark for mark in marks if mark.x is not None and mark.y >= lower]
    if all(mark.kind == "baseline" for mark in shown):
        return None
    metric = result["task"]["metric"]
    upper = min(1.0, max(mark.high for mark in marks) + 0.005)
    rival = best_baseline(result["baselines"], metric, "validation")
    level = None if rival is None else words.value_of(rival["validation"], metric)
    picture = draw(shown, axis.title, axis.tick, axis.write, (lower, upper), level)
    title = f"Validation {words.metric_name(metric)} against {axis.title}"
    hidden = sorted((mark for mark in marks if mark.x is not None and mark.y < lower), key=lambda mark: -mark.y)
    missing = tuple(f"{mark.name} ({words.format_percent(mark.y)})" for mark in hidden)
    return Plot(axis.heading, svg.inline(picture, f"plot-{axis.field}", title, _describe(shown, axis)), missing)


def _describe(shown: list[Mark], axis: Axis) -> str:
    """The family and the baselines of a plot in words."""
    named = [f"{mark.label} {words.format_percent(mark.y)} at {axis.write(mark.x)}" for mark in shown if mark.label]
    others = sum(mark.kind == "candidate" for mark in shown)
    return "; ".join(named) + (f"; and {words.plural(others, 'other candidate')}" if others else "") + "."
