"""Members that are cut out of the best one: what they are, that they come out the same again, and when there are none."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from regraft import faults
from regraft.checkpoint import load_encoder, open_checkpoint
from regraft.errors import AnatomyError, ResizeError
from regraft.ledger import Ledger
from regraft.planner import cuts, soup, spare
from regraft.planner.family import Family
from regraft.planner.reuse import reuse
from regraft.planner.single import verify_folder
from regraft.recipe import replay
from regraft.store import Store

Reuse = Callable[..., Family]
CUT = "tiny-bert-cut"
TRIALS = "14trials"


@pytest.fixture
def run(run_reuse: Reuse, tiny_bert: Path) -> Reuse:
    """`reuse` on one checkpoint: nothing of half its size is there but what is cut."""
    return partial(run_reuse, zoo=str(tiny_bert))


@pytest.fixture(scope="module")
def whole(tiny_bert: Path, toy_task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A run that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return reuse(str(toy_task_files), str(tiny_bert), TRIALS, out=folder / "run", store=Store(folder / "store"))


def weights(family: Family) -> dict[str, str]:
    return {member.name: member.facts["weights_id"] for member in family}


def candidate(family: Family, name: str = CUT) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in family.result["candidates"] if one["name"] == name)
    return found


def said(family: Family) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in family.result["decisions"] if one["what"].startswith("models to cut"))
    return found


def sizes(folder: Path) -> tuple[int, int]:
    config = json.loads((folder / "config.json").read_text())
    return config["num_hidden_layers"], config["intermediate_size"]


def test_the_family_has_a_member_with_half_of_the_blocks(whole: Family, toy_task_files: Path, tiny_bert: Path) -> None:
    found, facts = candidate(whole), next(member for member in whole if member.name == CUT).facts
    start = candidate(whole, found["cut_from"])
    assert found["method"] == "cut" and found["status"] == "in family"
    assert facts["cut_from"] == found["cut_from"] == "tiny-bert-full"
    assert facts["encoder_parameters"] <= start["encoder_parameters"] / 2
    assert facts["parameters"] < start["parameters"] and facts["bytes"] < start["bytes"]
    assert found["reason"].startswith(f"cut from {start['name']}, ")
    verdicts = verify_folder(Path(facts["path"]), str(toy_task_files))
    assert len(verdicts) == facts["certificate"]["claims"] and {one.outcome for one in verdicts} == {"pass"}
    assert facts["reference"] == str(tiny_bert)  # not the folder of a trial, which may be removed


def test_its_record_says_what_was_cut_by_what_and_how_it_was_trained(whole: Family) -> None:
    folder = next(member for member in whole if member.name == CUT).path
    about = json.loads((folder / "regraft.json").read_text())
    made, step = about["made"], about["made"]["settings"]["cut"]
    assert made["method"] == "cut" and made["legs"] and made["settings"]["from"]["name"] == "tiny-bert-full"
    assert made["settings"]["from"]["legs"]
    assert (step["after"].get("layer", 4), step["after"].get("ffn", 64)) == sizes(folder)
    assert set(step["by"].values()) <= {"similarity", "activation"} and step["texts"] == 60
    assert "was cut, and trained again" in (folder / "README.md").read_text()


def test_the_units_that_stayed_are_those_of_the_trained_model(whole: Family, tiny_bert: Path) -> None:
    trials = Path(whole.result["recipe"]).parents[1] / "trials"
    step = json.loads((next(one for one in whole if one.name == CUT).path / "regraft.json").read_text())
    kept = step["made"]["settings"]["cut"]["kept"]
    legs = step["made"]["settings"]["from"]["legs"]
    state = load_file(trials / "tiny-bert-full" / f"leg-{len(legs)}" / "state.safetensors")
    cut = load_file(trials / CUT / "encoder" / "model.safetensors")
    layers = numbers(next(one["units"] for one in kept["layer"]))
    neurons = {one["at"]["layer"]: numbers(one["units"]) for one in kept["ffn"]}
    for new, old in enumerate(layers):
        for name, columns in (("intermediate.dense.weight", False), ("output.dense.weight", True)):
            whole_tensor = state[f"averaged/encoder.encoder.layer.{old}.{name}"]
            wanted = whole_tensor[:, neurons[old]] if columns else whole_tensor[neurons[old]]
            assert np.array_equal(cut[f"encoder.layer.{new}.{name}"], wanted)
        key = "attention.self.query.weight"
        assert np.array_equal(cut[f"encoder.layer.{new}.{key}"], state[f"averaged/encoder.encoder.layer.{old}.{key}"])
    with np.load(trials / CUT / "head" / "head.npz") as head:
        assert np.array_equal(head["weight"], state["averaged/head.weight"])
        assert np.array_equal(head["bias"], state["averaged/head.bias"])
    first = load_encoder(open_checkpoint(str(tiny_bert))).state_dict()
    assert not np.array_equal(first["encoder.layer.0.attention.self.query.weight"].numpy(),
                              state["averaged/encoder.encoder.layer.0.attention.self.query.weight"])  # fmt: skip


def numbers(text: str) -> list[int]:
    """`0-2,5` as numbers."""
    ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    return [number for part in ends for number in range(part[0], part[-1] + 1)]


def test_the_report_says_what_it_was_cut_from(whole: Family) -> None:
    from regraft.report import write_report

    path = write_report(whole.result, whole.report)
    text = " ".join(path.read_text().split())
    assert 'cut from <span class="name">tiny-bert-full</span> and trained again' in text


def test_a_replay_makes_the_same_weights(whole: Family, tmp_path: Path) -> None:
    steps = YAML(typ="safe").load(Path(whole.result["recipe"]))["steps"]
    assert steps[f"{CUT}.resize"]["settings"] == {"distill": 0.5}
    found = replay(Path(whole.result["recipe"]), tmp_path / "again", store=Store(tmp_path / "other"))
    assert {one["name"]: one["weights_id"] for one in found["models"]} == weights(whole)
    assert all(one["same_weights"] for one in found["models"])
    assert {path.name for path in (tmp_path / "again").iterdir()} == set(weights(whole))  # nothing else is left
    made = json.loads((tmp_path / "again" / CUT / "regraft.json").read_text())["made"]
    first = json.loads((next(one for one in whole if one.name == CUT).path / "regraft.json").read_text())["made"]
    assert made["settings"]["cut"] == first["settings"]["cut"] and made["legs"] == first["legs"]


def test_a_soup_that_wins_is_cut_and_replayed(run: Reuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = soup.score
    monkeypatch.setattr(soup, "score", lambda *args: {**measure(*args), "accuracy": 0.95})
    family = run(TRIALS)
    assert candidate(family)["cut_from"] == "tiny-bert-soup" and CUT in weights(family)
    found = replay(Path(family.result["recipe"]), tmp_path / "again", store=Store(tmp_path / "other"))
    assert {one["name"]: one["weights_id"] for one in found["models"]} == weights(family)


@pytest.mark.parametrize("point", ["cut written", "leg trained", "leg measured", "member aside"])
def test_killed_and_started_again_it_has_the_same_weights(
    point: str, whole: Family, run: Reuse, tmp_path: Path
) -> None:
    child = os.fork()
    if child == 0:
        passed: list[str] = []

        def hook(name: str) -> None:
            passed.append(name)
            if name == point and ("cut written" in passed):
                os.kill(os.getpid(), signal.SIGKILL)

        faults.hook = hook
        run(TRIALS, out="killed")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    if point == "member aside":  # what was lost meanwhile is made again
        for name in ("tiny-bert-full", CUT):
            shutil.rmtree(tmp_path / "killed" / "trials" / name)
    assert weights(run(TRIALS, out="killed")) == weights(whole)
    assert not list((tmp_path / "killed").rglob("*.partial"))


def test_a_damaged_cut_is_made_again(whole: Family, run: Reuse, tmp_path: Path) -> None:
    assert weights(run(TRIALS)) == weights(whole)  # twice the same, too
    for path in (tmp_path / "run" / "trials" / CUT).rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "family")
    assert weights(run(TRIALS)) == weights(whole)


@pytest.mark.parametrize(("budget", "words"), [
    ("20s", "a budget under 120 s is for the fine-tune alone"), ("1trials", "nothing was trained"),
    ("2trials", "0 trials are left"),
])  # fmt: skip
def test_without_room_nothing_is_cut(budget: str, words: str, run: Reuse) -> None:
    family = run(budget)
    assert family.members and all(one["method"] != "cut" for one in family.result["candidates"])
    assert said(family)["what"].endswith(": 0") and words in said(family)["reason"]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a minute may be long enough for a cut."""
    monkeypatch.setattr(cuts, "SHORTEST_S", 0.0)


@pytest.mark.usefixtures("hasty")
def test_a_time_budget_has_cuts_where_time_is_left_over(run: Reuse, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("held_s", "shapes_s", "one_s"):  # however slow the machine is
        monkeypatch.setattr(cuts, name, lambda *_: 0.0)
    family = run("30s")
    assert candidate(family)["validation"] is not None
    assert said(family)["what"].endswith(": 2") and "beside what the family needs" in said(family)["reason"]
    assert family.members and family.result["spent_s"] <= 35


@pytest.mark.usefixtures("hasty")
def test_time_that_the_family_needs_is_not_used(run: Reuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "finishing_s", lambda *_: 60.0)
    family = run("30s")
    assert all(one["method"] != "cut" for one in family.result["candidates"])
    assert said(family)["what"].endswith(": 0") and said(family)["reason"].startswith("0 s are left beside what")


def test_an_architecture_without_an_anatomy_goes_on_without_cuts(run: Reuse, monkeypatch: pytest.MonkeyPatch) -> None:
    read = importlib.import_module("regraft.anatomy.read")
    with monkeypatch.context() as patch:
        patch.setattr(read, "known", lambda: ["gpt2"])
        read.load.cache_clear()
        family = run(TRIALS)
    assert family.members and all(one["method"] != "cut" for one in family.result["candidates"])
    assert "no anatomy of the model_type 'bert'" in said(family)["reason"]


@pytest.mark.parametrize(
    "fault", [ResizeError("No shape is smaller.", "Leave it."), AnatomyError("Odd tensor.", "Mend it.")]
)
def test_a_cut_that_fails_is_said_and_the_run_goes_on(
    fault: Exception, run: Reuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise fault

    monkeypatch.setattr("regraft.planner.halves.half_shapes", fail)
    family = run(TRIALS)
    assert family.members and all(one["method"] != "cut" for one in family.result["candidates"])
    line = next(one for one in family.result["decisions"] if one["what"] == "tiny-bert-full is not cut")
    assert line["reason"] == str(fault).split(". ")[0] + "."


def test_a_run_that_chose_its_family_before_there_were_cuts_keeps_it(
    run: Reuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("regraft.planner.reuse.make_cuts", lambda *_: None)
        before = weights(run(TRIALS))
    (tmp_path / "run" / "result.json").unlink()
    again = run(TRIALS)
    assert weights(again) == before and CUT not in before
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite")
    assert not any("cut" in key for key, _, _ in ledger.entries())
    ledger.close()


def test_the_trained_head_and_half_of_the_blocks_are_what_shapes_leave(tiny_bert: Path) -> None:
    from regraft.anatomy import open_bound
    from regraft.planner.halves import half_shapes

    layer = 4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32  # attention, ffn, two norms
    found = half_shapes(open_bound(str(tiny_bert)))
    assert [one.blocks for one in found] == sorted((one.blocks for one in found), reverse=True)
    assert {"layer": 2} in [dict(one.counts) for one in found]
    for one in found:
        layers, ffn = one.counts.get("layer", 4), one.counts.get("ffn", 64)
        assert one.blocks == layers * (layer - (64 - ffn) * (2 * 32 + 1)) <= 2 * layer
        assert set(one.counts) <= {"layer", "ffn"}
