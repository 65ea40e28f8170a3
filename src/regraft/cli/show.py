"""How the command line shows things: progress on standard error, results on standard output, JSON for machines."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from typing import Any

from regraft.progress import Progress

_WIDE = 2**20  # columns: wider than any row, so that none is broken


def as_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


class Terminal(Progress):
    """Bars on a terminal; elsewhere (a pipe, CI) one line for each step and none for what happens within it."""

    def __init__(self, quiet: bool = False) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bars = self._console.is_terminal and not quiet and not os.environ.get("CI")
        self._bar: Any = None
        self._task: Any = None
        self._begun = time.monotonic()

    def say(self, text: str) -> None:
        """One line, with the seconds since the start."""
        from rich.markup import escape

        self._console.print(f"[dim]{time.monotonic() - self._begun:6.1f} s[/dim]  {escape(text)}")

    def start(self, what: str, total: float) -> None:
        """A bar."""
        self.stop()
        if not self._bars:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("          {task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), console=self._console, transient=True,
        )  # fmt: skip
        self._bar.start()
        self._task = self._bar.add_task(what, total=total)

    def advance(self, units: float = 1.0) -> None:
        """The bar moves."""
        if self._bar is not None:
            self._bar.advance(self._task, units)

    def stop(self) -> None:
        """The bar goes."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A table on standard output; numbers are aligned to the right. Without a terminal a row is one line, however long."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title=escape(title) if title else None, title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], (int, float)) or row[index] in ("", None) for row in rows)
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(escape(_cell(value)) for value in row))
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(shown)
        return
    wide = Console(highlight=False, file=io.StringIO(), width=_WIDE, color_system=None)
    with wide.capture() as lines:
        wide.print(shown)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in lines.get().split("\n")[:-1]))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}"
    return str(value).encode("utf-8", "backslashreplace").decode()  # names of files that are no UTF-8
