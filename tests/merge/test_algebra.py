"""Methods of whole matrices: several tensors at a time, one thread of linear algebra each, the same bytes whatever happens."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg  # noqa: F401  so that its threads are known, too
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from regraft.merge.methods import iso
from regraft.merge.recipe.spec import Output, Spec, spec_of
from regraft.merge.run import merge
from regraft.merge.turns import in_turn

MATRICES: dict[str, dict[str, Any]] = {
    "iso_c": {}, "iso_cts": {}, "tsv_m": {}, "wudi": {"steps": 3}, "opcm": {}, "knots": {"trim": "global"},
    "lora_svd": {"rank": 2},
}  # fmt: skip


def threads() -> set[int]:
    """Of every library of linear algebra that numpy and scipy use."""
    return {
        one["num_threads"] for one in threadpool_info()
        if one["user_api"] == "blas" and any(name in one["filepath"] for name in ("numpy", "scipy"))
    }  # fmt: skip


def spec_for(method: str, folders: list[Path], output: Output | None = None) -> Spec:
    return spec_of(method, folders[1:], folders[0], output=output, **MATRICES.get(method, {}))


@pytest.mark.parametrize("method", MATRICES)
def test_the_same_bytes_for_any_number_of_threads(method: str, family: Any, tmp_path: Path, raw_of: Any) -> None:
    folders, made = family(dtype=torch.float32), []
    for workers, libraries in ((1, 1), (2, 2), (3, 1)):
        with threadpool_limits(libraries, "blas"):
            merge(spec_for(method, folders), tmp_path / str(workers), workers=workers)
        made.append(raw_of(tmp_path / str(workers)))
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("workers", [1, 2])
def test_one_thread_each(workers: int, family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the process has else; it has it again afterwards, and the record says so."""
    seen: list[set[int]] = []
    real = iso.factors

    def watched(*given: Any, **options: Any) -> Any:
        if given[0].shape != (2, 2):  # on which preflight tries the settings
            seen.append(threads())
        return real(*given, **options)

    monkeypatch.setattr(iso, "factors", watched)
    folders = family()
    with threadpool_limits(2, "blas"):
        merge(spec_for("iso_c", folders), tmp_path / "out", workers=workers)
        assert threads() == {2}
    assert seen and all(one == {1} for one in seen)
    about = json.loads((tmp_path / "out" / "regraft.json").read_text())
    assert about["threads_per_tensor"] == 1
    merge(spec_for("ties", folders), tmp_path / "blocks")
    assert "threads_per_tensor" not in json.loads((tmp_path / "blocks" / "regraft.json").read_text())


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "knots"])
def test_a_lora_is_the_same_for_any_number_of_threads(
    method: str, tiny_bert: Path, adapter_maker: Any, tmp_path: Path
) -> None:
    adapters = [f"{tiny_bert}+{adapter_maker(tiny_bert, tmp_path / name)}" for name in "xy"]
    made = []
    for workers in (1, 3):
        out = tmp_path / f"out{workers}"
        merge(spec_of(method, adapters, tiny_bert, output=Output(format="lora", rank=3)), out, workers=workers)
        made.append({path.name: path.read_bytes() for path in out.iterdir() if path.name != "README.md"})
    assert made[0] == made[1]


def test_what_is_done_in_turn_is_done_side_by_side() -> None:
    """Two that wait for each other get on."""
    both = threading.Barrier(2)

    def meet(number: int) -> int:
        both.wait(30)
        return number

    assert list(in_turn(meet, range(6), 2)) == [*range(6)]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_not_more_are_begun_than_are_asked_for(workers: int) -> None:
    begun: list[int] = []
    results = in_turn(lambda number: begun.append(number) or number, range(9), workers)
    for number in range(9):
        assert next(results) == number
        assert len(begun) <= number + workers
    assert list(results) == [] and sorted(begun) == [*range(9)]


def test_the_first_fault_ends_it() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number >= 2:
            raise ValueError(f"item {number}")
        return number

    with pytest.raises(ValueError, match="item 2"):
        list(in_turn(work, range(100), 3))
    assert len(begun) <= 2 + 3


def test_a_matrix_and_what_is_none_at_the_same_time(written: Any, tmp_path: Path, raw_of: Any) -> None:
    """Vectors, numbers and buffers among the matrices."""
    draw = np.random.default_rng(0)
    shapes = {f"h.{at}.{kind}": shape for at in range(3) for kind, shape in
              (("w", (20, 12)), ("b", (70_000,)), ("n", ()), ("e", (0, 3)))}  # fmt: skip
    base = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    folders = [
        written(name, {**{key: value + np.float32(0.01 * step) for key, value in base.items()}, "ids": np.arange(5)})
        for step, name in enumerate(("base", "a", "b"))
    ]
    for workers in (1, 3):
        merge(spec_for("opcm", folders), tmp_path / str(workers), workers=workers)
    assert raw_of(tmp_path / "1") == raw_of(tmp_path / "3")
