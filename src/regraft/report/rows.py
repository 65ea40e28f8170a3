"""The rows of the report's tables, in order and with what only the whole table knows (scales, groups, shares)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regraft.report import words
from regraft.report.verdict import best_baseline, keys

_SCORES = {
    "probe_last": "Last layer",
    "probe_mean": "Layer mean",
    "probe_all": "All layers",
    "knn": "kNN",
    "logme": "LogME",
}
_MAX_WHISKERS = 8


@dataclass(frozen=True)
class Whisker:
    """A value with its interval, placed on an axis: `left`, `right` and `at` are percent of its width."""

    key: str
    name: str
    kind: str
    chosen: bool
    value: float
    interval: tuple[float, float] | None
    left: float
    right: float
    at: float | None


@dataclass(frozen=True)
class Whiskers:
    """Whiskers on one axis from `low` to `high` (shares of one), the best first; `more` of them are not listed."""

    rows: tuple[Whisker, ...]
    low: float
    high: float
    more: int


def whiskers(result: Mapping[str, Any]) -> Whiskers:
    """Family and baselines by their value on test data; the chosen one and the best baseline are always among them."""
    metric = result["task"]["metric"]
    members = zip(keys(result["family"]), ["member"] * len(result["family"]), result["family"], strict=True)
    entries = [*members, *(("", "baseline", one) for one in result["baselines"])]
    measured = [(key, kind, one) for key, kind, one in entries if words.value_of(one["test"], metric) is not None]
    measured.sort(key=lambda item: -(words.value_of(item[2]["test"], metric) or 0.0))
    rival = best_baseline(result["baselines"], metric)
    needed = [one for _, _, one in measured if one is rival or one["name"] == result["best"]]
    others = [one for _, _, one in measured if one not in needed][: _MAX_WHISKERS - len(needed)]
    kept = [item for item in measured if item[2] in needed or item[2] in others]
    bounds = [_bounds(one["test"], metric) for _, _, one in measured]
    low, high = axis(bounds, len(result["family"]))
    rows = []
    for key, kind, one in kept:
        value = words.value_of(one["test"], metric) or 0.0
        left, right = _bounds(one["test"], metric)
        name = words.baseline_name(one["name"]) if kind == "baseline" else one["name"]
        at = _share(value, low, high) if value >= low else None
        interval = words.interval_of(one["test"], metric)
        chosen = one["name"] == result["best"]
        rows.append(
            Whisker(key, name, kind, chosen, value, interval, _share(left, low, high), _share(right, low, high), at)
        )
    return Whiskers(tuple(rows), low, high, len(measured) - len(kept))


def axis(bounds: list[tuple[float, float]], members: int) -> tuple[float, float]:
    """The ends of an axis for intervals that are sorted from the best down.

    It reaches down to the first `members` and the next one at least, and to anything else that lies within three times
    that distance from the top, rounded to whole percents: what lies far beneath (the most frequent label, from scratch)
    would squeeze the rest into a corner.
    """
    if not bounds:
        return 0.0, 1.0
    top = max(high for _, high in bounds)
    need = min(low for low, _ in bounds[: members + 1])
    reach = top - 3 * max(top - need, 0.01)
    low = min(low for low, _ in bounds if low >= min(reach, need))
    margin = 0.02 * (top - low) or 0.01
    return max(0.0, math.floor(100 * (low - margin)) / 100), min(1.0, math.ceil(100 * (top + margin)) / 100)


def _bounds(score: Mapping[str, Any], metric: str) -> tuple[float, float]:
    value = words.value_of(score, metric) or 0.0
    return words.interval_of(score, metric) or (value, value)


def _share(value: float, low: float, high: float) -> float:
    return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2)


def groups(ranking: list[Any]) -> list[tuple[Any, list[Any]]]:
    """The ranking as runs of checkpoints that are too close to call, in order of rank."""
    ordered = sorted(ranking, key=lambda one: one["rank"])
    return [(group, list(found)) for group, found in itertools.groupby(ordered, key=lambda one: one["group"])]


def ranking_whiskers(ranking: list[Any]) -> dict[str, tuple[float, float, float | None]]:
    """Where each checkpoint's score and interval lie (percent: left, right, at), on an axis for the better half."""
    known = [one for one in ranking if None not in (one["score"], one["low"], one["high"])]
    known.sort(key=lambda one: -one["score"])
    low, high = axis([(one["low"], one["high"]) for one in known], len(known) // 2)
    return {
        one["checkpoint"]: (
            _share(one["low"], low, high),
            _share(one["high"], low, high),
            _share(one["score"], low, high) if one["score"] >= low else None,
        )
        for one in known
    }


def score_names(ranking: list[Any]) -> list[str]:
    """Every score that some checkpoint has: the known ones in their order, then others by name."""
    found = {name for one in ranking for name in one["scores"]}
    return [name for name in _SCORES if name in found] + sorted(found - _SCORES.keys())


def has_predictions(ranking: list[Any]) -> bool:
    """Whether the order is by predicted accuracy."""
    return any(one.get("predicted") for one in ranking)


def score_name(name: str) -> str:
    """A score of the ranking in words."""
    return _SCORES.get(name, name)


def score_text(name: str, value: float | None) -> str:
    """Probes and kNN are shares of right answers; other scores have scales of their own."""
    return words.format_percent(value) if name == "knn" or name.startswith("probe") else words.format_decimal(value)


def candidates(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every candidate, the best on validation data first, unmeasured ones last, with `key` and `settings` in words."""
    metric = result["task"]["metric"]
    member_keys = dict(zip((member["name"] for member in result["family"]), keys(result["family"]), strict=True))

    def order(one: Mapping[str, Any]) -> tuple[bool, float]:
        value = words.value_of(one["validation"], metric)
        return value is None, -(value or 0.0)

    return [
        {**one, "key": member_keys.get(one["name"], ""), "settings": _settings(one["settings"])}
        for one in sorted(result["candidates"], key=order)
    ]


def _settings(settings: Mapping[str, Any]) -> str:
    parts = []
    for name, value in settings.items():
        text = f"{value:g}" if isinstance(value, float) else str(value)
        parts.append(f"{name.replace('_', ' ')} {text}")
    return ", ".join(parts)


def decisions(logged: list[Any]) -> list[dict[str, Any]]:
    """Decisions in order of time with `share`: the cost in percent of the largest cost."""
    largest = max((one["cost_s"] or 0.0 for one in logged), default=0.0)
    ordered = sorted(logged, key=lambda one: one["at_s"])
    return [{**one, "share": _share(one["cost_s"] or 0.0, 0.0, largest) if largest > 0 else 0.0} for one in ordered]
