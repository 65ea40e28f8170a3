"""tokenizer_id: equal for equal tokenizers however they are written, different when a token changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from regraft.zoo.record import read_record


@pytest.fixture
def whole(tiny_bert: Path) -> dict[str, Any]:
    """The content of a WordPiece tokenizer.json."""
    return dict(json.loads((tiny_bert / "tokenizer.json").read_text()))


def id_of(folder: Path, content: Any, **options: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text(json.dumps(content, **options))
    Tokenizer.from_file(str(folder / "tokenizer.json"))  # it is one
    found = read_record(folder).tokenizer_id
    assert found is not None
    return found


def test_formatting_and_padding_state_do_not_count(tmp_path: Path, whole: dict[str, Any]) -> None:
    first = id_of(tmp_path / "a", whole)
    assert id_of(tmp_path / "b", whole, indent=4) == first
    assert id_of(tmp_path / "c", dict(reversed(whole.items())), ensure_ascii=False) == first
    tokenizer = Tokenizer.from_file(str(tmp_path / "a" / "tokenizer.json"))
    tokenizer.enable_padding(length=7)
    tokenizer.enable_truncation(5)
    assert id_of(tmp_path / "d", json.loads(tokenizer.to_str())) == first
    assert read_record(tmp_path / "a").tokenizer == "WordPiece"


def _swap(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "vocabulary": _swap,
    "normaliser": lambda content: content["normalizer"].update(lowercase=False),
    "pre-tokenizer": lambda content: content.update(pre_tokenizer={"type": "Whitespace"}),
    "special tokens around": lambda content: content.update(post_processor=None),
    "added token": lambda content: content["added_tokens"].append(
        {
            "id": 999,
            "content": "zzz",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ),
    "option": lambda content: content["model"].update(max_input_chars_per_word=3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_decides_tokens_counts(tmp_path: Path, whole: dict[str, Any], change: str) -> None:
    first = id_of(tmp_path / "a", whole)
    changed = json.loads(json.dumps(whole))
    CHANGES[change](changed)
    assert id_of(tmp_path / "b", changed) != first


def test_both_ways_to_write_merges(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    old = id_of(tmp_path / "a", {"model": model, "added_tokens": []})
    assert id_of(tmp_path / "b", {"model": model | {"merges": [["a", "b"]]}, "added_tokens": []}) == old
    assert id_of(tmp_path / "c", {"model": model | {"merges": []}, "added_tokens": []}) != old
    assert (
        id_of(tmp_path / "d", {"model": model | {"byte_fallback": False, "dropout": None}, "added_tokens": []}) == old
    )


def files_id(folder: Path, files: dict[str, bytes | str]) -> str | None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_record(folder).tokenizer_id


def test_vocabulary_files(tmp_path: Path) -> None:
    words = files_id(tmp_path / "a", {"vocab.txt": "[UNK]\ncat\ndog\n"})
    assert words is not None
    assert files_id(tmp_path / "b", {"vocab.txt": "[UNK]\r\ncat\r\ndog"}) == words
    assert files_id(tmp_path / "c", {"vocab.txt": "[UNK]\ndog\ncat\n"}) != words
    assert (
        files_id(
            tmp_path / "d", {"vocab.txt": "[UNK]\ncat\ndog\n", "tokenizer_config.json": '{"do_lower_case": false}'}
        )
        != words
    )
    piece = files_id(tmp_path / "e", {"spiece.model": b"\x0a\x00\xff"})
    assert files_id(tmp_path / "f", {"tokenizer.model": b"\x0a\x00\xff"}) == piece
    pairs = files_id(tmp_path / "g", {"vocab.json": '{"a": 0, "b": 1}', "merges.txt": "#version: 0.2\na b\n"})
    assert files_id(tmp_path / "h", {"vocab.json": '{"b":1,\n"a":0}', "merges.txt": "a b"}) == pairs
    assert pairs not in (words, piece)
