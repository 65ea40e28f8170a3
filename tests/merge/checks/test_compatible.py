"""What differs between two checkpoints is found, named, and sorted into what can be let pass and what cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regraft.checkpoint.weights import Weights, open_weights
from regraft.merge.checks.compatible import Comparison, compare
from regraft.merge.checks.findings import ALLOW
from regraft.merge.checks.vocabulary import differences

LAYER = "model.layers.1.mlp.up_proj.weight"


def compared(first: Path, second: Path) -> Comparison:
    return compare(open_weights(str(first)), open_weights(str(second)), "b", "a")


def codes(found: Comparison) -> list[str]:
    return sorted(one.code for one in found.findings if one.severity == "error")


def test_equal_kinds_have_no_findings(llama: Any, written: Any) -> None:
    assert compared(written("a", llama(0)), written("b", llama(1))) == Comparison()


def test_another_architecture(llama: Any, written: Any) -> None:
    found = compared(written("a", llama(0)), written("b", llama(1), {"model_type": "mistral"}))
    (one,) = found.findings
    assert (one.code, one.severity) == ("architecture", "error")
    assert one.problem == "b is a mistral (model_type), a is a llama."


def test_another_class_of_one_architecture_is_a_note(llama: Any, written: Any) -> None:
    found = compared(written("a", llama(0)), written("b", llama(1), {"architectures": ["LlamaModel"]}))
    assert [(one.code, one.severity) for one in found.findings] == [("classes", "note")]


def test_entries_of_the_config(llama: Any, written: Any) -> None:
    mine = {"rope_theta": 1e4, "rope_scaling": {"factor": 2}, "attention_dropout": 0.0, "eos_token_id": 1, "extra": 1}
    theirs = {"rope_theta": 5e5, "rope_scaling": {"factor": 4}, "attention_dropout": 0.1, "eos_token_id": 2}
    found = compared(written("a", llama(0), mine), written("b", llama(1), theirs))
    assert codes(found) == ["config"]
    (one,) = (one for one in found.findings if one.code == "config")
    assert one.where == ("config.json: rope_scaling.factor", "config.json: rope_theta")
    assert "rope_theta 500000.0 (there 10000.0)" in one.problem
    assert [one.code for one in found.findings if one.severity == "note"] == ["config-entries"]


def test_another_width(llama: Any, written: Any) -> None:
    found = compared(written("a", llama(0)), written("b", llama(1, hidden=16), {"hidden_size": 16}))
    assert codes(found) == ["config", "shapes"]
    (one,) = (one for one in found.findings if one.code == "shapes")
    assert "'model.layers.0.input_layernorm.weight' is F32 [16] in" in one.problem
    assert "model.safetensors, and F32 [32] in a" in one.problem
    assert LAYER in one.where
    assert "shapes" not in ALLOW


def test_missing_tensors_are_named_with_their_file(llama: Any, written: Any) -> None:
    tensors = llama(1)
    a = written("a", llama(0))
    del tensors[LAYER]
    found = compared(a, written("b", tensors))
    assert codes(found) == ["tensors"]
    assert found.findings[0].problem == f"{LAYER}: missing in b ({a / 'model.safetensors'})."
    other = compared(written("c", tensors), a)
    assert codes(other) == ["tensors"]
    assert other.left_out == (LAYER,)


def test_another_number_of_layers(llama: Any, written: Any) -> None:
    found = compared(written("a", llama(0)), written("b", llama(1, layers=2), {"num_hidden_layers": 2}))
    assert codes(found) == ["config", "tensors"]
    assert "and 6 more" in next(one.problem for one in found.findings if one.code == "tensors")


def test_names_with_another_beginning(llama: Any, written: Any) -> None:
    bare = {name.removeprefix("model."): value for name, value in llama(1).items() if name != "lm_head.weight"}
    found = compared(written("a", llama(0)), written("b", bare))
    assert codes(found) == []  # the head is copied from the template
    assert found.renamed == {name: f"model.{name}" for name in bare}
    assert [(one.code, one.severity) for one in found.findings] == [("names", "note"), ("heads", "note")]
    assert "named with 'model.' in front" in found.findings[0].problem
    turned = compared(written("c", bare), written("d", llama(0)))
    assert codes(turned) == ["heads"] and turned.left_out == ("lm_head.weight",)
    assert "saved by other classes" in turned.findings[0].problem


def with_head(tensors: dict[str, np.ndarray], name: str, labels: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(labels)
    return {**tensors, f"{name}.weight": draw.standard_normal((labels, 32)).astype(np.float32)}


@pytest.mark.parametrize("name", ["score", "classifier", "2_Dense.linear", "qa_outputs"])
def test_heads_of_other_sizes(name: str, llama: Any, written: Any) -> None:
    a, b = (written(who, with_head(llama(0), name, labels)) for who, labels in (("a", 3), ("b", 5)))
    found = compared(a, b)
    assert codes(found) == ["heads"]
    assert found.apart == {f"{name}.weight"}


def test_heads_on_one_side(llama: Any, written: Any) -> None:
    a, b = written("a", llama(0)), written("b", with_head(llama(1), "score", 3))
    assert codes(compared(a, b)) == codes(compared(b, a)) == ["heads"]
    assert compared(a, b).left_out == ("score.weight",)
    assert compared(b, a).left_out == ()


def test_heads_for_other_labels(llama: Any, written: Any) -> None:
    def labelled(who: str, *labels: str) -> Path:
        config = {"id2label": {str(number): label for number, label in enumerate(labels)}}
        folder: Path = written(who, with_head(llama(0), "score", 2), config)
        return folder

    a, b, plain = labelled("a", "bad", "good"), labelled("b", "cat", "dog"), labelled("c", "LABEL_0", "LABEL_1")
    found = compared(a, b)
    assert codes(found) == ["heads"]
    assert found.findings[0].problem == "b has a head for other labels (cat, dog) than a (bad, good)."
    assert found.apart == {"score.weight"}
    assert codes(compared(a, plain)) == codes(compared(a, a)) == []


TIED = {"tie_word_embeddings": True}


def test_a_tied_head_that_is_stored_on_one_side(llama: Any, written: Any) -> None:
    tensors = llama(0)
    stored = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
    shared = {name: value for name, value in tensors.items() if name != "lm_head.weight"}
    a, b = written("a", stored, TIED), written("b", shared, TIED)
    found = compared(a, b)
    assert [(one.code, one.severity) for one in found.findings] == [("tied", "note")]
    assert found.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    turned = compared(b, a)
    assert [(one.code, one.severity) for one in turned.findings] == [("tied", "note")]
    assert turned.aliases == {}
    assert turned.left_out == ("lm_head.weight",)


def test_a_head_of_its_own_against_a_tied_one(llama: Any, written: Any) -> None:
    shared = {name: value for name, value in llama(1).items() if name != "lm_head.weight"}
    a, b = written("a", llama(0)), written("b", shared, TIED)
    found = compared(a, b)
    assert codes(found) == codes(compared(b, a)) == ["tied"]
    assert found.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    assert found.findings[-1].problem.startswith("a has a 'lm_head.weight' of its own; in b it is tied to")


def test_an_output_layer_that_is_simply_missing(llama: Any, written: Any) -> None:
    shared = {name: value for name, value in llama(1).items() if name != "lm_head.weight"}
    found = compared(written("a", llama(0)), written("b", shared))  # its config says that nothing is tied
    assert codes(found) == ["heads"]


def test_vocabularies_of_other_sizes(llama: Any, written: Any) -> None:
    a, b = written("a", llama(0)), written("b", llama(1, vocabulary=100), {"vocab_size": 100})
    found = compared(a, b)
    assert codes(found) == ["vocabulary"]
    assert found.apart == {"model.embed_tokens.weight", "lm_head.weight"}


def test_buffers_are_the_templates(llama: Any, written: Any) -> None:
    numbers = np.arange(5)
    a = written("a", {**llama(0), "position_ids": numbers, "mask": np.array([True, False])})
    b = written("b", {**llama(1), "position_ids": numbers + 1, "mask": np.array([True, False])})
    c = written("c", llama(2))
    (one,) = compared(a, b).findings
    assert (one.code, one.severity, one.where) == ("buffers", "note", ("position_ids",))
    assert codes(compared(a, c)) == codes(compared(c, a)) == []
    d = written("d", {**llama(1), "position_ids": numbers.astype(np.float32), "mask": np.array([True, False])})
    assert codes(compared(a, d)) == ["shapes"]  # a number format of another kind


def test_real_checkpoints(tiny_bert: Path, tiny_classifier: Path, tiny_gpt2: Path) -> None:
    found = compared(tiny_bert, tiny_classifier)
    assert codes(found) == ["heads"]  # the classifier's, which the template lacks
    assert any("'bert.' in front" in one.problem for one in found.findings)
    assert "architecture" in codes(compared(tiny_bert, tiny_gpt2))
    assert compared(tiny_bert, tiny_bert) == Comparison()


@pytest.fixture
def tokenizers(tiny_bert: Path, copy_of: Any) -> Any:
    """A function that copies tiny_bert and changes its tokenizer.json."""

    def make(name: str, change: Any) -> Path:
        folder: Path = copy_of(tiny_bert, name)
        content = json.loads((folder / "tokenizer.json").read_text())
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))
        return folder

    return make


def test_tokens_that_are_numbered_otherwise(tiny_bert: Path, tokenizers: Any) -> None:
    def swap(content: Any) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]

    found = differences(tiny_bert, tokenizers("swapped", swap))
    assert len(found.tokens) == 1
    assert found.tokens[0].startswith("2 tokens have other numbers ('cat': ")

    def rename(content: Any) -> None:
        content["model"]["vocab"]["kitten"] = content["model"]["vocab"].pop("cat")

    words = differences(tiny_bert, tokenizers("renamed", rename)).tokens
    assert words == ("1 tokens are missing ('cat')", "1 tokens are new ('kitten')")


def test_added_tokens_count(tiny_bert: Path, tokenizers: Any) -> None:
    def add(content: Any) -> None:
        content["added_tokens"].append({"id": 999, "content": "<|end|>", "special": True})

    assert differences(tiny_bert, tokenizers("added", add)).tokens == ("1 tokens are new ('<|end|>')",)


def test_the_same_tokens_in_another_file_are_the_same(tiny_bert: Path, tokenizers: Any) -> None:
    def rewrite(content: Any) -> None:
        content["model"]["vocab"] = dict(reversed(content["model"]["vocab"].items()))
        content["truncation"] = {"max_length": 5}

    assert differences(tiny_bert, tokenizers("rewritten", rewrite)) == differences(tiny_bert, tiny_bert)


def test_merges_written_the_old_way_are_the_same(tmp_path: Path) -> None:
    for name, merges in (("a", ["a b", "ab c"]), ("b", [["a", "b"], ["ab", "c"]]), ("c", [["a", "b"], ["b", "c"]])):
        (tmp_path / name).mkdir()
        content = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}, "merges": merges}}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(content))
    assert differences(tmp_path / "a", tmp_path / "b").tokens == ()
    assert differences(tmp_path / "a", tmp_path / "c").tokens == (
        "its rules to cut words differ from number 1 on (2 rules, there 2)",
    )


def test_settings_of_a_tokenizer_are_told_apart(tiny_bert: Path, tokenizers: Any, edited: Any) -> None:
    def lower(content: Any) -> None:
        content["normalizer"]["lowercase"] = False

    folder = edited(tokenizers("cased", lower), "tokenizer_config.json", sep_token="[END]", chat_template="{{ x }}")
    found = differences(tiny_bert, folder)
    assert found.tokens == ()
    assert found.settings == ("normalizer differs", "sep_token is '[END]', there '[SEP]'", "the chat template differs")


def test_tokenizers_without_json(tmp_path: Path) -> None:
    for name, content in (("a", "x\ny\nz\n"), ("b", "x\nv\nz\n"), ("c", "x\ny\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocab.txt").write_text(content)
    assert differences(tmp_path / "a", tmp_path / "a").tokens == ()
    assert differences(tmp_path / "a", tmp_path / "b").tokens == ("vocab.txt differs from line 2 on ('v', there 'y')",)
    assert differences(tmp_path / "a", tmp_path / "c").tokens == ("vocab.txt has 2 lines, there 3",)
    (tmp_path / "d").mkdir()
    (found,) = differences(tmp_path / "a", tmp_path / "d").settings
    assert found == "it is stored as nothing, there as vocab.txt, which cannot be compared"
    assert differences(tmp_path / "d", tmp_path / "d").settings == ()


def test_weights_are_not_read(llama: Any, written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two floating-point checkpoints of one kind are compared by their headers alone."""
    a, b = (open_weights(str(written(name, llama(seed)))) for seed, name in enumerate("ab"))

    def fail(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("regraft.merge.checks.compatible.raw_values", fail)
    monkeypatch.setattr("regraft.merge.checks.tied.raw_values", fail)
    assert isinstance(a, Weights)
    assert compare(a, b, "b", "a").findings == ()
