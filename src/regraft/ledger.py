"""The ledger of a run: every time-dependent decision and measurement, logged before it is acted on.

Append-only SQLite. `once(key, compute)` is the whole mechanism: what is logged is replayed, what is not is computed and
logged. A run that was killed goes through the same program again and arrives where it stopped.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regraft.errors import RunError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, at_s REAL NOT NULL, value TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS clock (one INTEGER PRIMARY KEY CHECK (one = 1), spent_s REAL NOT NULL);
"""


class Ledger:
    """The ledger at `path`; `spent` gives the active seconds of the run at the moment."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.spent: Callable[[], float] = lambda: 0.0
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.DatabaseError as fault:
            raise RunError(f"{path} cannot be read: {fault}.", "Use another --out folder.") from fault

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """The logged value of `key`; when there is none, computes it and logs it first. Values are JSON."""
        found, value = self.look(key)
        return value if found else self.log(key, compute())

    def look(self, key: str) -> tuple[bool, Any]:
        """Whether `key` is logged, and its value."""
        rows = self._select("SELECT value FROM entries WHERE key = ?", (key,))
        return (True, json.loads(rows[0][0])) if rows else (False, None)

    def log(self, key: str, value: Any) -> Any:
        """Log a value under a new key; returns it as it will be read back."""
        text = json.dumps(value)
        self._execute("INSERT INTO entries (key, at_s, value) VALUES (?, ?, ?)", (key, self.spent(), text))
        self.beat()
        return json.loads(text)

    def beat(self) -> None:
        """Record the active seconds so far, so that a killed process is charged for what it used."""
        self._execute(
            "INSERT INTO clock VALUES (1, ?) ON CONFLICT (one) DO UPDATE SET spent_s = excluded.spent_s",
            (self.spent(),),
        )

    def spent_before(self) -> float:
        """Active seconds recorded by earlier processes of this run."""
        rows = self._select("SELECT spent_s FROM clock")
        return float(rows[0][0]) if rows else 0.0

    def forget_time(self) -> None:
        """Forget the active seconds: what used them was another run, which came to nothing."""
        self._execute("DELETE FROM clock")

    def entries(self) -> list[tuple[str, float, Any]]:
        """(key, at_s, value) in the order of logging."""
        rows = self._select("SELECT key, at_s, value FROM entries ORDER BY number")
        return [(key, at_s, json.loads(value)) for key, at_s, value in rows]

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _select(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as fault:
            raise RunError(f"{self._path} cannot be read: {fault}.", "Use another --out folder.") from fault

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> None:
        try:
            self._db.execute(statement, values)
        except sqlite3.IntegrityError:  # a key logged twice is a defect of ours
            raise
        except sqlite3.OperationalError as fault:
            raise RunError(
                f"{self._path} cannot be written: {fault}.", "Free some space, then run the same command again."
            ) from fault
        except sqlite3.DatabaseError as fault:
            raise RunError(f"{self._path} is damaged: {fault}.", "Use another --out folder.") from fault
