"""The folder of a search, beside its output: `OUT.search` with a ledger and a lock.

Everything that was measured is logged; killed and started again with the same arguments, or with a larger budget, a search
goes on from there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from regraft.errors import RunError, RunLockedError
from regraft.ledger import Ledger

LEDGER = "ledger.sqlite"


class SearchRun:
    """The folder that this process holds, and its `ledger`. Use as a context manager.

    Args:
        out: The output of the search.
        arguments: What must be the same to go on.

    Raises:
        RunLockedError: Another process is searching for the same output.
        RunError: The folder is someone's own, cannot be made, or holds a search with other arguments.
    """

    def __init__(self, out: Path, arguments: Mapping[str, Any]) -> None:
        self.folder = out.with_name(f"{out.name}.search")
        self._lock = FileLock(self.folder / "lock")
        try:
            self._refuse_strange()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunLockedError(
                f"{self.folder} is in use by another process.", "Wait for it to end, or give another output."
            ) from None
        except OSError as fault:
            raise RunError(
                f"{self.folder} cannot be made: {fault.strerror}.", "Give an output that you can write."
            ) from fault
        try:
            self._arguments = json.loads(json.dumps(dict(arguments)))
            self.ledger = Ledger(self.folder / LEDGER)
            self._check()
        except BaseException:
            self._lock.release()
            raise

    def _refuse_strange(self) -> None:
        if not self.folder.exists() or (self.folder / LEDGER).is_file():
            return
        strange = sorted(item.name for item in self.folder.iterdir() if item.name != "lock")
        if strange:
            raise RunError(
                f"{self.folder} is not empty and is no search ({', '.join(strange[:3])}).",
                "Give another output.",
            )

    def begin(self) -> None:
        """Log the arguments: from now on the folder is for these."""
        self.ledger.once("arguments", lambda: self._arguments)

    def _check(self) -> None:
        _, before = self.ledger.look("arguments")
        keys = {*before, *self._arguments} if before else set()
        changed = sorted(key for key in keys if before.get(key) != self._arguments.get(key))
        if changed:
            raise RunError(
                f"{self.folder} holds a search with other arguments ({', '.join(changed)} differ).",
                f"Give the same ones to go on, remove {self.folder}, or give another output.",
            )

    def __enter__(self) -> SearchRun:
        return self

    def __exit__(self, *_: object) -> None:
        begun, _ = self.ledger.look("arguments")
        self.ledger.close()
        if not begun:  # refused: nothing worth keeping
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()
