"""The ledger: computes once, survives its process, and knows the time that was used."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regraft.errors import RunError
from regraft.ledger import Ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    opened = Ledger(path)
    yield opened
    opened.close()


def never() -> Any:
    raise AssertionError("computed again")


def test_a_value_is_computed_once_and_survives(ledger: Ledger, path: Path) -> None:
    value = {"accuracy": 0.1 + 0.2, "names": ["é", None, True], "count": 2**60}
    assert ledger.look("a") == (False, None)
    assert ledger.once("a", lambda: value) == value
    assert ledger.once("a", never) == value
    assert ledger.once("nothing", lambda: None) is None
    assert ledger.once("nothing", never) is None  # logged as nothing is not the same as not logged
    again = Ledger(path)
    assert again.once("a", never) == value
    assert [(key, found) for key, _, found in again.entries()] == [("a", value), ("nothing", None)]
    again.close()


def test_a_value_comes_back_the_same_the_first_time_and_the_second(ledger: Ledger) -> None:
    first = ledger.once("pair", lambda: (1, 2))  # JSON has no tuples: a resumed run must not see other types
    assert first == [1, 2]
    assert type(first) is type(ledger.once("pair", never)) is list


def test_what_fails_is_not_logged(ledger: Ledger) -> None:
    with pytest.raises(ZeroDivisionError):
        ledger.once("a", lambda: 1 / 0)
    with pytest.raises(TypeError):
        ledger.once("a", lambda: object())
    assert ledger.look("a") == (False, None)
    assert ledger.once("a", lambda: 1) == 1


def test_time_is_recorded_with_every_entry_and_beat(ledger: Ledger, path: Path) -> None:
    assert ledger.spent_before() == 0.0
    ledger.spent = lambda: 3.5
    ledger.log("a", 1)
    ledger.spent = lambda: 8.25
    ledger.beat()
    again = Ledger(path)
    assert again.spent_before() == 8.25
    assert again.entries() == [("a", 3.5, 1)]
    again.close()


def test_entries_keep_the_order_of_logging(ledger: Ledger) -> None:
    keys = [f"key/{number}" for number in (3, 1, 2, 10, 0)]
    for key in keys:
        ledger.log(key, key)
    assert [key for key, _, _ in ledger.entries()] == keys


def test_an_entry_is_never_changed(ledger: Ledger) -> None:
    ledger.log("a", 1)
    with pytest.raises(Exception, match="UNIQUE"):
        ledger.log("a", 2)
    assert ledger.look("a") == (True, 1)


def test_a_killed_process_loses_nothing_that_was_logged(path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from regraft.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1])); ledger.spent = lambda: 4.0; ledger.log('a', [1]); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 9
    ledger = Ledger(path)
    assert ledger.entries() == [("a", 4.0, [1])]
    assert ledger.spent_before() == 4.0
    ledger.close()


def test_a_damaged_file_is_refused(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"no database at all, whatever its name says, and longer than a header" * 20)
    with pytest.raises(RunError, match=r"cannot be read.*another --out"):
        Ledger(path)
    with pytest.raises(RunError, match="cannot be read"):
        Ledger(tmp_path / "absent" / "ledger.sqlite")


def test_pages_that_were_overwritten_are_an_error_in_words(ledger: Ledger, path: Path) -> None:
    ledger.log("a", "x" * 20_000)
    ledger.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\x55" * (len(content) - 4096)
    path.write_bytes(content)
    damaged = Ledger(path)
    with pytest.raises(RunError, match="cannot be read"):
        damaged.entries()
    damaged.close()


def test_a_full_disk_is_an_error_in_words(ledger: Ledger) -> None:
    ledger._db.execute("PRAGMA max_page_count=1")
    with pytest.raises(RunError, match=r"full.*Free some space"):
        ledger.log("a", "x" * 100_000)


def test_a_file_that_is_damaged_under_our_hands_is_an_error_in_words(ledger: Ledger, path: Path) -> None:
    ledger.log("a", "x" * 20_000)
    ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    content[:] = b"\x55" * len(content)
    path.write_bytes(content)
    damaged = Ledger.__new__(Ledger)
    damaged._path, damaged.spent = path, lambda: 0.0
    damaged._db = sqlite3.connect(path, isolation_level=None)
    with pytest.raises(RunError, match=r"is damaged.*another --out"):
        damaged.log("b", 1)
    damaged.close()


def test_time_can_be_forgotten(ledger: Ledger) -> None:
    ledger.spent = lambda: 3.5
    ledger.beat()
    ledger.forget_time()
    assert ledger.spent_before() == 0.0
