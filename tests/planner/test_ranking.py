"""`regraft rank` on zoos and devices that are not as they should be: what cannot be used is left out, with the reason."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from regraft.errors import CheckpointError, RegraftError
from regraft.planner.ranking import rank_zoo, selfcheck_history
from regraft.progress import Progress
from regraft.store import Store


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def looped(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")


def nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = sorted(tensors)[-1]
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def piped(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")


# What is wrong with a checkpoint, and words of the reason for which it is left out.
SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "link loop": (looped, "links lead in a circle"),
    "header": (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "claims a header of"),
    "folder for weights": (
        lambda folder: [(folder / "model.safetensors").unlink(), (folder / "model.safetensors").mkdir()], "cannot be read",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer"),
    "tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("[]"), "tokenizer"),
    "images": (lambda folder: edited(folder / "config.json", model_type="vit"), "takes images, a task here has texts"),
    "nan": (nan, "NaN"),
    "no tensors": (
        lambda folder: (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}"), "holds no tensor",
    ),
    "null": (lambda folder: (folder / "config.json").write_text("null"), "expected an object"),
    "sizes": (
        lambda folder: (folder / "config.json").write_text(
            (folder / "config.json").read_text().replace('"hidden_size": 32', '"hidden_size": NaN')
        ),
        "config.json",
    ),
    "pipe": (piped, "no regular file"),
    "pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "only as a pickle",
    ),
    "other weights": (lambda folder: edited(folder / "config.json", num_hidden_layers=9), ""),
}  # fmt: skip


def test_spoilt_checkpoints_are_left_out_each_with_its_reason_and_the_rest_is_ranked(
    tiny_bert: Path, tiny_gpt2: Path, toy_task_files: Path, tmp_path: Path
) -> None:
    """One that is copied byte for byte is ranked beside the first, and said to be the same."""
    zoo = tmp_path / "zoo"
    for name, (spoil, _) in SPOILT.items():
        spoil(Path(shutil.copytree(tiny_bert, zoo / name)))
    for name in ("bert", "sub/bert", "twin"):
        shutil.copytree(tiny_bert, zoo / name)
    shutil.copytree(tiny_gpt2, zoo / "gpt")
    found = rank_zoo(str(toy_task_files), str(zoo), "10m", store=Store(tmp_path / "store"))
    assert {one["checkpoint"] for one in found["ranking"]} == {"bert", "sub-bert", "twin", "gpt", "bert-random"}
    left_out = {Path(one["reference"]).name: one for one in found["left_out"]}
    assert left_out.keys() == SPOILT.keys()
    for name, (_, words) in SPOILT.items():
        assert words in left_out[name]["problem"] and left_out[name]["remedy"], (name, left_out[name])
    assert [sorted(one) for one in found["same_weights"]] == [["bert", "sub-bert", "twin"]]


def test_a_device_that_is_not_there_is_no_fault_of_the_checkpoints(toy_task_files: Path) -> None:
    with pytest.raises(RegraftError, match=r"There is no device 'tpu' here. Choose one of cpu"):
        rank_zoo(str(toy_task_files), "no/such/zoo", "1m", device="tpu")


def test_one_remedy_of_all_is_the_remedy(tiny_bert: Path, toy_task_files: Path, tmp_path: Path) -> None:
    spoilt = Path(shutil.copytree(tiny_bert, tmp_path / "spoilt"))
    (spoilt / "tokenizer.json").write_text("[]")
    with pytest.raises(CheckpointError, match="No checkpoint can be ranked") as caught:
        rank_zoo(str(toy_task_files), str(spoilt), "1m", store=Store(tmp_path / "store"))
    assert caught.value.problem.count("tokenizer") >= 2 and caught.value.remedy != "Give another zoo."


def test_garbage_in_the_history_is_told(tmp_path: Path) -> None:
    said: list[str] = []

    class Told(Progress):
        def say(self, text: str) -> None:
            said.append(text)

    (tmp_path / "history.jsonl").write_bytes(b"\0" * 100 + b"\n" + b"[" * 100_000)
    with pytest.raises(RegraftError, match="The history holds 0 tasks"):
        selfcheck_history(store=Store(tmp_path), progress=Told())
    assert len(said) == 1 and said[0].startswith(f"2 lines of {tmp_path / 'history.jsonl'} are no results")
