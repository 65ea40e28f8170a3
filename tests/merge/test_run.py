"""The engine: from checkpoints to a checkpoint, the same bytes whatever the machine, and nothing lost on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from regraft import certificate, methods
from regraft.checkpoint.headers import read_tensors
from regraft.checkpoint.weights import NUMPY, raw_values, read_values
from regraft.checkpoint.writer import Slot, Writer
from regraft.merge.inputs import open_inputs
from regraft.merge.recipe.spec import Output, Spec, spec_of
from regraft.merge.register import traits_of
from regraft.merge.run import merge
from regraft.merge.stack import Stack
from regraft.merge.tensors import merged_tensor, stack_of

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def sharded(folder: Path, shards: int) -> Path:
    """The same checkpoint in several files, its tensors dealt out in turn."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
    where = {name: files[at % shards] for at, name in enumerate(sorted(tensors, reverse=True))}
    for file in files:
        save_file(
            {name: tensors[name] for name in where if where[name] == file}, folder / file, metadata={"format": "pt"}
        )
    size = sum(values.nbytes for values in tensors.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": where})
    )
    return folder


METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": [0.2, 0.5, 0.31]},
    "task_arithmetic": {"weight": [0.2, 0.5, -0.31], "scale": 0.7},
    "ties": {"density": [0.1, 0.2, 0.55], "weight": [1.0, 0.4, 0.3]},
    "ties global": {
        "density": 0.2,
        "trim": "global",
        "elect": "weighted",
        "divide": "weight",
        "weight": [1.0, 0.4, 0.3],
    },
}


def spec_for(
    method: str, folders: list[Path], order: tuple[int, ...] = (0, 1, 2), output: Output | None = None
) -> Spec:
    """The merge of a base and three inputs in some order, each with its own settings."""
    base, *inputs = folders
    options = {
        key: [value[at] for at in order] if isinstance(value, list) else value for key, value in METHODS[method].items()
    }
    name = method.split()[0]
    return spec_of(name, [inputs[at] for at in order], None if name == "linear" else base, output=output, **options)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bytes_for_threads_blocks_orders_and_files(
    method: str, family: Callable[..., list[Path]], tmp_path: Path, raw_of: Any, blocks_of: Any
) -> None:
    folders = family()
    with blocks_of(2**16):
        merge(spec_for(method, folders), tmp_path / "plain", workers=1)
    plain = raw_of(tmp_path / "plain")
    for number, (workers, grain, order) in enumerate(
        [(2, 512, (0, 1, 2)), (3, 97, (2, 0, 1)), (1, 1000, (1, 2, 0)), (2, 2**16, (2, 1, 0))]
    ):
        with blocks_of(grain):
            merge(spec_for(method, folders, order), tmp_path / str(number), workers=workers)
        assert raw_of(tmp_path / str(number)) == plain, (workers, grain, order)
    for which in (1, 0, 2):  # inputs, then the base, too
        sharded(folders[which], 3)
        merge(spec_for(method, folders), tmp_path / f"sharded{which}", workers=2)
        assert raw_of(tmp_path / f"sharded{which}") == plain


OTHERS: dict[str, dict[str, Any]] = {
    "dare_linear": {"density": [0.3, 0.5, 0.7]}, "dare_ties": {"density": 0.4}, "della": {"density": 0.5},
    "breadcrumbs": {"gamma": 0.05}, "pcb": {"density": 0.3}, "sce": {"density": 0.4}, "karcher": {}, "model_stock": {},
    "slerp": {"t": 0.3}, "rws": {"bits": 6},
}  # fmt: skip
# What is added up or counted goes grain by grain, whose size is fixed; all else is the same in blocks of any size.
BY_GRAIN = ("sce", "karcher", "model_stock", "slerp")


@pytest.mark.parametrize("method", OTHERS)
def test_the_same_bytes_of_all_other_methods(
    method: str, family: Callable[..., list[Path]], tmp_path: Path, raw_of: Any, blocks_of: Any
) -> None:
    """For threads, blocks, shards, and, where the method promises it, orders. Tensors are of several blocks."""
    folders = family()
    registered = methods.get("merge", method)
    count = 2 if method == "slerp" else 3

    def made(name: str, workers: int, grain: int, turned: bool = False) -> Any:
        inputs = folders[1 : 1 + count]
        inputs = inputs[::-1] if turned else inputs
        options = {
            key: value[::-1] if turned and isinstance(value, list) else value for key, value in OTHERS[method].items()
        }
        base = None if traits_of(method).base == "none" else folders[0]
        with blocks_of(grain):
            merge(spec_of(method, inputs, base, **options), tmp_path / name, workers=workers)
        return raw_of(tmp_path / name)

    plain = made("plain", 1, 500)
    assert made("threads", 3, 500) == plain
    if method not in BY_GRAIN:
        assert made("smaller", 2, 97) == made("whole", 2, 2**16) == plain
    if "permutation" in registered.invariances:
        assert made("turned", 2, 500, turned=True) == plain
    for which in (1, 0):
        sharded(folders[which], 3)
    assert made("sharded", 2, 500) == plain


def test_the_sign_of_zero_is_kept(written: Any, llama: Any, tmp_path: Path) -> None:
    """From stored bits to stored bits, too."""
    tensors = llama(0)
    tensors["lm_head.weight"][3, ::2] = -0.0
    for dtype in (torch.bfloat16, torch.float32):
        folders = [written(name, tensors, dtype=dtype) for name in "ab"]
        merge(spec_of("linear", folders), tmp_path / str(dtype))
        head = load_file(tmp_path / str(dtype) / "model.safetensors")["lm_head.weight"]
        assert torch.signbit(head[3, ::2]).all()


def by_formula(method: str, values: list[np.ndarray]) -> np.ndarray:
    """In float64; what TIES keeps by sorting."""
    base, *inputs = [one.astype(np.float64) for one in values]
    options = METHODS[method]
    weights = options["weight"]
    if method == "linear":
        return np.asarray(sum(w * x for w, x in zip(weights, inputs, strict=True)) / sum(weights))
    deltas = np.stack([(x.astype(np.float32) - base.astype(np.float32)).astype(np.float64) for x in inputs])
    if method == "ties":
        for delta, density in zip(deltas.reshape(3, -1), options["density"], strict=True):
            order = np.lexsort((np.arange(delta.size), -np.abs(delta)))
            delta[order[max(1, int(density * delta.size)) :]] = 0.0
        positive = deltas.sum(axis=0) >= 0
        agrees = np.where(positive, deltas > 0, deltas < 0)
        change = np.einsum("i,i...->...", weights, deltas * agrees) / np.maximum(agrees.sum(axis=0), 1)
        return np.asarray(base + change)
    return np.asarray(base + options["scale"] * np.einsum("i,i...->...", weights, deltas))


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
@pytest.mark.parametrize("stored", FLOATS)
def test_every_number_format_in(method: str, stored: str, family: Callable[..., list[Path]], tmp_path: Path) -> None:
    """What is written is the float32 result, which is the float64 one to its last places."""
    folders = family(dtype=FLOATS[stored])
    result = merge(spec_for(method, folders, output=Output(dtype="float32")), tmp_path / "out")
    assert result.merged == len(result.preflight.aligned.merged) == 30 and result.copied == 0
    parts = [
        {name: read_values(info).reshape(info.shape) for name, info in read_tensors(one).items()} for one in folders
    ]
    for name, values in load_file(tmp_path / "out" / "model.safetensors").items():
        assert values.dtype == torch.float32
        expected = by_formula(method, [part[name] for part in parts])
        np.testing.assert_allclose(values.numpy(), expected, rtol=3e-7, atol=3e-8, err_msg=name)


@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("written_as", [None, "float32", "bfloat16", "float16"])
def test_rounding_to_every_number_format(
    stored: str, written_as: str | None, family: Callable[..., list[Path]], tmp_path: Path
) -> None:
    """To nearest from the float32 result, as torch rounds it; what that is, the tests above say."""
    folders = family(dtype=FLOATS[stored])
    spec = spec_for("task_arithmetic", folders, output=Output(dtype=written_as))
    merge(spec, tmp_path / "out")
    ordered, found = open_inputs(spec)
    for name, values in load_file(tmp_path / "out" / "model.safetensors").items():
        exact = merged_tensor(ordered, found, stack_of(ordered, found, name), None)
        assert exact is not None
        expected = torch.from_numpy(exact).to(FLOATS[written_as or stored])
        assert values.dtype == expected.dtype and torch.equal(values, expected), name
    stated = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stated == json.loads((folders[0] / "config.json").read_text())  # which states no format


def test_formats_may_differ_from_tensor_to_tensor(written: Any, llama: Any, tmp_path: Path, on_a_grid: Any) -> None:
    """Norms in float32 beside matrices in bfloat16 stay so."""
    folders = []
    for seed, name in enumerate(("base", "a")):
        folder = written(name, on_a_grid(llama(0), seed))
        tensors = {
            key: value if "norm" in key else value.to(torch.bfloat16)
            for key, value in load_file(folder / "model.safetensors").items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        folders.append(folder)
    merge(spec_of("ties", folders[1:], folders[0]), tmp_path / "out")
    kinds = {name: info.dtype for name, info in read_tensors(tmp_path / "out").items()}
    assert kinds == {name: "F32" if "norm" in name else "BF16" for name in llama(0)}


def assemble(folder: Path, slots: list[tuple[str, str, tuple[int, ...], list[Any]]], config: Path) -> Path:
    """A checkpoint with its tensors in the very order given."""
    folder.mkdir()
    file = PurePosixPath("model.safetensors")
    with Writer(folder, [Slot(file, name, dtype, shape) for name, dtype, shape, _ in slots]) as writer:
        for name, dtype, _, values in slots:
            array = np.array(values, np.float32 if dtype == "BF16" else NUMPY[dtype])
            writer.write(name, (array.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else array, 0)
    (folder / "config.json").write_bytes((config / "config.json").read_bytes())
    return folder


def test_tensors_of_every_kind(written: Any, llama: Any, tmp_path: Path) -> None:
    """Numbers, empty and one-element tensors; buffers; an odd number of bytes before others."""
    pattern = written("pattern", llama(0))
    draw = np.random.default_rng(0)
    matrix = draw.integers(-40, 40, 600).astype(np.float32)

    def make(name: str, step: float, count: int) -> Path:
        return assemble(tmp_path / name, [
            ("mask", "BOOL", (3,), [True, False, True]), ("matrix", "BF16", (20, 30), list(matrix + 4 * step)),
            ("bytes", "U8", (5,), [1, 2, 3, 4, 255]), ("half", "F16", (2,), [1.0 + step, 2.0]),
            ("number", "F32", (), [3.0 + step]), ("one", "F64", (1, 1), [5.0 - step]), ("count", "I64", (), [count]),
            ("empty", "F32", (0, 4), []), ("empty count", "I32", (0,), []),
            ("last", "BOOL", (1,), [True]), ("odd", "F32", (7,), [step] * 7),
        ], pattern)  # fmt: skip

    base, a, b = make("base", 0.0, 2**40 + 1), make("a", 1.0, 2**40 + 1), make("b", 3.0, 7)
    kinds = {name: info.dtype for name, info in read_tensors(base).items()}
    for name, dtype in (("kept", None), ("single", "float32")):
        result = merge(spec_of("task_arithmetic", [a, b], base, output=Output(dtype=dtype)), tmp_path / name, workers=2)
        assert (result.merged, result.copied) == (6, 5)
        found = read_tensors(tmp_path / name)
        floats = ("F64", "F32", "F16", "BF16")
        assert {key: info.dtype for key, info in found.items()} == {
            key: "F32" if dtype and kind in floats else kind for key, kind in kinds.items()
        }
        assert read_values(found["matrix"]).tolist() == list(matrix + 16)
        assert read_values(found["half"]).tolist() == [5.0, 2.0]
        assert (found["number"].shape, read_values(found["number"]).tolist()) == ((), [7.0])
        assert (found["one"].shape, read_values(found["one"]).tolist()) == ((1, 1), [1.0])
        assert found["empty"].shape == (0, 4)
        assert read_values(found["odd"]).tolist() == [4.0] * 7
        assert raw_values(found["count"]).tolist() == [2**40 + 1]  # the base's, to the last digit
        assert raw_values(found["mask"]).tolist() == [True, False, True]
        assert raw_values(found["bytes"]).tolist() == [1, 2, 3, 4, 255]
    about = json.loads((tmp_path / "kept" / "regraft.json").read_text())
    assert about["copied"] == dict.fromkeys(("mask", "bytes", "count", "empty count", "last"), "not floating point")
    assert any("count: other values in" in found.problem for found in result.preflight.findings)


@pytest.mark.parametrize("method", ["iso_c", "wudi", "model_stock", "dare_ties", "knots"])
def test_methods_of_whole_matrices_take_any_tensor_too(method: str, written: Any, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    shapes = {"h.0.matrix": (6, 5), "h.0.empty": (0, 3), "h.0.number": (), "h.0.one": (1, 1), "h.0.cube": (2, 3, 2)}
    base = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    buffers = {"count": np.array([3, 2**50]), "mask": np.array([True])}
    folders = [
        written(name, {**{key: value + np.float32(0.01 * step) for key, value in base.items()}, **buffers})
        for step, name in enumerate(("base", "a", "b"))
    ]
    merge(spec_of(method, folders[1:], folders[0]), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: tuple(found[name].shape) for name in shapes} == shapes
    assert all(torch.isfinite(found[name]).all() for name in shapes)
    assert found["count"].tolist() == [3, 2**50] and found["mask"].tolist() == [True]


def test_what_is_said_of_a_merge(family: Callable[..., list[Path]], tmp_path: Path) -> None:
    result = merge(spec_for("ties", family()), tmp_path / "out", workers=1)
    assert (result.out, result.method, result.merged, result.copied) == (tmp_path / "out", "ties", 30, 0)
    assert result.bytes == sum(info.nbytes for info in read_tensors(tmp_path / "out").values())
    assert set(result.seconds) == {"preflight", "merge", "finish"}
    content = json.loads(json.dumps(result.to_json()))
    assert content["out"] == str(tmp_path / "out") and content["preflight"]["method"] == "ties"
    assert [claim.check for claim in certificate.read(tmp_path / "out")]


def test_progress_counts_every_tensor(family: Callable[..., list[Path]], tmp_path: Path) -> None:
    from regraft.progress import Progress

    class Count(Progress):
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def start(self, what: str, total: float) -> None:
            self.seen.append((what, total))

        def advance(self, units: float = 1.0) -> None:
            self.seen.append(units)

        def stop(self) -> None:
            self.seen.append("stop")

    count = Count()
    merge(spec_for("ties", family()), tmp_path / "out", progress=count)
    assert count.seen == [("merging with ties", 30), *[1.0] * 30, "stop"]


def test_waiting_for_the_disk(
    family: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr("regraft.checkpoint.writer.os.fsync", synced.append)
    merge(spec_for("linear", family()), tmp_path / "out", sync=True)
    assert synced


def test_in_memory_and_on_disk_are_one(family: Callable[..., list[Path]], tmp_path: Path) -> None:
    """A method over arrays gives what the engine writes."""
    from regraft.merge.methods.ties import ties

    folders = family(dtype=torch.float32)
    spec = spec_for("ties", folders)
    merge(spec, tmp_path / "out")
    ordered, found = open_inputs(spec)
    base = load_file(folders[0] / "model.safetensors")
    inputs = [load_file(Path(one.reference) / "model.safetensors") for one in found.inputs]
    weights = [float(one.options["weight"]) for one in ordered.inputs]  # type: ignore[arg-type]
    density = np.array([one.options["density"] for one in ordered.inputs])
    for name, values in load_file(tmp_path / "out" / "model.safetensors").items():
        arrays = [one[name].numpy() for one in inputs]
        assert np.array_equal(values.numpy(), ties(Stack.of(arrays, base[name].numpy(), weights), density=density)), (
            name
        )
