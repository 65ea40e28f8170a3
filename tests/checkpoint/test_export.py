"""Member folders: the stock library loads them and computes the same; damaged ones are refused in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from regraft.checkpoint import load_encoder, load_tokenizer, open_checkpoint
from regraft.checkpoint.classifier import StockClassifier, TextClassifier, logits_of
from regraft.checkpoint.export import load_classifier, load_member, stock_logits, write_classifier
from regraft.checkpoint.quiet import quiet
from regraft.errors import CheckpointError, RegraftError

TEXTS = ["the cat saw a dog", "rain", "We heard a very OLD violin", "unknownword 42", "a nice house " * 40]
LABELS = ("zebra", "apple", "music")  # not in the order of the alphabet: the order of the logits counts


def make(reference: str, view: str = "last") -> TextClassifier:
    checkpoint = open_checkpoint(reference)
    weights = None if view == "last" else [1.0] * (checkpoint.num_layers + 1)
    torch.manual_seed(3)
    return TextClassifier(load_encoder(checkpoint), load_tokenizer(checkpoint), LABELS, 40, weights).eval()


@pytest.fixture
def member(tiny_bert: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "member"
    folder.mkdir()
    write_classifier(make(str(tiny_bert), "mean"), folder, {"parent": "tiny"})
    return folder


def stock_sentence_transformer(folder: Path) -> np.ndarray:
    with quiet():
        return np.asarray(SentenceTransformer(str(folder), device="cpu").encode(TEXTS, show_progress_bar=False))


@pytest.mark.parametrize("view", ["last", "mean"])
@pytest.mark.parametrize(("fixture", "fragment"), [("tiny_bert", ""), ("tiny_bert", "#layers=2"), ("tiny_gpt2", "")])
def test_stock_sentence_transformers_computes_the_same(
    fixture: str, fragment: str, view: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = make(f"{request.getfixturevalue(fixture)}{fragment}", view)
    expected = logits_of(model, TEXTS)
    write_classifier(model, tmp_path, {})
    np.testing.assert_allclose(stock_sentence_transformer(tmp_path), expected, atol=1e-5)
    np.testing.assert_allclose(stock_logits(tmp_path, TEXTS, "sentence-transformers").numpy(), expected, atol=1e-5)
    again = load_member(tmp_path)
    assert isinstance(again, TextClassifier)
    np.testing.assert_allclose(logits_of(again, TEXTS), expected, atol=1e-6)
    assert again.labels == LABELS
    assert again.max_length == 40


def test_a_stock_classifier_stays_a_stock_classifier(tiny_classifier: Path, tmp_path: Path) -> None:
    model = load_classifier(open_checkpoint(str(tiny_classifier)))
    assert isinstance(model, StockClassifier)
    expected = logits_of(model, TEXTS)
    write_classifier(model, tmp_path, {})
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        found = stock(**tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(stock_logits(tmp_path, TEXTS, "transformers").numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(logits_of(load_member(tmp_path), TEXTS), expected, atol=1e-6)
    assert tuple(stock.config.id2label.values()) == model.labels == load_member(tmp_path).labels


def test_stock_code_cuts_long_texts_where_we_do(tiny_classifier: Path, copy_of: Any, tmp_path: Path) -> None:
    folder = copy_of(tiny_classifier)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_max_length"] = 10**30  # what tokenizers write for "not known"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    model = load_classifier(open_checkpoint(str(folder)))
    out = tmp_path / "out"
    out.mkdir()
    write_classifier(model, out, {})
    long = ["cat " * 200]
    np.testing.assert_allclose(stock_logits(out, long, "transformers").numpy(), logits_of(model, long), atol=1e-5)


def test_labels_and_provenance_are_stored(member: Path) -> None:
    config = json.loads((member / "config.json").read_text())
    assert config["id2label"] == {"0": "zebra", "1": "apple", "2": "music"}
    assert config["label2id"] == {"zebra": 0, "apple": 1, "music": 2}
    about = json.loads((member / "regraft.json").read_text())
    assert about == {"parent": "tiny", "format": "sentence-transformers", "labels": list(LABELS)}
    assert open_checkpoint(str(member)).labels == LABELS


def test_a_member_holds_no_pickle_and_no_path_of_this_machine(member: Path, tiny_bert: Path) -> None:
    for path in member.rglob("*"):
        if path.is_file():
            assert path.suffix in {".json", ".safetensors", ".txt"}
            assert str(tiny_bert).encode() not in path.read_bytes()


def test_a_member_of_a_member(member: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    write_classifier(load_member(member), again, {"parent": "tiny"})
    assert open_checkpoint(str(again)).weights_id == open_checkpoint(str(member)).weights_id
    assert open_checkpoint(str(again)).checkpoint_id == open_checkpoint(str(member)).checkpoint_id


def test_a_checkpoint_without_head(tiny_bert: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no classification head.*regraft adapt"):
        load_member(tiny_bert)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


def swap(modules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [modules[0], modules[2], modules[1], modules[3]]


def normalise(modules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*modules, {"idx": 4, "name": "4", "path": "", "type": "sentence_transformers.models.Normalize"}]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("modules.json", lambda modules: modules[:3], "a classifier is Transformer, Pooling and Dense"),
        ("modules.json", swap, "a classifier is Transformer, Pooling and Dense"),
        ("modules.json", normalise, "a classifier is Transformer, Pooling and Dense"),
        ("modules.json", lambda modules: [*modules, modules[3]], "a classifier is Transformer, Pooling and Dense"),
        ("modules.json", lambda modules: modules[3].update(type="evil.module.Dense"), "not one of the stock modules"),
        ("modules.json", lambda modules: modules[3].update(path="../elsewhere"), "leaves the folder"),
        ("2_Pooling/config.json", lambda config: config.update(pooling_mode_max_tokens=True), "pools by the mean"),
        ("3_Dense/config.json", lambda config: config.update(activation_function="torch.nn.Tanh"), "no activation"),
        ("regraft.json", lambda about: about.update(labels=["one", "two"]), "does not fit its 2 labels"),
        ("regraft.json", lambda about: about.update(labels="one"), "labels is not a list"),
        ("regraft.json", lambda about: about.pop("labels") and None, "no classification head"),
    ],
)
def test_a_tampered_folder_is_refused(name: str, change: Callable[[Any], Any], words: str, member: Path) -> None:
    edit(member / name, change)
    with pytest.raises(RegraftError, match=words):
        load_member(member)


def test_a_head_that_is_damaged_is_refused(member: Path) -> None:
    path = member / "3_Dense" / "model.safetensors"
    head = load_file(path)
    save_file({"linear.weight": head["linear.weight"]}, path)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_member(member)
    path.unlink()
    with pytest.raises(CheckpointError, match="does not fit"):
        load_member(member)
