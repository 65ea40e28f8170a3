"""A search that is stopped and goes on, and one whose time runs out: nothing is measured twice, and nothing tested twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regraft import faults
from regraft.budget import Deadline
from regraft.errors import BudgetError
from regraft.merge.recipe.spec import Spec
from regraft.merge.search import search as searching
from regraft.merge.search import session as search_session
from regraft.merge.search.search import SearchResult
from regraft.merge.search.space import ARITHMETIC, AVERAGE


def names(found: SearchResult, *kinds: str) -> list[str]:
    return [row["name"] for row in found.table if not kinds or row["kind"] in kinds]


def without_times(found: SearchResult) -> dict[str, Any]:
    """What must not depend on the machine's mood."""
    content = json.loads(json.dumps(found.to_json()))
    for row in content["table"]:
        del row["seconds"]
    return {key: value for key, value in content.items() if key not in ("seconds", "out")}


def test_a_trial_budget_gives_the_same_table_and_bytes(recipe: Spec, find: Any, tmp_path: Path, topics: str) -> None:
    first, second = find(recipe, "first", held_out=[topics]), find(recipe, "second", held_out=[topics])
    assert without_times(first) == without_times(second)
    assert first.trials == 6
    one, two = (tmp_path / name / "model.safetensors" for name in ("first", "second"))
    assert one.read_bytes() == two.read_bytes()
    other = find(recipe, "third", budget="9trials", seed=1)
    assert names(other, "proposal") != names(find(recipe, "fourth", budget="9trials"), "proposal")


def test_a_killed_search_goes_on_where_it_was(recipe: Spec, find: Any, monkeypatch: Any, topics: str) -> None:
    class Killed(BaseException):
        pass

    left = 8

    def kill(name: str) -> None:
        nonlocal left
        left -= name == "candidate measured"
        if left == 0:
            raise Killed

    whole = find(recipe, "whole", held_out=[topics])
    monkeypatch.setattr(faults, "hook", kill)
    with pytest.raises(Killed):
        find(recipe, "again", held_out=[topics])
    measured = []
    monkeypatch.setattr(faults, "hook", None)
    original = searching.Session._measurement
    monkeypatch.setattr(
        searching.Session,
        "_measurement",
        lambda self, candidate, must: measured.append(candidate.name) or original(self, candidate, must),
    )
    assert without_times(find(recipe, "again", held_out=[topics])) == without_times(whole)
    assert measured == names(whole)[8:]


def test_killed_while_writing_it_still_tests_once(recipe: Spec, find: Any, monkeypatch: Any) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    monkeypatch.setattr(searching, "tested", kill)
    with pytest.raises(Killed):
        find(recipe)
    monkeypatch.undo()
    monkeypatch.setattr(searching, "merge", kill)  # the output is there already
    assert find(recipe).test["rows"][0]["name"] == find(recipe).answer


def test_a_finished_search_is_not_done_again(recipe: Spec, find: Any, monkeypatch: Any) -> None:
    found = find(recipe)

    def never(*_: Any) -> None:
        raise AssertionError("loaded again")

    monkeypatch.setattr(searching, "open_bench", never)
    assert find(recipe).to_json() == json.loads(json.dumps(found.to_json()))


def test_an_output_that_was_removed_is_written_again(recipe: Spec, find: Any, tmp_path: Path) -> None:
    found = find(recipe)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    for path in sorted((tmp_path / "out").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "out").rmdir()
    assert find(recipe).to_json() == json.loads(json.dumps(found.to_json()))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


class Clock:
    """Time that passes with every look at it, so that what a budget allows does not depend on the machine."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.01
        return self.now


@pytest.mark.parametrize("budget", [25, 45])
def test_a_time_budget_is_kept(budget: int, recipe: Spec, find: Any, topics: str, monkeypatch: Any) -> None:
    clock = Clock()
    monkeypatch.setattr(searching, "time", clock)
    monkeypatch.setattr(search_session, "time", clock)
    monkeypatch.setattr(searching, "Deadline", lambda seconds, spent: Deadline(seconds, spent, clock.monotonic))
    found = find(recipe, budget=f"{budget}s", held_out=[topics], methods=None)
    assert names(found, "input", "base", "baseline") == ["on-topics", "on-starts", "base", AVERAGE, ARITHMETIC]
    assert found.seconds <= budget
    assert len(found.table) > 5
    statuses = [row["status"] for row in found.table]
    assert set(statuses[:-1]) == {"measured"} and statuses[-1] in ("measured", "abandoned")


def test_killed_after_the_choice_nothing_more_is_tried(recipe: Spec, find: Any, monkeypatch: Any) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(searching, "tested", kill)
    monkeypatch.setattr(searching.Session, "_affords", lambda self, _: len(self.measured) < 7)
    with pytest.raises(Killed):
        find(recipe, budget="60s")
    monkeypatch.undo()
    monkeypatch.setattr(searching.Session, "_measurement", kill)
    assert len(find(recipe, budget="60s").table) == 7


def test_more_time_goes_on_with_what_was_measured(recipe: Spec, find: Any, monkeypatch: Any) -> None:
    original, measured = searching.Session._measurement, []

    def measure(self: Any, candidate: Any, must: bool) -> Any:
        if self.budget.text == "3trials" and len(self.measured) == 6:
            raise BudgetError("Stopped.")
        measured.append(candidate.name)
        return original(self, candidate, must)

    monkeypatch.setattr(searching.Session, "_measurement", measure)
    with pytest.raises(BudgetError, match="Stopped"):
        find(recipe, budget="3trials")
    assert find(recipe, budget="4trials").trials == 4
    assert len(measured) == len(set(measured)) == 9
