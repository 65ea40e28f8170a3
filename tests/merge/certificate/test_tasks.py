"""Merges that looked at examples: the tasks are on record, are checked, and belong to a half-written merge."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regraft import certificate, faults
from regraft.merge.recipe.spec import Spec, spec_of
from regraft.merge.run import merge


class Stopped(BaseException):
    """Stands for a kill."""


@pytest.fixture
def task(toy_task_files: Path, tmp_path: Path) -> Path:
    """A task of the test's own, to be moved or changed."""
    return Path(shutil.copytree(toy_task_files, tmp_path / "task"))


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_STORE", str(tmp_path / "store"))


def outcomes(folder: Path) -> dict[str, str]:
    return {verdict.claim.check: verdict.outcome for verdict in certificate.verify(folder)}


def reason(folder: Path, check: str) -> str:
    return next(verdict.reason for verdict in certificate.verify(folder) if verdict.claim.check == check)


def change(task: Path) -> None:
    """Another word in every text."""
    for path in task.glob("*.csv"):
        path.write_text(path.read_text().replace("the", "a"))


@pytest.fixture
def recipe(tiny_classifier: Path, tuned: Callable[..., Path], task: Path) -> Callable[[str], Spec]:
    folders = [tuned(tiny_classifier, name, seed) for seed, name in enumerate("ab")]
    return lambda method: spec_of(method, folders, data=[str(task), str(task)], rows=6)


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_a_task_that_is_gone_cannot_be_checked(method: str, recipe: Any, task: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(recipe(method), out)
    assert set(outcomes(out).values()) == {"pass"} and outcomes(out)["merge tasks"] == "pass"
    (about,) = json.loads((out / "regraft.json").read_text())["tasks"]
    assert about["reference"] == str(task) and len(about["task_id"]) == 64
    task.rename(tmp_path / "elsewhere")
    found = outcomes(out)
    assert found["merge tasks"] == found["merge elements"] == "cannot check"
    assert str(task) in reason(out, "merge elements") and str(task) in reason(out, "merge tasks")
    assert {outcome for check, outcome in found.items() if check not in ("merge tasks", "merge elements")} == {"pass"}


def test_other_examples_fail_and_make_nothing_again(recipe: Any, task: Path, tmp_path: Path) -> None:
    merge(recipe("regmean"), tmp_path / "out")
    change(task)
    found = outcomes(tmp_path / "out")
    assert (found["merge tasks"], found["merge elements"]) == ("fail", "cannot check")


def test_it_is_found_from_any_folder(
    recipe: Any, task: Path, tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative reference is relative to where the command was run."""
    monkeypatch.chdir(tmp_path)
    inputs = [one.reference for one in recipe("regmean").inputs]
    merge(spec_of("regmean", inputs, data="task", rows=6), tmp_path / "out")
    monkeypatch.chdir(os.sep)
    assert set(outcomes(tmp_path / "out").values()) == {"pass"}


def test_a_record_downloads_no_task(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    merge(recipe("regmean"), out)
    about = json.loads((out / "regraft.json").read_text())
    about["tasks"][0]["path"] = "hf:somebody/elses"
    monkeypatch.setattr("regraft.task.load_task", lambda *_: pytest.fail("asked for"))
    from regraft.merge.certificate.record import missing_tasks

    assert missing_tasks(about["tasks"]) == ([about["tasks"][0]["reference"]], [])


def test_half_of_a_merge_is_not_gone_on_with_after_other_examples(
    recipe: Any, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same path, other data: everything is merged anew; with the same data it goes on."""
    left, spec, out = [10], recipe("regmean"), tmp_path / "out"

    def stop(name: str) -> None:
        left[0] -= name == "tensor merged"
        if left[0] == 0:
            raise Stopped

    def counted() -> int:
        passed: list[str] = []
        monkeypatch.setattr(faults, "hook", passed.append)
        merge(spec, out)
        return passed.count("tensor merged")

    counts = []
    for changed in (False, True):
        left[0] = 10
        monkeypatch.setattr(faults, "hook", stop)
        with pytest.raises(Stopped):
            merge(spec, out)
        if changed:
            change(task)
        counts.append(counted())
        shutil.rmtree(out)
    assert counts[1] == counts[0] + 10
