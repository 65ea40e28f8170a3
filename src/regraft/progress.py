"""Progress: what long work tells the person who waits. The work reports; whoever started it decides how to show it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Reports nowhere; the command line passes a subclass that draws bars."""

    def say(self, text: str) -> None:
        """One line about something that happened."""

    def start(self, what: str, total: float) -> None:
        """Work of `total` units begins."""

    def advance(self, units: float = 1.0) -> None:
        """`units` of the current work are done."""

    def stop(self) -> None:
        """The current work is over."""

    @contextmanager
    def bar(self, what: str, total: float) -> Iterator[Progress]:
        """`start` and `stop` around a block."""
        self.start(what, total)
        try:
            yield self
        finally:
            self.stop()


SILENT = Progress()
