"""Headers of safetensors files: what is true is read, every lie is refused in words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from regraft.checkpoint.headers import INDEX, read_header, read_tensors
from regraft.errors import CheckpointError, UnreadableFileError, UnsafeCheckpointError


def write(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.zeros(0, np.int64), "c": np.float16([1, 2])}
    save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = read_header(tmp_path / "x.safetensors")
    assert set(found) == {"a", "b", "c"}
    assert (found["b"].dtype, found["b"].shape, found["b"].nbytes, found["b"].elements) == ("F32", (2, 3), 24, 6)
    raw = (tmp_path / "x.safetensors").read_bytes()
    assert raw[found["b"].start : found["b"].end] == arrays["b"].tobytes()


LIES = {
    "overlaps": ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, 12, "overlaps the tensor before it"),
    "hole": ({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, 20, "leaves a hole"),
    "past the end": ({"a": entry(0, 800, [200])}, 12, "truncated, or its header lies: tensor 'a' ends at byte"),
    "bytes left over": ({"a": entry(0, 8, [2])}, 12, "4 bytes after the last tensor belong to none"),
    "size does not match shape": ({"a": entry(0, 12, [2])}, 12, "but F32 of shape [2] takes 8 bytes"),
    "start after end": ({"a": entry(8, 0, [2])}, 8, "claims the bytes 8 to 0"),
    "unknown dtype": ({"a": entry(0, 8, [2], "F99")}, 8, "unknown dtype 'F99'"),
    "dtype no text": ({"a": {"dtype": [1], "shape": [2], "data_offsets": [0, 8]}}, 8, "unknown dtype"),
    "quantised dtype": ({"a": entry(0, 2, [2], "F8_E4M3")}, 2, "F8_E4M3, a quantised format that cannot be computed"),
    "negative size": ({"a": entry(0, 8, [-2])}, 8, "has the shape [-2], expected a list of sizes"),
    "size no number": ({"a": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}}, 8, "has the shape ['2']"),
    "size true": ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, 4, "has the shape [True]"),
    "shape no list": ({"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}, 8, "has the shape 2"),
    "rank": ({"a": entry(0, 4, [1] * 65)}, 4, "has the shape"),
    "overflow": ({"a": entry(0, 0, [2**62, 2**62])}, 0, "absurd shape"),
    "overflow to the right size": ({"a": entry(0, 8, [2**32, 2**32])}, 8, "absurd shape"),
    "three offsets": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 9]}}, 8, "expected [start, end]"),
    "negative offset": ({"a": entry(-8, 0, [2])}, 8, "expected [start, end]"),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, 8, "lacks dtype, shape or data_offsets"),
    "entry no object": ({"a": 7}, 8, "lacks dtype, shape or data_offsets"),
    "empty name": ({"": entry(0, 8, [2])}, 8, "empty tensor name"),
    "long name": ({"a" * 513: entry(0, 8, [2])}, 8, "tensor name of 513 characters"),
    "control character": ({"a\x1b[31m": entry(0, 8, [2])}, 8, "absurd tensor name"),
    "surrogate": ({"a\ud800": entry(0, 8, [2])}, 8, "absurd tensor name"),
    "path": ({"../../etc/passwd": entry(0, 8, [2])}, 8, "absurd tensor name"),
    "path inside": ({"a/../../b": entry(0, 8, [2])}, 8, "absurd tensor name"),
    "absolute path": ({"/etc/passwd": entry(0, 8, [2])}, 8, "absurd tensor name"),
    "windows path": ({"..\\a": entry(0, 8, [2])}, 8, "absurd tensor name"),
    "not an object": ([1, 2], 0, "its header is a JSON list, expected an object"),
    "not JSON": (b"{nonsense", 0, "its header is not JSON"),
    "not UTF-8": (b'{"\xff": 1}', 0, "its header is not JSON"),
    "nested too deep": (b'{"a":' + b"[" * 200_000, 0, "its header is not JSON"),
    "number too long": (b'{"a":' + b"1" * 5000 + b"}", 0, "its header is not JSON"),
    "the same name twice": (b'{"a": 1, "a": 2}', 0, "names 'a' twice"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_with_file_fault_and_remedy(lie: str, tmp_path: Path) -> None:
    header, size, words = LIES[lie]
    path = write(tmp_path / "model.safetensors", header, bytes(size))
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert str(path) in caught.value.problem
    assert words in caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "truncated: 0 bytes"),
        (b"1234567", "truncated: 7 bytes"),
        ((10).to_bytes(8, "little") + b"{}", "truncated: its header claims 10 bytes, the file has 10"),
        ((2**63).to_bytes(8, "little") + b"{}", "claims a header of 9223372036854775808 bytes"),
        (b"PK\x03\x04 a zip file, as torch.save writes it", "no safetensors file"),
    ],
)
def test_a_file_that_is_none_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_header(path)
    assert str(path) in caught.value.problem
    assert caught.value.remedy == "Download or save the checkpoint again."


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"):
        read_tensors(tmp_path)


def shards(folder: Path, weight_map: object) -> Path:
    save_file({"a": np.zeros(2, np.float32)}, folder / "one.safetensors")
    save_file({"b": np.zeros(2, np.float32)}, folder / "two.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    found = read_tensors(shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"}))
    assert {name: tensor.file.name for name, tensor in found.items()} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }


@pytest.mark.parametrize(
    ("weight_map", "error", "words"),
    [
        ({"a": "one.safetensors", "b": "three.safetensors"}, CheckpointError, "three.safetensors, which is missing"),
        ({"a": "one.safetensors", "c": "two.safetensors"}, CheckpointError, "tensor 'c' is not in two.safetensors"),
        ({"a": "two.safetensors", "b": "one.safetensors"}, CheckpointError, "is not in"),
        ({"a": "../one.safetensors"}, UnsafeCheckpointError, "which is not a .safetensors file of this folder"),
        ({"a": "/one.safetensors"}, UnsafeCheckpointError, "which is not a .safetensors file of this folder"),
        ({"a": "one.bin"}, UnsafeCheckpointError, "which is not a .safetensors file of this folder"),
        ({"a": 1}, CheckpointError, "weight_map"),
        ([], CheckpointError, "weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(
    weight_map: object, error: type[CheckpointError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        read_tensors(shards(tmp_path, weight_map))
    assert INDEX in caught.value.problem
    assert words in caught.value.problem
    assert caught.value.remedy


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    save_file({"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)}, folder / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"two.safetensors: tensor 'a' is also in one.safetensors"):
        read_tensors(folder)


@pytest.fixture(scope="module")
def fuzz_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.safetensors"


def accepts_or_refuses(path: Path) -> None:
    """Whatever is in the file: tensors that tile it, or a CheckpointError."""
    try:
        found = read_header(path)
    except CheckpointError as error:
        assert str(path) in error.problem
        assert error.remedy
    else:
        assert sum(tensor.nbytes for tensor in found.values()) <= path.stat().st_size


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(raw=st.binary(max_size=200))
def test_random_bytes_never_surprise(raw: bytes, fuzz_file: Path) -> None:
    fuzz_file.write_bytes(raw)
    accepts_or_refuses(fuzz_file)
    write(fuzz_file, raw, b"1234")
    accepts_or_refuses(fuzz_file)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "I64", "F8_E4M3", "nonsense"]) | anything,
        "shape": st.lists(st.integers(-2, 9), max_size=3) | anything,
        "data_offsets": st.tuples(st.integers(-4, 40), st.integers(-4, 40)) | anything,
    },
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(header=st.dictionaries(st.text(max_size=6), entries | anything, max_size=4), data=st.binary(max_size=40))
def test_mutated_headers_never_surprise(header: dict[str, object], data: bytes, fuzz_file: Path) -> None:
    write(fuzz_file, header, data)
    accepts_or_refuses(fuzz_file)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(position=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.integers(0, 10_000))
def test_a_flipped_byte_or_a_cut_never_surprises(position: int, byte: int, cut: int, fuzz_file: Path) -> None:
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.ones(5, np.float16)}, fuzz_file)
    raw = bytearray(fuzz_file.read_bytes())
    raw[position % len(raw)] = byte
    fuzz_file.write_bytes(raw)
    accepts_or_refuses(fuzz_file)
    fuzz_file.write_bytes(raw[: cut % len(raw)])
    accepts_or_refuses(fuzz_file)


@pytest.mark.parametrize("missing", ["a.safetensors", "!.safetensors"])
def test_a_shard_outside_is_unsafe_whatever_is_missing_beside_it(missing: str, tmp_path: Path) -> None:
    weight_map = {"x": "../../outside.safetensors", "y": missing}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UnsafeCheckpointError, match="outside"):
        read_tensors(tmp_path)


def test_a_file_that_cannot_be_read_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(UnreadableFileError, match="cannot be read"):
        read_header(tmp_path / "model.safetensors")
