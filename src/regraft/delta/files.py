"""Reading and writing at places of a file, hashing as it goes, and work in order on several threads.

Files are read by `pread`, not mapped: one that becomes shorter meanwhile is then an error with words, not a dead process.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

import numpy as np

from regraft.errors import CheckpointError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Files:
    """Files opened for reading, each once; `read` may be called from several threads. Closed by the context manager."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def add(self, path: Path) -> None:
        """Open a file, from one thread and before it is read.

        Raises:
            CheckpointError: It cannot be opened.
        """
        if path not in self._open:
            try:
                self._open[path] = os.open(path, os.O_RDONLY)
            except OSError as fault:
                raise _unreadable(path, fault) from fault

    def read(self, path: Path, start: int, found: np.ndarray) -> np.ndarray:
        """Fill an array, uint8, with the bytes of a file from `start` on; returns it.

        Raises:
            CheckpointError: The file cannot be read, or ends before.
        """
        done = 0
        try:
            while done < len(found):
                read = os.preadv(self._open[path], [found[done:].data], start + done)
                if not read:
                    raise CheckpointError(
                        f"{path} is truncated: it ends at byte {start + done}, before what is read of it does.",
                        "Wait until it is written, or use an intact copy.",
                    )
                done += read
        except OSError as fault:
            raise _unreadable(path, fault) from fault
        return found


class Target:
    """A file that is written from its start to its end, hashed as it goes. Use as a context manager: it syncs and closes.

    A new file is its owner's alone: what is packed or restored may be private, and its permissions are given to it when it is
    whole.
    """

    def __init__(self, path: Path | None, hashed: bool = True) -> None:
        self.written, self._hashed = 0, hashed
        self._digest = hashlib.sha256()
        self._file = None if path is None else open(path, "wb", buffering=0, opener=_private)  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._file is not None:
            with self._file:
                if kind is None:
                    os.fsync(self._file.fileno())

    def write(self, data: bytes | memoryview | np.ndarray) -> None:
        """Append; without a path it is only hashed."""
        raw = data.data if isinstance(data, np.ndarray) else memoryview(data)
        view = raw.cast("B") if len(data) else memoryview(b"")  # what is empty cannot be cast
        if self._hashed:
            self._digest.update(view)
        self.written += len(view)
        while self._file is not None and len(view):  # a nearly full disk takes a part
            view = view[self._file.write(view) :]

    def overwrite(self, data: bytes) -> None:
        """Replace the first bytes, which are not hashed again."""
        assert self._file is not None
        done = 0
        while done < len(data):
            done += os.pwrite(self._file.fileno(), data[done:], done)

    @property
    def sha256(self) -> str:
        """Of all that was written."""
        return self._digest.hexdigest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`work` of every item, in their order, on `workers` threads; at most `2 * workers` results wait. One works in place."""
    if workers == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) == 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _unreadable(path: Path, fault: OSError) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read ({fault.strerror}).", "Check the file and its permissions.")
