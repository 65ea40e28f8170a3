"""The folder of a run: locked while in use, opened again by the same arguments.

run.json        the arguments          trials/     states of training
ledger.sqlite   decisions              family/     members and recipe.yaml
lock            held by one process    result.json, report.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from regraft import faults
from regraft.budget import Budget, Deadline
from regraft.errors import RunError, RunLockedError
from regraft.ledger import Ledger
from regraft.store import remove_partials, write_whole


class Run:
    """A run folder that this process holds. Use as a context manager."""

    def __init__(self, folder: Path, arguments: Mapping[str, Any]) -> None:
        self.folder = folder
        self.trials = folder / "trials"
        self.family = folder / "family"
        self._lock = FileLock(folder / "lock")
        try:
            self._refuse_strange()  # before anything is put into a folder that is someone's own
            self.trials.mkdir(parents=True, exist_ok=True)
            self.family.mkdir(exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunLockedError(
                f"{folder} is in use by another process.", "Wait for it to end, or give this run another --out."
            ) from None
        except OSError as fault:
            raise RunError(
                f"{folder} cannot be made: {fault.strerror}.", "Give --out a folder that you can write."
            ) from fault
        try:
            self._check(json.loads(json.dumps(dict(arguments))))
            self.ledger = Ledger(folder / "ledger.sqlite")
            self.resumed = bool(self.ledger.entries())
        except BaseException:
            self._lock.release()
            raise
        for place in (folder, self.trials, self.family, *self.trials.iterdir()):
            remove_partials(place)
        faults.point("run folder made")

    def finished(self) -> dict[str, Any] | None:
        """The result of the run when it is finished and its members are still there; None otherwise."""
        path = self.folder / "result.json"
        try:
            result: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError):
            return None
        whole = all(Path(member["path"]).is_dir() for member in result["family"])
        return result if whole and self.resumed else None

    def deadline(self, budget: Budget, used_s: float = 0.0) -> Deadline:
        """The deadline of this run: what earlier processes used, and `used_s` of this one, count."""
        deadline = Deadline(budget.seconds, self.ledger.spent_before() + used_s)
        self.ledger.spent = deadline.spent
        return deadline

    def _refuse_strange(self) -> None:
        """Refuse a folder that is neither empty nor a run; what a process killed at its very start left is no harm."""
        if not self.folder.exists() or (self.folder / "run.json").is_file():
            return
        own = {"trials", "family", "lock"}
        names = sorted(item.name for item in self.folder.iterdir())
        strange = [name for name in names if name not in own and not name.endswith(".partial")]
        if strange:
            more = ", ..." if len(strange) > 3 else ""
            raise RunError(
                f"{self.folder} is not empty and is no run ({', '.join(strange[:3])}{more}).",
                "Give --out a new folder.",
            )

    def _check(self, arguments: dict[str, Any]) -> None:
        path = self.folder / "run.json"
        if not path.is_file():
            write_whole(path, json.dumps(arguments, indent=2) + "\n")
            return
        try:
            before = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as fault:
            raise RunError(f"{path} cannot be read: {fault}.", "Give --out a new folder.") from fault
        changed = sorted(key for key in {*before, *arguments} if before.get(key) != arguments.get(key))
        if changed:
            was = ", ".join(f"{key}={before.get(key)!r}" for key in changed)
            now = ", ".join(f"{key}={arguments.get(key)!r}" for key in changed)
            raise RunError(
                f"{self.folder} holds a run with {was}; this one has {now}.",
                "Give --out a new folder, or the same arguments to go on.",
            )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.ledger.close()
        self._lock.release()
