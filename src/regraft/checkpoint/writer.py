"""Write a checkpoint as a stream: the files' headers first, then the tensors in any order and in parts.

    with resumable_folder(target, key) as folder:      # half-written: a hidden folder beside the target, found again
        with Writer(folder, layout) as writer:
            writer.write(name, raw, start) ...; writer.finish(name)

A process that is killed leaves the hidden folder; the next one with the same key goes on after the last finished tensor.
After a restart of the machine it begins anew: a power cut may leave the note that a tensor is finished on the disk, and zeros in
its place.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import Self

import numpy as np
from filelock import FileLock, Timeout

from regraft import faults
from regraft.checkpoint.headers import DTYPE_BYTES
from regraft.errors import RunLockedError, StoreError
from regraft.store import in_words, replace_folder, restore_folders

_JOURNAL = ".finished"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Slot:
    """A tensor to be written: `file` is relative to the folder."""

    file: PurePosixPath
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


@contextmanager
def resumable_folder(target: Path, key: str) -> Iterator[Path]:
    """A folder to write into that becomes `target` when the block ends, and stays, hidden, when it does not.

    Half-written folders of other keys are removed; an older `target` is replaced.

    Raises:
        RunLockedError: Another process is writing this target.
        StoreError: The disk is full or cannot be written.
    """
    aside = target.parent / f".{target.name}.{key[:16]}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            restore_folders(target.parent, target.name)
            _remove_others(target, aside)
            aside.mkdir(exist_ok=True)
            yield aside
            faults.point("merge written")
            (aside / _JOURNAL).unlink(missing_ok=True)
            replace_folder(aside, target)
    except OSError as fault:
        raise in_words(fault, target) from fault


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Keep other processes from writing the target; leaves no file behind."""
    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not _takes_files(target.parent):
            raise StoreError(
                f"{target} cannot be written: no file can be made in {target.parent}.", "Give a folder of yours."
            ) from None
        raise RunLockedError(f"Another process is writing {target}.", "Wait for it, or give another folder.") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: afterwards it may be another's
        lock.release()


def _takes_files(folder: Path) -> bool:
    """Whether files can be made in a folder; in such as /proc they cannot, which looks like a lock that another process holds."""
    try:
        with TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _remove_others(target: Path, aside: Path) -> None:
    """Remove half-written folders of other keys; a target whose name only begins like this one's is somebody else's."""
    own = re.compile(rf"\.{re.escape(target.name)}\.(?:[^.]+|[^.]+\.old)\.partial")
    for left in target.parent.iterdir():
        if left != aside and own.fullmatch(left.name):
            shutil.rmtree(left, ignore_errors=True)


def discard(folder: Path) -> None:
    """Remove a half-written folder: what is in it is not to be gone on with."""
    shutil.rmtree(folder, ignore_errors=True)


@lru_cache(maxsize=1)
def boot_id() -> str:
    """What tells one start of the machine from the next; empty where the system does not say."""
    with suppress(OSError, subprocess.SubprocessError):
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
            return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
        return _BOOT.read_text("ascii").strip()
    return ""


class Writer:
    """Writes tensors into the files of a folder. Parts of one tensor may come in any order and from several threads.

    Use as a context manager, which closes the files.
    """

    def __init__(self, folder: Path, slots: list[Slot]) -> None:
        self._folder = folder
        self._slots = {slot.name: slot for slot in slots}
        self._at: dict[str, tuple[int, int]] = {}
        self._files: dict[PurePosixPath, int] = {}
        journal, first = folder / _JOURNAL, f"boot {boot_id()}"
        # A full disk may have taken a part of the last name, which could be another tensor's: whole lines only.
        lines = journal.read_text("utf-8").split("\n")[:-1] if journal.exists() else []
        same = lines[:1] == [first]
        self._finished = frozenset(lines[1:] if same else ())
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT | (0 if same else os.O_TRUNC), 0o644)
        try:
            if not same:
                _write_all(self._journal, memoryview(f"{first}\n".encode()))
            for file in dict.fromkeys(slot.file for slot in slots):
                self._open(file, [slot for slot in slots if slot.file == file])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, file: PurePosixPath, slots: list[Slot]) -> None:
        """Write the header and set the file's size; the data of a file that is there already stays."""
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for slot in slots:
            header[_local_name(slot)] = {
                "dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": [position, position + slot.nbytes],
            }  # fmt: skip
            position += slot.nbytes
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        path = self._folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = self._files[file] = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        _write_at(descriptor, memoryview(len(raw).to_bytes(8, "little") + raw), 0)
        os.ftruncate(descriptor, 8 + len(raw) + position)
        at = 8 + len(raw)
        for slot in slots:
            self._at[slot.name] = (descriptor, at)
            at += slot.nbytes

    def is_finished(self, name: str) -> bool:
        """Whether an earlier process has written this tensor whole."""
        return name in self._finished

    def write(self, name: str, raw: np.ndarray, start: int) -> None:
        """Write elements in their stored form from element `start` on."""
        descriptor, at = self._at[name]
        # As bytes by a view: a cast knows neither empty arrays nor complex numbers.
        view = np.ascontiguousarray(raw).view(np.uint8).data
        _write_at(descriptor, view, at + start * DTYPE_BYTES[self._slots[name].dtype])

    def finish(self, name: str) -> None:
        """Note that a tensor is whole; that holds until the machine is started again."""
        _write_all(self._journal, memoryview(f"{name}\n".encode()))

    def sync(self) -> None:
        """Wait until the disk has the files."""
        for descriptor in self._files.values():
            os.fsync(descriptor)

    def close(self) -> None:
        """Close the files."""
        for descriptor in (self._journal, *self._files.values()):
            os.close(descriptor)


def _write_at(descriptor: int, view: memoryview, position: int) -> None:
    while len(view):  # a nearly full disk takes a part
        written = os.pwrite(descriptor, view, position)
        view, position = view[written:], position + written


def _write_all(descriptor: int, view: memoryview) -> None:
    while len(view):
        view = view[os.write(descriptor, view) :]


def _local_name(slot: Slot) -> str:
    """The name inside the file: a module's tensors are named with their folder in front."""
    folder = str(slot.file.parent)
    return slot.name.removeprefix(f"{folder}.") if folder != "." else slot.name


def layout(tensors: Mapping[str, object], folder: Path) -> list[Slot]:
    """The slots of a checkpoint's tensors as they lie in its folder: the same files, the same order."""
    from regraft.checkpoint.headers import TensorInfo

    slots = []
    for name, tensor in tensors.items():
        assert isinstance(tensor, TensorInfo)
        slots.append(Slot(PurePosixPath(tensor.file.relative_to(folder)), name, tensor.dtype, tensor.shape))
    return slots
