"""One adaptation under a budget: how much data it has room for, and that the whole keeps to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regraft.budget import Budget, Deadline
from regraft.checkpoint import open_checkpoint
from regraft.errors import BudgetError, MethodError
from regraft.planner import room
from regraft.planner.reserve import export_s
from regraft.planner.single import adapt_one
from regraft.store import Store
from regraft.task import Task, load_task


@pytest.fixture
def task(toy_task_files: Path) -> Task:
    return load_task(str(toy_task_files))


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that says what a text takes in the encoder, and what a head needs at least."""

    def set_pace(seconds: float, fewest: int = 10) -> None:
        monkeypatch.setattr(room, "FEWEST_ROWS", fewest)
        monkeypatch.setattr(
            room, "measure_pace", lambda job: job.pace.update({one.name: seconds for one in job.zoo.checkpoints})
        )

    return set_pace


def found(tiny_bert: Path, task: Task, seconds: float, method: str = "probe") -> room.Room:
    clock = lambda: 0.0  # noqa: E731
    limit = Budget.parse(f"{seconds:g}s")
    return room.room_in(limit, Deadline(seconds, clock=clock), open_checkpoint(str(tiny_bert)), task, method=method)


def test_rows_are_as_many_as_the_budget_has_room_for(tiny_bert: Path, task: Task, pace: Any) -> None:
    pace(1e-4)
    assert len(found(tiny_bert, task, 30).rows) == len(task.train)
    pace(0.5)
    probe, full = found(tiny_bert, task, 60), found(tiny_bert, task, 60, "full")
    assert 10 <= len(full.rows) < len(probe.rows) < len(task.train)
    assert set(task.train.labels[full.rows]) == set(task.train.labels)
    for one, share in ((probe, room.PROBE_SHARE), (full, room.TRAIN_SHARE)):
        assert one.end_s >= 0.5 * one.test_rows
        assert 0.5 * len(one.rows) <= share * (60 - one.end_s)
    assert np.array_equal(room.everything(task).rows, np.arange(len(task.train)))


def test_a_budget_without_room_is_refused_with_what_would_do(tiny_bert: Path, task: Task, pace: Any) -> None:
    pace(0.5, fewest=50)
    with pytest.raises(
        BudgetError, match=r"Of 30s, 30 s are left; adapting tiny-bert on 50 texts .* takes about 5\d s"
    ):
        found(tiny_bert, task, 30)
    assert len(found(tiny_bert, task, 60).rows) >= 50


def test_a_checkpoint_that_there_is_no_time_to_open_is_refused(
    tiny_bert: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regraft.planner.pace.OPEN_BYTES", 1.0)
    with pytest.raises(BudgetError, match=r"Of 30s, 30 s are left; opening tiny-bert takes about \d+ s"):
        found(tiny_bert, task, 30)


def test_a_larger_model_takes_longer_to_write() -> None:
    assert export_s(10**10) > 10 * export_s(10**8) > 10 * export_s(0) > 0


@pytest.mark.parametrize(("method", "budget"), [("probe", "8s"), ("full", "8s"), ("probe", None)])
def test_an_adaptation_keeps_to_its_budget(
    method: str, budget: str | None, tiny_bert: Path, toy_task_files: Path, pace: Any, tmp_path: Path
) -> None:
    if budget is not None:
        pace(0.01, fewest=1)
    facts = adapt_one(
        str(tiny_bert), str(toy_task_files), tmp_path / "model", method=method, budget=budget, epochs=10_000.0,
        dtype="bfloat16", store=Store(tmp_path / "store"),
    )  # fmt: skip
    made = json.loads((tmp_path / "model" / "regraft.json").read_text())["made"]
    assert facts["certificate"]["passed"] == facts["certificate"]["claims"]
    assert made["settings"].get("head_rows", 60) <= 60
    if method == "full":
        ((steps, planned),) = made["legs"]
        assert 0 < steps < planned


def test_an_unknown_number_format_is_refused(tiny_bert: Path, toy_task_files: Path, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="Choose one of float32"):
        adapt_one(str(tiny_bert), str(toy_task_files), tmp_path / "model", dtype="int3")
