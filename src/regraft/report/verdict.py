"""The answer in words: which model to take, why, and what the alternatives cost.

A result is *too close to call* against the answer when the 95 % interval of their difference, over resamples of the same
test examples (`against_best` in the result), holds zero: another test set of the same size could well turn their order.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from regraft.report import words

Entry = Mapping[str, Any]

MAX_ALTERNATIVES = 4


@dataclass(frozen=True)
class Alternative:
    """A family member that is not the answer: what it is better at, and what that costs."""

    key: str
    name: str
    advantage: str
    gains: str
    cost: str


@dataclass(frozen=True)
class Verdict:
    """The first screen. `entry` is the chosen member or baseline; None when nothing could be measured."""

    title: str
    sentences: tuple[str, ...]
    entry: Entry | None
    is_baseline: bool
    snippet: str
    alternatives: tuple[Alternative, ...]


def keys(family: list[Any]) -> list[str]:
    """The short key of each member, in order: A, B, ... Z, AA, AB ..., as in the tables and plots."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return [(letters[i // 26 - 1] if i >= 26 else "") + letters[i % 26] for i in range(len(family))]


def verdict(result: Entry) -> Verdict:
    """Read the answer off a result."""
    family, baselines = result["family"], result["baselines"]
    metric = result["task"]["metric"]
    chosen = next((member for member in family if member["name"] == result["best"]), None)
    baseline = next((one for one in baselines if one["name"] == result["best"]), None)
    if chosen is not None:
        sentences = (_score_sentence(chosen, result), _against(chosen, baselines, metric), _why(result))
        return Verdict(
            title=f"Take {chosen['name']}",
            sentences=tuple(sentence for sentence in sentences if sentence),
            entry=chosen,
            is_baseline=False,
            snippet=snippet(chosen),
            alternatives=_alternatives(chosen, family, metric),
        )
    if baseline is not None:
        return Verdict(
            title=f"Take the baseline: {words.baseline_name(baseline['name'])}",
            sentences=(_why_baseline(result), _score_sentence(baseline, result)),
            entry=baseline,
            is_baseline=True,
            snippet="",
            alternatives=_alternatives(baseline, family, metric),
        )
    sentence = "Neither a checkpoint nor a baseline could be measured; what was left out, and why, is listed below."
    return Verdict("No model to take", (sentence,), None, False, "", ())


def too_close(one: Entry) -> bool:
    """Whether a member or a baseline cannot be told from the answer."""
    found = one.get("against_best") or {}
    low, high = found.get("low"), found.get("high")
    return low is not None and high is not None and low <= 0.0 <= high


def best_baseline(baselines: list[Any], metric: str, split: str = "test") -> Any | None:
    """The baseline with the highest value; None when none was measured."""
    measured = [one for one in baselines if words.value_of(one[split], metric) is not None]
    return max(measured, key=lambda one: words.value_of(one[split], metric) or 0.0, default=None)


def snippet(member: Entry) -> str:
    """Three lines of Python that load a member with its stock library and use it."""
    path = repr(member["path"])
    if member["format"] == "transformers":
        return (
            "from transformers import pipeline\n"
            f'classify = pipeline("text-classification", {path})\n'
            'classify(["a new text"])'
        )
    return (
        "from sentence_transformers import SentenceTransformer\n"
        f"model = SentenceTransformer({path})\n"
        'model.encode(["a new text"]).argmax(-1)'
    )


def replay(result: Entry) -> str:
    """The command that makes the family again from its recipe."""
    run = PurePath(result["report"]).parent
    return f"regraft run {shlex.quote(str(run / 'family' / 'recipe.yaml'))} --out {shlex.quote(f'{run}-again')}"


def _score_sentence(entry: Entry, result: Entry) -> str:
    """What the chosen one reaches on test data."""
    metric, size = (
        result["task"]["metric"],
        words.format_integer(entry.get("test_rows") or result["task"]["sizes"]["test"]),
    )
    value = words.format_percent(words.value_of(entry["test"], metric))
    interval = words.format_interval(words.interval_of(entry["test"], metric))
    within = f" (95{words.SPACE}% interval {interval})" if interval else ""
    reached = f"It is right on {value} of" if metric == "accuracy" else f"Its {words.metric_name(metric)} is {value} on"
    return f"{reached} {size} test examples{within}, which played no part in the choice."


def _why(result: Entry) -> str:
    """Why this member: its place on validation data among everything that was measured."""
    metric = result["task"]["metric"]
    pool = [*result["family"], *result["candidates"], *result["baselines"]]
    # Members are candidates as well: a name counts once.
    values = {one["name"]: words.value_of(one["validation"], metric) for one in pool}
    measured = {name: value for name, value in values.items() if value is not None}
    if len(measured) < 2 or measured.get(result["best"]) != max(measured.values()):
        return ""
    within = f"within the budget of {result['budget']['text']}"
    equal = sum(value == measured[result["best"]] for value in measured.values()) - 1
    if equal:
        others = "one other was" if equal == 1 else f"{equal} others were"
        return (
            f"Of the {len(measured)} models that were measured {within}, none was better on validation data; {others} as good, "
            "and larger or longer in training."
        )
    return f"Of the {len(measured)} models that were measured {within}, it was the best on validation data."


def _why_baseline(result: Entry) -> str:
    budget = result["budget"]["text"]
    if not result["family"]:
        tried = (
            "gave no adapted checkpoint that does better"
            if result["candidates"]
            else "left no time to try a checkpoint"
        )
        return f"The budget of {budget} {tried}; a longer one may change this."
    return f"No adapted checkpoint did better on validation data within the budget of {budget}."


def _against(chosen: Entry, baselines: list[Any], metric: str) -> str:
    """The chosen member against the best baseline."""
    rival = best_baseline(baselines, metric)
    value = words.value_of(chosen["test"], metric)
    other = None if rival is None else words.value_of(rival["test"], metric)
    if rival is None or value is None or other is None:
        return ""
    named = f"the best baseline, {words.baseline_name(rival['name'])} ({words.format_percent(other)})"
    if too_close(rival):
        return f"That is too close to call against {named}."
    difference = _difference(chosen, rival, value - other)
    side = "above" if difference >= 0 else "below"
    return f"That is {words.format_points(difference)} {side} {named}."


def _difference(chosen: Entry, other: Entry, plain: float) -> float:
    """How much better the answer is than another on the test examples that both predicted; `plain` where that is not known."""
    found = (other.get("against_best") or {}).get("difference")
    return plain if found is None else -float(found)


def _alternatives(chosen: Entry, family: list[Any], metric: str) -> tuple[Alternative, ...]:
    """What to take instead, the best on test data first.

    These are the members that are smaller or faster than the chosen one, and those that are too close to call. Of
    more than `MAX_ALTERNATIVES`, the smallest and the fastest stay, and then the best.
    """
    found: list[tuple[Entry, Alternative]] = []
    for key, member in zip(keys(family), family, strict=True):
        if member["name"] == chosen["name"] or words.value_of(member["test"], metric) is None:
            continue
        smaller = _less(member, chosen, "encoder_parameters") or _less(member, chosen, "bytes")
        faster = _less(member, chosen, "latency_ms")
        if not (smaller or faster or too_close(member)):
            continue
        advantage = {(True, True): "Smaller and faster", (True, False): "Smaller", (False, True): "Faster"}.get(
            (smaller, faster), "About as good"
        )
        gains, cost = _gains(member, chosen), _cost(member, chosen, metric)
        found.append((member, Alternative(key, member["name"], advantage, gains, cost)))
    found.sort(key=lambda item: -(words.value_of(item[0]["test"], metric) or 0.0))
    first: list[tuple[Entry, Alternative]] = []
    for what in ("bytes", "latency_ms"):
        known = [item for item in found if item[0].get(what) is not None and item not in first]
        first += sorted(known, key=lambda item: item[0][what])[:1]
    others = [item for item in found if item not in first][: MAX_ALTERNATIVES - len(first)]
    return tuple(item[1] for item in found if item in first or item in others)


def _less(member: Entry, chosen: Entry, what: str) -> bool:
    """Whether a member has clearly (by more than 3 %, about the noise of a latency) less of something."""
    mine, other = member.get(what), chosen.get(what)
    return mine is not None and other is not None and 0 < mine < 0.97 * other


def _gains(member: Entry, chosen: Entry) -> str:
    """What a member is better at, with the figures."""
    parts = []
    if _less(member, chosen, "encoder_parameters"):
        share = words.format_share(member["encoder_parameters"] / chosen["encoder_parameters"])
        parts.append(f"{share} of the encoder, {words.format_count(member['parameters'])} parameters in all")
    elif _less(member, chosen, "bytes"):
        parts.append(f"{words.format_bytes(member['bytes'])} instead of {words.format_bytes(chosen['bytes'])}")
    if _less(member, chosen, "latency_ms"):
        ratio = words.format_ratio(chosen["latency_ms"], member["latency_ms"])
        parts.append(f"{words.format_latency(member['latency_ms'])}, {ratio} as fast")
    if not parts and _less(member, chosen, "seconds"):
        parts.append(
            f"made in {words.format_seconds(member['seconds'])}, not {words.format_seconds(chosen['seconds'])}"
        )
    return ", ".join(parts)


def _cost(member: Entry, chosen: Entry, metric: str) -> str:
    """What a member costs in points on test data."""
    value, other = words.value_of(member["test"], metric), words.value_of(chosen["test"], metric)
    if value is None or other is None:
        return ""
    if f"{value:.3f}" == f"{other:.3f}":
        text = "costs nothing"
    else:
        text = f"{'gains' if value > other else 'costs'} {words.format_points(value - other)}"
    return f"{text}: too close to call" if too_close(member) else text
