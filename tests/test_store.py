"""The store: an entry is whole or absent, made once, and evicted by age of use."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from regraft.errors import StoreError
from regraft.store import Store, default_root, key_of, remove_partials, whole_folder, write_whole


def fill(size: int = 10) -> Any:
    return lambda folder: (folder / "data").write_bytes(b"x" * size)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def test_a_key_depends_on_the_operation_and_all_parts_but_not_on_their_order() -> None:
    assert key_of("a", one=1, two=[2]) == key_of("a", two=[2], one=1)
    others = [key_of("a", one=1, two=[2]), key_of("b", one=1, two=[2]), key_of("a", one=1, two=[3]), key_of("a", one=1)]
    assert len(set(others)) == 4


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    store, calls = Store(tmp_path), []

    def write(folder: Path) -> None:
        calls.append(folder)
        (folder / "data").write_text("made")

    assert store.find("features", "k") is None
    first = store.make("features", "k", write, about={"checkpoint": "tiny"})
    assert store.make("features", "k", write) == first == store.find("features", "k") == tmp_path / "features" / "k"
    assert (first / "data").read_text() == "made"
    assert len(calls) == 1
    (entry,) = store.entries()
    assert (entry.kind, entry.key, dict(entry.about)) == ("features", "k", {"kind": "features", "checkpoint": "tiny"})
    assert entry.bytes == sum(file.stat().st_size for file in first.iterdir())


def test_an_entry_whose_writing_fails_does_not_exist(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise ValueError("stop")

    store = Store(tmp_path)
    with pytest.raises(ValueError, match="stop"):
        store.make("features", "k", write)
    assert store.find("features", "k") is None
    assert store.entries() == []
    assert "half" not in names(tmp_path)
    assert store.make("features", "k", fill()).is_dir()  # and it can still be made


def test_two_makers_at_once_make_one_entry(tmp_path: Path) -> None:
    inside, calls, found = threading.Event(), [], []

    def slow(folder: Path) -> None:
        calls.append(folder)
        inside.set()
        (folder / "data").write_text("made")

    def make() -> None:
        found.append(Store(tmp_path).make("features", "k", slow))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside.is_set()
    assert len(calls) == 1
    assert len(set(found)) == 1


def test_the_least_recently_used_entries_are_evicted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for age, key in enumerate(["new", "middle", "old"]):
        about = store.make("features", key, fill(1000)) / "about.json"
        os.utime(about, (time.time() - 100 * age - 50,) * 2)
    assert [entry.key for entry in store.entries()] == ["old", "middle", "new"]
    assert store.find("features", "old") is not None  # using it makes it the newest
    size = store.entries()[0].bytes
    removed = store.collect(limit=2 * size + 20)
    assert [entry.key for entry in removed] == ["middle"]
    assert {entry.key for entry in store.entries()} == {"new", "old"}
    assert store.collect(limit=10**9) == []
    assert [entry.key for entry in store.collect(limit=0, keep={"new"})] == ["old"]
    assert store.find("features", "new") is not None


def test_making_an_entry_keeps_the_store_within_its_limit(tmp_path: Path) -> None:
    store = Store(tmp_path, limit=1500)
    store.make("features", "first", fill(1000))
    store.make("features", "second", fill(1000))
    assert [entry.key for entry in store.entries()] == ["second"]
    store.make("features", "huge", fill(5000))  # larger than the store: kept until the next one, as it was asked for
    assert [entry.key for entry in store.entries()] == ["huge"]


def test_an_entry_in_the_making_is_no_entry_and_old_leftovers_go(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.make("features", "k", fill())
    for name, age in ((".a.1-2.partial", 0), (".b.1-2.partial", 90_000)):
        partial = tmp_path / "features" / name
        partial.mkdir()
        (partial / "about.json").write_text("{}")
        os.utime(partial, (time.time() - age,) * 2)
    assert [entry.key for entry in store.entries()] == ["k"]
    assert [entry.key for entry in store.collect(limit=0)] == ["k"]
    assert {path.name for path in (tmp_path / "features").iterdir()} == {".a.1-2.partial"}


def test_a_damaged_entry_is_passed_over(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (store.make("features", "k", fill()) / "about.json").write_text("{")
    assert store.entries() == []


def refuse(code: int) -> Any:
    def raise_it(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return raise_it


def test_a_read_only_store_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    made = store.make("features", "k", fill())
    monkeypatch.setattr(os, "utime", refuse(errno.EROFS))
    monkeypatch.setattr(Path, "mkdir", refuse(errno.EROFS))
    assert store.find("features", "k") == made
    assert store.make("features", "k", fill()) == made
    with pytest.raises(StoreError, match=r"cannot be written.*REGRAFT_STORE"):
        store.make("features", "other", fill())


def test_locks_that_cannot_be_taken_are_an_error_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filelock.FileLock.acquire", refuse(errno.EACCES))
    with pytest.raises(StoreError, match="cannot be written"):
        Store(tmp_path).make("features", "k", fill())


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_an_error_in_words_and_leaves_nothing(fault: Exception, tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise fault

    store = Store(tmp_path)
    with pytest.raises(StoreError, match=r"The disk is full.*regraft store gc"):
        store.make("features", "k", write)
    assert "half" not in names(tmp_path)


def test_other_faults_of_safetensors_keep_their_words(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="broken pipe of sorts"), whole_folder(tmp_path / "target"):
        raise SafetensorError("broken pipe of sorts")


def test_a_folder_that_cannot_be_made_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="could not be written"), whole_folder(tmp_path / "file" / "target"):
        pass


def test_a_whole_folder_replaces_an_older_one(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    for content in ("old", "new"):
        with whole_folder(target) as aside:
            (aside / content).write_text(content)
            assert (target / "old").exists() == (content == "new")  # nothing shows before the end
    assert names(tmp_path / "deep") == {"target", "new"}


def test_a_failed_replacement_leaves_the_older_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    with whole_folder(target) as aside:
        (aside / "old").write_text("old")
    with pytest.raises(RuntimeError), whole_folder(target) as aside:
        raise RuntimeError
    rename = Path.rename

    def only_old(self: Path, to: Path) -> Path:
        if (self / "new").exists():
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", only_old)
    with pytest.raises(StoreError, match="could not be written: Input/output error"), whole_folder(target) as aside:
        (aside / "new").write_text("new")
    assert names(tmp_path) == {"target", "old"}


@pytest.mark.parametrize("opened", ["for writing", "as a run", "after a newer one"])
def test_a_folder_comes_back_when_its_replacement_was_killed_between_the_renames(opened: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    with whole_folder(target) as aside:
        (aside / "old").write_text("old")
    child = os.fork()
    if child == 0:
        rename = Path.rename

        def then_die(self: Path, to: Path) -> Path:
            rename(self, to)
            os.kill(os.getpid(), signal.SIGKILL)
            return to

        Path.rename = then_die  # type: ignore[method-assign]
        with whole_folder(target) as aside:
            (aside / "new").write_text("new")
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert not target.exists()
    if opened == "for writing":
        with whole_folder(tmp_path / "other"):  # another folder's leftovers are not taken for its own
            assert not target.exists()
        with pytest.raises(RuntimeError), whole_folder(target):
            raise RuntimeError
        assert names(target) == {"old"}
    elif opened == "as a run":
        remove_partials(tmp_path)
        assert names(tmp_path) == {"target", "old"}
    else:
        target.mkdir()
        remove_partials(tmp_path)
        assert names(tmp_path) == {"target"}


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_whole(path, "old")
    write_whole(path, "né".encode())
    assert path.read_text(encoding="utf-8") == "né"
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(StoreError, match="The disk is full"):
        write_whole(path, "new")
    assert names(tmp_path) == {"file.json"}
    assert path.read_text(encoding="utf-8") == "né"


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".a.1-2.partial").mkdir()
    (tmp_path / ".a.1-2.partial" / "half").write_text("")
    (tmp_path / ".b.1-2.partial").write_text("")
    (tmp_path / "kept.partial").write_text("")
    remove_partials(tmp_path)
    remove_partials(tmp_path / "absent")
    assert names(tmp_path) == {"kept.partial"}


def test_where_the_store_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REGRAFT_STORE", str(tmp_path / "own"))
    assert Store().root == tmp_path / "own"
    monkeypatch.delenv("REGRAFT_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_root() == tmp_path / "cache" / "regraft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_root() == Path.home() / ".cache" / "regraft"
