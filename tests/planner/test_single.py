"""One step of the main job on its own: what is said when there is no time, and what an interruption leaves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.errors import BudgetError, CheckpointError
from regraft.planner import forecast, pace
from regraft.planner.ranking import rank_zoo
from regraft.planner.single import adapt_one
from regraft.store import Store


def test_a_ranking_without_time_is_an_error_with_what_would_do(
    tiny_bert: Path, toy_task_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_pace", lambda *_: {"seconds_a_text": 2.0})
    store = Store(tmp_path / "store")
    with pytest.raises(BudgetError, match=r"too little to rank a checkpoint.*at least (3\d\d|4\d\d)s"):
        rank_zoo(str(toy_task_files), str(tiny_bert), "30s", store=store)  # 130 texts of 2 s, and time for the heads
    with pytest.raises(BudgetError, match=r"Of 2s, \d s are left.*at least \d+s"):
        rank_zoo(str(toy_task_files), str(tiny_bert), "2s", store=store, started=time.monotonic() - 1)


def test_a_ranking_of_nothing_that_can_be_computed_says_why(
    tiny_bert: Path, toy_task_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise CheckpointError("Its weights are damaged.", "Download it again.")

    monkeypatch.setattr(pace, "_pace", refuse)
    with pytest.raises(CheckpointError, match=r"No checkpoint can be ranked.*weights are damaged"):
        rank_zoo(str(toy_task_files), str(tiny_bert), "60s", store=Store(tmp_path / "store"))


def test_an_interrupted_adaptation_leaves_nothing_behind(
    tiny_bert: Path, toy_task_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("regraft.adapt.adaptation.Adaptation.finished", interrupt)
    out = tmp_path / "place" / "model"
    with pytest.raises(KeyboardInterrupt):
        adapt_one(str(tiny_bert), str(toy_task_files), out, epochs=0.1, store=Store(tmp_path / "store"))
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


def test_a_forecast_is_of_the_number_format(
    tiny_bert: Path, toy_task_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(job: Any, dtype: torch.dtype) -> None:
        job.pace = {one.name: 0.1 if dtype == torch.float32 else 0.5 for one in job.zoo.checkpoints}

    monkeypatch.setattr(forecast, "measure_pace", told)
    found = {}
    for dtype in ("float32", "bfloat16"):
        steps = forecast.forecast(str(toy_task_files), str(tiny_bert), "5m", dtype=dtype)["steps"]
        found[dtype] = {one["step"]: one["seconds"] for one in steps}
    assert found["bfloat16"]["rank"] == pytest.approx(5 * found["float32"]["rank"])
    assert found["bfloat16"]["train"] == found["float32"]["train"]
