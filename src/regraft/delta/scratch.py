"""Memory that is used again: fresh arrays of a MiB cost as much as the work on them (the system clears every page anew)."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np

_local = threading.local()


def scratch(name: str, words: int, kind: np.dtype[np.unsignedinteger] | None = None) -> np.ndarray:
    """This thread's array of that name, with anything in it; good until the same thread asks for the name again."""
    held: dict[str, np.ndarray] | None = getattr(_local, "held", None)
    if held is None:
        held = _local.held = {}
    wanted = np.dtype(np.uint8) if kind is None else kind
    size = words * wanted.itemsize
    if name not in held or held[name].size < size:
        held[name] = np.empty(size, np.uint8)
    return held[name][:size].view(wanted)


class Buffers:
    """Arrays of one size that go from thread to thread, and come back when they were used."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: deque[np.ndarray] = deque()

    def take(self, count: int) -> np.ndarray:
        """`count` bytes, uint8, with anything in them."""
        try:
            whole = self._free.popleft()
        except IndexError:
            whole = np.empty(self._size, np.uint8)
        return whole[:count]

    def give(self, taken: np.ndarray) -> None:
        """Hand back what `take` gave, or a view of it."""
        whole = taken
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        self._free.append(whole)
