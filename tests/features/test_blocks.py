"""Passes in blocks: the numbers of one pass, ended early, gone on with, and read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from regraft.checkpoint import open_checkpoint
from regraft.errors import CheckpointError, StoreError
from regraft.features import blocks, extract, extract_all, extract_blocks
from regraft.features import extract as extract_function
from regraft.store import Store

TEXTS = ["the cat saw a dog", "rain", "we heard a very old violin again and again", "snow and wind", "cow"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 2)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the encoders that are read."""
    import sys

    module = sys.modules[extract_function.__module__]
    seen: list[str] = []
    load = module.load_encoder

    def noted(checkpoint: Any, **options: Any) -> Any:
        seen.append(checkpoint.name)
        return load(checkpoint, **options)

    monkeypatch.setattr(module, "load_encoder", noted)
    return seen


def test_blocks_hold_the_numbers_of_one_pass(tiny_bert: Path, tmp_path: Path, store: Store) -> None:
    group = [open_checkpoint(str(tiny_bert)), open_checkpoint(f"{tiny_bert}#layers=2").renamed("two")]
    found = extract_blocks(group, TEXTS, store=store)
    assert (found.texts, found.timed) == (5, 5) and found.seconds > 0
    for checkpoint in group:
        whole = extract(checkpoint, TEXTS, store=Store(tmp_path / checkpoint.name))
        views = found.views[checkpoint.name]
        np.testing.assert_allclose(views.last, whole.last, atol=1e-5)
        np.testing.assert_allclose(views.mean, whole.mean, atol=1e-5)
        np.testing.assert_allclose(views.both, whole.both, atol=1e-5)


def test_a_pass_ends_before_the_block_that_it_is_told_to(tiny_bert: Path, store: Store) -> None:
    checkpoint = open_checkpoint(str(tiny_bert))
    asked: list[int] = []

    def stop(made: int) -> bool:
        asked.append(made)
        return made >= 4

    found = extract_blocks([checkpoint], TEXTS, stop=stop, store=store)
    assert (found.texts, asked) == (4, [0, 2, 4])
    assert found.views[checkpoint.name].last.shape == (4, 32)
    none = extract_blocks([checkpoint], TEXTS, stop=lambda _made: True, store=store)
    assert (none.texts, dict(none.views)) == (0, {})


def test_what_a_killed_pass_had_made_is_not_made_again(tiny_bert: Path, store: Store, loads: list[str]) -> None:
    checkpoint = open_checkpoint(str(tiny_bert))
    first = extract_blocks([checkpoint], TEXTS, stop=lambda made: made >= 4, store=store)
    assert loads == [checkpoint.name]  # once for both blocks
    again = extract_blocks([checkpoint], TEXTS, store=store)
    assert (again.texts, again.timed) == (5, 1)
    assert loads == [checkpoint.name] * 2
    assert np.array_equal(again.views[checkpoint.name].last[:4], first.views[checkpoint.name].last)


def test_one_that_fails_in_a_block_is_given_up(tiny_bert: Path, copy_of: Any, store: Store) -> None:
    folder = copy_of(tiny_bert, "damaged")
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.2.output.dense.bias"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    group = [open_checkpoint(str(folder)), open_checkpoint(f"{folder}#layers=1").renamed("one")]
    failed: dict[str, CheckpointError] = {}
    found = extract_blocks(group, TEXTS, failed=failed, store=store)
    assert list(failed) == ["damaged"] and list(found.views) == ["one"]
    assert found.views["one"].last.shape == (5, 32)


def test_a_full_disk_is_no_fault_of_a_checkpoint(
    tiny_bert: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", refuse, raising=False)
    failed: dict[str, CheckpointError] = {}
    with pytest.raises(StoreError, match="The disk is full"):
        extract_all([open_checkpoint(str(tiny_bert))], TEXTS, failed=failed, store=store)
    assert failed == {}


def test_a_defect_of_ours_is_no_fault_of_a_checkpoint(
    tiny_bert: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: object, **__: object) -> None:
        raise AssertionError("a defect")

    monkeypatch.setattr(store, "make", defect)
    with pytest.raises(AssertionError):
        extract_all([open_checkpoint(str(tiny_bert))], TEXTS, failed={}, store=store)


def test_files_that_vanish_are_the_checkpoints_fault(tiny_bert: Path, copy_of: Any, store: Store) -> None:
    folder = copy_of(tiny_bert)
    checkpoint = open_checkpoint(str(folder))
    (folder / "model.safetensors").unlink()
    failed: dict[str, CheckpointError] = {}
    assert extract_all([checkpoint], TEXTS, failed=failed, store=store) == {}
    assert "model.safetensors" in str(failed[checkpoint.name])


def test_rows_keep_no_layers_in_memory(tiny_bert: Path, store: Store) -> None:
    rows = extract(open_checkpoint(str(tiny_bert)), TEXTS, store=store).rows(np.array([0, 2]))
    assert rows.mean.shape == (2, 32) and rows.all.shape == (2, 5 * 32)
    assert set(vars(rows)) == {"whole", "chosen"}
