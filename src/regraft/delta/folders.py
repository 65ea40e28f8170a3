"""The folders of a checkpoint and of its pack: what is in them, written aside, synced, removed."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from regraft import faults
from regraft.checkpoint.safety import MOST_ENTRIES, check_links
from regraft.checkpoint.writer import resumable_folder
from regraft.errors import CheckpointError, StoreError


@dataclass(frozen=True)
class Found:
    """A file of the original, as it was when it was first seen; where its folder lies does not count."""

    path: Path = field(compare=False)
    name: str
    size: int
    mtime_ns: int
    mode: int


@dataclass(frozen=True)
class Content:
    """What a folder holds.

    Args:
        files: In a fixed order.
        folders: Those with nothing in them.
        modes: Permissions of every folder by its name; "." is the whole.
    """

    files: tuple[Found, ...]
    folders: tuple[str, ...]
    modes: Mapping[str, int]


def content_of(folder: Path) -> Content:
    """The files and folders below a folder.

    Raises:
        CheckpointError: Something cannot be read, or is neither.
        UnsafeCheckpointError: A link leaves the folder.
    """
    check_links(folder)
    files, folders = [], []
    try:
        modes = {".": _mode(folder.stat())}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                files.append(Found(path, name, status.st_size, status.st_mtime_ns, _mode(status)))
            elif not stat.S_ISDIR(status.st_mode) or path.is_symlink():
                raise CheckpointError(
                    f"{path} is neither a file nor a folder.", "Remove it: only files and folders can be packed."
                )
            else:
                modes[name] = _mode(status)
                if not any(path.iterdir()):
                    folders.append(name)
    except OSError as fault:
        raise CheckpointError(
            f"{fault.filename or folder} cannot be read ({fault.strerror}).", "Check the folder and its permissions."
        ) from fault
    if len(files) + len(folders) > MOST_ENTRIES:
        raise CheckpointError(f"{folder} holds more than {MOST_ENTRIES:,} files.", "Give a checkpoint's folder alone.")
    return Content(tuple(files), tuple(folders), modes)


def _mode(status: os.stat_result) -> int:
    return stat.S_IMODE(status.st_mode) & 0o777


@contextmanager
def fresh_folder(out: Path, key: str, mode: int | None) -> Iterator[Path]:
    """An empty folder that becomes `out` when the block ends; nothing of it stays when it raises.

    Only its owner can enter it before. What a killed process left is not gone on with. Never takes the place of what is there.

    Args:
        mode: Permissions of `out`; None for those of any new folder.
    """
    with resumable_folder(out, key) as aside:
        try:
            usual = _mode(aside.stat())
            aside.chmod(0o700)
            for left in aside.iterdir():
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                else:
                    left.unlink()
            yield aside
            if out.exists() or out.is_symlink():
                raise StoreError(f"{out} was made by somebody else meanwhile.", "Give a folder that does not exist.")
            aside.chmod(usual if mode is None else mode)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def remove(folder: Path, content: Content) -> None:
    """Take the original away: a rename, a last look whether it still holds what was packed, then its files.

    Raises:
        CheckpointError: It holds something else; it is where it was.
        StoreError: It cannot be removed.
    """
    aside = folder.parent / f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.packed.partial"
    try:
        folder.rename(aside)
        sync(folder.parent)
        faults.point("original aside")
        # A process that has a file of it open may go on writing; one that opens files by their names no longer finds them.
        if _changed(aside, content):
            aside.rename(folder)
            raise CheckpointError(
                f"{folder} has changed while it was packed, and was not removed.", "Remove the pack, and pack it again."
            )
        shutil.rmtree(aside)
        faults.point("original removed")
    except OSError as fault:
        left = aside if aside.exists() else folder
        raise StoreError(
            f"{folder} was packed, but not all of it could be removed ({fault.strerror}).", f"Remove {left}."
        ) from fault


def _changed(folder: Path, content: Content) -> bool:
    try:
        return content_of(folder) != content
    except CheckpointError:
        return True


def moved_aside(folder: Path) -> list[Path]:
    """What killed processes left of an original that they had moved aside."""
    return sorted(folder.parent.glob(f".{_literal(folder.name)}.*-*.packed.partial"))


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def set_modes(root: Path, modes: Mapping[str, int], least: int = 0) -> None:
    """Give the folders below `root`, those that are there, their permissions (and `least`), the deepest first."""
    for name in sorted(modes, key=lambda name: (-name.count("/"), name)):
        folder = root / name
        if name != "." and folder.is_dir() and not folder.is_symlink():
            folder.chmod(modes[name] | least)


def sync_folders(folder: Path) -> None:
    """Wait until the disk has the names of all files; their content was synced when they were written."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            sync(path)


def sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
