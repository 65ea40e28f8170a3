"""Ask the system for the pages of a file before they are needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from regraft.checkpoint.headers import TensorInfo

# Bytes that are asked for in advance.
READ_AHEAD = 256 * 2**20


class ReadAhead:
    """Asks for the pages of the next tensors, each once, so that the disk reads while the cores work.

    Use as a context manager, which closes the files.
    """

    def __init__(self, tensors: Sequence[Sequence[TensorInfo | None]]) -> None:
        self._tensors = [[one for one in row if one is not None] for row in tensors]
        self._bytes = [sum(tensor.nbytes for tensor in row) for row in self._tensors]
        self._files: dict[Path, int] = {}
        self._reached, self._next, self._bytes_ahead = 0, 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)

    def before(self, number: int) -> None:
        """Tensor `number` is about to be merged; those before it are done, or were skipped."""
        if not hasattr(os, "posix_fadvise"):
            return
        self._bytes_ahead -= sum(self._bytes[self._reached : min(number + 1, self._next)])
        self._reached, self._next = number + 1, max(number, self._next)
        while self._next < len(self._tensors) and self._bytes_ahead < READ_AHEAD:
            for tensor in self._tensors[self._next]:
                self._advise(tensor)
            self._bytes_ahead += self._bytes[self._next] if self._next > number else 0
            self._next += 1

    def _advise(self, tensor: TensorInfo) -> None:
        with suppress(OSError):  # advice that the file system does not take costs nothing
            if tensor.file not in self._files:
                self._files[tensor.file] = os.open(tensor.file, os.O_RDONLY)
            os.posix_fadvise(self._files[tensor.file], tensor.start, tensor.nbytes, os.POSIX_FADV_WILLNEED)
