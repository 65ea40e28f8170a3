"""Budgets: how long, or how many trials, a run may take; passed down as a deadline.

`Budget.parse("10m")` limits time, `Budget.parse("40trials")` limits work. A time budget is charged in *active* seconds:
what earlier, interrupted processes of the same run spent counts (`spent_s`), the time in between does not.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from regraft.errors import BudgetError

Found = TypeVar("Found")

# Of what is left of a budget, what a download may take.
DOWNLOAD_SHARE = 0.5
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|trials?)")


@dataclass(frozen=True)
class Budget:
    """A limit on time (seconds) or on work (trials); exactly one of the two is set."""

    text: str
    seconds: float | None = None
    trials: int | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `30s`, `10m`, `1.5h` or `40trials`.

        Raises:
            BudgetError: Anything else, or a budget of zero.
        """
        match = _PATTERN.fullmatch(str(text).strip().lower())
        if match is None:
            raise BudgetError(f"Cannot read the budget {text!r}.", "Write it as 30s, 10m, 1.5h or 40trials.")
        number, unit = float(match[1]), match[2]
        if number <= 0:
            raise BudgetError(f"The budget {text!r} is zero.", "Give at least 1s or 1trials.")
        if unit.startswith("trial"):
            if number != int(number):
                raise BudgetError(f"The budget {text!r} is not a whole number of trials.", "Write 40trials.")
            return cls(match[0], trials=int(number))
        return cls(match[0], seconds=number * _UNITS[unit])


class Deadline:
    """A clock that counts down the active seconds of a budget.

    Args:
        seconds: Seconds in all; None means no limit.
        spent_s: Seconds that earlier processes of the same run have used.
        clock: Monotonic seconds; tests pass their own.
    """

    def __init__(
        self, seconds: float | None, spent_s: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.seconds = seconds
        self._clock = clock
        self._start = clock() - spent_s

    def spent(self) -> float:
        """Active seconds used so far, earlier processes included."""
        return self._clock() - self._start

    def left(self) -> float:
        """Seconds left; infinite without a limit, never negative."""
        return float("inf") if self.seconds is None else max(0.0, self.seconds - self.spent())

    def allows(self, predicted_s: float, reserve_s: float = 0.0) -> bool:
        """Whether work predicted to take `predicted_s` fits in what is left, keeping `reserve_s` back."""
        return predicted_s + reserve_s <= self.left()

    def part(self, seconds: float) -> Deadline:
        """A deadline of its own that ends after `seconds`, or with this one, whichever is sooner."""
        limit = min(seconds, self.left())
        return Deadline(None if limit == float("inf") else limit, clock=self._clock)

    def for_download(self) -> Deadline:
        """A deadline of its own for a download, which may take a share of what is left."""
        return self.part(DOWNLOAD_SHARE * self.left())


def downloaded(what: str, fetch: Callable[[], Found], deadline: Deadline | None) -> Found:
    """The result of `fetch`, when it is there before the deadline; without one it may take as long as it needs.

    A client that waits for a server cannot be told to stop, so `fetch` runs in a thread that is left behind: it ends with the
    process, and what it has fetched by then is in the cache.

    Raises:
        BudgetError: It is not there in time.
    """
    seconds = float("inf") if deadline is None else deadline.left()
    if seconds == float("inf"):
        return fetch()
    found: list[Found] = []
    faults: list[BaseException] = []

    def run() -> None:
        try:
            found.append(fetch())
        except BaseException as fault:  # raised again where the caller waits
            faults.append(fault)

    thread = threading.Thread(target=run, name=f"download of {what}", daemon=True)
    thread.start()
    thread.join(seconds)
    if faults:
        raise faults[0]
    if not found:
        raise BudgetError(
            f"{what} was not downloaded within {seconds:.0f} s, what the budget leaves for it.",
            "Run the same command again (files that have arrived are kept), or give a larger budget.",
        )
    return found[0]
