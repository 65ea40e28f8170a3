"""Limits as users write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.errors import ResizeError
from regraft.resize.dial import Limit


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("params=10M", "params", 10e6), ("params=1.5b", "params", 1.5e9), ("params=1000", "params", 1000.0),
        ("bytes=40MB", "bytes", 40e6), ("bytes=1MiB", "bytes", 2.0**20), (" bytes = 3 gb ", "bytes", 3e9),
        ("latency=5ms", "latency", 5.0), ("latency=0.5s", "latency", 500.0),
    ],
)  # fmt: skip
def test_a_limit_is_read(text: str, kind: str, value: float) -> None:
    found = Limit.parse(text)
    assert (found.kind, found.value) == (kind, pytest.approx(value))
    assert found.holds(value)
    assert not found.holds(value * 1.0001)


@pytest.mark.parametrize(
    "text",
    [
        "10M",
        "params",
        "params=",
        "params=-1",
        "params=0",
        "latency=5",
        "latency=5MB",
        "bytes=5ms",
        "size=4",
        "",
        "params=nan",
    ],
)
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ResizeError, match=r"params=10M|latency=5ms"):
        Limit.parse(text)


def test_values_are_said_in_the_unit_of_the_limit() -> None:
    assert Limit.parse("params=1M").said(15_771_072) == "15.8M parameters"
    assert Limit.parse("bytes=1MB").said(900) == "900 bytes"
    assert Limit.parse("latency=1ms").said(2.346) == "2.35 ms"


@pytest.mark.parametrize("kind", ["params", "bytes", "latency"])
@pytest.mark.parametrize("value", [0.0123, 1.0, 900.0, 15_849_000.0, 15_771_072.0, 2.5e9])
def test_a_remedy_can_be_typed_in_and_holds(kind: str, value: float) -> None:
    limit = Limit(kind, 1.0, "")
    if kind != "latency" and value < 1.0:
        return
    again = Limit.parse(limit.written(value))
    assert again.kind == kind
    assert again.holds(value)
    assert again.value <= 1.02 * value + (1.0 if kind != "latency" else 0.0)


@given(st.sampled_from(["params", "bytes"]), st.integers(1, 10**10))
def test_a_remedy_holds_whatever_the_count(kind: str, count: int) -> None:
    """4.068k is 4068 and no less, as it would be in floats."""
    assert Limit.parse(Limit(kind, 1.0, "").written(count)).holds(count)
