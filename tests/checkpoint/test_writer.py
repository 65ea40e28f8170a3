"""The writer: files that the library reads, parts in any order, and nothing half-written under the target's name."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from regraft.checkpoint import writer as module
from regraft.checkpoint.headers import DTYPE_BYTES, read_header
from regraft.checkpoint.read_ahead import ReadAhead
from regraft.checkpoint.weights import NUMPY, raw_values
from regraft.checkpoint.writer import Slot, Writer, layout, resumable_folder
from regraft.errors import RunLockedError, StoreError

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"
FILE = PurePosixPath("model.safetensors")


def slot(name: str, dtype: str, *shape: int, file: PurePosixPath = FILE) -> Slot:
    return Slot(file, name, dtype, shape)


def values(one: Slot, seed: int = 0) -> np.ndarray:
    """Random bytes of a slot's format; booleans are 0 or 1."""
    count = one.nbytes // DTYPE_BYTES[one.dtype]
    raw = np.random.default_rng(seed).integers(0, 2 if one.dtype == "BOOL" else 256, one.nbytes, np.uint8)
    return raw.view(np.dtype(NUMPY[one.dtype])) if count else np.empty(0, NUMPY[one.dtype])


def opened() -> int:
    return len([*Path("/dev/fd").iterdir()])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_every_format_is_written_and_read_back(tmp_path: Path) -> None:
    """Numbers, empty tensors, and odd numbers of bytes before others included."""
    shapes = [(3,), (), (0,), (2, 3), (4, 0), (1, 1, 5)]
    slots = [slot(f"{dtype}.{at}", dtype, *shape) for dtype in DTYPE_BYTES for at, shape in enumerate(shapes)]
    with Writer(tmp_path, slots) as writer:
        for seed, one in enumerate(slots):
            writer.write(one.name, values(one, seed), 0)
            writer.finish(one.name)
    found = read_header(tmp_path / FILE)
    assert list(found) == [one.name for one in slots]
    assert all((found[one.name].dtype, found[one.name].shape) == (one.dtype, one.shape) for one in slots)
    assert all(raw_values(found[one.name]).tobytes() == values(one, seed).tobytes() for seed, one in enumerate(slots))
    with safe_open(tmp_path / FILE, "np") as file:
        assert set(file.keys()) == set(found)
        assert file.metadata() == {"format": "pt"}
        for seed, one in enumerate(slots):
            if one.dtype not in ("BF16", "C64"):  # which numpy, or the library, does not know
                assert file.get_tensor(one.name).tobytes() == values(one, seed).tobytes()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(0, 500), max_size=6), order=st.randoms(use_true_random=False))
def test_parts_in_any_order(tmp_path_factory: pytest.TempPathFactory, cuts: list[int], order: Any) -> None:
    folder, one = tmp_path_factory.mktemp("parts"), slot("x", "I16", 500)
    raw, edges = values(one), sorted({0, *cuts, 500})
    parts = list(itertools.pairwise(edges))
    order.shuffle(parts)
    with Writer(folder, [slot("odd", "BOOL", 3), one]) as writer:
        for low, high in parts:
            writer.write("x", raw[low:high], low)
    assert np.array_equal(raw_values(read_header(folder / FILE)["x"]), raw)


def test_several_threads_write_one_tensor(tmp_path: Path) -> None:
    one = slot("x", "U16", 40_000)
    raw = values(one)
    with Writer(tmp_path, [one]) as writer:

        def work(lane: int) -> None:
            for at in range(lane * 10, 40_000, 40):
                writer.write("x", raw[at : at + 10], at)

        threads = [threading.Thread(target=work, args=(lane,)) for lane in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert np.array_equal(raw_values(read_header(tmp_path / FILE)["x"]), raw)


def test_a_disk_that_takes_only_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_pwrite, real_write = os.pwrite, os.write
    monkeypatch.setattr(module.os, "pwrite", lambda file, data, at: real_pwrite(file, bytes(data)[:7], at))
    monkeypatch.setattr(module.os, "write", lambda file, data: real_write(file, bytes(data)[:2]))
    one = slot("x", "F32", 25)
    with Writer(tmp_path, [one]) as writer:
        writer.write("x", values(one), 0)
        writer.finish("x")
    monkeypatch.undo()
    assert raw_values(read_header(tmp_path / FILE)["x"]).tobytes() == values(one).tobytes()
    with Writer(tmp_path, [one]) as writer:
        assert writer.is_finished("x")


def test_slices_that_do_not_lie_together(tmp_path: Path) -> None:
    one, raw = slot("x", "F32", 10), np.arange(20, dtype=np.float32)
    with Writer(tmp_path, [one]) as writer:
        writer.write("x", raw[::2], 0)
    assert np.array_equal(raw_values(read_header(tmp_path / FILE)["x"]), raw[::2])


def test_shards_and_modules_have_files_of_their_own(tmp_path: Path) -> None:
    """A module's tensors are known by its folder, which is not part of their names in its file."""
    shards = [PurePosixPath(f"model-0000{number}-of-00002.safetensors") for number in (1, 2)]
    slots = [
        slot("b", "F32", 2, file=shards[1]), slot("a", "F32", 3, file=shards[0]), slot("c", "F16", 1, file=shards[1]),
        slot("2_Dense.linear.weight", "F32", 2, 2, file=PurePosixPath("2_Dense/model.safetensors")),
        slot("0_T.weight", "F32", 1, file=PurePosixPath("0_Transformer/model.safetensors")),
    ]  # fmt: skip
    with Writer(tmp_path, slots) as writer:
        for one in slots:
            writer.write(one.name, values(one), 0)
    assert {shard.name: list(read_header(tmp_path / shard)) for shard in shards} == {
        shards[0].name: ["a"], shards[1].name: ["b", "c"],
    }  # fmt: skip
    assert list(read_header(tmp_path / "2_Dense" / "model.safetensors")) == ["linear.weight"]
    assert list(read_header(tmp_path / "0_Transformer" / "model.safetensors")) == ["0_T.weight"]


def test_a_layout_is_that_of_the_folder(tmp_path: Path) -> None:
    slots = [slot("b", "F32", 2), slot("a", "BOOL", 3), slot("m.x", "F16", file=PurePosixPath("m/model.safetensors"))]
    with Writer(tmp_path, slots):
        pass
    tensors = read_header(tmp_path / FILE) | {
        f"m.{name}": info for name, info in read_header(tmp_path / "m" / "model.safetensors").items()
    }
    assert layout(tensors, tmp_path) == slots


def test_what_is_finished_stays(tmp_path: Path) -> None:
    slots = [slot("a", "F32", 2), slot("a.b", "F32", 2), slot("größe", "F32", 1)]
    with Writer(tmp_path, slots) as writer:
        assert not any(writer.is_finished(one.name) for one in slots)
        writer.write("a.b", np.float32([1, 2]), 0)
        writer.finish("a.b")
        writer.finish("größe")
        writer.write("a", np.float32([7]), 1)
    with Writer(tmp_path, slots) as writer:
        assert [writer.is_finished(one.name) for one in slots] == [False, True, True]
        writer.write("a", np.float32([8, 9]), 0)
    assert raw_values(read_header(tmp_path / FILE)["a.b"]).tolist() == [1, 2]
    assert raw_values(read_header(tmp_path / FILE)["a"]).tolist() == [8, 9]


def test_half_a_name_in_the_journal_is_no_name(tmp_path: Path) -> None:
    """A full disk may take the first letters only, and these may be another tensor's name."""
    slots = [slot("layer.1", "F32", 2), slot("layer.10", "F32", 2), slot("x", "F32", 1)]
    with Writer(tmp_path, slots) as writer:
        writer.finish("x")
    with (tmp_path / ".finished").open("a") as journal:
        journal.write("layer.1")
    with Writer(tmp_path, slots) as writer:
        assert [writer.is_finished(one.name) for one in slots] == [False, False, True]


def test_files_are_closed_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = [slot("a", "F32", 2), slot("b", "F32", 2, file=PurePosixPath("b.safetensors"))]
    before = opened()
    with pytest.raises(ZeroDivisionError), Writer(tmp_path, slots):
        raise ZeroDivisionError
    assert opened() == before
    calls: list[int] = []

    def full(file: int, data: bytes, at: int) -> int:
        calls.append(file)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)

    monkeypatch.setattr(module.os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        Writer(tmp_path, slots)
    assert opened() == before


def test_waiting_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(module.os, "fsync", synced.append)
    slots = [slot("a", "F32", 2), slot("b", "F32", 2, file=PurePosixPath("b.safetensors"))]
    with Writer(tmp_path, slots) as writer:
        writer.sync()
    assert len(set(synced)) == 2


def test_a_folder_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with resumable_folder(target, KEY) as folder:
        assert not target.exists()
        (folder / "file").write_text("done")
    assert (target / "file").read_text() == "done"
    assert names(tmp_path / "deep") == {"out"}


def test_what_fails_stays_hidden_and_is_found_again(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), resumable_folder(target, KEY) as folder:
        (folder / "file").write_text("half")
        raise ZeroDivisionError
    assert names(tmp_path) == {f".out.{KEY}.partial"}
    with resumable_folder(target, KEY) as folder:
        assert (folder / "file").read_text() == "half"
    assert names(tmp_path) == {"out"}


def test_the_journal_is_gone_at_the_end(tmp_path: Path) -> None:
    with resumable_folder(tmp_path / "out", KEY) as folder, Writer(folder, [slot("a", "F32", 1)]) as writer:
        writer.finish("a")
    assert names(tmp_path / "out") == {"model.safetensors"}


def half_written(target: Path, key: str) -> Path:
    with pytest.raises(ZeroDivisionError), resumable_folder(target, key) as folder:
        (folder / "file").write_text(key)
        raise ZeroDivisionError
    return folder


@pytest.mark.parametrize("name", ["out", "out[1]", "a*", "x.y"])
def test_another_key_removes_what_is_left(name: str, tmp_path: Path) -> None:
    left = half_written(tmp_path / name, KEY)
    with resumable_folder(tmp_path / name, OTHER) as folder:
        assert not left.exists()
        assert names(folder) == set()
    assert names(tmp_path) == {name}


def test_half_written_folders_of_other_targets_stay(tmp_path: Path) -> None:
    """Also where the name only begins like this one's: `out.v2` is not `out`."""
    others = [half_written(tmp_path / name, KEY) for name in ("out.v2", "out.v2.old", "out2", "the.out")]
    with resumable_folder(tmp_path / "out", OTHER):
        pass
    assert all((other / "file").read_text() == KEY for other in others)


def test_an_older_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with resumable_folder(tmp_path / "out", KEY) as folder:
        assert (tmp_path / "out" / "old").exists()
        (folder / "new").write_text("new")
    assert names(tmp_path / "out") == {"new"}
    assert names(tmp_path) == {"out"}


def test_a_target_that_a_killed_process_had_moved_aside_comes_back(tmp_path: Path) -> None:
    """Between the two renames of a replacement; what is made next may fail, and the user's folder is there all the same."""
    aside = tmp_path / ".out.123-0a1b2c3d.old.partial"
    aside.mkdir()
    (aside / "mine").write_text("mine")
    half_written(tmp_path / "out", KEY)
    assert (tmp_path / "out" / "mine").read_text() == "mine"


def test_a_second_process_is_refused_and_so_is_a_third(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with resumable_folder(target, KEY) as folder:
        (folder / "file").write_text("mine")
        for key in (KEY, OTHER, OTHER):
            with (
                pytest.raises(RunLockedError, match=r"Another process is writing .*out\. Wait for it"),
                resumable_folder(target, key),
            ):
                pass
        assert (folder / "file").read_text() == "mine"
    assert names(tmp_path) == {"out"}


def _hold(target: Path, pipe: Any) -> None:
    with resumable_folder(target, KEY):
        pipe.send("held")
        pipe.recv()
        os._exit(9)  # killed: nothing is closed or released by us


def test_a_killed_process_frees_the_target(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_hold, args=(tmp_path / "out", there))
    process.start()
    assert here.recv() == "held"
    with pytest.raises(RunLockedError), resumable_folder(tmp_path / "out", KEY):
        pass
    here.send("die")
    process.join()
    with resumable_folder(tmp_path / "out", KEY):
        pass
    assert names(tmp_path) == {"out"}


@contextmanager
def failing(number: int) -> Iterator[None]:
    with pytest.raises(StoreError) as caught:
        yield
    assert caught.value.remedy
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == number


def test_errors_of_the_disk_in_words(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with failing(errno.ENOSPC), resumable_folder(target, KEY):
        raise OSError(errno.ENOSPC, "No space left on device")
    with failing(errno.EACCES), resumable_folder(target, KEY):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert not target.exists()
    (tmp_path / "file").write_text("")
    with failing(errno.EEXIST), resumable_folder(tmp_path / "file" / "out", KEY):
        pass


def test_a_lock_file_that_was_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".out.lock").touch()
    with resumable_folder(tmp_path / "out", KEY), pytest.raises(Exception, match="lock"):
        FileLock(tmp_path / ".out.lock").acquire(timeout=0)
    assert names(tmp_path) == {"out"}


def advised(folder: Path, sizes: list[int], steps: list[int], monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Which tensors are asked for at each step, with a limit of 100 bytes."""
    slots = [slot(str(at), "U8", size) for at, size in enumerate(sizes)]
    with Writer(folder, slots):
        pass
    tensors = read_header(folder / FILE)
    places = {info.start: int(name) for name, info in tensors.items()}
    asked: list[int] = []
    monkeypatch.setattr("regraft.checkpoint.read_ahead.READ_AHEAD", 100)
    monkeypatch.setattr(
        "os.posix_fadvise", lambda file, start, size, advice: asked.append(places[start]), raising=False
    )
    monkeypatch.setattr("os.POSIX_FADV_WILLNEED", 3, raising=False)
    found = []
    before = opened()
    with ReadAhead([[tensors[str(at)], None] for at in range(len(sizes))]) as ahead:
        for step in steps:
            ahead.before(step)
            found.append(list(asked))
            asked.clear()
    assert opened() == before
    return found


def test_every_tensor_is_asked_for_once_and_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = advised(tmp_path, [40] * 6, list(range(6)), monkeypatch)
    assert found == [[0, 1, 2, 3], [4], [5], [], [], []]


def test_large_tensors_are_asked_for_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert advised(tmp_path, [500] * 4, list(range(4)), monkeypatch) == [[0, 1], [2], [3], []]


def test_what_is_skipped_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that goes on: tensors that are finished are not read."""
    assert advised(tmp_path, [60] * 8, [3, 4, 7], monkeypatch) == [[3, 4, 5], [6], [7]]
    assert advised(tmp_path, [60] * 8, [0, 5, 6], monkeypatch) == [[0, 1, 2], [5, 6, 7], []]


def test_the_header_is_padded_to_eight_bytes(tmp_path: Path) -> None:
    for size in range(1, 10):
        with Writer(tmp_path, [slot("n" * size, "F32", 1)]):
            pass
        raw = (tmp_path / FILE).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        assert length % 8 == 0 and len(raw) == 8 + length + 4
        assert json.loads(raw[8 : 8 + length])["n" * size]["data_offsets"] == [0, 4]
