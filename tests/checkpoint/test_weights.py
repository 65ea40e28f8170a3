"""Weights: headers without torch, values of every stored format, in parts, wherever in the file they begin."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from regraft.checkpoint import weights
from regraft.checkpoint.headers import TensorInfo, read_header
from regraft.checkpoint.weights import open_weights, raw_values, read_values
from regraft.errors import BadReferenceError, CheckpointError, RegraftError

KINDS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def file_of(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, TensorInfo]:
    """A safetensors file in the very order given: an odd number of bytes puts what follows out of step."""
    header, data = {}, b""
    names = {dtype: name for name, dtype in KINDS.items()} | {torch.complex64: "C64"}
    for name, values in tensors.items():
        raw = values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b""
        header[name] = {
            "dtype": names[values.dtype], "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)],
        }  # fmt: skip
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return read_header(path)


@pytest.mark.parametrize("before", [0, 1, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_wherever_it_begins(kind: str, before: int, tmp_path: Path) -> None:
    values = (torch.arange(-5, 30).reshape(5, 7) * 3 % 11).to(KINDS[kind])
    found = file_of(tmp_path / "x.safetensors", {"pad": torch.ones(before, dtype=torch.bool), "x": values})["x"]
    expected = values.to(torch.float32).numpy().reshape(-1)
    assert np.array_equal(read_values(found), expected)
    assert read_values(found).dtype == np.float32
    assert np.array_equal(read_values(found, 3, 9), expected[3:9])
    assert np.array_equal(read_values(found, 33), expected[33:])
    assert raw_values(found).tobytes() == values.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (1, 1)])
def test_numbers_and_empty_tensors(shape: tuple[int, ...], tmp_path: Path) -> None:
    found = file_of(tmp_path / "x.safetensors", {"x": torch.full(shape, 2.5), "y": torch.zeros(1)})["x"]
    assert found.shape == shape
    assert np.array_equal(read_values(found), np.full(int(np.prod(shape)), 2.5, np.float32))


def test_a_file_of_nothing_but_empty_tensors(tmp_path: Path) -> None:
    found = file_of(tmp_path / "x.safetensors", {"x": torch.zeros(0, 4)})["x"]
    assert raw_values(found).shape == read_values(found).shape == (0,)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=40))
def test_bfloat16_is_read_to_the_bit(tmp_path_factory: pytest.TempPathFactory, words: list[int]) -> None:
    bits = torch.from_numpy(np.array(words, np.uint16).view(np.int16)).view(torch.bfloat16)
    found = file_of(tmp_path_factory.mktemp("bits") / "x.safetensors", {"x": bits})["x"]
    assert [int(word) for word in read_values(found).view(np.uint32)] == [word << 16 for word in words]


def test_complex_numbers_can_be_copied(tmp_path: Path) -> None:
    values = torch.complex(torch.arange(3.0), -torch.arange(3.0))
    found = file_of(tmp_path / "x.safetensors", {"x": values})["x"]
    assert np.array_equal(raw_values(found), values.numpy())


def test_a_checkpoint(tiny_bert: Path) -> None:
    found = open_weights(str(tiny_bert))
    header = read_header(tiny_bert / "model.safetensors")
    assert (found.reference, found.folder, found.encoder_folder) == (str(tiny_bert), tiny_bert, tiny_bert)
    assert (found.tensors, found.adapter, found.num_layers) == (header, None, 4)
    assert found.config["model_type"] == "bert"
    assert found.files == {tiny_bert / "model.safetensors"}
    assert found.bytes == sum(info.nbytes for info in header.values())


def test_a_checkpoint_with_an_adapter(tiny_bert: Path, tiny_adapter: Path) -> None:
    found = open_weights(f"{tiny_bert}+{tiny_adapter}")
    assert found.adapter is not None and found.adapter.folder == tiny_adapter
    assert found.files == {tiny_bert / "model.safetensors", tiny_adapter / "adapter_model.safetensors"}
    assert found.file_id != open_weights(str(tiny_bert)).file_id


def test_modules_of_a_sentence_transformer(tiny_bert: Path, copy_of: Any) -> None:
    folder = copy_of(tiny_bert)
    types = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
    (folder / "modules.json").write_text(json.dumps([
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (path, kind) in enumerate(types)
    ]))  # fmt: skip
    for name in ("1_Pooling", "2_Dense"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    save_file({"linear.weight": torch.ones(2, 32)}, folder / "2_Dense" / "model.safetensors")
    found = open_weights(str(folder))
    assert found.tensors["2_Dense.linear.weight"].file == folder / "2_Dense" / "model.safetensors"
    assert found.num_layers == 4


@pytest.mark.parametrize("fragment", ["#layers=2", "#random=0"])
def test_a_part_of_a_model_is_refused(fragment: str, tiny_bert: Path) -> None:
    with pytest.raises(BadReferenceError, match=r"a part of a model, or for random weights.*drop the #"):
        open_weights(f"{tiny_bert}{fragment}")


def test_what_is_not_there_is_named(tmp_path: Path, tiny_bert: Path, copy_of: Any) -> None:
    with pytest.raises(BadReferenceError, match="nowhere"):
        open_weights(str(tmp_path / "nowhere"))
    empty = copy_of(tiny_bert)
    (empty / "model.safetensors").unlink()
    with pytest.raises(RegraftError, match=str(empty)):
        open_weights(str(empty))


def test_the_file_id_follows_the_file(tiny_bert: Path, copy_of: Any) -> None:
    folder = copy_of(tiny_bert)
    before = open_weights(str(folder)).file_id
    assert open_weights(str(folder)).file_id == before
    os.utime(folder / "model.safetensors", ns=(0, 12345))
    assert open_weights(str(folder)).file_id != before


def test_a_file_that_became_shorter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    found = file_of(path, {"x": torch.ones(100)})["x"]
    read_values(found)
    with path.open("r+b") as file:
        file.truncate(found.end - 4)
    with pytest.raises(CheckpointError, match=r"x\.safetensors became shorter while it was read"):
        read_values(found)


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    assert read_values(file_of(path, {"x": torch.ones(3)})["x"]).tolist() == [1, 1, 1]
    other = tmp_path / "other"
    file_of(other, {"x": torch.full((3,), 2.0)})
    shutil.move(other, path)
    os.utime(path, ns=(0, 777))
    assert read_values(read_header(path)["x"]).tolist() == [2, 2, 2]


def test_files_are_let_go(tmp_path: Path) -> None:
    """Mapped files are open files: letting go closes them, but not under an array that is in use."""

    def opened() -> int:
        return len([*Path("/dev/fd").iterdir()])

    weights.let_go()
    before = opened()
    found = [file_of(tmp_path / f"{at}", {"x": torch.full((4,), float(at))})["x"] for at in range(5)]
    in_use = [raw_values(one) for one in found]
    assert opened() == before + 5
    weights.let_go()
    assert [array.tolist() for array in in_use] == [[float(at)] * 4 for at in range(5)]
    del in_use
    assert opened() == before
    assert read_values(found[3]).tolist() == [3.0] * 4
    weights.let_go()


def test_it_is_opened_without_torch(tiny_bert: Path, tiny_adapter: Path) -> None:
    code = (
        "import sys\nfrom regraft.checkpoint.weights import open_weights, read_values\n"
        f"found = open_weights({f'{tiny_bert}+{tiny_adapter}'!r})\n"
        "assert all(read_values(one).size == one.elements for one in found.tensors.values())\n"
        "print([name for name in ('torch', 'transformers', 'peft', 'numba') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
