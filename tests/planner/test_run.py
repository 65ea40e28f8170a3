"""The run folder: one process at a time, the same arguments, nothing put into folders that are someone's own."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from regraft.budget import Budget
from regraft.errors import RunError, RunLockedError
from regraft.planner.run import Beating, Run
from regraft.progress import Progress

ARGUMENTS = {"task": "builtin:pydoc", "budget": "30s", "seed": 0}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_new_run_and_going_on_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    with Run(folder, ARGUMENTS) as run:
        assert not run.resumed
        assert run.trials.is_dir() and run.family.is_dir()
        assert json.loads((folder / "run.json").read_text()) == ARGUMENTS
        run.ledger.log("a", 1)
    with Run(folder, ARGUMENTS) as run:
        assert run.resumed
        assert run.ledger.look("a") == (True, 1)


def test_active_time_accumulates_over_processes(tmp_path: Path) -> None:
    budget = Budget.parse("60s")
    with Run(tmp_path / "run", ARGUMENTS) as run:
        first = run.deadline(budget, used_s=10.0)
        assert 10.0 <= first.spent() < 12.0
        run.ledger.beat()
    with Run(tmp_path / "run", ARGUMENTS) as run:
        second = run.deadline(budget, used_s=20.0)
        assert 30.0 <= second.spent() < 34.0
        assert 26.0 < second.left() <= 30.0
        run.ledger.beat()
        assert run.ledger.spent_before() >= 30.0


def test_a_folder_in_use_is_refused_and_free_afterwards(tmp_path: Path) -> None:
    with Run(tmp_path / "run", ARGUMENTS), pytest.raises(RunLockedError, match="in use by another process"):
        Run(tmp_path / "run", ARGUMENTS)
    with Run(tmp_path / "run", ARGUMENTS):
        pass


def _hold(folder: Path, pipe: Any) -> None:
    with Run(folder, ARGUMENTS):
        pipe.send("held")
        pipe.recv()
        os._exit(9)  # killed: nothing is closed or released by us


def test_a_killed_process_frees_the_folder(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_hold, args=(tmp_path / "run", there))
    process.start()
    assert here.recv() == "held"
    with pytest.raises(RunLockedError):
        Run(tmp_path / "run", ARGUMENTS)
    here.send("die")
    process.join()
    assert process.exitcode == 9
    with Run(tmp_path / "run", ARGUMENTS):
        pass


def test_other_arguments_are_refused_in_words(tmp_path: Path) -> None:
    with Run(tmp_path / "run", ARGUMENTS) as run:
        run.ledger.log("a", 1)
    with pytest.raises(RunError) as caught:
        Run(tmp_path / "run", {**ARGUMENTS, "budget": "1m", "device": "cpu"})
    assert "budget='30s', device=None" in str(caught.value)
    assert "budget='1m', device='cpu'" in str(caught.value)
    assert "new folder" in caught.value.remedy
    with Run(tmp_path / "run", ARGUMENTS):  # the refusal did not keep the lock
        pass


def test_arguments_are_compared_as_they_are_stored(tmp_path: Path) -> None:
    for _ in range(2):
        with Run(tmp_path / "run", {"sizes": (1, 2)}):
            pass


@pytest.mark.parametrize("own", ["thesis.tex", "ledger.sqlite"])
def test_a_folder_that_is_no_run_is_refused_and_left_as_it_is(own: str, tmp_path: Path) -> None:
    (tmp_path / own).write_text("mine")
    for _ in range(2):
        with pytest.raises(RunError, match=f"is not empty and is no run .{own}"):
            Run(tmp_path, ARGUMENTS)
        assert names(tmp_path) == {own}


def test_what_a_process_killed_at_its_start_left_is_no_obstacle(tmp_path: Path) -> None:
    for name in ("trials", "family"):
        (tmp_path / name).mkdir()
    (tmp_path / "lock").touch()
    (tmp_path / ".run.json.7-ab.partial").write_text("{")
    (tmp_path / "family" / ".member.7-ab.partial").mkdir()
    (tmp_path / "trials" / "one").mkdir()
    (tmp_path / "trials" / "one" / ".leg-1.7-ab.partial").mkdir()
    with Run(tmp_path, ARGUMENTS):
        assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("content", ["", "[1]", "3"])
def test_a_damaged_run_is_refused(content: str, tmp_path: Path) -> None:
    with Run(tmp_path, ARGUMENTS) as run:
        run.ledger.log("a", 1)
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"run\.json cannot be read"):
        Run(tmp_path, ARGUMENTS)


def test_a_damaged_ledger_is_refused_and_the_lock_freed(tmp_path: Path) -> None:
    with Run(tmp_path, ARGUMENTS):
        pass
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database, but long enough to look at" * 50)
    for _ in range(2):
        with pytest.raises(RunError, match=r"ledger\.sqlite cannot be read"):
            Run(tmp_path, ARGUMENTS)


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match="cannot be made"):
            Run(folder, ARGUMENTS)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(RunError, match="cannot be made: Permission denied"):
        Run(tmp_path / "run", ARGUMENTS)


def test_arguments_of_a_run_that_logged_nothing_are_replaced(tmp_path: Path) -> None:
    with Run(tmp_path, {**ARGUMENTS, "task": "mistyped"}) as run:
        run.deadline(Budget.parse("60s"), used_s=50.0)
    with Run(tmp_path, ARGUMENTS) as run:
        assert not run.resumed
        assert json.loads((tmp_path / "run.json").read_text()) == ARGUMENTS
        assert run.ledger.spent_before() == 0.0  # what the mistake took is not charged
    with Run(tmp_path, {**ARGUMENTS, "seed": 1}) as run:
        run.ledger.log("a", 1)
    with pytest.raises(RunError, match="seed=1"):
        Run(tmp_path, ARGUMENTS)


def test_an_interrupted_process_is_charged_to_its_end(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Run(tmp_path, ARGUMENTS) as run:
        run.ledger.log("a", 1)
        run.deadline(Budget.parse("60s"), used_s=25.0)
        raise KeyboardInterrupt
    with Run(tmp_path, ARGUMENTS) as run:
        assert run.ledger.spent_before() >= 25.0
    with Run(tmp_path, ARGUMENTS) as run:  # one that never had a deadline changes nothing
        assert run.ledger.spent_before() >= 25.0


def test_progress_notes_the_time_at_most_once_a_second() -> None:
    class Shown(Progress):
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def say(self, text: str) -> None:
            self.seen.append(text)

        def start(self, what: str, total: float) -> None:
            self.seen.append((what, total))

        def advance(self, units: float = 1.0) -> None:
            self.seen.append(units)

        def stop(self) -> None:
            self.seen.append("stop")

    now, beats, shown = [0.0], [], Shown()
    progress = Beating(shown, lambda: beats.append(now[0]), clock=lambda: now[0])
    progress.say("reading")
    with progress.bar("work", 40):
        for _ in range(40):
            now[0] += 0.125
            progress.advance(1)
    assert beats == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert shown.seen == ["reading", ("work", 40), *[1] * 40, "stop"]


def test_a_folder_that_cannot_be_cleaned_is_not_kept_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("regraft.planner.run.remove_partials", refuse)
        with pytest.raises(PermissionError):
            Run(tmp_path / "run", ARGUMENTS)
    with Run(tmp_path / "run", ARGUMENTS):
        pass
