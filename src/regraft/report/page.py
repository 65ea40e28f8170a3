"""Result to page: `render` is a pure function of the result, `write_report` puts its text into place in one step.

The page is one file without scripts, links or pictures from elsewhere; a content security policy in its head forbids
them as well. Everything in a result that users or checkpoints named is untrusted: `words.clean` takes out what cannot
be printed, jinja2 escapes the rest (autoescape), and plots keep only drawing elements (`svg.inline`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.report import rows, verdict, words
from regraft.report.charts import plots
from regraft.store import in_words, write_whole

if TYPE_CHECKING:
    from jinja2 import Environment


def render(result: Mapping[str, Any]) -> str:
    """The report of a run as one HTML page.

    Args:
        result: The content of `result.json`; not changed.

    Raises:
        KeyError: A part of the result that is always there is missing.
    """
    from markupsafe import Markup

    tidy = words.clean(result)
    drawn = [(plot.heading, Markup(plot.svg), plot.missing) for plot in plots(tidy)]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            result=tidy,
            metric=tidy["task"]["metric"],
            verdict=verdict.verdict(tidy),
            keys=verdict.keys(tidy["family"]),
            replay=verdict.replay(tidy),
            whiskers=rows.whiskers(tidy),
            groups=rows.groups(tidy["ranking"]),
            has_predictions=rows.has_predictions(tidy["ranking"]),
            score_names=rows.score_names(tidy["ranking"]),
            ranking_whiskers=rows.ranking_whiskers(tidy["ranking"]),
            candidates=rows.candidates(tidy),
            decisions=rows.decisions(tidy["decisions"]),
            plots=drawn,
        )
    )


def write_report(result: Mapping[str, Any], path: Path) -> Path:
    """Write the report; an earlier one is replaced when the new one is complete. Returns `path`.

    Raises:
        StoreError: The file cannot be written; an earlier report is then still there.
    """
    text = render(result)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise in_words(fault, path) from fault
    write_whole(path, text)
    return path


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("regraft.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "count": words.format_count,
        "bytes": words.format_bytes,
        "integer": words.format_integer,
        "percent": words.format_percent,
        "share": words.format_share,
        "decimal": words.format_decimal,
        "seconds": words.format_seconds,
        "latency": words.format_latency,
        "throughput": words.format_throughput,
        "interval": words.format_interval,
        "metric_name": words.metric_name,
        "baseline_name": words.baseline_name,
        "method_name": words.method_name,
        "value": words.value_of,
        "bounds": words.interval_of,
    }
    found.globals |= {"plural": words.plural, "score_name": rows.score_name, "score_text": rows.score_text}
    return found
