"""Whatever the small files hold, a record comes back, and its text can be stored and printed."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.zoo.record import Record, read_record
from regraft.zoo.record import folder as folder_module
from regraft.zoo.record.deep import deep_risks
from regraft.zoo.record.risks import CODES

SMALL = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt",
    "modules.json", "sentence_bert_config.json", "adapter_config.json", "regraft.json", "mergekit_config.yml", "README.md",
    "LICENSE",
    "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors",
)  # fmt: skip
# Names that mean something somewhere, so that random values get past the first look.
KEYS = st.sampled_from([
    "model_type", "architectures", "num_hidden_layers", "hidden_size", "n_embd", "id2label", "text_config", "pad_token_id", "0",
    "tie_word_embeddings", "quantization_config", "auto_map", "model", "vocab", "merges", "added_tokens", "content", "type",
    "path",
    "license", "license_name", "base_model", "base_model_relation", "model-index", "results", "metrics", "value", "name", "task",
    "dataset", "datasets", "language", "tags", "co2_eq_emissions", "emissions", "hours_used", "parents", "reference", "labels",
    "weight_map", "base_model_name_or_path", "r", "model_max_length", "max_seq_length", "slices", "sources", "do_lower_case",
])  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=6),
    max_leaves=20,
)
ARCHITECTURE = {"architectures": ["BertForSequenceClassification"], "model_type": "roberta"}


def text_of(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, one in value.items() for text in (*text_of(key), *text_of(one))]
    return [text for one in value for text in text_of(one)] if isinstance(value, list | tuple) else []


def check(record: Record) -> None:
    assert record.kind in ("checkpoint", "adapter", "unreadable")
    assert "could not be recorded" not in " ".join(risk.problem for risk in record.risks)
    assert {risk.code for risk in record.risks} <= CODES.keys()
    for text in text_of(dataclasses.asdict(record)):
        text.encode("utf-8")
        assert text.isprintable()
    json.dumps(dataclasses.asdict(record), allow_nan=False)
    assert 0 <= record.completeness <= 1


def write(folder: Path, name: str, data: bytes) -> None:
    (folder / "config.json").write_text("{}")
    (folder / name).write_bytes(data)


@settings(max_examples=150)
@given(name=st.sampled_from(SMALL), data=st.binary(max_size=300))
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, name: str, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    write(folder, name, data)
    check(read_record(folder))
    deep_risks(folder)


@settings(max_examples=300)
@given(name=st.sampled_from(SMALL), value=VALUES)
def test_random_values(tmp_path_factory: pytest.TempPathFactory, name: str, value: Any) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    text = json.dumps({**ARCHITECTURE, **value} if isinstance(value, dict) and name == "config.json" else value)
    if name == "README.md":
        text = f"---\n{text}\n---\n# Uses\n"
    data = text.encode()
    if name.endswith(".safetensors"):
        data = len(data).to_bytes(8, "little") + data
    write(folder, name, data)
    check(read_record(folder))


@settings(max_examples=100)
@given(text=st.text())
def test_random_text_in_a_card(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    write(folder, "README.md", f"---\nlicense: |\n  {text}\ntags: [{text}]\n---\n# Uses\n{text}".encode())
    check(read_record(folder))


@pytest.mark.parametrize("name", [name for name in SMALL if name.endswith((".json", ".yml", ".md"))])
@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"a":' * 200_000, "9" * 10_000, '"\\ud800\\u0000"', "NaN", "null", "[]"]
)
def test_deep_and_odd_json(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, name, f"---\n{text}\n---\n".encode() if name == "README.md" else text.encode())
    check(read_record(tmp_path))


@pytest.fixture
def no_hang() -> Iterator[None]:
    """What would take hours ends the test after a minute."""

    def stop(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


SIZE = 2**20


@pytest.mark.parametrize(
    "text",
    [
        "# a" + " " * SIZE + "b",
        "# Uses\n-" + " " * SIZE + "x",
        "# Uses\n- a" + " " * SIZE + "b",
        "# Uses\n" + "<!--" * (SIZE // 4),
        "# Uses\n" + "(http://" * (SIZE // 8),
        "# Uses\n" + "(http://x" + "(a)" * (SIZE // 3),
        "# uses\n" * (SIZE // 7),
        "- Carbon Emitted: " + "1" * SIZE,
        "- Hours used:" + " " * SIZE,
        "---\n" + "- \n" * (SIZE // 3),
    ],
    ids=["heading", "field", "label", "comments", "links", "brackets", "headings", "number", "blanks", "metadata"],
)
def test_text_that_is_made_to_take_for_ever(tmp_path: Path, text: str, no_hang: None) -> None:
    write(tmp_path, "README.md", text.encode())
    check(read_record(tmp_path))


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "config.json", "model.safetensors"])
def test_more_values_than_any_file_of_a_model_has(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of empty lists takes 3 bytes each in the file, and 64 in memory."""
    monkeypatch.setattr(folder_module, "MOST_CONTAINERS", 100_000)
    loads = json.loads

    def small_only(text: str | bytes, **more: Any) -> Any:
        assert len(text) < 10_000, "it was read"
        return loads(text, **more)

    monkeypatch.setattr(json, "loads", small_only)
    data = b'{"model": [' + b"[]," * 500_000 + b"[]]}"
    write(tmp_path, name, len(data).to_bytes(8, "little") + data if name.endswith(".safetensors") else data)
    record = read_record(tmp_path)
    check(record)
    assert ("too-large" in {risk.code for risk in record.risks}) == (name != "vocab.json")
