"""Whole safetensors files: there and back, by a reader written from the documentation, and what is refused."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from regraft.delta.decode import decode_file
from regraft.delta.encode import encode_file
from regraft.delta.layout import MAGIC, preamble, read_layout
from regraft.delta.parents import Parents
from regraft.errors import CheckpointError

WIDTHS = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "C64": 4,
          "I64": 8, "U64": 8, "F64": 8}  # fmt: skip
EXPONENTS = {"F16": (10, 31), "BF16": (7, 255), "F32": (23, 255), "C64": (23, 255), "F64": (52, 2047)}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int32,
          torch.int64, torch.bool, torch.complex64)  # fmt: skip


def written_by_others(path: Path, parent: dict[str, bytes]) -> bytes:
    """A reader in plain Python from docs/zoo_pack.md alone; `parent` has the bytes of its tensors by name."""
    data = path.read_bytes()
    assert data[:8] == b"RgDelta\n" and data[8:12] == (1).to_bytes(4, "little")
    length = int.from_bytes(data[12:16], "little")
    about = json.loads(data[48 : 48 + length])
    head = {"dtype": "U8", "words": about["head_bytes"], "plan": "plain"}
    at, rows = 48 + length, []
    for tensor in [head, *about["tensors"]]:
        width = WIDTHS[tensor["dtype"]]
        step = about["block_bytes"] // width
        for first in range(0, tensor["words"], step):
            row = [int.from_bytes(data[at + 4 * n : at + 4 * n + 4], "little") for n in range(2 + width)]
            rows.append((tensor, first, min(step, tensor["words"] - first), row))
            at += 4 * len(row)
    assert hashlib.sha256(data[48:at]).digest() == data[16:48]
    out = b""
    for tensor, first, count, (check, of_parent, *sizes) in rows:
        width, plan = WIDTHS[tensor["dtype"]], tensor["plan"]
        bits = 8 * width
        assert zlib.crc32(data[at : at + sum(sizes)]) == check
        planes = []
        for size in sizes:
            chunk = data[at : at + size]
            planes.append(bytes(count) if not size else chunk if size == count else zstandard.decompress(chunk))
            at += size
        words = [int.from_bytes(bytes(plane[n] for plane in planes), "big") for n in range(count)]
        theirs = [0] * count
        if "parent" in tensor:
            raw = parent[tensor["parent"][1]][first * width : (first + count) * width]
            assert zlib.crc32(raw) == of_parent
            theirs = [int.from_bytes(raw[n * width : (n + 1) * width], "little") for n in range(count)]
        if plan.endswith("/exponent"):
            mantissa, mask = EXPONENTS[tensor["dtype"]]
            order = sorted(range(count), key=lambda n: theirs[n] >> mantissa & mask)
            words = [word for _, word in sorted(zip(order, words, strict=True))]
        everything, is_float = (1 << bits) - 1, tensor["dtype"] in EXPONENTS

        def number(word: int, flip: int = (1 << bits - 1) - 1, top: int = bits - 1, real: bool = is_float) -> int:
            return word ^ flip if real and word >> top else word

        for n, word in enumerate(words):
            if plan.startswith("subtract"):
                step_ = -(word + 1) // 2 if word & 1 else word // 2
                words[n] = number((number(theirs[n]) + step_) & everything)
            else:
                back = (word >> 1 | word << bits - 1) & everything if is_float else word
                words[n] = back ^ theirs[n] if plan != "plain" else back
        out += b"".join(word.to_bytes(width, "little") for word in words)
    assert at == len(data) and len(out) == about["file"]["bytes"]
    assert hashlib.sha256(out).hexdigest() == about["file"]["sha256"]
    return out


def tensor_bytes(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {
        name: tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        for name, tensor in tensors.items()
    }


def model(seed: int = 0, change: float = 0.0) -> dict[str, torch.Tensor]:
    """A few matrices in float types; `change` is the size of normal noise on them."""
    random = torch.Generator().manual_seed(seed)
    noise = torch.Generator().manual_seed(seed + 1)
    shapes = {"encoder.a.weight": (40, 30), "encoder.a.bias": (30,), "encoder.b.weight": (64, 64)}
    found = {name: 0.05 * torch.randn(shape, generator=random) for name, shape in shapes.items()}
    return {name: value + change * torch.randn(value.shape, generator=noise) for name, value in found.items()}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Files of a base (in a folder of its own) and of a fine-tune, in bfloat16, with metadata and an odd order of names."""
    (tmp_path / "base").mkdir()
    base = {name: value.bfloat16() for name, value in model().items()}
    tuned = {name: value.bfloat16() for name, value in model(change=0.0005).items()} | {"head": torch.arange(7)}
    save_file(base, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    save_file(tuned, tmp_path / "tuned.safetensors", {"format": "pt", "by": "ünïcode"})
    return tmp_path / "base", tmp_path / "tuned.safetensors"


@st.composite
def tensors(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A child and a parent of any dtypes: scalars, nothing, one element, odd sizes; some have no counterpart."""
    child, parent = {}, {}
    for number in range(draw(st.integers(0, 4))):
        dtype = draw(st.sampled_from(DTYPES))
        shape = draw(st.sampled_from([(), (0,), (1,), (3,), (17,), (5, 7), (2, 0, 3), (129,)]))
        size = int(np.prod(shape)) * torch.empty((), dtype=dtype).element_size()
        raw = draw(st.binary(min_size=size, max_size=size))  # every NaN and every sign of zero
        if dtype is torch.bool:
            raw = bytes(byte & 1 for byte in raw)
        name = f"part.{number}.weight"
        made = torch.frombuffer(bytearray(raw), dtype=dtype) if size else torch.empty(0, dtype=dtype)
        child[name] = made.reshape(shape)
        relation = draw(st.sampled_from(("same", "near", "other", "none")))
        if relation == "none":
            continue
        near = bytearray(raw)
        if relation == "other" or dtype is torch.bool:
            near = bytearray(bytes(size))
        elif relation == "near" and size:
            near[draw(st.integers(0, size - 1))] ^= 1
        made = torch.frombuffer(near, dtype=dtype) if size else torch.empty(0, dtype=dtype)
        parent[name] = made.reshape(shape)
    return child, parent


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors(), st.sampled_from([8, 64, 1000, 2**20]), st.sampled_from([1, 2, 3]))
def test_any_tensors_come_back(
    tmp_path: Path, both: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]], block_bytes: int, workers: int
) -> None:
    child, parent = both
    (tmp_path / "base").mkdir(exist_ok=True)
    save_file(parent | {"always": torch.ones(1)}, tmp_path / "base" / "model.safetensors")
    source, packed, again = (tmp_path / name for name in ("child.safetensors", "packed", "again.safetensors"))
    save_file(child, source, {"format": "pt"})
    parents = Parents(tmp_path / "base")
    coded = encode_file(source, packed, parents, "model.safetensors", workers=workers, block_bytes=block_bytes)
    assert decode_file(packed, again, parents, workers=workers) == coded.sha256
    assert again.read_bytes() == source.read_bytes()
    assert coded.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert coded.packed_bytes == packed.stat().st_size
    assert written_by_others(packed, tensor_bytes(parent)) == source.read_bytes()
    once = packed.read_bytes()
    encode_file(source, packed, parents, "model.safetensors", workers=1, block_bytes=block_bytes)
    assert packed.read_bytes() == once
    back = load_file(again)
    assert {name: (value.dtype, value.shape) for name, value in back.items()} == {
        name: (value.dtype, value.shape) for name, value in child.items()
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_plan_of_a_fine_tune_is_read_by_others(dtype: torch.dtype, tmp_path: Path, monkeypatch: Any) -> None:
    """Whatever the sample chooses: each plan in turn."""
    from regraft.delta import encode
    from regraft.delta.layout import Entry
    from regraft.delta.plans import PLANS

    (tmp_path / "base").mkdir()
    base, tuned = ({name: v.to(dtype) for name, v in model(change=c).items()} for c in (0.0, 0.0005))
    save_file(base, tmp_path / "base" / "model.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    parents = Parents(tmp_path / "base")
    for plan in PLANS[1:]:

        def fixed(_files: object, tensor: Any, found: Any, _bytes: int, plan: str = plan) -> Entry:
            return Entry(tensor.name, tensor.dtype, tensor.elements, plan, found[0])

        monkeypatch.setattr(encode, "_choose", fixed)
        encode_file(tmp_path / "tuned.safetensors", tmp_path / "packed", parents, "model.safetensors", block_bytes=3000)
        assert (
            written_by_others(tmp_path / "packed", tensor_bytes(base)) == (tmp_path / "tuned.safetensors").read_bytes()
        )
        decode_file(tmp_path / "packed", None, parents)


def test_a_fine_tune_is_small_and_an_equal_file_is_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    parents = Parents(base)
    coded = encode_file(tuned, tmp_path / "packed", parents, "model.safetensors")
    assert coded.packed_bytes < 0.6 * coded.bytes  # a tiny file: the table and the JSON weigh
    assert sum(coded.plans.values()) == sum(len(value) for value in tensor_bytes(load_file(tuned)).values())
    same = encode_file(base / "model.safetensors", tmp_path / "packed", parents, "model.safetensors")
    assert same.packed_bytes - len(MAGIC) < 1500 and set(same.plans) == {"xor"}


def test_counterparts(tmp_path: Path) -> None:
    """By name; by the name without the word in front; only of the same dtype and shape; only in the same folder."""
    (tmp_path / "base" / "2_Dense").mkdir(parents=True)
    save_file({"encoder.a": torch.zeros(3), "linear": torch.zeros(2)}, tmp_path / "base" / "model.safetensors")
    save_file({"linear": torch.zeros(2)}, tmp_path / "base" / "2_Dense" / "model.safetensors")
    save_file({"bert.encoder.a": torch.ones(3), "encoder.a": torch.ones(4), "linear": torch.ones(2),
               "other": torch.ones(2)}, tmp_path / "tuned.safetensors")  # fmt: skip
    from regraft.checkpoint.headers import read_header

    parents, found = Parents(tmp_path / "base"), read_header(tmp_path / "tuned.safetensors")

    def place(file: str, name: str) -> object:
        one = parents.find(file, found[name])
        return None if one is None else one[0]

    assert place("model.safetensors", "bert.encoder.a") == ("model.safetensors", "encoder.a")
    assert place("model-00001-of-00002.safetensors", "linear") == ("model.safetensors", "linear")
    assert place("2_Dense/model.safetensors", "linear") == ("2_Dense/model.safetensors", "linear")
    assert place("model.safetensors", "encoder.a") is None
    assert place("model.safetensors", "other") is None


def test_a_parent_that_was_sharded_anew_still_serves(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    encode_file(tuned, tmp_path / "packed", Parents(base), "model.safetensors")
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    for number, (name, value) in enumerate(tensors.items()):
        save_file({name: value}, base / f"model-{number}.safetensors")
    decode_file(tmp_path / "packed", tmp_path / "again", Parents(base))
    assert (tmp_path / "again").read_bytes() == tuned.read_bytes()


def test_wrong_parents_are_refused_in_words(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    packed = tmp_path / "packed"
    encode_file(tuned, packed, Parents(base), "model.safetensors")
    with pytest.raises(CheckpointError, match="its parent is missing"):
        decode_file(packed, None, None)
    with pytest.raises(CheckpointError, match=r"The parent .* is missing"):
        Parents(tmp_path / "nowhere")
    changed = load_file(base / "model.safetensors")
    changed["encoder.b.weight"][3, 3] += 1
    save_file(changed, base / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has changed: its tensor 'encoder\.b\.weight' \(block 0\)"):
        decode_file(packed, None, Parents(base))
    del changed["encoder.b.weight"]
    save_file(changed, base / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"is not the parent of .*: tensor 'encoder\.b\.weight' was packed against"
    ):
        decode_file(packed, None, Parents(base))


def test_damage_anywhere_is_refused_and_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    packed, parents = tmp_path / "packed", Parents(base)
    encode_file(tuned, packed, parents, "model.safetensors")
    whole = packed.read_bytes()
    layout = read_layout(packed)
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        packed.write_bytes(damaged)
        with pytest.raises(CheckpointError) as caught:
            decode_file(packed, None, parents)
        if at >= layout.data_start:
            assert "tensor '" in str(caught.value) or "the header" in str(caught.value)
    for size in range(0, len(whole), 97):
        packed.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"truncated|only the beginning") as caught:
            decode_file(packed, None, parents)
        if size >= layout.data_start:
            assert "tensor '" in str(caught.value) or "the header" in str(caught.value)
    packed.write_bytes(whole + b"more")
    with pytest.raises(CheckpointError, match="4 bytes after its last block"):
        decode_file(packed, None, parents)


def forged(packed: Path, change: Callable[[dict[str, Any], np.ndarray], None], data: bytes | None = None) -> None:
    """Change the JSON and the table of a delta, and make its hash right again."""
    whole, layout = packed.read_bytes(), read_layout(packed)
    length = int.from_bytes(whole[12:16], "little")
    about = json.loads(whole[48 : 48 + length])
    table = np.frombuffer(whole[48 + length : layout.data_start], "<u4").copy()
    change(about, table)
    packed.write_bytes(preamble(json.dumps(about).encode(), table.tobytes()) + (data or whole[layout.data_start :]))


@pytest.mark.parametrize(("change", "words"), [
    (lambda about, _: about["file"].update(bytes=2**59), "claims a file of"),
    (lambda about, _: about["tensors"][0].update(words=2**58), "claims a file of"),
    (lambda about, _: (about["tensors"][0].update(words=2**50), about["file"].update(bytes=2**51)), "claims a file of"),
    (lambda about, _: about.update(block_bytes=2**40), "does not say what it must"),
    (lambda about, _: about.update(block_bytes=0), "does not say what it must"),
    (lambda about, _: about.update(head_bytes=-1), "does not say what it must"),
    (lambda about, _: about["tensors"][0].update(plan="python"), "does not say what it must"),
    (lambda about, _: about["tensors"][0].update(dtype="F8_E4M3"), "does not say what it must"),
    (lambda about, _: about["tensors"][0].update(parent=["../../base.safetensors", "a"]), "does not say what it must"),
    (lambda about, _: about.pop("tensors"), "does not say what it must"),
    (lambda _, table: table.__setitem__(2, 2**31), "larger than what it holds"),
])  # fmt: skip
def test_lies_are_refused(change: Any, words: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    packed = tmp_path / "packed"
    encode_file(tuned, packed, Parents(base), "model.safetensors")
    forged(packed, change)
    with pytest.raises(CheckpointError, match=words):
        decode_file(packed, tmp_path / "out", Parents(base))


def test_a_huge_tensor_of_nothing_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The sizes agree with each other, but a file of this size cannot list so many blocks."""
    base, tuned = pair
    packed = tmp_path / "packed"
    encode_file(tuned, packed, Parents(base), "model.safetensors")

    def huge(about: dict[str, Any], _: np.ndarray) -> None:
        more = 2**50 - about["tensors"][0]["words"]
        width = WIDTHS[about["tensors"][0]["dtype"]]
        about["tensors"][0]["words"] += more
        about["file"]["bytes"] += more * width

    forged(packed, huge)
    with pytest.raises(CheckpointError, match="cannot hold the table of its blocks"):
        decode_file(packed, tmp_path / "out", Parents(base))


def test_overlapping_ranges_inside_are_refused(tmp_path: Path) -> None:
    """The header of the unpacked file is believed no more than that of any safetensors file."""
    source, packed = tmp_path / "model.safetensors", tmp_path / "packed"
    save_file({"a": torch.zeros(4), "b": torch.ones(4)}, source)
    encode_file(source, packed, None)
    whole = source.read_bytes()
    lie = whole.replace(b'"data_offsets":[16,32]', b'"data_offsets":[0,16 ]')
    assert lie != whole and len(lie) == len(whole)
    layout = read_layout(packed)
    head = lie[: layout.head_bytes]
    stored = packed.read_bytes()[layout.data_start :][int(layout.tables[0][0, 2]) :]

    def change(about: dict[str, Any], table: np.ndarray) -> None:
        table[0], table[2] = zlib.crc32(head), len(head)
        about["file"]["sha256"] = hashlib.sha256(lie).hexdigest()

    forged(packed, change, head + stored)
    with pytest.raises(CheckpointError, match=r"unpacks to no safetensors file: .*(hole|overlaps)"):
        decode_file(packed, tmp_path / "out", None)


def test_newer_versions_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    packed = tmp_path / "packed"
    encode_file(tuned, packed, Parents(base), "model.safetensors")
    data = bytearray(packed.read_bytes())
    data[8] = 2
    packed.write_bytes(data)
    with pytest.raises(CheckpointError, match="format version 2; this Regraft reads version 1"):
        decode_file(packed, None, Parents(base))
