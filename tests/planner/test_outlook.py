"""What a run learns from earlier ones, and when it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regraft.checkpoint import open_checkpoint
from regraft.errors import StoreError
from regraft.planner.family import Family
from regraft.planner.outlook import facts_of, family_of
from regraft.rank.fusion.history import Result, add_results, history_file, read_history
from regraft.rank.fusion.selfcheck import Figures
from regraft.store import Store

Reuse = Callable[..., Family]


def decision(family: Family, what: str) -> dict[str, Any]:
    return next(one for one in family.result["decisions"] if one["what"].startswith(what))


def trained(family: Family) -> set[str]:
    return {one["checkpoint"] for one in family.result["candidates"] if one["method"] in ("full", "lora")}


def experience(references: list[str], accuracies: list[list[float]], probes: list[list[float]]) -> list[Result]:
    """Results of checkpoints (columns) on earlier tasks (rows), and what their probes had said; and of a third, poor on all."""
    opened = [open_checkpoint(one) for one in references]
    return [
        Result("a third", f"task {row}", 0.5 + 0.01 * row, 100, 0, "others", early={"probe": 0.4, "head": 0.4})
        for row in range(len(accuracies))
    ] + [
        Result(
            one.checkpoint_id, f"task {row}", accuracies[row][at], 100, 0, family_of(one), facts_of(one),
            early={"probe": probes[row][at], "head": probes[row][at]},
        ) for row in range(len(accuracies)) for at, one in enumerate(opened)
    ]  # fmt: skip


@pytest.fixture
def references(tiny_bert: Path) -> list[str]:
    """The toy zoo without its random checkpoint."""
    return [str(tiny_bert), f"{tiny_bert}#layers=2"]


# On six tasks one was better by far in the end, though the probes said the opposite.
TURNED = [[0.70 + 0.02 * row, 0.90 + 0.01 * row] for row in range(6)]
MISLED = [[0.66 + 0.01 * row, 0.63 + 0.01 * row] for row in range(6)]


def test_a_run_adds_what_it_trained_to_the_history(run_reuse: Reuse, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    family = run_reuse(store=store)
    results = read_history(history_file(store.root))
    best = {
        name: max(one["validation"]["accuracy"] for one in family.result["candidates"]
                  if one["checkpoint"] == name and one["method"] not in ("probe", "as-is") and one["validation"])
        for name in trained(family)
    }  # fmt: skip
    ids = {one["name"]: one["checkpoint_id"] for one in family.result["zoo"]["checkpoints"]}
    assert {one.checkpoint: one.accuracy for one in results if one.accuracy is not None} == {
        ids[name]: best[name] for name in best
    }
    assert {one.checkpoint for one in results} == {ids[one["checkpoint"]] for one in family.result["ranking"]}
    assert {one.task for one in results} == {family.result["task"]["task_id"]}
    assert all("probe" in one.early and "logme" in one.scores for one in results)
    assert all("head" in one.early for one in results if one.accuracy is not None)
    run_reuse(store=store)  # finished: nothing is added twice
    assert read_history(history_file(store.root)) == results


def test_without_a_history_the_probes_decide(run_reuse: Reuse) -> None:
    family = run_reuse()
    assert "fewer than 5 tasks" in decision(family, "rank by predicted accuracy")["reason"]
    assert all("predicted" not in one for one in family.result["ranking"])
    assert all("linear probe is right on" in one["reason"] for one in family.result["ranking"])


def test_a_history_turns_the_order_and_what_is_trained(run_reuse: Reuse, references: list[str], tmp_path: Path) -> None:
    before = run_reuse(out="before")
    by_name = {open_checkpoint(one).name: one for one in references}
    first, second = [one["checkpoint"] for one in before.result["ranking"] if one["checkpoint"] in by_name]
    losers = [by_name[first], by_name[second]]
    store = Store(tmp_path / "store")
    add_results(experience(losers, TURNED, MISLED), history_file(store.root))
    family = run_reuse(store=store, budget="5trials")
    assert decision(family, "rank by predicted accuracy")["what"].endswith("yes")
    ranking = family.result["ranking"]
    assert [one["rank"] for one in ranking] == list(range(1, len(ranking) + 1))
    order = [one["checkpoint"] for one in ranking]
    assert order.index(second) < order.index(first)
    for one in ranking:
        found = one["predicted"]
        assert 0 <= found["low"] <= found["accuracy"] <= found["high"] <= 1
    assert sum(one["predicted"]["best"] for one in ranking) == pytest.approx(1)
    assert trained(family) == {second}


def test_copies_of_one_checkpoint_share_a_prediction(
    run_reuse: Reuse, references: list[str], tiny_bert: Path, copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    twin = copy_of(tiny_bert, "twin")
    store = Store(tmp_path / "store")
    add_results(experience(references, TURNED, MISLED), history_file(store.root))
    family = run_reuse(store=store, zoo=",".join([*references, str(twin)]), budget="5trials")
    found = {one["checkpoint"]: one["predicted"]["accuracy"] for one in family.result["ranking"]}
    assert found["twin"] == found["tiny-bert"]
    assert [one["rank"] for one in family.result["ranking"]] == list(range(1, len(found) + 1))


def test_a_history_that_predicts_badly_is_not_used(
    run_reuse: Reuse, references: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checked(*_: Any, **__: Any) -> list[Figures]:
        middle = (0.5, 0.4, 0.6)
        return [
            Figures("fusion", middle, (0.02, 0.0, 0.1), middle, 5),
            Figures("head", middle, (0.01, 0.0, 0.1), None, 5),
        ]

    monkeypatch.setattr("regraft.planner.outlook.selfcheck", checked)
    store = Store(tmp_path / "store")
    add_results(experience(references, TURNED, MISLED), history_file(store.root))
    family = run_reuse(store=store)
    assert decision(family, "rank by predicted accuracy")["what"].endswith("no")
    assert "lose 2.00%" in decision(family, "rank by predicted accuracy")["reason"]
    assert all("predicted" not in one for one in family.result["ranking"])


def test_a_run_goes_on_as_it_began_whatever_the_history_says_now(
    run_reuse: Reuse, references: list[str], tmp_path: Path, killed_at: Callable[..., None]
) -> None:
    whole = run_reuse(out="whole", store=Store(tmp_path / "one"))
    store = Store(tmp_path / "two")
    killed_at("ranked", lambda: run_reuse(out="killed", store=store))
    add_results(experience(references, TURNED, MISLED), history_file(store.root))
    again = run_reuse(out="killed", store=store)
    assert [one["checkpoint"] for one in again.result["ranking"]] == [
        one["checkpoint"] for one in whole.result["ranking"]
    ]
    assert {one.name: one.facts["weights_id"] for one in again} == {one.name: one.facts["weights_id"] for one in whole}


def test_a_history_that_cannot_be_written_costs_nothing_else(run_reuse: Reuse, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    history_file(store.root).mkdir(parents=True)
    with pytest.raises(StoreError, match="history"):
        read_history(history_file(store.root))
    assert run_reuse(store=store).best is not None
