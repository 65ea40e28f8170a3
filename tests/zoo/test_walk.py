"""One walker over folders: what is found, and what goes wrong on the way."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

import pytest

import regraft.zoo
from regraft.zoo import discover
from regraft.zoo.walk import Unreadable, looks_like_checkpoint, walk


def put(root: Path, *files: str) -> None:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def found(root: Path, **options: Any) -> list[str]:
    troubles: list[Unreadable] = []
    names = [str(Path(one).relative_to(root)) for one in walk([root], troubles, **options)]
    assert not troubles
    return names


def test_both_views_of_a_folder_call_the_same_things_checkpoints(tmp_path: Path) -> None:
    put(
        tmp_path, "config/config.json", "index/pytorch_model.bin.index.json", "gguf/x.gguf", "onnx/y.onnx", "lone/z.safetensors",
        "adapter/adapter_config.json", "modules/modules.json", "notes/readme.md", ".hidden/config.json", "kept/a.gguf",
        "kept/b/config.json",
    )  # fmt: skip
    every = ["adapter", "config", "gguf", "index", "kept/b", "lone", "modules", "onnx"]
    assert found(tmp_path) == every
    assert [str(one.folder.relative_to(tmp_path)) for one in discover.in_folder(tmp_path)] == every
    assert [name for name in (*every, "notes", "kept", "none") if looks_like_checkpoint(tmp_path / name)] == every


def test_what_trainers_saved_is_found_where_it_is_wanted(tmp_path: Path) -> None:
    put(tmp_path, "run/config.json", "run/checkpoint-500/config.json", "run/encoder/config.json")
    assert found(tmp_path) == ["run", "run/checkpoint-500"]
    assert found(tmp_path, saved=False) == ["run"]
    assert [one.folder for one in discover.in_folder(tmp_path)] == [tmp_path / "run"]


def test_links_and_loops_end_and_nothing_is_found_twice(tmp_path: Path) -> None:
    put(tmp_path, "a/config.json")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").symlink_to(tmp_path / "nowhere")
    assert found(tmp_path) == ["a"]


def test_what_cannot_be_listed_or_vanishes_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a/config.json", "closed/config.json", "gone/config.json", "z/config.json")
    scan = os.scandir

    def hindered(folder: Any) -> Any:
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied")
        if Path(folder).name == "a":
            (tmp_path / "gone" / "config.json").unlink()
            (tmp_path / "gone").rmdir()
        return scan(folder)

    monkeypatch.setattr(os, "scandir", hindered)
    troubles: list[Unreadable] = []
    assert [one.folder.name for one in discover.in_folder(tmp_path, troubles)] == ["a", "z"]
    assert troubles == [Unreadable(str(tmp_path / "closed"), "cannot be listed: Permission denied")]


def test_a_folder_costs_one_status_and_files_cost_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        put(tmp_path, *(f"m{number}/{name}" for name in ("config.json", "model.safetensors", "a.txt", "b.bin")))
    asked: list[str] = []
    status = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **how: asked.append(str(path)) or status(path, **how))
    assert len(list(walk([tmp_path], []))) == 20
    assert len(asked) == 21


def test_there_is_one_walker() -> None:
    """Only the walker, and the listing of one checkpoint's own files, list folders of a zoo."""
    root = Path(regraft.zoo.__file__).parent
    listing = {
        str(path.relative_to(root)) for path in root.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("scandir", "iterdir", "listdir")
    }  # fmt: skip
    assert listing == {"walk.py", "record/listing.py"}
