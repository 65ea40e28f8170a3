"""Replaying a recipe gives the same members, or stops in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from regraft import certificate
from regraft.certificate import Context
from regraft.checkpoint import open_checkpoint
from regraft.checkpoint.export import load_member
from regraft.errors import RecipeError
from regraft.recipe import replay
from regraft.store import Store
from regraft.task import load_task

Content = dict[str, Any]


@pytest.fixture
def content(tiny_bert: Path, toy_task_files: Path) -> Content:
    """A recipe of a probe and a full fine-tune of the first two layers of a BERT."""
    reference = f"{tiny_bert}#layers=2"
    source = {"checkpoint": reference, "checkpoint_id": open_checkpoint(reference).checkpoint_id}
    task = {"reference": str(toy_task_files), "task_id": load_task(str(toy_task_files)).task_id, "seed": 0}
    return {
        "regraft": 1,
        "task": task,
        "threads": 1,
        "steps": {
            "tiny.features": {"op": "features", **source},
            "probe.adapt": {"op": "adapt", **source, "features": "tiny.features", "method": "probe"},
            "probe": {"op": "export", "model": "probe.adapt"},
            "full.adapt": {
                "op": "adapt", **source, "method": "full", "settings": {"batch": 8, "warmup": 2},
                "head": {"view": "mean", "rank_rows": 24, "rest_rows": 12}, "legs": [[4, 0], [3, 5]], "seed": 3,
            },
            "full": {"op": "export", "model": "full.adapt"},
        },
    }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A function that writes a recipe and replays it into a new folder."""

    def go(content: Content, out: str = "out") -> dict[str, Any]:
        path = tmp_path / f"{out}.yaml"
        YAML().dump(content, path)
        return replay(path, tmp_path / out, store=Store(tmp_path / f"store-{out}"))

    return go


Run = Callable[[Content], dict[str, Any]]


def test_a_replay_makes_verified_members_and_the_same_again(
    content: Content, run: Callable[..., dict[str, Any]], tmp_path: Path, toy_task_files: Path
) -> None:
    threads = torch.get_num_threads()
    first = {model["name"]: model for model in run(content)["models"]}
    assert set(first) == {"probe", "full"}
    assert torch.get_num_threads() == threads
    task = load_task(str(toy_task_files))
    for name, model in first.items():
        assert model["same_weights"] is None  # nothing was recorded to compare with
        assert Path(model["path"]) == tmp_path / "out" / name
        verdicts = certificate.verify(Path(model["path"]), Context(task))
        assert {verdict.outcome for verdict in verdicts} == {"pass"}
        assert load_member(Path(model["path"])).labels == task.label_names
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"probe", "full"}  # no states are left

    for name in first:
        content["steps"][name]["weights_id"] = first[name]["weights_id"]
    content["steps"]["probe"]["weights_id"] = "0" * 64
    again = {model["name"]: model for model in run(content, "again")["models"]}
    assert again["full"]["same_weights"] is True
    assert again["probe"]["same_weights"] is False
    assert {name: model["weights_id"] for name, model in again.items()} == {
        name: model["weights_id"] for name, model in first.items()
    }


def test_what_a_recipe_says_changes_the_weights(content: Content, run: Callable[..., dict[str, Any]]) -> None:
    del content["steps"]["probe"]
    found = {}
    for name, change in {
        "as it is": {}, "legs": {"legs": [[4, 0]]}, "seed": {"seed": 4}, "rate": {"settings": {"learning_rate": 1e-2}},
        "head": {"head": {"view": "last"}}, "lora": {"method": "lora", "settings": {}, "options": {"rank": 2}},
    }.items():  # fmt: skip
        steps = {**content["steps"], "full.adapt": {**content["steps"]["full.adapt"], **change}}
        found[name] = run({**content, "steps": steps}, name)["models"][0]["weights_id"]
    assert len(set(found.values())) == 6


def test_a_merge_is_the_average_of_models_that_need_not_be_exported(
    content: Content, run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    steps = content["steps"]
    steps["full.adapt"]["head"] = {"view": "last"}
    source = {key: steps["full.adapt"][key] for key in ("op", "checkpoint", "checkpoint_id")}
    steps["lora.adapt"] = {**source, "method": "lora", "legs": [[4, 0]], "settings": {"batch": 8, "warmup": 2}}
    parts = ("probe.adapt", "full.adapt", "lora.adapt")
    steps["soup.merge"] = {"op": "merge", "method": "linear", "models": list(parts)}
    for name in ("lora", "soup"):
        steps[name] = {"op": "export", "model": f"{name}.{'merge' if name == 'soup' else 'adapt'}"}
    paths = {one["name"]: Path(one["path"]) for one in run(content)["models"]}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"probe", "full", "lora", "soup"}
    models = {name: dict(load_member(path).named_parameters()) for name, path in paths.items()}
    merged = models.pop("soup")
    for name, value in merged.items():
        wanted = sum(model[name].detach().double() for model in models.values()) / 3
        assert torch.allclose(value.double(), wanted, rtol=1e-6, atol=1e-8), name
    assert {one.outcome for one in certificate.verify(paths["soup"], Context())} <= {"pass", "cannot check"}

    for name in ("probe", "full", "lora"):
        del steps[name]
    (alone,) = run(content, "alone")["models"]
    assert alone["name"] == "soup"
    assert {path.name for path in (tmp_path / "alone").iterdir()} == {"soup"}
    same = dict(load_member(Path(alone["path"])).named_parameters())
    assert all(torch.equal(value, merged[name]) for name, value in same.items())


def test_a_cut_has_the_sizes_that_the_recipe_says(
    content: Content, run: Run, toy_task_files: Path, tmp_path: Path
) -> None:
    steps = content["steps"]
    steps["full.adapt"]["head"]["view"] = "last"
    steps["small.resize"] = {
        "op": "resize", "model": "full.adapt", "sizes": {"layer": 1, "ffn": 32}, "settings": {"distill": 0.5}, "legs": [[3, 3]]
    }  # fmt: skip
    steps["small"] = {"op": "export", "model": "small.resize"}
    models = {model["name"]: model for model in run(content)["models"]}
    config = json.loads((Path(models["small"]["path"]) / "config.json").read_text())
    assert (config["num_hidden_layers"], config["intermediate_size"]) == (1, 32)
    verdicts = certificate.verify(Path(models["small"]["path"]), Context(load_task(str(toy_task_files))))
    assert {verdict.outcome for verdict in verdicts} == {"pass"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"probe", "full", "small"}
    steps["small.resize"]["settings"] = {}
    plain = {model["name"]: model["weights_id"] for model in run(content, "plain")["models"]}
    assert plain["full"] == models["full"]["weights_id"] and plain["small"] != models["small"]["weights_id"]


def test_a_classifier_as_it_is(tiny_classifier: Path, content: Content, run: Run) -> None:
    content["steps"] = {
        "made": {"op": "adapt", "checkpoint": str(tiny_classifier), "method": "as-is"},
        "measured": {"op": "evaluate", "model": "made", "rows": 10_000},
        "member": {"op": "export", "model": "made"},
    }
    found = run(content)
    (model,) = found["models"]
    assert model["format"] == "transformers"
    (score,) = found["scores"]
    assert (score["name"], score["rows"]) == ("measured", 30)
    assert score["score"] == model["test"]


def test_scores_of_any_split_are_given_and_the_test_split_is_certified(content: Content, run: Run) -> None:
    steps = {name: content["steps"][name] for name in ("tiny.features", "probe.adapt")}
    for split in ("train", "validation"):  # before the exports, which must not take these scores for theirs
        steps[f"on {split}"] = {"op": "evaluate", "model": "probe.adapt", "split": split, "rows": 20}
    for name in ("probe", "twice"):
        steps[name] = {"op": "export", "model": "probe.adapt"}
    found = run({**content, "steps": steps})
    assert [one["name"] for one in found["scores"]] == ["on train", "on validation", "probe.evaluate"]
    scores = {one["name"]: one for one in found["scores"]}
    assert {name: (one["split"], one["rows"]) for name, one in scores.items()} == {
        "on train": ("train", 20), "on validation": ("validation", 20), "probe.evaluate": ("test", 30)
    }  # fmt: skip
    one, other = found["models"]
    assert one["weights_id"] == other["weights_id"]
    assert one["test"] == other["test"] == scores["probe.evaluate"]["score"]
    (claim,) = [claim for claim in certificate.read(Path(one["path"])) if claim.check == "test"]
    assert (claim.values["rows"], claim.values["value"]) == (30, one["test"]["accuracy"])


def test_other_data_are_refused(content: Content, run: Run, toy_task_files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(toy_task_files, folder)
    with (folder / "train.csv").open("a") as file:
        file.write("a new cat,animals\n")
    content["task"]["reference"] = str(folder)
    with pytest.raises(RecipeError, match=r"the data have changed.*remove task_id"):
        run(content)
    assert not (tmp_path / "out").exists()


def test_another_checkpoint_is_refused(content: Content, run: Run, tiny_bert: Path) -> None:
    content["steps"]["tiny.features"]["checkpoint"] = content["steps"]["probe.adapt"]["checkpoint"] = str(tiny_bert)
    with pytest.raises(RecipeError, match=r"Step 'tiny.features' .line.*it is .* now.*remove checkpoint_id"):
        run(content)


def test_a_model_without_the_tasks_labels_is_refused(
    tiny_classifier: Path, copy_of: Any, content: Content, run: Run
) -> None:
    folder = copy_of(tiny_classifier)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("music", "noise"))
    content["steps"] = {
        "made": {"op": "adapt", "checkpoint": str(folder), "method": "as-is"},
        "member": {"op": "export", "model": "made"},
    }
    with pytest.raises(RecipeError, match="does not know the task's music"):
        run(content)


def test_unknown_methods_and_settings_are_refused(content: Content, run: Run, tmp_path: Path) -> None:
    content["steps"]["full.adapt"]["method"] = "ful"
    with pytest.raises(RecipeError, match=r"line .*step 'full.adapt'.*Did you mean full"):
        run(content)
    content["steps"]["full.adapt"] |= {"method": "full", "settings": {"learning_rat": 1.0}}
    with pytest.raises(RecipeError, match=r"line .*takes no setting 'learning_rat'"):
        run(content)
    assert not (tmp_path / "out").exists()  # found before anything was computed


def test_a_folder_that_is_not_empty_is_left_alone(content: Content, run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(RecipeError, match="is not an empty folder"):
        run(content)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(RecipeError, match="is not an empty folder"):
        run(content)
