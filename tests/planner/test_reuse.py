"""The main job, end to end, on a task and a zoo that take seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regraft import faults
from regraft.checkpoint import open_checkpoint
from regraft.errors import RunError, RunLockedError
from regraft.ledger import Ledger
from regraft.planner.family import Family
from regraft.planner.run import Run
from regraft.store import Store

Reuse = Callable[..., Family]


def weights(family: Family) -> dict[str, str]:
    return {member.name: member.facts["weights_id"] for member in family}


def against_best(family: Family) -> dict[str, Any]:
    return {one["name"]: one["against_best"] for one in [*family.result["family"], *family.result["baselines"]]}


def test_family_is_whole(run_reuse: Reuse, tmp_path: Path) -> None:
    family = run_reuse()
    assert family.members
    for member in family:
        assert (member.path / "certificate.json").is_file()
        assert member.facts["certificate"]["passed"] == member.facts["certificate"]["claims"]
        assert (
            0
            <= member.test["intervals"]["accuracy"][0]
            <= member.test["accuracy"]
            <= member.test["intervals"]["accuracy"][1]
        )
        assert member.predict(["some text"])[0] in family.result["task"]["labels"]
    assert not list((tmp_path / "run").rglob("*.partial"))
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert stored == json.loads(json.dumps(family.result))
    assert {"majority", "tfidf", "from scratch"} <= {entry["name"] for entry in family.result["baselines"]}


def test_a_run_folder_can_be_moved(run_reuse: Reuse, tmp_path: Path) -> None:
    before = run_reuse()
    (tmp_path / "run").rename(tmp_path / "moved")
    family = Family.load(tmp_path / "moved")
    assert [member.name for member in family] == [member.name for member in before]
    assert family.report == tmp_path / "moved" / before.report.name
    assert family.best is not None and family.best.predict(["a text"])


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    for content in ("{}", "[]", '{"family": [1]}'):
        (tmp_path / "result.json").write_text(content)
        with pytest.raises(RunError, match="is no result of a run"):
            Family.load(tmp_path)


def test_each_is_compared_with_the_answer_on_the_same_examples(run_reuse: Reuse) -> None:
    family = run_reuse()
    entries = {one["name"]: one for one in [*family.result["family"], *family.result["baselines"]]}
    answer = entries.pop(family.answer)
    assert answer["against_best"] is None
    for one in entries.values():
        found = one["against_best"]
        assert found["rows"] == family.result["task"]["sizes"]["test"]
        assert found["difference"] == pytest.approx(one["test"]["accuracy"] - answer["test"]["accuracy"])
        assert found["low"] <= found["difference"] <= found["high"]


def test_the_bytes_of_a_candidate_are_those_of_its_folder_or_close_to_them(run_reuse: Reuse) -> None:
    family = run_reuse()
    listed = {one["name"]: one["bytes"] for one in family.result["candidates"]}
    for member in family:
        assert listed[member.name] == member.bytes
        same = [one for one in family.result["candidates"] if one["checkpoint"] == member.facts["checkpoint"]]
        assert [one["bytes"] for one in same] == pytest.approx([member.bytes] * len(same), rel=0.1)


def test_family_is_a_front_and_best_is_first(run_reuse: Reuse) -> None:
    family = run_reuse()
    best = family.best
    assert best is not None and best.name == family.members[0].name
    assert all(member.validation["accuracy"] <= best.validation["accuracy"] for member in family)
    for one in family:
        for other in family:
            if one.name != other.name:
                better = (
                    other.validation["accuracy"] >= one.validation["accuracy"] and other.parameters < one.parameters
                )
                assert not better or other.latency_ms > one.latency_ms


def test_under_obeys_every_limit(run_reuse: Reuse) -> None:
    family = run_reuse()
    smallest = min(family, key=lambda member: member.parameters)
    assert family.under(params=smallest.parameters).name == smallest.name
    assert family.under(params=1) is None
    assert family.under(bytes=10**12, latency_ms=10**6, params=10**12).name == family.best.name


def test_same_seed_gives_the_same_weights(run_reuse: Reuse) -> None:
    assert weights(run_reuse(out="one")) == weights(run_reuse(out="two"))


@pytest.mark.parametrize("point", [one for one in faults.REUSE if one != "cut written"])  # that one: test_cuts.py
def test_killed_at_a_fault_point_ends_the_same(
    point: str, run_reuse: Reuse, tmp_path: Path, killed_at: Callable[..., None]
) -> None:
    whole = run_reuse(out="whole")
    killed_at(point, lambda: run_reuse(out="killed"))
    again = run_reuse(out="killed")
    assert weights(again) == weights(whole)
    assert against_best(again) == against_best(whole)
    assert not list((tmp_path / "killed").rglob("*.partial"))


@pytest.mark.parametrize("point", ["features written", "ranked", "leg measured", "family chosen", "result written"])
def test_killed_under_a_time_budget_keeps_what_was_decided(
    point: str, run_reuse: Reuse, tmp_path: Path, killed_at: Callable[..., None]
) -> None:
    killed_at(point, lambda: run_reuse("20s", out="killed"))
    ledger = Ledger(tmp_path / "killed" / "ledger.sqlite")
    before = {key: value for key, _, value in ledger.entries()}
    ledger.close()
    family = run_reuse("20s", out="killed")
    assert family.members
    ledger = Ledger(tmp_path / "killed" / "ledger.sqlite")
    after = {key: value for key, _, value in ledger.entries()}
    assert {key: after[key] for key in before} == before
    if "decision/family" in before:
        assert [member.name for member in family] == before["decision/family"]["value"]


def test_run_whose_time_is_over_still_ends_with_what_it_has(run_reuse: Reuse, tmp_path: Path) -> None:
    first = run_reuse("20s", out="late")
    ledger = Ledger(tmp_path / "late" / "ledger.sqlite")
    ledger.spent = lambda: 19.9
    ledger.beat()
    ledger.close()
    (tmp_path / "late" / "result.json").unlink()
    assert weights(run_reuse("20s", out="late")) == weights(first)


def test_other_data_under_the_same_name_are_refused(run_reuse: Reuse, toy_task_files: Path, tmp_path: Path) -> None:
    data = shutil.copytree(toy_task_files, tmp_path / "data")
    run_reuse(task=str(data))
    (tmp_path / "run" / "result.json").unlink()
    with (data / "train.csv").open("a") as file:
        file.write("one more text,animals\n")
    with pytest.raises(RunError, match="another task"):
        run_reuse(task=str(data))


def test_finished_run_is_returned_again_at_once(run_reuse: Reuse, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_reuse()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished run trained again")

    monkeypatch.setattr("regraft.adapt.adaptation.train_leg", refuse)
    assert weights(run_reuse()) == weights(first)


def test_second_process_is_refused(run_reuse: Reuse, tmp_path: Path) -> None:
    with Run(tmp_path / "run", {}), pytest.raises(RunLockedError, match="in use by another process"):
        run_reuse()


def test_other_arguments_are_refused(run_reuse: Reuse) -> None:
    run_reuse()
    with pytest.raises(RunError, match=r"seed=0.*seed=1"):
        run_reuse(seed=1)


@pytest.mark.parametrize("why", ["too little time", "nothing usable in the zoo"])
def test_without_a_member_a_baseline_is_the_answer(why: str, run_reuse: Reuse, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    family = run_reuse("1s") if why == "too little time" else run_reuse(zoo=str(tmp_path / "broken"))
    assert family.answer in {"tfidf", "majority"}
    assert family.best is None
    assert all(
        entry["test"]["accuracy"] >= 0 for entry in family.result["baselines"] if entry["name"] != "from scratch"
    )
    assert (why == "too little time") or family.result["left_out"]


def test_time_budget_is_kept(run_reuse: Reuse) -> None:
    family = run_reuse("12s")
    assert family.result["spent_s"] <= 12 + 5
    assert family.members


def cut_short(file: Path) -> str:
    """Damage a file of weights; what the report must name."""
    file.write_bytes(file.read_bytes()[:-100])
    return file.name


def make_infinite(file: Path) -> str:
    from safetensors.numpy import load_file, save_file

    tensors = {name: tensor.copy() for name, tensor in load_file(file).items()}
    name = min(tensors)
    tensors[name].flat[0] = float("inf")
    save_file(tensors, file, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("damage", [cut_short, make_infinite])
def test_damaged_checkpoint_is_left_out_and_the_rest_goes_on(
    damage: Callable[[Path], str], run_reuse: Reuse, tiny_bert: Path, tmp_path: Path
) -> None:
    zoo = tmp_path / "zoo"
    for name in ("good", "bad"):
        shutil.copytree(tiny_bert, zoo / name)
    named = damage(zoo / "bad" / "model.safetensors")
    family = run_reuse(zoo=str(zoo))
    assert {entry["reference"].split("#")[0] for entry in family.result["left_out"]} == {str(zoo / "bad")}
    assert named in family.result["left_out"][0]["problem"]
    assert family.members


def test_checkpoint_with_the_labels_is_measured_as_it_is(run_reuse: Reuse, tmp_path: Path) -> None:
    first = run_reuse(out="first")
    family = run_reuse(out="second", zoo=str(first.best.path))
    found = next(entry for entry in family.result["candidates"] if entry["method"] == "as-is")
    assert found["validation"]["accuracy"] == pytest.approx(first.best.validation["accuracy"])


def test_recipe_gives_the_same_weights(run_reuse: Reuse, tmp_path: Path) -> None:
    from regraft.recipe import replay
    from regraft.store import Store

    family = run_reuse()
    found = replay(tmp_path / "run" / "family" / "recipe.yaml", tmp_path / "again", store=Store(tmp_path / "other"))
    assert {one["name"]: one["weights_id"] for one in found["models"]} == weights(family)
    assert all(one["same_weights"] for one in found["models"])


def test_disk_full_leaves_no_result(run_reuse: Reuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from regraft.errors import StoreError

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("regraft.evaluate.certify.write_classifier", full)
        with pytest.raises(StoreError, match="disk is full"):
            run_reuse()
    assert not (tmp_path / "run" / "result.json").exists()
    assert not list((tmp_path / "run" / "family").iterdir())
    assert run_reuse().members


def test_a_damaged_member_and_a_lost_report_are_made_again(run_reuse: Reuse, tmp_path: Path) -> None:
    before = run_reuse()
    kept = weights(before)
    member = before.members[0].path / "model.safetensors"
    member.write_bytes(member.read_bytes()[:-100])
    again = run_reuse()
    assert weights(again) == kept and {one.path.name for one in again} == set(kept)
    assert open_checkpoint(str(member.parent)).weights_id == kept[member.parent.name]
    shutil.rmtree(tmp_path / "run" / "family" / member.parent.name)
    assert weights(run_reuse()) == kept and member.is_file()


def test_a_copied_run_speaks_of_itself(run_reuse: Reuse, tmp_path: Path) -> None:
    run_reuse(out="first")
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    family = run_reuse(out="copy", store=Store(tmp_path / "store-first"))
    assert {one.path.parent for one in family} == {tmp_path / "copy" / "family"}
    assert family.report.parent == tmp_path / "copy"


def test_damaged_states_of_trials_are_made_again(run_reuse: Reuse, tmp_path: Path) -> None:
    kept = weights(run_reuse())
    run = tmp_path / "run"
    for path in (run / "trials").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    (run / "result.json").unlink()
    shutil.rmtree(run / "family")
    assert weights(run_reuse()) == kept


def test_random_weights_are_in_the_table_of_a_small_budget_of_trials(run_reuse: Reuse) -> None:
    family = run_reuse(budget="3trials")
    scratch = next(one for one in family.result["baselines"] if one["name"] == "from scratch")
    assert scratch["test"] is not None
