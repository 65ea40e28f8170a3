"""Numbers and names as a person reads them: `22.7M`, `45 MB`, `93.1 %`, `4.1 ms`, `9 min 58 s`.

Every helper takes None (not measured) and answers a dash, so that a table never shows `None` or `nan`. Untrusted text
goes through `clean` once, before anything else sees it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

DASH = "\u2013"
MINUS = "\u2212"
SPACE = "\u00a0"  # no-break: a number and its unit stay on one line

_METRICS = {"accuracy": "accuracy", "macro_f1": "macro F1", "calibration_error": "calibration error"}
_BASELINES = {"tfidf": "TF-IDF + logistic regression", "majority": "most frequent label"}
_SHORT_BASELINES = {"tfidf": "TF-IDF", "majority": "majority"}
_METHODS = {
    "full": "full fine-tune",
    "lora": "LoRA",
    "probe": "probe head",
    "as-is": "as it is",
    "soup": "soup of trials",
    "cut": "cut and trained again",
}

# What may not reach a page: control characters, lone surrogates (UTF-8 cannot hold them), the characters that turn
# the direction of the text around them (a name could pose as another), and the two non-characters that XML forbids.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)


def clean(value: Any) -> Any:
    """A copy of JSON data with unprintable characters replaced by U+FFFD and non-finite numbers by None."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [clean(item) for item in value]
    return value


def format_count(number: float | None) -> str:
    """A number of parameters: 950, 603k, 22.7M, 1.2B."""
    if number is None:
        return DASH
    value, unit = _scaled(number, ("", "k", "M", "B", "T"))
    return f"{value:.1f}{unit}" if unit and value < 99.95 else f"{value:.0f}{unit}"


def format_bytes(number: float | None) -> str:
    """A size in decimal units: 512 B, 45 MB, 1.2 GB."""
    if number is None:
        return DASH
    value, unit = _scaled(number, ("B", "kB", "MB", "GB", "TB"))
    return f"{value:.{1 if unit != 'B' and value < 9.95 else 0}f}{SPACE}{unit}"


def _scaled(number: float, units: tuple[str, ...]) -> tuple[float, str]:
    power = 0
    while number >= 999.5 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    return number, units[power]


def format_integer(number: float | None) -> str:
    """A whole number with thousands separators: 3,080."""
    return DASH if number is None else f"{number:,.0f}"


def format_percent(share: float | None) -> str:
    """A share of one: 0.9312 is 93.1 %."""
    return DASH if share is None else f"{100 * share:.1f}{SPACE}%"


def format_share(share: float) -> str:
    """A rough part of a whole: 67 %."""
    return f"{100 * share:.0f}{SPACE}%"


def format_interval(interval: Sequence[float | None] | None) -> str:
    """A 95 % interval of shares, in percent without the sign: 91.9\u201393.8."""
    if not interval or interval[0] is None or interval[1] is None:
        return ""
    return f"{100 * interval[0]:.1f}{DASH}{100 * interval[1]:.1f}"


def format_decimal(number: float | None, decimals: int = 3) -> str:
    """A plain number with fixed decimals, with a true minus sign."""
    return DASH if number is None else f"{number:.{decimals}f}".replace("-", MINUS)


def format_points(difference: float) -> str:
    """A difference of two shares in percentage points, without its sign: 0.3 points, 1 point."""
    value = f"{100 * abs(difference):.1f}"
    return f"1{SPACE}point" if value == "1.0" else f"{value}{SPACE}points"


def format_seconds(seconds: float | None) -> str:
    """A duration: 0 s, 3.8 s, 42 s, 9 min 58 s, 1 h 4 min."""
    if seconds is None:
        return DASH
    if 0 < seconds < 0.05:
        return f"<{SPACE}0.1{SPACE}s"
    if seconds < 59.5:
        return f"{seconds:.{1 if 0 < seconds < 9.95 else 0}f}{SPACE}s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}{SPACE}min" + (f" {rest}{SPACE}s" if rest else "")
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}{SPACE}h" + (f" {minutes}{SPACE}min" if minutes else "")


def format_latency(milliseconds: float | None) -> str:
    """The latency of one example: 0.31 ms, 4.1 ms, 120 ms."""
    if milliseconds is None:
        return DASH
    if 0 < milliseconds < 0.005:
        return f"<{SPACE}0.01{SPACE}ms"
    decimals = 2 if milliseconds < 0.995 else 1 if milliseconds < 9.95 else 0
    return f"{milliseconds:.{decimals}f}{SPACE}ms"


def format_throughput(examples_per_s: float | None) -> str:
    """Examples in a second: 420/s, 1.2k/s."""
    return DASH if examples_per_s is None else f"{format_count(examples_per_s)}/s"


def format_ratio(larger: float, smaller: float) -> str:
    """How many times: 1.9\u00d7, 12\u00d7."""
    ratio = larger / smaller
    return f"{ratio:.1f}\u00d7" if ratio < 9.95 else f"{ratio:.0f}\u00d7"


def metric_name(metric: str) -> str:
    """A metric in words."""
    return _METRICS.get(metric, metric)


def baseline_name(name: str) -> str:
    """A baseline in words."""
    return _BASELINES.get(name, name)


def short_baseline(name: str, limit: int = 18) -> str:
    """A baseline in at most `limit` characters, for a plot."""
    short = _SHORT_BASELINES.get(name, name)
    return short if len(short) <= limit else short[: limit - 1] + "\u2026"


def method_name(name: str) -> str:
    """A way of adapting a checkpoint in words."""
    return _METHODS.get(name, name)


def plural(count: int, one: str, many: str = "") -> str:
    """A count and its noun: 1 candidate, 12 candidates."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def value_of(score: Mapping[str, Any] | None, metric: str) -> float | None:
    """The value of a metric in a SCORE of the result; None when it was not measured."""
    found = (score or {}).get(metric)
    return None if found is None else float(found)


def interval_of(score: Mapping[str, Any] | None, metric: str) -> tuple[float, float] | None:
    """The interval of a metric in a SCORE; None when there is none."""
    low, high = ((score or {}).get("intervals") or {}).get(metric) or (None, None)
    return None if low is None or high is None else (float(low), float(high))
