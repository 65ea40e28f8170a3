"""One scatter plot with error bars: marks in, SVG text out, through altair and vl-convert (no network, no browser)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from regraft.report import svg, words

WIDTH, HEIGHT = 300, 230

_INK, _MUTED, _GRID, _MEMBER, _CANDIDATE, _BASELINE = svg.PALETTE
_FONT = 11
# Fixed, so that plots side by side have the same scale whatever their axis labels measure.
_PADDING = {"left": 40, "right": 16, "top": 8, "bottom": 42}
_COLOURS = {"candidate": _CANDIDATE, "baseline": _BASELINE, "member": _MEMBER}  # in drawing order
_SHAPES = {"member": "circle", "candidate": "diamond", "baseline": "square"}
_AREAS = {"member": 75, "candidate": 30, "baseline": 55}
_LOG_FROM = 6.0  # the horizontal axis is logarithmic when the models (without the baselines) span more than this ratio


@dataclass(frozen=True)
class Mark:
    """One model in a plot: `kind` is member, baseline or candidate; `low` and `high` bound its interval."""

    kind: str
    name: str
    label: str
    x: float | None
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Scale:
    """The horizontal axis: its ends, and whether it is logarithmic."""

    low: float
    high: float
    log: bool

    def pixel(self, x: float) -> float:
        """Where a value lies, in pixels from the left edge."""
        if self.log:
            return WIDTH * math.log(x / self.low) / math.log(self.high / self.low)
        return WIDTH * (x - self.low) / (self.high - self.low)

    def value(self, pixel: float) -> float:
        """The value at a pixel."""
        share = pixel / WIDTH
        return self.low * (self.high / self.low) ** share if self.log else self.low + share * (self.high - self.low)


def scale(values: list[float], deciding: list[float]) -> Scale:
    """An axis with a margin on both sides of positive values, logarithmic if the deciding ones among them span much."""
    low, high = min(values), max(values)
    if max(deciding) / min(deciding) > _LOG_FROM:
        margin = (high / low) ** 0.08
        return Scale(low / margin, high * margin, True)
    margin = 0.1 * (high - low) or 0.2 * high
    return Scale(max(0.0, low - margin), high + margin, False)


def ticks(axis: Scale) -> list[float]:
    """At most six round values on a logarithmic axis: 1, 2, 5 times powers of ten, thinned when there are many."""
    first, last = math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high))
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**e for e in range(first, last + 1) for m in steps if axis.low <= m * 10.0**e <= axis.high]
        if len(found) <= 6:
            return found
    return found[:: math.ceil(len(found) / 6)]


def place_labels(points: list[tuple[float, float, str]]) -> list[tuple[float, float]]:
    """Where to write the label of each point (pixels; the middle of the text), away from points and other labels.

    Tries right, left, above, below and the corners, and takes the first free place inside the plot. Longer labels are
    names of baselines: theirs start at the upper right, off the dashed line that goes through the best baseline.
    """
    boxes: list[tuple[float, float, float, float]] = [(x, y, 10.0, 10.0) for x, y, _ in points]
    places = []
    for x, y, label in points:
        width = 0.58 * _FONT * len(label) + 2
        side, up = 7 + width / 2, 13.0
        offsets = [(side, 0.0), (-side, 0.0), (0.0, -up), (0.0, up), (side, -up), (side, up), (-side, -up), (-side, up)]
        if len(label) > 2:
            offsets.insert(0, offsets.pop(4))
        options = [(x + dx, y + dy, width, float(_FONT)) for dx, dy in offsets]
        inside = [box for box in options if box[2] / 2 <= box[0] <= WIDTH - box[2] / 2] or options
        best = next((box for box in inside if not any(_overlap(box, other) for other in boxes)), inside[0])
        boxes.append(best)
        places.append(best[:2])
    return places


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return abs(one[0] - other[0]) < (one[2] + other[2]) / 2 and abs(one[1] - other[1]) < (one[3] + other[3]) / 2


def draw(
    marks: list[Mark],
    title: str,
    tick: str,
    write: Callable[[float | None], str],
    bounds: tuple[float, float],
    level: float | None,
) -> str:
    """Render marks.

    Args:
        marks: What to draw, at least one; each has an x.
        title: The horizontal axis in words.
        tick: A vega expression that writes a horizontal tick, `datum.value`.
        write: Writes an x for a tooltip.
        bounds: The ends of the vertical axis, shares of one.
        level: Where to draw a dashed line across.

    Returns:
        An SVG document in the colours of `svg.PALETTE`.
    """
    import altair as alt
    import vl_convert

    known = [(mark, mark.x) for mark in marks if mark.x is not None]
    values = [x for _, x in known]
    across = scale(values, [x for mark, x in known if mark.kind != "baseline"] or values)
    lower, upper = bounds
    steps = {"values": ticks(across)} if across.log else {"tickCount": 4}
    x = alt.X(
        "x:Q",
        scale=alt.Scale(
            type="log" if across.log else "linear", domain=[across.low, across.high], nice=False, zero=False
        ),
        axis=alt.Axis(title=title, labelExpr=tick, grid=False, **steps),
    )
    y = alt.Y(
        "y:Q",
        scale=alt.Scale(domain=[lower, upper], nice=False, zero=False),
        axis=alt.Axis(title=None, format=".0%" if upper - lower > 0.04 else ".1%", tickCount=5),
    )
    layers = []
    if level is not None and lower <= level <= upper:
        line = alt.Chart(alt.Data(values=[{"y": level}])).mark_rule(color=_BASELINE, strokeDash=[4, 3], aria=False)
        layers.append(line.encode(y=y))
    for kind in _COLOURS:
        rows = [
            {"x": at, "y": mark.y, "low": max(mark.low, lower), "high": mark.high, "text": _tooltip(mark, write(at))}
            for mark, at in known
            if mark.kind == kind
        ]
        if rows:
            layers += _marks_layers(rows, kind, x, y)
    texts = _label_rows([(mark, at) for mark, at in known if mark.label], across, bounds)
    if texts:
        chart = alt.Chart(alt.Data(values=texts))
        written = chart.mark_text(color=_INK, fontSize=_FONT, fontWeight=600, baseline="middle", aria=False)
        layers.append(written.encode(x=x, y=y, text="text:N"))
    chart = alt.layer(*layers).properties(
        width=WIDTH, height=HEIGHT, background="transparent", padding=_PADDING, autosize="none"
    )
    themed = chart.configure_view(stroke=None).configure_axis(
        domainColor=_MUTED,
        gridColor=_GRID,
        labelColor=_MUTED,
        labelFontSize=_FONT,
        tickColor=_MUTED,
        titleColor=_INK,
        titleFontSize=_FONT,
        titleFontWeight="normal",
        titlePadding=8,
    )
    return str(vl_convert.vegalite_to_svg(themed.to_dict(), allowed_base_urls=[]))


def _marks_layers(rows: list[dict[str, Any]], kind: str, x: Any, y: Any) -> list[Any]:
    """The marks of one kind, over their error bars; candidates have none, there are too many of them."""
    import altair as alt

    chart = alt.Chart(alt.Data(values=rows))
    filled = kind != "candidate"
    points = chart.mark_point(
        shape=_SHAPES[kind], filled=filled, size=_AREAS[kind], color=_COLOURS[kind], opacity=1, strokeWidth=1.3
    ).encode(x=x, y=y, description="text:N")
    if not filled:
        return [points]
    bars = chart.mark_rule(color=_COLOURS[kind], strokeWidth=1.2, aria=False)
    return [bars.encode(x=x, y=alt.Y("low:Q"), y2="high:Q"), points]


def _label_rows(
    labelled: list[tuple[Mark, float]], across: Scale, bounds: tuple[float, float]
) -> list[dict[str, str | float]]:
    """Each label with the place where it is written, in the units of the data."""
    lower, upper = bounds
    per_pixel = (upper - lower) / HEIGHT
    places = place_labels([(across.pixel(at), (upper - mark.y) / per_pixel, mark.label) for mark, at in labelled])
    return [
        {"x": across.value(right), "y": upper - per_pixel * down, "text": mark.label}
        for (mark, _), (right, down) in zip(labelled, places, strict=True)
    ]


def _tooltip(mark: Mark, x: str) -> str:
    """A model, its place and its value in words."""
    name = f"{mark.label}: {mark.name}" if mark.kind == "member" else mark.name
    interval = words.format_interval((mark.low, mark.high)) if mark.low < mark.high else ""
    return f"{name}, {words.format_percent(mark.y)}" + (f" ({interval})" if interval else "") + f", {x}"
