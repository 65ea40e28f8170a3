"""Adapters over the base that they name, over another one, and where nobody can tell: passed, refused, warned of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from regraft.checkpoint.weights import open_weights
from regraft.cli.app import app
from regraft.errors import CheckpointError
from regraft.merge.checks.adapted import check_adapter
from regraft.merge.checks.findings import Finding
from regraft.merge.recipe.spec import spec_of
from regraft.merge.run import merge

NAME = "org/small-model"


@pytest.fixture
def over(copy_of: Any, edited: Any, tiny_adapter: Path) -> Callable[..., list[Finding]]:
    """A function that puts the adapter over a folder, as one that was made for a base of a name; gives what is found."""
    copies: list[Path] = []

    def put(folder: Path, name: str | Path, **entries: Any) -> list[Finding]:
        copies.append(copy_of(tiny_adapter, f"adapter{len(copies)}"))
        edited(copies[-1], "adapter_config.json", base_model_name_or_path=str(name), **entries)
        return check_adapter(open_weights(f"{folder}+{copies[-1]}"))

    return put


@pytest.fixture
def silent(tiny_bert: Path, copy_of: Any) -> Path:
    """A copy of the base that says nothing of itself."""
    folder: Path = copy_of(tiny_bert, "here")
    (folder / "README.md").unlink()
    return folder


def told(folder: Path, *lines: str, body: str = "# A model") -> Path:
    """With a card."""
    (folder / "README.md").write_text("\n".join(["---", *lines, "---", body, ""]))
    return folder


def test_a_checkpoint_that_does_not_say_what_it_is(over: Any, silent: Path) -> None:
    (found,) = over(silent, NAME)
    assert (found.code, found.severity, found.refuses) == ("adapter", "warning", False)
    assert NAME in found.problem and str(silent) in found.problem and "is not known" in found.problem
    assert "adapter_config.json" in found.problem and found.advice


@pytest.mark.parametrize("key", ["base_model", "_name_or_path"])
def test_a_checkpoint_that_comes_from_another(key: str, over: Any, silent: Path, edited: Any) -> None:
    if key == "base_model":
        told(silent, "base_model: other/origin")
    else:
        edited(silent, _name_or_path="other/origin")
    (found,) = over(silent, NAME)
    assert (found.code, found.refuses) == ("adapter", True)
    assert found.let_pass(["adapter"]).allowed
    file = "README.md" if key == "base_model" else "config.json"
    for word in (NAME, str(silent), f"other/origin ({silent / file}: {key})"):
        assert word in found.problem
    assert str(silent / file) in found.where


@pytest.mark.parametrize(
    ("folder", "body"),
    [("Small-Model", "# A model"), ("org_small-model", ""), ("here", "from_pretrained('org/small-model')")],
)
def test_a_download_that_says_what_it_was_fine_tuned_from(
    folder: str, body: str, over: Any, tiny_bert: Path, copy_of: Any, edited: Any
) -> None:
    """The card of the very base that is meant names that base's own parent: nothing to refuse."""
    here = told(copy_of(tiny_bert, folder), "base_model: other/origin", body=body)
    (found,) = over(edited(here, _name_or_path="other/origin"), NAME)
    assert (found.severity, "comes from other/origin" in found.problem) == ("warning", True)


def test_another_model_whose_name_begins_alike_is_no_mention(over: Any, silent: Path) -> None:
    told(silent, "base_model: other/origin", body="Compared with org/small-model-v2 and a-small-model.")
    assert over(silent, NAME)[0].refuses


def test_a_fine_tune_of_the_named_base_is_another_checkpoint(over: Any, silent: Path) -> None:
    told(silent, "base_model:", f"- {NAME}", body=f"# A fine-tune of {NAME}")
    (found,) = over(silent, NAME)
    assert found.refuses and f"made from {NAME}" in found.problem and "README.md: base_model" in found.problem


def test_what_was_loaded_from_the_named_base_may_have_changed(over: Any, silent: Path, edited: Any) -> None:
    (found,) = over(edited(silent, _name_or_path=NAME), NAME)
    assert found.severity == "warning" and f"loaded from {NAME}" in found.problem


def test_the_name_in_the_cache_of_the_hub(
    over: Any, silent: Path, tuned: Any, tiny_bert: Path, copy_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the cache by the adapter's name is looked at: no card decides then."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--small-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    copy_of(tiny_bert, f"hub/models--org--small-model/snapshots/{'0' * 40}")
    told(silent, "base_model: other/origin")
    assert over(silent, NAME) == []
    (found,) = over(tuned(tiny_bert, "tuned"), NAME)
    assert found.refuses and "hold other values where they were sampled" in found.problem
    (revision,) = over(tmp_path / "tuned", NAME, revision="v2")  # of which nothing is here
    assert "comes from someone/parent" in revision.problem and "values" not in revision.problem
    hub = repository / "snapshots" / ("0" * 40)
    assert over(hub, NAME) == []
    (other,) = over(hub, "org/another")
    assert other.refuses and f"on the Hub it is {NAME}" in other.problem


def test_the_named_base_as_a_folder(
    over: Any, silent: Path, tuned: Any, tiny_bert: Path, tiny_gpt2: Path, edited: Any, bert_config: Any, tmp_path: Path
) -> None:
    from transformers import BertForSequenceClassification, BertModel

    assert over(silent, tiny_bert) == []
    # Rounded, or under a head's names: the same base.
    assert over(tuned(tiny_bert, "rounded", noise=0.0, dtype=torch.bfloat16), tiny_bert) == []
    headed = BertForSequenceClassification(bert_config())
    headed.bert.load_state_dict(BertModel.from_pretrained(tiny_bert).state_dict())
    headed.save_pretrained(tmp_path / "headed")
    assert over(tiny_bert, tmp_path / "headed") == []
    (half,) = over(tuned(tiny_bert, "other", dtype=torch.bfloat16, noise=0.1), tiny_bert)
    assert half.refuses and "tensors hold other values" in half.problem
    (config,) = over(edited(silent, num_attention_heads=4), tiny_bert)
    assert config.refuses and "num_attention_heads 4 (there 2)" in config.problem
    assert "config.json: num_attention_heads" in config.where
    (kind,) = over(tiny_bert, tiny_gpt2)
    assert kind.refuses and "model_type" in kind.problem
    (damaged,) = over(tiny_bert, tmp_path)
    assert damaged.severity == "warning" and "cannot be compared" in damaged.problem


def test_an_adapter_without_a_base_and_one_from_a_folder_elsewhere(over: Any, silent: Path) -> None:
    (found,) = over(silent, "")
    assert found.severity == "note"
    (elsewhere,) = over(told(silent, "base_model: other/origin"), "/data/models/small")
    assert elsewhere.severity == "warning" and "is not on this machine" in elsewhere.problem


def test_what_was_allowed_is_on_record_and_a_warning_stands_out(
    three: Any, silent: Path, edited: Any, copy_of: Any, tiny_adapter: Path, tmp_path: Path
) -> None:
    base, a, _ = three
    adapter = edited(copy_of(tiny_adapter, "adapter"), "adapter_config.json", base_model_name_or_path=NAME)
    told(silent, "base_model: other/origin")
    spec = spec_of("task_arithmetic", [f"{silent}+{adapter}", a], base)
    with pytest.raises(CheckpointError, match=rf"{NAME}.*other/origin.*--allow adapter"):
        merge(spec, tmp_path / "out")
    merge(spec, tmp_path / "out", allow=["adapter"])
    about = json.loads((tmp_path / "out" / "regraft.json").read_text())
    assert about["allowed"] == ["adapter"]
    (silent / "README.md").unlink()
    recipe = tmp_path / "merge.yaml"
    recipe.write_text(f"merge: task_arithmetic\nbase: {base}\ninputs: ['{silent}+{adapter}', {a}]\n")
    result = CliRunner().invoke(app, ["merge", str(recipe), "-o", str(tmp_path / "next")], catch_exceptions=False)
    assert result.exit_code == 0
    assert f"WARNING: {silent}+{adapter}: the adapter was made for {NAME}" in result.stderr
    dry = CliRunner().invoke(app, ["merge", str(recipe), "--dry-run"], catch_exceptions=False, env={"COLUMNS": "300"})
    assert "WARNING" in dry.stdout and NAME in dry.stdout
