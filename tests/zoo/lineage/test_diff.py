"""`diff`: what changed, in words; expected values come from how the second checkpoint was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from regraft.errors import RegraftError
from regraft.zoo.lineage import diff


@pytest.fixture(scope="module")
def base(workshop: Any) -> Path:
    return workshop.card(workshop.base("bert", "base", 0), "---\nlicense: mit\n---\n# Base\n")


def test_a_fine_tune_is_minor_and_its_norms_are_those_of_the_tensors(workshop: Any, base: Path) -> None:
    tuned = workshop.tuned(base, "tuned", 1)
    found = diff(base, tuned)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tuned))
    names = [name for name in before if name.startswith("encoder.layer.2.")]
    change = sum(float((after[name].double() - before[name].double()).square().sum()) for name in names)
    length = sum(float(before[name].double().square().sum()) for name in names)
    block = next(one for one in found.blocks if one.name == "layer 2")
    assert block.relative == pytest.approx((change / length) ** 0.5, rel=1e-9)
    assert (block.tensors, block.changed) == (len(names), len(names))
    assert found.related and found.relation == "finetuned"
    assert found.bump == "minor"
    assert found.layers == ()
    assert json.loads(json.dumps(found.as_dict()))["bump"] == "minor"


def test_equal_checkpoints(workshop: Any, base: Path) -> None:
    found = diff(base, workshop.written(base, "copy", lambda tensors: tensors))
    assert found.bump == "none"
    assert found.undocumented == ()
    assert found.words()[0] == "Weights: equal."


def test_cut_layers_are_major(workshop: Any, base: Path) -> None:
    found = diff(base, workshop.cut(base, "cut", [0, 3]))
    assert found.layers == ("Layers: 4 became 2; cut: 1, 2.",)
    assert found.bump == "major" and "num_hidden_layers" in found.reason
    assert [one.name for one in found.blocks if one.name.startswith("layer")] == ["layer 0", "layer 1 (was 3)"]
    assert all(one.relative == 0 for one in found.blocks)
    assert found.config["num_hidden_layers"] == (4, 2)


def test_added_and_reordered_layers(workshop: Any, base: Path) -> None:
    assert diff(workshop.cut(base, "short", [0, 1]), base).layers == ("Layers: 2 became 4; added: 2, 3.",)
    assert diff(base, workshop.cut(base, "turned", [1, 0, 2, 3])).layers == ("Layers: reordered: 1, 0, 2, 3.",)


def test_tokens_added_removed_and_moved(workshop: Any, base: Path, make_tokenizer: Any) -> None:
    one = workshop.written(base, "one", lambda tensors: tensors)
    other = workshop.written(base, "other", lambda tensors: tensors)
    make_tokenizer().save_pretrained(one)
    make_tokenizer().save_pretrained(other)
    path = other / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    words["cat"], words["dog"] = words["dog"], words["cat"]
    del words["horse"]
    words["zebra"] = max(words.values()) + 1
    path.write_text(json.dumps(content))
    found = diff(one, other)
    assert found.vocabulary is not None
    assert found.vocabulary.added == ("zebra",)
    assert found.vocabulary.removed == ("horse",)
    assert sorted(found.vocabulary.moved) == ["cat", "dog"]
    assert found.tokenizer and found.bump == "major"
    assert not found.weights_changed


def test_a_tokenizer_that_is_added_or_removed_is_major(workshop: Any, base: Path, make_tokenizer: Any) -> None:
    one, other = (workshop.written(base, name, lambda tensors: tensors) for name in ("with", "without"))
    make_tokenizer().save_pretrained(one)
    for file in other.glob("*token*"):
        file.unlink()
    (other / "vocab.txt").unlink(missing_ok=True)
    for pair, words in (((one, other), "was removed"), ((other, one), "was added")):
        found = diff(*pair)
        assert found.tokenizer and (found.bump, found.reason) == ("major", f"the tokenizer {words}")
        assert f"Tokenizer: {words}." in found.words()
    assert diff(other, workshop.written(other, "neither", lambda tensors: tensors)).tokenizer is None


def test_licence_alone_is_a_patch(workshop: Any, base: Path) -> None:
    other = workshop.written(base, "licensed", lambda tensors: tensors)
    workshop.card(other, "---\nlicense: apache-2.0\n---\n")
    found = diff(base, other)
    assert found.bump == "patch"
    assert any(line.startswith("Licence:") for line in found.words())


def test_changes_that_nothing_mentions_are_undocumented(workshop: Any, base: Path) -> None:
    silent = workshop.tuned(base, "silent", 2)
    assert "names no base_model" in diff(base, silent).undocumented[0]
    workshop.card(silent, "---\nbase_model: someone/base\n---\n")
    assert diff(base, silent).undocumented == ()
    again = workshop.root / "again"
    again.mkdir()
    silent.rename(again / "base")
    assert any("under one name" in line for line in diff(base, again / "base").undocumented)


def test_number_format_and_labels(workshop: Any, base: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    half = diff(base, workshop.as_format(base, "half", torch.bfloat16))
    assert half.dtypes == ("F32", "BF16")
    assert half.relation == "quantised" and half.bump == "minor"
    labels = {0: "yes", 1: "no"}
    model = AutoModelForSequenceClassification.from_pretrained(base, id2label=labels, label2id={"yes": 0, "no": 1})
    model.save_pretrained(workshop.root / "headed")
    headed = diff(base, workshop.root / "headed")
    assert headed.labels == (None, ("yes", "no"))
    assert "classifier.weight" in headed.heads[0]
    assert headed.bump == "major"
    assert headed.relation is None  # the encoder is the same


def test_strangers(workshop: Any, base: Path) -> None:
    found = diff(base, workshop.base("bert", "stranger", 9))
    assert found.related is not True
    assert not any("looks" in line for line in found.words())
    other = diff(base, workshop.base("gpt2", "other-kind", 1))
    assert other.bump == "major"
    assert any("other names or shapes" in line for line in other.words())


def test_a_folder_that_is_not_there(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RegraftError):
        diff(base, tmp_path / "nowhere")


def spoiled(tensors: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {
        name: torch.full_like(one, float("nan")) if name in names or not names else one for name, one in tensors.items()
    }


@pytest.mark.parametrize("names", [(), ("encoder.layer.1.output.dense.bias",)], ids=["all", "one vector"])
def test_weights_that_became_nan_changed(workshop: Any, base: Path, names: tuple[str, ...]) -> None:
    found = diff(base, workshop.written(base, f"nan-{len(names)}", lambda tensors: spoiled(tensors, *names)))
    assert found.weights_changed and found.bump == "minor" and found.undocumented
    assert len(found.not_finite) == (len(names) or sum(block.tensors for block in found.blocks))
    assert any(line.startswith("Not finite: ") for line in found.words()) and "Weights: equal." not in found.words()
    json.dumps(found.as_dict(), allow_nan=False)


def test_what_float32_cannot_tell_apart_differs(workshop: Any, base: Path) -> None:
    """float64 that differs beyond float32, and 0.0 against -0.0: other bytes are other weights."""
    wide = workshop.written(base, "wide", lambda tensors: {name: one.double() for name, one in tensors.items()})
    name = "encoder.layer.1.output.dense.bias"

    def moved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return tensors | {name: tensors[name] * (1 + 1e-12)}

    found = diff(wide, workshop.written(wide, "moved", moved))
    changed = [block for block in found.blocks if block.changed]
    assert [(block.name, block.changed) for block in changed] == [("layer 1", 1)] and found.bump == "minor"
    assert changed[0].relative is not None and 0 < changed[0].relative < 1e-12
    zeros = [
        workshop.written(base, f"zero{sign}", lambda tensors, sign=sign: tensors | {name: tensors[name] * 0.0 * sign})
        for sign in (1, -1)
    ]
    assert sum(block.changed for block in diff(*zeros).blocks) == 1 and diff(*zeros).bump == "minor"
