"""What a database says when it cannot, as an error of ours; a password is never in it."""

from __future__ import annotations

import resource
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from regraft.errors import CatalogueError

_FULL = ("cannot be written: the disk is full.", "Free some space, then run the same command again.")
_LIMITED = ("cannot be written: files may not grow so large here.", "Raise the limit (`ulimit -f`), then run it again.")
_LITTLE = 2**20  # bytes: SQLite makes files of up to 32 KiB beside a catalogue, also to read it
# What SQLite says -> the problem (after the file's name) and the remedy.
_SQLITE = (
    ("not a database", "is no catalogue: the file is no SQLite database.", "Give another file; this one was not changed."),
    ("malformed", "is damaged.", "Restore a copy of it, or remove it and index the folders again."),
    ("corrupt", "is damaged.", "Restore a copy of it, or remove it and index the folders again."),
    ("no such table", "is not whole: a table is missing.", "Restore a copy of it, or index the folders again."),
    ("no such column", "is not whole: a column is missing.", "Restore a copy of it, or index the folders again."),
    ("no such module", "cannot be used: this Python's SQLite has no FTS5.", "Use another build of Python."),
    ("readonly", "can be read but not written.", "Give --catalogue a file in a folder of yours."),
    ("locked", "is being written by another process for too long.", "Wait for it, then run the same command again."),
    ("full", *_FULL),
    ("unable to open", "cannot be opened.", "Check that it may be read, and its folder written."),
    ("disk i/o", "cannot be read or written: the disk reports an error.", "Check the disk and try again."),
)  # fmt: skip
_POSTGRES = (
    (
        "lock timeout",
        "is being written by another process for too long.",
        "Wait for it, then run the same command again.",
    ),
    ("read-only transaction", "can be read but not written.", "Use an account that may write."),
    ("permission denied", "may not be used by this account.", "Ask for the right to create and write its tables."),
    ("does not exist", "is not whole, or is not there.", "Check the name of the database, or index the folders again."),
)


class NoRoomError(CatalogueError):
    """The disk is full, or files may not grow; what is there can still be read."""


@dataclass(frozen=True)
class Speaker:
    """Names the catalogue in errors: `shown` without secrets, which are blotted out of what the database says."""

    shown: str
    sqlite: bool
    secrets: tuple[str, ...] = ()

    @contextmanager
    def in_words(self) -> Iterator[None]:
        """Turn what a database raises inside the block into a CatalogueError."""
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as fault:
            raise self.error(fault) from None  # its text may hold the URL, and so would a traceback

    def error(self, fault: Exception) -> Exception:
        """The error for a fault; a fault that is a defect of ours stays what it is."""
        cause: BaseException = fault
        if isinstance(fault, DBAPIError) and fault.orig is not None:
            cause = fault.orig
        said = self._blotted(" ".join(str(cause).split()))
        for mark, problem, remedy in _SQLITE if self.sqlite else _POSTGRES:
            if mark in said.lower():
                if self.sqlite and mark in ("full", "disk i/o") and (cause_of := _no_room(Path(self.shown), mark)):
                    return NoRoomError(f"{self.shown} {cause_of[0]}", cause_of[1])
                return CatalogueError(f"{self.shown} {problem}", remedy)
        if self.sqlite and not isinstance(cause, sqlite3.DatabaseError):
            return fault
        if not self.sqlite and type(cause).__name__ not in ("OperationalError", "ConnectionTimeout", "AdminShutdown"):
            return fault
        remedy = "Check the file and try again." if self.sqlite else "Check the URL, and that the server runs."
        return CatalogueError(f"{self.shown} cannot be used: {said.rstrip('.')}.", remedy)

    def _blotted(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


def _no_room(path: Path, mark: str) -> tuple[str, str] | None:
    """Why a file cannot grow, where that is so: SQLite calls it an error of the disk as well."""
    largest = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if largest != resource.RLIM_INFINITY and largest < (path.stat().st_size if path.exists() else 0) + _LITTLE:
        return _LIMITED
    with suppress(OSError):
        if mark == "full" or shutil.disk_usage(path.parent).free < _LITTLE:
            return _FULL
    return None
