"""The folders of a checkpoint and of its pack: what is in them, written aside, synced, removed."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from regraft import faults
from regraft.checkpoint.safety import MOST_ENTRIES, check_links
from regraft.checkpoint.writer import resumable_folder
from regraft.delta.manifest import is_pack
from regraft.errors import CheckpointError, StoreError


@dataclass(frozen=True)
class Found:
    """A file of the original, as it was when it was first seen."""

    path: Path
    name: str
    size: int
    mtime_ns: int
    mode: int


def files_of(folder: Path) -> tuple[list[Found], list[str]]:
    """The files below a folder in a fixed order, and the folders with nothing in them."""
    check_links(folder)
    files, folders = [], []
    try:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                mode = stat.S_IMODE(status.st_mode) & 0o777
                files.append(Found(path, name, status.st_size, status.st_mtime_ns, mode))
            elif not stat.S_ISDIR(status.st_mode) or path.is_symlink():
                raise CheckpointError(
                    f"{path} is neither a file nor a folder.", "Remove it: only files and folders can be packed."
                )
            elif not any(path.iterdir()):
                folders.append(name)
    except OSError as fault:
        raise CheckpointError(
            f"{fault.filename or folder} cannot be read ({fault.strerror}).", "Check the folder and its permissions."
        ) from fault
    if len(files) + len(folders) > MOST_ENTRIES:
        raise CheckpointError(f"{folder} holds more than {MOST_ENTRIES:,} files.", "Give a checkpoint's folder alone.")
    return files, folders


@contextmanager
def fresh_folder(out: Path, key: str) -> Iterator[Path]:
    """An empty folder that becomes `out` when the block ends; nothing of it stays when it raises.

    What a killed process left is not gone on with. Never takes the place of what is there.
    """
    with resumable_folder(out, key) as aside:
        try:
            for left in aside.iterdir():
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                else:
                    left.unlink()
            yield aside
            if out.exists() or out.is_symlink():
                raise StoreError(f"{out} was made by somebody else meanwhile.", "Give a folder that does not exist.")
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def remove(folder: Path) -> None:
    """Take the original away: a rename, then its files."""
    aside = folder.parent / f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.packed.partial"
    try:
        folder.rename(aside)
        sync(folder.parent)
        faults.point("original aside")
        shutil.rmtree(aside)
        faults.point("original removed")
    except OSError as fault:
        raise StoreError(
            f"{folder} was packed, but not all of it could be removed ({fault.strerror}).", "Remove what is left of it."
        ) from fault


def sweep(folder: Path, out: Path) -> None:
    """Remove what is left of originals that a killed process had moved aside; their pack was verified before."""
    if is_pack(out):
        for left in folder.parent.glob(f".{folder.name}.*-*.packed.partial"):
            shutil.rmtree(left, ignore_errors=True)


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
