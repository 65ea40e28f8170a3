"""Model cards: metadata that the Hub reads, true figures, and code that runs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from regraft.checkpoint import load_encoder, load_tokenizer, open_checkpoint
from regraft.checkpoint.classifier import TextClassifier, logits_of
from regraft.checkpoint.export import load_classifier, write_classifier
from regraft.checkpoint.quiet import quiet
from regraft.evaluate.card import Made, card
from regraft.task import load_task

FIGURES: dict[str, Any] = {
    "test": {"accuracy": 0.91234, "macro_f1": 0.9, "calibration_error": 0.03,
             "intervals": {"accuracy": [0.88, 0.94], "macro_f1": [0.87, 0.93], "calibration_error": [0.01, 0.05]}},
    "test_rows": 1234, "parameters": 22_713_216, "latency_ms": 3.14159,
}  # fmt: skip
FULL = Made("full", {"batch": 8}, [(100, 0), (20, 20)], 7)


def test_the_metadata_is_what_the_hub_reads(tiny_bert: Path, toy_task_files: Path) -> None:
    parent, task = open_checkpoint(str(tiny_bert)), load_task(str(toy_task_files))
    text = card("tiny-full", "sentence-transformers", parent, task, FULL, FIGURES)
    data = ModelCard(text).data
    assert data.license == "mit"
    assert data.base_model == "someone/parent"
    assert data.library_name == "sentence-transformers"
    assert data.pipeline_tag == "text-classification"
    assert data.model_name == "tiny-full"
    found = {result.metric_type: result.metric_value for result in data.eval_results or []}
    assert found == {"accuracy": 0.9123, "f1": 0.9}
    assert {result.dataset_split for result in data.eval_results or []} == {"test"}


def test_the_text_says_what_was_measured(tiny_bert: Path, toy_task_files: Path) -> None:
    parent, task = open_checkpoint(str(tiny_bert)), load_task(str(toy_task_files))
    text = card("tiny-full", "sentence-transformers", parent, task, FULL, FIGURES)
    for words in ("0.9123 (0.8800 to 0.9400, 95 % interval)", "1,234 test examples", "22,713,216", "3.1 ms", "3 classes",
                  f"`{tiny_bert}`", "regraft verify", "120 steps, seed 7", "Licence: mit"):  # fmt: skip
        assert words in text, words


def test_what_is_not_known_is_said(tiny_gpt2: Path, toy_task_files: Path) -> None:
    parent, task = open_checkpoint(str(tiny_gpt2)), load_task(str(toy_task_files))
    text = card("tiny", "transformers", parent, task, Made("as-is"), {**FIGURES, "latency_ms": None})
    assert "latency of one example here | not measured" in text
    assert "the parent names none" in text
    data = ModelCard(text).data
    assert data.license is None
    assert data.base_model is None  # a folder of this machine is no model of the Hub


def test_a_parent_on_the_hub_is_the_base_model(tiny_gpt2: Path, toy_task_files: Path) -> None:
    parent = replace(open_checkpoint(str(tiny_gpt2)), reference="hf:org/name")
    text = card("tiny", "transformers", parent, load_task(str(toy_task_files)), Made("as-is"), FIGURES)
    assert ModelCard(text).data.base_model == "org/name"


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (Made("as-is"), "nothing was trained."),
        (Made("probe"), "A linear head on the frozen encoder"),
        (Made("full", legs=[(1000, 0), (500, 500)]), "trained together with it. 1,500 steps, seed 0."),
        (Made("lora", legs=[(3, 3)], seed=5), "folded into the weights. 3 steps, seed 5."),
        (Made("theirs"), "Made with the method theirs."),
    ],
)
def test_how_it_was_made_in_words(made: Made, words: str) -> None:
    assert made.sentence().endswith(words) or words in made.sentence()


def run_code(text: str, folder: Path) -> dict[str, Any]:
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    with quiet():
        exec(code.replace("path/to/this/folder", str(folder)), names)
    return names


def test_the_code_of_a_card_runs(tiny_bert: Path, tiny_classifier: Path, toy_task_files: Path, tmp_path: Path) -> None:
    task = load_task(str(toy_task_files))
    parent = open_checkpoint(str(tiny_bert))
    ours = TextClassifier(load_encoder(parent), load_tokenizer(parent), task.label_names, 64).eval()
    stock = load_classifier(open_checkpoint(str(tiny_classifier)))
    for classifier in (ours, stock):
        folder = tmp_path / classifier.format
        folder.mkdir()
        write_classifier(classifier, folder, {})
        names = run_code(card("tiny", classifier.format, parent, task, FULL, FIGURES), folder)
        best = classifier.labels[int(logits_of(classifier, ["some text"])[0].argmax())]
        if classifier is ours:
            assert names["label"] == best
        else:
            assert names["classify"]("some text")[0]["label"] == best
