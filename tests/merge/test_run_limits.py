"""The engine at its limits: values that are not finite, a full disk, too little memory, a folder that is in use."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from regraft import faults
from regraft.errors import BudgetError, NonFiniteError, RunError, StoreError
from regraft.merge.checks import weights
from regraft.merge.recipe.spec import Output, Spec, spec_of
from regraft.merge.run import merge

FEW: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {}),
    "ties": ("ties", {"density": [0.1, 0.2, 0.55]}),
    "ties global": ("ties", {"trim": "global"}),
}


def spec_for(name: str, folders: list[Path]) -> Spec:
    """The merge of a base and three inputs."""
    base, *inputs = folders
    method, options = FEW[name]
    return spec_of(method, inputs, None if method == "linear" else base, **options)


def opened() -> int:
    gc.collect()  # what an error that was caught still holds
    return len([*Path("/dev/fd").iterdir()])


def refused(spec: Spec, out: Path) -> str:
    """The problem with the numbers of a merge."""
    with pytest.raises(NonFiniteError) as caught:
        merge(spec, out, workers=2)
    return caught.value.problem


def hidden(folder: Path) -> list[str]:
    return sorted(path.name.split(".")[1] for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("method", ["linear", "ties", "ties global"])
def test_nan_that_the_sample_missed(
    method: str, family: Callable[..., list[Path]], tmp_path: Path, raw_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of inputs too large to look at every value. Named with tensor and file; nothing gets the output's name, no file stays
    open; mended, the merge goes through."""
    monkeypatch.setattr(weights, "WHOLE", 0)
    folders = family(dtype=torch.float32)
    name, file = "model.embed_tokens.weight", folders[2] / "model.safetensors"
    tensors = load_file(file)
    good = {key: value.clone() for key, value in tensors.items()}
    merge(spec_for(method, folders), tmp_path / "warm")
    before = opened()
    problems = []
    for place in (5, -5):  # the sample is one run of elements: it holds at most one of them
        tensors[name].view(-1)[place] = float("nan")
        save_file(tensors, file, metadata={"format": "pt"})
        problems.append(refused(spec_for(method, folders), tmp_path / "out"))
        tensors[name].view(-1)[place] = 0.0
    assert f"{file}: tensor {name!r} holds NaN or infinite values." in problems
    assert all(name in problem and str(file) in problem for problem in problems)
    assert not (tmp_path / "out").exists()
    assert hidden(tmp_path) == []  # it would fail again: nothing to go on with
    assert opened() == before
    save_file(good, file, metadata={"format": "pt"})
    merge(spec_for(method, folders), tmp_path / "out")
    assert raw_of(tmp_path / "out") == raw_of(tmp_path / "warm")
    assert hidden(tmp_path) == []


def test_what_float16_cannot_hold(written: Any, tmp_path: Path) -> None:
    base = {"h.0.w": np.full((4, 4), 60000.0, np.float32), "h.1.w": np.ones((4, 4), np.float32)}
    other = {name: values + np.float32(4000) for name, values in base.items()}
    folders = [written(name, tensors, dtype=torch.float16) for name, tensors in (("base", base), ("a", other))]
    with pytest.raises(NonFiniteError, match=r"in tensor 'h\.0\.w' that float16 cannot hold"):
        merge(spec_of("task_arithmetic", folders[1:], folders[0], scale=2.0), tmp_path / "out", allow=["ancestry"])
    assert not (tmp_path / "out").exists()
    merge(
        spec_of("task_arithmetic", folders[1:], folders[0], scale=2.0, output=Output(dtype="float32")), tmp_path / "out",
        allow=["ancestry"],
    )  # fmt: skip
    assert load_file(tmp_path / "out" / "model.safetensors")["h.0.w"][0, 0] == 68000.0


@pytest.mark.parametrize("after", [0, 1, 5, 40])
def test_a_full_disk(
    after: int, family: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw_of: Any,
    blocks_of: Any,
) -> None:  # fmt: skip
    folders, spec_out, calls, real = family(), tmp_path / "out", [0], os.pwrite
    spec = spec_for("ties", folders)
    merge(spec, tmp_path / "whole")
    before = opened()

    def full(file: int, data: Any, at: int) -> int:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    with (
        blocks_of(500),
        pytest.raises(StoreError, match=rf"The disk is full: {spec_out} was not written\. Free some space"),
    ):
        merge(spec, spec_out, workers=2)
    assert not spec_out.exists()
    assert opened() == before
    monkeypatch.setattr(os, "pwrite", real)
    merge(spec, spec_out)
    assert raw_of(spec_out) == raw_of(tmp_path / "whole")


def test_no_file_stays_open(
    family: Callable[..., list[Path]], tiny_bert: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    folders = family()
    merge(spec_for("ties", folders), tmp_path / "first")
    before = opened()
    for number in range(3):
        merge(spec_for("ties", folders), tmp_path / str(number))
        merge(spec_of("linear", [tiny_bert, f"{tiny_bert}+{tiny_adapter}"]), tmp_path / f"lora{number}")
        assert opened() == before


def test_memory_that_a_method_lacks_is_said_before_a_byte_is_written(
    tiny_bert: Path, tuned: Any, tmp_path: Path
) -> None:
    a, b = tuned(tiny_bert, "a", 1), tuned(tiny_bert, "b", 2)
    spec = spec_of("iso_c", [a, b], tiny_bert)
    with pytest.raises(
        BudgetError, match=r"needs .* of memory, .* of it for the whole tensor '.*'; the limit is 100\.0 KiB"
    ):
        merge(spec, tmp_path / "out", max_memory=100 * 2**10)
    with pytest.raises(BudgetError, match=r"for its buffers; the limit is 100\.0 KiB"):
        merge(spec_of("ties", [a, b], tiny_bert), tmp_path / "out", max_memory=100 * 2**10)
    assert not (tmp_path / "out").exists() and hidden(tmp_path) == []
    merge(spec, tmp_path / "out")


def test_an_output_that_is_there_is_not_touched(family: Callable[..., list[Path]], tmp_path: Path) -> None:
    folders = family()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    for allow in ([], ["out"]):
        with pytest.raises(RunError, match="is not empty"):
            merge(spec_for("linear", folders), tmp_path / "out", allow=allow)
    assert (tmp_path / "out" / "mine").read_text() == "mine"
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(RunError, match="mine there is no part of a checkpoint"):
        merge(spec_for("linear", folders), tmp_path / "out", allow=["out"])
    (tmp_path / "out" / "mine").rename(tmp_path / "out" / "old.safetensors")
    merge(spec_for("linear", folders), tmp_path / "out", allow=["out"])
    assert not (tmp_path / "out" / "old.safetensors").exists()


def test_what_comes_there_while_a_merge_runs_is_not_touched(family: Callable[..., list[Path]], tmp_path: Path) -> None:
    spec, out = spec_for("linear", family()), tmp_path / "out"

    def put(_: str) -> None:
        out.mkdir(exist_ok=True)
        (out / "mine").write_text("mine")

    faults.hook = put
    try:
        with pytest.raises(RunError, match=r"out is not empty, and what is in it is no checkpoint"):
            merge(spec, out)
    finally:
        faults.hook = None
    assert [file.name for file in out.iterdir()] == ["mine"] and len(hidden(tmp_path)) == 1
    (out / "mine").unlink()
    passed: list[str] = []
    faults.hook = passed.append
    try:
        merge(spec, out)
    finally:
        faults.hook = None
    assert "tensor merged" not in passed and hidden(tmp_path) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_what_is_copied_must_be_finite_too(
    dtype: torch.dtype, value: float, written: Any, llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that is not merged, whose one bad weight the sample missed."""
    monkeypatch.setattr(weights, "WHOLE", 0)
    heads = {"a": np.ones((64, 32), np.float32), "b": np.ones((5, 32), np.float32)}
    for place in (3, 1999):  # the sample is one run of elements: it holds at most one of them
        bad = heads["a"].copy()
        bad.reshape(-1)[place] = value
        folders = [
            written(name, {**llama(0), "score.weight": head}, dtype=dtype)
            for name, head in (("a", bad), ("b", heads["b"]))
        ]
        with pytest.raises(
            NonFiniteError, match=r"a/model\.safetensors.*score\.weight.* holds NaN|in score\.weight \(.*a/model"
        ):
            merge(spec_of("slerp", folders), tmp_path / "out", allow=["heads"])
        assert not (tmp_path / "out").exists()
    folders = [
        written(name, {**llama(0), "score.weight": head, "mask": np.full(3, 2**62)}, dtype=dtype)
        for name, head in heads.items()
    ]
    assert merge(spec_of("slerp", folders), tmp_path / "out", allow=["heads"]).copied == 2
