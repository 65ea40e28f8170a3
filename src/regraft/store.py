"""The store: one content-addressed folder for everything that is computed once and used again.

    ROOT/<kind>/<key>/...      a finished entry; it appears by a rename, so it is whole or absent
    ROOT/locks/<key>.lock      held while an entry is made: two processes never make the same entry at once

A key is a hash of the operation, its parameters, the identities of its inputs and the versions that matter. The least
recently used entries go first when the store is over its limit.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError

from regraft.errors import StoreError

DEFAULT_LIMIT = 20 * 2**30
_ABOUT = "about.json"
# What an older folder is called while a newer one takes its place.
_OLD = re.compile(r"\.(?P<name>.+)\.\d+-[0-9a-f]{8}\.old\.partial")


def key_of(operation: str, **parts: Any) -> str:
    """The key of an entry: sha256 over the operation and its parts as canonical JSON, 32 hex digits."""
    text = json.dumps([operation, parts], sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes `target` when the block ends, and vanishes when it raises.

    An older `target` is replaced by two renames. A process killed between them leaves the older one as a hidden
    `.old.partial` sibling: it comes back when `target` is next written, or the run that holds it next opened
    (`remove_partials`). What else a killed process leaves behind is a hidden `.partial` sibling, never `target`.
    """
    aside = target.parent / f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.partial"
    try:
        restore_folders(target.parent, target.name)
        aside.mkdir(parents=True)
        yield aside
        _sync(aside)
        replace_folder(aside, target)
    except OSError as fault:
        raise in_words(fault, target) from fault
    except SafetensorError as fault:  # what safetensors makes of an OSError while it writes
        raise in_words(OSError(_errno_in(str(fault)), str(fault)), target) from fault
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file aside and rename it: a reader sees the old file or the new one, never half of one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        with aside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as fault:
        raise in_words(fault, path) from fault
    finally:
        aside.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left half-written directly under `folder`; what they had moved aside comes back.

    Only for a folder that no other process is writing into.
    """
    restore_folders(folder)
    for left in folder.glob(".*.partial"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@dataclass(frozen=True)
class Entry:
    """A finished entry of the store."""

    kind: str
    key: str
    path: Path
    bytes: int
    used_at: float
    about: Mapping[str, Any]


class Store:
    """The store below `root` (default: `$REGRAFT_STORE`, else the user's cache folder), at most `limit` bytes."""

    def __init__(self, root: Path | str | None = None, limit: int = DEFAULT_LIMIT) -> None:
        self.root = Path(root) if root is not None else default_root()
        self.limit = limit

    def find(self, kind: str, key: str) -> Path | None:
        """The folder of a finished entry, or None; finding it marks it as used."""
        folder = self.root / kind / key
        if not (folder / _ABOUT).is_file():
            return None
        with suppress(OSError):  # a read-only store is still good to read from
            os.utime(folder / _ABOUT)
        return folder

    def make(self, kind: str, key: str, write: Callable[[Path], None], about: Mapping[str, Any] | None = None) -> Path:
        """The entry's folder; when absent, `write(folder)` fills it first.

        Raises:
            StoreError: The disk is full, or the store cannot be written.
        """
        found = self.find(kind, key)
        if found is not None:
            return found
        with self._locked(key):
            found = self.find(kind, key)
            if found is not None:
                return found
            target = self.root / kind / key
            with whole_folder(target) as aside:
                write(aside)
                (aside / _ABOUT).write_text(json.dumps({"kind": kind, **(about or {})}, default=str))
        self.collect(keep={key})
        return target

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        try:
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / "locks" / f"{key}.lock")
            lock.acquire()
        except OSError as fault:
            raise in_words(fault, self.root) from fault
        try:
            yield
        finally:
            lock.release()

    def entries(self) -> list[Entry]:
        """All finished entries, the least recently used first."""
        found = []
        for about in self.root.glob(f"*/*/{_ABOUT}"):
            if about.parent.name.startswith("."):  # still being written
                continue
            try:
                size = sum(file.stat().st_size for file in about.parent.rglob("*") if file.is_file())
                entry = Entry(
                    about.parent.parent.name,
                    about.parent.name,
                    about.parent,
                    size,
                    about.stat().st_mtime,
                    json.loads(about.read_text()),
                )
            except (OSError, ValueError):  # removed meanwhile by another process, or damaged: not an entry
                continue
            found.append(entry)
        return sorted(found, key=lambda entry: (entry.used_at, entry.key))

    def collect(self, limit: int | None = None, keep: set[str] | None = None) -> list[Entry]:
        """Remove least recently used entries until the store is within its limit; returns what was removed.

        Also removes partial folders older than a day: no live process leaves one that long untouched.
        """
        limit = self.limit if limit is None else limit
        for left in self.root.glob("*/.*.partial"):
            with suppress(FileNotFoundError):  # its writer has just finished
                if time.time() - left.stat().st_mtime > 86400:
                    shutil.rmtree(left, ignore_errors=True)
        entries = self.entries()
        total = sum(entry.bytes for entry in entries)
        removed = []
        for entry in entries:
            if total <= limit:
                break
            if entry.key in (keep or ()):
                continue
            shutil.rmtree(entry.path, ignore_errors=True)
            total -= entry.bytes
            removed.append(entry)
        return removed


def default_root() -> Path:
    """`$REGRAFT_STORE`, else `regraft` under `$XDG_CACHE_HOME` or `~/.cache`."""
    named = os.environ.get("REGRAFT_STORE")
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "regraft"


def restore_folders(parent: Path, name: str | None = None) -> None:
    """Give folders under `parent` (the one called `name`, or all) their name back that a killed process had moved aside.

    One whose place has been taken stays aside. Only for folders that no other process is writing.
    """
    for old in sorted(parent.glob(".*.old.partial")):
        found = _OLD.fullmatch(old.name)
        if found is None or name not in (None, found["name"]) or (parent / found["name"]).exists():
            continue
        with suppress(OSError):  # what cannot be renamed cannot be replaced either, and that says why
            old.rename(parent / found["name"])


def replace_folder(aside: Path, target: Path) -> None:
    """Rename `aside` to `target`; an older `target` is moved aside first, and removed at the end."""
    if not target.exists():
        aside.rename(target)
        return
    old = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.old.partial")
    target.rename(old)
    try:
        aside.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def _errno_in(text: str) -> int:
    found = re.search(r"os error (\d+)", text)
    return int(found[1]) if found else errno.EIO


def in_words(fault: OSError, path: Path) -> StoreError:
    if fault.errno == errno.ENOSPC:
        return StoreError(f"The disk is full: {path} was not written.", "Free some space, or run `regraft store gc`.")
    if fault.errno == errno.EROFS or isinstance(fault, PermissionError):
        return StoreError(
            f"{path} cannot be written: {fault.strerror}.", "Set REGRAFT_STORE, or --out, to a folder of yours."
        )
    return StoreError(f"{path} could not be written: {fault.strerror or fault}.", "Check the disk and try again.")
