"""What a search refuses, before anything is measured, and what it leaves out of the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regraft.errors import BudgetError, CheckpointError, MethodError, RunError, RunLockedError, TaskError
from regraft.merge.recipe.spec import Output, Spec, spec_of
from regraft.merge.search import search as searching
from regraft.merge.search.folder import SearchRun


def test_a_method_that_fails_is_in_the_table(recipe: Spec, find: Any, monkeypatch: Any) -> None:
    original = searching.Session.evaluated

    def evaluated(self: Any, split: str, *rest: Any) -> Any:
        if split == "validation" and len(self.measured) == 5:
            raise CheckpointError("It computes nothing.")
        return original(self, split, *rest)

    monkeypatch.setattr(searching.Session, "evaluated", evaluated)
    found = find(recipe, budget="3trials")
    failed = [row for row in found.table if row["status"] == "failed"]
    assert [(row["kind"], row["reason"]) for row in failed] == [("recipe", "It computes nothing.")]
    assert "mean" not in failed[0] and len(found.table) == 8


def test_methods_that_need_too_much_memory_are_not_tried(recipe: Spec, find: Any) -> None:
    found = find(recipe, methods=["ties", "opcm"], max_memory=12 * 2**20, workers=1, budget="2trials")
    assert found.not_tried == {} or set(found.not_tried) == {"opcm"}
    with pytest.raises(BudgetError, match=r"the limit is 1\.0 KiB"):
        find(recipe, "small", max_memory=1024)


def test_a_budget_without_room_for_the_baselines_is_refused(recipe: Spec, find: Any) -> None:
    with pytest.raises(BudgetError, match=r"0\.5s is too little: what is always measured, .* takes about \d+ s here"):
        find(recipe, budget="0.5s")
    with pytest.raises(BudgetError, match="Cannot read the budget"):
        find(recipe, budget="soon")


def test_tasks_must_fit_the_inputs(recipe: Spec, find: Any, topics: str, starts: str) -> None:
    with pytest.raises(TaskError, match=r"There are 3 tasks for 2 inputs\. Name one for each input"):
        find(recipe, tasks=[topics, starts, topics])
    with pytest.raises(CheckpointError, match=r"on-topics has 3 labels, but not early, late of the task"):
        find(recipe, "swapped", tasks=[starts, topics])


def test_one_task_needs_one_head(experts: list[str], topics: str, find: Any) -> None:
    with pytest.raises(CheckpointError, match=r"on-starts.*head"):
        find(spec_of("linear", experts), tasks=[topics])
    with pytest.raises(CheckpointError, match=r"on-starts has a head for other labels than .*on-topics"):
        find(spec_of("linear", experts), tasks=[topics], allow=["heads"])


def test_a_soup_over_a_base_without_a_head_is_refused(runs: list[str], tiny_bert: Path, topics: str, find: Any) -> None:
    with pytest.raises(CheckpointError, match="heads"):
        find(spec_of("ties", runs, tiny_bert), tasks=[topics])
    with pytest.raises(CheckpointError, match=r"has no .*_Dense\.linear\..*a merge with it would have none"):
        find(spec_of("ties", runs, tiny_bert), tasks=[topics], allow=["heads"])


def test_inputs_need_heads(tiny_bert: Path, experts: list[str], find: Any) -> None:
    with pytest.raises(CheckpointError, match="has no classification head"):
        find(spec_of("linear", [experts[0], tiny_bert]))


def test_a_lora_output_is_refused(experts: list[str], tiny_bert: Path, find: Any) -> None:
    with pytest.raises(MethodError, match="A search writes a checkpoint"):
        find(spec_of("ties", experts, tiny_bert, output=Output(format="lora")))


def test_the_folder_beside_the_output(recipe: Spec, find: Any, tmp_path: Path) -> None:
    find(recipe, budget="1trials")
    with pytest.raises(RunError, match=r"other arguments \(methods, seed differ\)"):
        find(recipe, budget="1trials", methods=["ties"], seed=1)
    shown = find(recipe, budget="1trials")
    assert [row[0] for row in shown.rows()[1]] == [row["name"] for row in shown.table]
    for columns, rows in (shown.rows(), shown.test_rows()):
        assert {len(row) for row in rows} == {len(columns)}
    with pytest.raises(RunError, match="has chosen within 1trials already"):
        find(recipe, budget="2trials")
    with SearchRun(tmp_path / "held", {}), pytest.raises(RunLockedError, match="in use"):
        SearchRun(tmp_path / "held", {})
    (tmp_path / "mine.search").mkdir()
    (tmp_path / "mine.search" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match=r"is not empty and is no search \(thesis\.txt\)"):
        find(recipe, "mine")


def test_a_refused_search_leaves_nothing(recipe: Spec, find: Any, tmp_path: Path, topics: str) -> None:
    with pytest.raises(TaskError):
        find(recipe, tasks=[topics] * 3)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_not_empty_is_refused_before_anything_is_measured(
    recipe: Spec, find: Any, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        find(recipe)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
