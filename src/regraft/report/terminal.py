"""The family and the baselines as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from regraft.report import words
from regraft.report.verdict import keys

if TYPE_CHECKING:
    from rich.table import Table


def table(result: Mapping[str, Any]) -> Table:
    """Family members by key, then the baselines; the answer is bold and marked with an arrow.

    Names are untrusted: they are added as plain text, not as rich markup, and without control characters.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    tidy = words.clean(result)
    metric = tidy["task"]["metric"]
    name = words.metric_name(metric)
    found = Table(
        title=Text(f"{tidy['task']['name']}: the family and the baselines"),
        caption=Text(f"{name} in percent (95 % interval); size as stored; latency of one example; -> is the answer"),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    found.add_column("")
    found.add_column("model", overflow="fold", min_width=12)
    found.add_column(f"test {name}", justify="right", no_wrap=True)
    for heading in ("params", "encoder", "size", "latency"):
        found.add_column(heading, justify="right", no_wrap=True)
    labels = [*keys(tidy["family"]), *[""] * len(tidy["baselines"])]
    for place, (key, one) in enumerate(zip(labels, [*tidy["family"], *tidy["baselines"]], strict=True)):
        best = one["name"] == tidy["best"]
        cells = [
            f"-> {key}".strip() if best else key,
            one["name"] if key else words.baseline_name(one["name"]),
            _score(one["test"], metric),
            words.format_count(one["parameters"]),
            words.format_count(one.get("encoder_parameters")),
            words.format_bytes(one["bytes"]),
            words.format_latency(one["latency_ms"]),
        ]
        last_member = place + 1 == len(tidy["family"])
        found.add_row(*(Text(cell) for cell in cells), style="bold" if best else None, end_section=last_member)
    return found


def _score(score: Mapping[str, Any] | None, metric: str) -> str:
    value, interval = words.value_of(score, metric), words.format_interval(words.interval_of(score, metric))
    if value is None:
        return words.DASH
    return f"{100 * value:.1f}" + (f" ({interval})" if interval else "")
