"""Numbers as a person reads them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.report import words


def plain(text: str) -> str:
    return text.replace(words.SPACE, " ")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (950, "950"),
        (999.6, "1.0k"),
        (603_218, "603k"),
        (22_713_216, "22.7M"),
        (1.24e9, "1.2B"),
        (7e15, "7000T"),
    ],
)
def test_counts(number: float, text: str) -> None:
    assert words.format_count(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (512, "512 B"), (4_825_744, "4.8 MB"), (45_160_000, "45 MB"), (1.2e9, "1.2 GB")]
)
def test_bytes(number: float, text: str) -> None:
    assert plain(words.format_bytes(number)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.002, "< 0.1 s"),
        (3.84, "3.8 s"),
        (42.4, "42 s"),
        (59.6, "1 min"),
        (598.2, "9 min 58 s"),
        (3599.9, "1 h"),
        (3840, "1 h 4 min"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert plain(words.format_seconds(seconds)) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0.0, "0.00 ms"), (0.001, "< 0.01 ms"), (0.42, "0.42 ms"), (4.12, "4.1 ms"), (9.96, "10 ms"), (120.4, "120 ms")],
)
def test_latency(milliseconds: float, text: str) -> None:
    assert plain(words.format_latency(milliseconds)) == text


def test_shares_and_differences() -> None:
    assert plain(words.format_percent(0.9312)) == "93.1 %"
    assert words.format_interval((0.919, 0.938)) == "91.9\u201393.8"
    assert plain(words.format_points(-0.0031)) == "0.3 points"
    assert plain(words.format_points(0.0101)) == "1 point"
    assert words.format_decimal(-0.5) == "\u22120.500"
    assert words.format_ratio(4.12, 2.21) == "1.9\u00d7"
    assert words.format_ratio(40, 2) == "20\u00d7"
    assert words.plural(1, "candidate") == "1 candidate"
    assert words.plural(1200, "candidate") == "1,200 candidates"


@pytest.mark.parametrize(
    "write",
    [
        words.format_count,
        words.format_bytes,
        words.format_integer,
        words.format_percent,
        words.format_seconds,
        words.format_latency,
        words.format_throughput,
        words.format_decimal,
    ],
)
def test_what_was_not_measured_is_a_dash(write: Any) -> None:
    assert write(None) == words.DASH


def test_a_missing_interval_is_nothing() -> None:
    assert words.format_interval(None) == ""
    assert words.format_interval((0.1, None)) == ""
    assert words.interval_of({"accuracy": 0.9}, "accuracy") is None
    assert words.interval_of(None, "accuracy") is None
    assert words.value_of({"accuracy": None}, "accuracy") is None


def test_a_long_baseline_is_cut_for_a_plot() -> None:
    assert words.short_baseline("tfidf") == "TF-IDF"
    assert words.short_baseline("from scratch (minilm-random)") == "from scratch (min\u2026"


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_clean_data_can_be_written(value: Any) -> None:
    """Strict JSON in UTF-8, whatever came in; and cleaning twice changes nothing more."""
    tidy = words.clean(value)
    json.dumps(tidy, ensure_ascii=False, allow_nan=False).encode("utf-8")
    assert words.clean(tidy) == tidy


def test_clean_replaces_what_deceives_and_keeps_the_rest() -> None:
    assert words.clean("a\x1b[31m\u202eb\ud800") == "a\ufffd[31m\ufffdb\ufffd"
    assert (
        words.clean("tab\tline\n\u4e2d\u6587 \u05e2\u05d1\u05e8\u05d9\u05ea")
        == "tab\tline\n\u4e2d\u6587 \u05e2\u05d1\u05e8\u05d9\u05ea"
    )
    assert words.clean({"a": [math.nan, math.inf, 1.5], "b": (1,)}) == {"a": [None, None, 1.5], "b": [1]}
