"""The pace of an encoder: measured by a clock that is told, in a bounded number of texts, the smallest checkpoint first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regraft.planner import pace
from regraft.planner.family import Family

Reuse = Callable[..., Family]


class Encoder:
    """Takes some seconds for each text, more for the very first, and is the clock that they pass on."""

    def __init__(self, seconds: float, first: float = 0.0) -> None:
        self.seconds, self.first, self.now, self.texts = seconds, first, 0.0, 0

    def probabilities(self, _classifier: Any, texts: list[str]) -> None:
        self.now += self.seconds * len(texts) + self.first
        self.first = 0.0
        self.texts += len(texts)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """A function that gives the pace measured of an encoder."""

    def measure(encoder: Encoder, left_s: float = 1e9) -> float:
        monkeypatch.setattr(pace, "probabilities", encoder.probabilities)
        monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: encoder.now))
        job = SimpleNamespace(timed=True, deadline=SimpleNamespace(left=lambda: left_s - encoder.now))
        return pace._seconds_a_text(job, None, pace._pace_groups([f"text {number}" for number in range(200)]))  # type: ignore[arg-type]

    return measure


@pytest.mark.parametrize(("seconds", "first"), [(0.001, 0.0), (0.003, 0.5), (0.02, 0.0), (0.3, 1.0), (7.0, 3.0)])
def test_the_pace_is_what_a_text_takes(seconds: float, first: float, timed: Callable[..., float]) -> None:
    assert timed(Encoder(seconds, first)) == pytest.approx(seconds)


def test_a_slow_encoder_is_asked_for_a_few_texts_only(timed: Callable[..., float]) -> None:
    for seconds in (0.05, 0.24, 1.0, 30.0):
        encoder = Encoder(seconds, first=1.0)
        timed(encoder)
        assert encoder.texts <= 40 or encoder.now <= 5.0
        assert encoder.now <= max(10.0, 1.0 + 4 * seconds)


def test_what_is_measured_ends_with_the_budget(timed: Callable[..., float]) -> None:
    encoder = Encoder(0.05)
    timed(encoder, left_s=0.1)
    assert encoder.texts <= 1 + pace.PACE_GROUP + 2 * 16


def test_the_smallest_is_opened_first_and_none_that_takes_too_long(
    run_reuse: Reuse, tiny_bert: Path, tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    measured = pace._pace

    def noted(job: Any, checkpoint: Any, *rest: Any) -> dict[str, float]:
        opened.append(checkpoint.name)
        return measured(job, checkpoint, *rest)

    monkeypatch.setattr(pace, "_pace", noted)
    sizes = {folder.name: (folder / "model.safetensors").stat().st_size for folder in (tiny_bert, tiny_gpt2)}
    large, small = sorted(sizes, key=lambda name: -sizes[name])
    zoo = ",".join(str(folder) for name in (large, small) for folder in (tiny_bert, tiny_gpt2) if folder.name == name)
    run_reuse("6trials", zoo=zoo)
    assert opened == [small, large]  # and the random one of the smallest folder has its pace
    opened.clear()
    monkeypatch.setattr(pace, "OPEN_BYTES", 1e-3)
    family = run_reuse("20s", out="late", zoo=zoo)
    assert opened == []
    assert family.answer in {"tfidf", "majority"}
    assert {one["problem"] for one in family.result["left_out"]} == {"There was no time to open it."}
