"""The folder of a run: locked while in use, opened again by the same arguments.

run.json        the arguments          trials/     states of training
ledger.sqlite   decisions              family/     members and recipe.yaml
lock            held by one process    result.json, report.html
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from regraft import faults
from regraft.budget import Budget, Deadline
from regraft.errors import RunError, RunLockedError
from regraft.ledger import Ledger
from regraft.planner.family import at_home, is_whole
from regraft.progress import Progress
from regraft.store import remove_partials, write_whole

# Seconds between two notes of the time that is used, at least.
BEAT_S = 1.0


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
            self._open(json.loads(json.dumps(dict(arguments))))
            for place in (folder, self.trials, self.family, *self.trials.iterdir()):
                remove_partials(place)
        except BaseException:
            self._lock.release()
            raise
        self._charged = False
        faults.point("run folder made")

    def finished(self) -> dict[str, Any] | None:
        """The result of the run when it is finished and its members are still what was written; None otherwise.

        Paths are those of this folder, which may have been copied or moved.
        """
        path = self.folder / "result.json"
        try:
            result = at_home(json.loads(path.read_text()), self.folder)
            whole = all(is_whole(Path(member["path"]), member) for member in result["family"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if not whole or not self.resumed:
            return None
        self._charged = False  # looking at it again costs the run nothing
        return result

    def deadline(self, budget: Budget, used_s: float = 0.0) -> Deadline:
        """The deadline of this run: what earlier processes used, and `used_s` of this one, count."""
        deadline = Deadline(budget.seconds, self.ledger.spent_before() + used_s)
        self.ledger.spent = deadline.spent
        self._charged = True
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

    def _open(self, arguments: dict[str, Any]) -> None:
        """Open the ledger; refuse other arguments than those that it was begun with.

        A run that has logged nothing was begun with a mistake in its arguments, or killed at its start: these take its place.
        """
        path = self.folder / "run.json"
        begun = path.is_file()
        if not begun:  # before the ledger, which no one's own folder may be taken for
            write_whole(path, json.dumps(arguments, indent=2) + "\n")
        self.ledger = Ledger(self.folder / "ledger.sqlite")
        self.resumed = bool(self.ledger.entries())
        if not begun:
            return
        try:
            before = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as fault:
            if self.resumed:
                raise RunError(f"{path} cannot be read: {fault}.", "Give --out a new folder.") from fault
            before = {}
        changed = sorted(key for key in {*before, *arguments} if before.get(key) != arguments.get(key))
        if changed and self.resumed:
            was = ", ".join(f"{key}={before.get(key)!r}" for key in changed)
            now = ", ".join(f"{key}={arguments.get(key)!r}" for key in changed)
            raise RunError(
                f"{self.folder} holds a run with {was}; this one has {now}.",
                "Give --out a new folder, or the same arguments to go on.",
            )
        if changed:
            self.ledger.forget_time()
            write_whole(path, json.dumps(arguments, indent=2) + "\n")

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(RunError):  # a full disk: why the run ends is the news
            if self._charged:
                self.ledger.beat()
        self.ledger.close()
        self._lock.release()


class Beating(Progress):
    """Progress that notes the active seconds in the ledger, so that a process that is killed is charged for what it used."""

    def __init__(self, shown: Progress, beat: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._shown, self._beat, self._clock = shown, beat, clock
        self._last = clock()

    def say(self, text: str) -> None:
        """One line."""
        self._shown.say(text)
        self._maybe()

    def start(self, what: str, total: float) -> None:
        """Work begins."""
        self._shown.start(what, total)
        self._maybe()

    def advance(self, units: float = 1.0) -> None:
        """Some of it is done."""
        self._shown.advance(units)
        self._maybe()

    def stop(self) -> None:
        """It is over."""
        self._shown.stop()
        self._maybe()

    def _maybe(self) -> None:
        now = self._clock()
        if now - self._last >= BEAT_S:
            self._last = now
            self._beat()
