"""Killed and started again: the same bytes, what was finished is not merged again, and one process at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regraft import faults
from regraft.checkpoint.weights import let_go
from regraft.errors import RunLockedError, VerificationError
from regraft.merge.recipe.spec import Output, Spec, spec_of
from regraft.merge.run import merge

# What is forked is killed, or ends without using a thread of its parent's.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def _no_hook() -> Iterator[None]:
    yield
    faults.hook = None


@pytest.fixture
def three(written: Any, llama: Any) -> list[Path]:
    """A base and two fine-tunes, in bfloat16."""
    import torch

    draw, base = np.random.default_rng(0), llama(0)
    every = [base] + [
        {name: values + 0.01 * draw.standard_normal(values.shape).astype(np.float32) for name, values in base.items()}
        for _ in range(2)
    ]
    return [
        written(name, tensors, dtype=torch.bfloat16) for name, tensors in zip(("base", "a", "b"), every, strict=True)
    ]


def recipe(three: list[Path], **options: Any) -> Spec:
    return spec_of("ties", three[1:], three[0], **({"density": 0.3} | options))


def files(folder: Path) -> dict[str, bytes]:
    """Every file of the folder but the card, which has the folder's name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "README.md"
    }  # fmt: skip


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def counted(work: Callable[[], object]) -> int:
    """How many tensors are merged or copied."""
    passed: list[str] = []
    faults.hook = passed.append
    work()
    faults.hook = None
    return passed.count("tensor merged")


@pytest.mark.parametrize("options", [{}, {"trim": "global"}], ids=["tensor", "global"])
@pytest.mark.parametrize(("point", "passes", "left"), [
    ("tensor merged", 1, 29), ("tensor merged", 17, 13), ("tensor merged", 30, 0), ("merge written", 1, 0),
])  # fmt: skip
def test_killed_it_goes_on(
    point: str,
    passes: int,
    left: int,
    options: dict[str, Any],
    three: list[Path],
    tmp_path: Path,
    killed_at: Callable[..., None],
) -> None:
    spec, out = recipe(three, **options), tmp_path / "out"
    assert counted(lambda: merge(spec, tmp_path / "whole")) == 30
    killed_at(point, lambda: merge(spec, out), passes)
    assert not out.exists()
    assert len([name for name in names(tmp_path) if name.endswith(".partial")]) == 1
    assert counted(lambda: merge(spec, out)) == left
    assert files(out) == files(tmp_path / "whole")
    assert names(tmp_path) == {"base", "a", "b", "out", "whole"}


def test_killed_again_and_again(three: list[Path], tmp_path: Path, killed_at: Callable[..., None]) -> None:
    """With other numbers of threads each time."""
    spec, out = recipe(three), tmp_path / "out"
    merge(spec, tmp_path / "whole")
    for workers in (1, 2, 3, 1):
        killed_at("tensor merged", lambda workers=workers: merge(spec, out, workers=workers), 6)  # type: ignore[misc]
    assert counted(lambda: merge(spec, out)) == 30 - 4 * 6
    assert files(out) == files(tmp_path / "whole")


def test_the_inputs_may_be_given_in_another_order(
    three: list[Path], tmp_path: Path, killed_at: Callable[..., None]
) -> None:
    base, a, b = three
    killed_at("tensor merged", lambda: merge(spec_of("ties", [a, b], base, weight=[1.0, 0.5]), tmp_path / "out"), 20)
    assert counted(lambda: merge(spec_of("ties", [b, a], base, weight=[0.5, 1.0]), tmp_path / "out")) == 10


@pytest.mark.parametrize("change", ["option", "weight", "seed", "format", "file"])
def test_another_merge_begins_anew(
    change: str, three: list[Path], tmp_path: Path, killed_at: Callable[..., None]
) -> None:
    """Another recipe, or other files under the same names: what was written half belongs to neither."""
    out = tmp_path / "out"
    killed_at("tensor merged", lambda: merge(recipe(three), out), 20)
    (left,) = [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]
    if change == "file":
        os.utime(three[1] / "model.safetensors", ns=(0, 1))
    spec = {
        "option": lambda: recipe(three, density=0.31), "weight": lambda: recipe(three, weight=[1.0, 0.9]),
        "seed": lambda: spec_of("ties", three[1:], three[0], density=0.3, seed=1),
        "format": lambda: spec_of("ties", three[1:], three[0], density=0.3, output=Output(dtype="float32")),
        "file": lambda: recipe(three),
    }[change]()  # fmt: skip
    assert counted(lambda: merge(spec, out)) == 30
    assert not left.exists()
    merge(spec, tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")


def test_what_was_copied_is_not_copied_again(written: Any, tmp_path: Path, killed_at: Callable[..., None]) -> None:
    tensors = {"h.0.w": np.ones((8, 8), np.float32), "ids": np.arange(9), "mask": np.array([True, False])}
    folders = [written(name, tensors | {"h.0.w": tensors["h.0.w"] + step}) for step, name in enumerate(("x", "y"))]
    spec = spec_of("linear", folders)
    allow = ["ancestry"]
    merge(spec, tmp_path / "whole", allow=allow)
    for _ in range(2):
        killed_at("tensor merged", lambda: merge(spec, tmp_path / "out", allow=allow))
    assert counted(lambda: merge(spec, tmp_path / "out", allow=allow)) == 1
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_lora_out_is_made_again(
    tiny_bert: Path, adapter_maker: Any, tmp_path: Path, killed_at: Callable[..., None]
) -> None:
    inputs = [f"{tiny_bert}+{adapter_maker(tiny_bert, tmp_path / name)}" for name in ("x", "y")]
    spec = spec_of("task_arithmetic", inputs, tiny_bert, output=Output(format="lora", rank=2))
    killed_at("merge written", lambda: merge(spec, tmp_path / "out"))
    merge(spec, tmp_path / "out")
    merge(spec, tmp_path / "whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_tensors_that_were_merged_side_by_side(
    three: list[Path], tmp_path: Path, killed_at: Callable[..., None]
) -> None:
    """A method of whole matrices has several tensors in work when it is killed."""
    spec, out = spec_of("iso_c", three[1:], three[0]), tmp_path / "out"
    merge(spec, tmp_path / "whole", workers=1)
    for workers in (3, 2):
        killed_at("tensor merged", lambda workers=workers: merge(spec, out, workers=workers), 7)  # type: ignore[misc]
    assert counted(lambda: merge(spec, out, workers=3)) == 30 - 2 * 7
    assert files(out) == files(tmp_path / "whole")


def test_another_scale_of_an_adapter_begins_anew(
    tiny_bert: Path, adapter_maker: Any, edited: Any, tmp_path: Path, killed_at: Callable[..., None]
) -> None:
    """lora_alpha stands in the config alone: the same factors are another input."""
    adapter = adapter_maker(tiny_bert, tmp_path / "lora", lora_alpha=4)
    spec, out = spec_of("linear", [tiny_bert, f"{tiny_bert}+{adapter}"]), tmp_path / "out"
    total = counted(lambda: merge(spec, tmp_path / "before"))
    killed_at("tensor merged", lambda: merge(spec, out), 10)
    edited(adapter, "adapter_config.json", lora_alpha=8)
    assert counted(lambda: merge(spec, out)) == total
    merge(spec, tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole") != files(tmp_path / "before")


def test_after_a_restart_of_the_machine_it_begins_anew(
    three: list[Path], tmp_path: Path, killed_at: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may keep the journal and lose what it says."""
    spec, out = recipe(three), tmp_path / "out"
    merge(spec, tmp_path / "whole")
    killed_at("tensor merged", lambda: merge(spec, out), 20)
    (left,) = tmp_path.glob(".out.*.partial")
    (left / "model.safetensors").write_bytes(bytes((left / "model.safetensors").stat().st_size))
    monkeypatch.setattr("regraft.checkpoint.writer.boot_id", lambda: "another")
    assert counted(lambda: merge(spec, out)) == 30
    assert files(out) == files(tmp_path / "whole")


def test_what_fails_its_certificate_is_not_found_again(
    three: list[Path], tmp_path: Path, killed_at: Callable[..., None]
) -> None:
    """Bytes that a disk has lost after they were noted as finished."""
    spec, out = recipe(three), tmp_path / "out"
    merge(spec, tmp_path / "whole")
    killed_at("tensor merged", lambda: merge(spec, out), 30)
    (left,) = tmp_path.glob(".out.*.partial")
    file = left / "model.safetensors"
    raw = file.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    file.write_bytes(raw[:start] + bytes(len(raw) - start))
    with pytest.raises(VerificationError, match=r"made again from the parents.*Merge again"):
        merge(spec, out)
    assert names(tmp_path) == {"base", "a", "b", "whole"}
    assert counted(lambda: merge(spec, out)) == 30
    assert files(out) == files(tmp_path / "whole")


def test_a_second_process_is_refused(three: list[Path], tmp_path: Path) -> None:
    """While the first is at work; it is none the worse for it."""
    spec, out = recipe(three), tmp_path / "out"
    merge(spec, tmp_path / "whole")
    let_go()
    (ready, said), (held, free) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        left = [10]

        def hook(name: str) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.write(said, b"x")
                os.read(held, 1)

        faults.hook = hook
        merge(spec, out)
        os._exit(0)
    os.read(ready, 1)
    for again in (spec, recipe(three, density=0.5), spec):
        with pytest.raises(RunLockedError, match=rf"Another process is writing {out}"):
            merge(again, out)
    merge(recipe(three, density=0.5), tmp_path / "out.v2")  # a neighbour whose name begins alike
    merge(spec, tmp_path / "ou")
    os.write(free, b"x")
    _, status = os.waitpid(child, 0)
    for end in (ready, said, held, free):
        os.close(end)
    assert os.waitstatus_to_exitcode(status) == 0
    assert files(out) == files(tmp_path / "whole")
