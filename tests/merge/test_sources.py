"""Tensors on disk: decoded as they are read, changed by adapters, rounded to nearest as they are written."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.checkpoint.headers import TensorInfo, read_header
from regraft.checkpoint.lora import Offset
from regraft.checkpoint.weights import raw_values
from regraft.checkpoint.writer import Slot, Writer
from regraft.errors import NonFiniteError
from regraft.merge.inputs import Opened, open_inputs
from regraft.merge.recipe.spec import spec_of
from regraft.merge.sources import FileSink, FileSource, LoraSource

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FILE = PurePosixPath("model.safetensors")


def stored(path: Path, values: torch.Tensor, before: int = 0) -> TensorInfo:
    """A tensor in a file, after some bytes of another one."""
    kind = next(name for name, dtype in FLOATS.items() if dtype == values.dtype)
    data = values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    text = json.dumps({
        "pad": {"dtype": "U8", "shape": [before], "data_offsets": [0, before]},
        "x": {"dtype": kind, "shape": list(values.shape), "data_offsets": [before, before + len(data)]},
    }).encode()  # fmt: skip
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(before) + data)
    return read_header(path)["x"]


def read(source: FileSource | LoraSource, size: int, start: int = 0) -> tuple[np.ndarray, bool]:
    out = np.full(size, np.nan, np.float32)
    return out, source.read(out, start)


@pytest.mark.parametrize("before", [0, 1, 2, 5])
@pytest.mark.parametrize("kind", FLOATS)
def test_a_tensor_is_read_in_any_parts(kind: str, before: int, tmp_path: Path) -> None:
    """Also after an odd number of bytes."""
    values = torch.randn(100, generator=torch.Generator().manual_seed(0)).to(FLOATS[kind])
    source = FileSource(stored(tmp_path / "x", values, before))
    expected = values.to(torch.float32).numpy()
    for start, stop in ((0, 100), (0, 1), (17, 64), (99, 100), (50, 50)):
        found, finite = read(source, stop - start, start)
        assert finite and np.array_equal(found, expected[start:stop])


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("other", FLOATS)
@pytest.mark.parametrize("kind", FLOATS)
def test_a_difference_is_that_of_two_readings(kind: str, other: str, before: int, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    one, base = (
        FileSource(stored(tmp_path / name, torch.randn(60, generator=draw).to(FLOATS[which]), before))
        for name, which in (("one", kind), ("base", other))
    )
    out = np.full(30, np.nan, np.float32)
    if one.read_delta(base, out, 20):
        assert np.array_equal(out, read(one, 30, 20)[0] - read(base, 30, 20)[0])
    assert one.read_delta(base, out, 20) == (kind == other == "BF16")


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_told(kind: str, bad: float, tmp_path: Path) -> None:
    values = torch.ones(50)
    values[33] = bad
    source, good = FileSource(stored(tmp_path / "x", values.to(FLOATS[kind]))), torch.ones(50).to(FLOATS[kind])
    assert not read(source, 50)[1]
    assert read(source, 33)[1] and read(source, 16, 34)[1]
    base, out = FileSource(stored(tmp_path / "good", good)), np.empty(50, np.float32)
    assert not source.read_delta(base, out, 0) and not base.read_delta(source, out, 0)
    assert source.where() == f"{tmp_path / 'x'}: tensor 'x'"


def test_what_float32_cannot_hold_is_not_finite(tmp_path: Path) -> None:
    source = FileSource(stored(tmp_path / "x", torch.tensor([1.0, 1e300, -1e39], dtype=torch.float64)))
    assert read(source, 1)[1]
    assert not read(source, 3)[1]


@pytest.fixture
def adapted(tiny_bert: Path, tiny_adapter: Path) -> tuple[Opened, Any]:
    _, opened = open_inputs(spec_of("linear", [f"{tiny_bert}+{tiny_adapter}"]))
    return opened, opened.inputs[0]


def test_an_adapter_is_added_in_any_parts(adapted: tuple[Opened, Any]) -> None:
    """W + scale * sum_k b_k a_k, in float64 in the order of k, rounded once."""
    opened, one = adapted
    name = "encoder.layer.2.attention.self.query.weight"
    change = opened.changes[one.reference].factors[name]
    down, up = (raw_values(info).astype(np.float64).reshape(info.shape) for info in (change.A, change.B))
    product = np.zeros((32, 32))
    for k in range(down.shape[0]):
        product += up[:, k, None] * down[k]
    plain = raw_values(one.tensors[name]).reshape(32, 32)
    expected = (plain.astype(np.float64) + change.scale * product).astype(np.float32).reshape(-1)
    source = opened.source(one, name)
    assert not np.array_equal(expected, plain.reshape(-1))
    for start, stop in ((0, 1024), (5, 77), (31, 33), (1000, 1024)):
        found, finite = read(source, stop - start, start)  # type: ignore[arg-type]
        assert finite and np.array_equal(found, expected[start:stop])
    assert source.where() == f"{one.folder / 'model.safetensors'}: tensor {name!r} with its adapter"


def test_tensors_that_an_adapter_leaves_alone(adapted: tuple[Opened, Any]) -> None:
    opened, one = adapted
    source = opened.source(one, "embeddings.word_embeddings.weight")
    info = one.tensors["embeddings.word_embeddings.weight"]
    assert np.array_equal(read(source, info.elements)[0], raw_values(info))  # type: ignore[arg-type]


def test_a_bias_that_an_adapter_changes(tmp_path: Path) -> None:
    base, change = (
        stored(tmp_path / name, values) for name, values in (("b", torch.arange(9.0)), ("c", torch.ones(9)))
    )
    source = LoraSource(FileSource(base), None, Offset(change, 0.5))
    assert read(source, 4, 2)[0].tolist() == [2.5, 3.5, 4.5, 5.5]
    bad = stored(tmp_path / "bad", torch.tensor([1.0, float("nan")] + [0.0] * 7))
    assert not read(LoraSource(FileSource(base), None, Offset(bad, 1.0)), 9)[1]


def sink(folder: Path, kind: str, size: int) -> tuple[FileSink, Writer]:
    writer = Writer(folder, [Slot(FILE, "pad", "BOOL", (3,)), Slot(FILE, "x", kind, (size,))])
    return FileSink(writer, "x", kind), writer


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    words=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20), kind=st.sampled_from(sorted(FLOATS)),
    cut=st.integers(0, 20),
)  # fmt: skip
def test_what_is_written_is_rounded_as_torch_rounds(
    words: list[int], kind: str, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nearest, ties to even, subnormals included; what the format cannot hold is an error, and so is what is not finite."""
    folder = tmp_path_factory.mktemp("sink")
    values = np.array(words, np.uint32).view(np.float32)
    expected = torch.from_numpy(values).to(FLOATS[kind])
    target, writer = sink(folder, kind, values.size)
    with writer:
        if not torch.isfinite(expected).all():
            with pytest.raises(NonFiniteError, match="in tensor 'x'"):
                target.write(values, 0)
            return
        cut = min(cut, values.size)
        target.write(values[cut:], cut)
        target.write(values[:cut], 0)
    found = raw_values(read_header(folder / FILE)["x"])
    assert found.tobytes() == expected.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(("kind", "word", "largest", "over"), [
    ("F16", "float16", 65519.0, 65520.0), ("BF16", "bfloat16", 3.395e38, 3.3962e38),
])  # fmt: skip
def test_what_a_format_cannot_hold(kind: str, word: str, largest: float, over: float, tmp_path: Path) -> None:
    target, writer = sink(tmp_path, kind, 2)
    with writer:
        target.write(np.float32([largest, -largest]), 0)
        with pytest.raises(
            NonFiniteError, match=rf"tensor 'x' that {word} cannot hold\. Write float32.*dtype: float32"
        ):
            target.write(np.float32([1.0, over]), 0)
        with pytest.raises(NonFiniteError, match="gave NaN or infinite values in tensor 'x'"):
            target.write(np.float32([np.nan, over]), 0)


@pytest.mark.parametrize("kind", FLOATS)
def test_nothing_can_be_written_too(kind: str, tmp_path: Path) -> None:
    target, writer = sink(tmp_path, kind, 0)
    with writer:
        target.write(np.empty(0, np.float32), 0)
    assert raw_values(read_header(tmp_path / FILE)["x"]).size == 0
