"""What a merge takes, and where it goes: too little memory or disk, and folders that are in use, are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from regraft.errors import BudgetError, RunError, StoreError
from regraft.merge.checks import room
from regraft.merge.checks.preflight import Preflight, preflight_of
from regraft.merge.checks.room import size
from regraft.merge.inputs import open_inputs
from regraft.merge.recipe.spec import Output, Spec, spec_of


def looked_at(spec: Spec, out: Path | None = None, allow: tuple[str, ...] = (), limit: int = 2**29) -> Preflight:
    return preflight_of(*open_inputs(spec), out=out, max_memory=limit, workers=2, allow=allow)


def ties(base: Path, *inputs: Path, output: Output | None = None) -> Spec:
    return spec_of("ties", list(inputs), base, output=output)


def test_the_output_folder(three: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, a, b = three
    spec, full = ties(base, a, b), tmp_path / "full"
    full.mkdir()
    assert looked_at(spec, full).findings == ()
    (full / "file").write_text("mine")
    with pytest.raises(RunError, match=r"full is not empty.*Give a new folder\..*--allow out"):
        looked_at(spec, full).refuse()
    looked_at(spec, full, ("out",)).refuse()
    for inside in (a / "merged", a, tmp_path):
        with pytest.raises(RunError, match="lies in the folder of"):
            looked_at(spec, inside, ("out",)).refuse()
    with pytest.raises(RunError, match="is a file"):
        looked_at(spec, full / "file", ("out",)).refuse()


def test_too_little_disk(three: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, a, b = three
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: free)
    with pytest.raises(StoreError, match=r"out needs .* KiB on disk, 1000 B are free"):
        looked_at(ties(base, a, b), tmp_path / "out").refuse()
    left = tmp_path / ".out.0123456789abcdef.partial" / "model.safetensors"
    left.parent.mkdir()
    left.write_bytes(bytes(2**20))  # what an interrupted merge has written is used again
    looked_at(ties(base, a, b), tmp_path / "out").refuse()


def test_too_little_memory(three: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    base, a, b = three
    with pytest.raises(
        BudgetError, match=r"needs .* of memory, for its buffers; the limit is 1\.0 MiB.*fewer --workers"
    ):
        looked_at(ties(base, a, b), limit=2**20).refuse()
    traits = replace(room.traits_of("ties"), working=lambda shape, n: 1000 * n * shape[0])
    monkeypatch.setattr(room, "traits_of", lambda _: traits)
    found = looked_at(ties(base, a, b))
    tensors = found.aligned.opened.template.tensors
    largest = max(found.aligned.merged, key=lambda name: tensors[name].shape[0])
    assert (found.memory["tensor"], found.memory["working"]) == (largest, 2000 * tensors[largest].shape[0])
    with pytest.raises(BudgetError, match=f"for the whole tensor '{largest}'"):
        looked_at(ties(base, a, b), limit=2**20).refuse()


def test_a_lora_needs_whole_tensors(three: tuple[Path, Path, Path]) -> None:
    found = looked_at(ties(*three, output=Output(format="lora", rank=4)), allow=("lora-loss",))
    tensor = found.memory["tensor"]
    assert tensor is not None
    assert found.memory["working"] > 12 * found.aligned.opened.template.tensors[tensor].elements
    assert found.disk["needed"] < looked_at(ties(*three)).disk["needed"]


@pytest.mark.parametrize(("count", "words"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 * 2**30, "3.0 GiB")])
def test_sizes_in_words(count: int, words: str) -> None:
    assert size(count) == words
