"""The small files of a folder, each opened at most once, read up to a limit, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regraft.checkpoint.files import CONFIG_LIMIT, read_bytes
from regraft.errors import CheckpointError
from regraft.zoo.record.listing import Listing, list_folder, printable
from regraft.zoo.record.record import Risk, Severity

MOST_TEXT = 500  # characters of one value that is kept
# Of JSON that is read: a tokenizer of 262,144 tokens and half a million merges takes a quarter of it; all of it takes a GB.
MOST_CONTAINERS, MOST_VALUES = 2_000_000, 10_000_000


class Folder:
    """A folder that is being recorded: its listing, its small files, and the risks found so far.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listing: Listing = list_folder(path)
        self.risks: list[Risk] = []

    def __contains__(self, name: str) -> bool:
        return name in self.listing.files

    def names(self, below: str = "") -> list[str]:
        """The names of the files directly in a folder, in order; "" is the checkpoint's own."""
        prefix = f"{below}/" if below else ""
        return sorted(name for name in self.listing.files if name.startswith(prefix) and "/" not in name[len(prefix) :])

    def risk(self, code: str, severity: Severity, where: str, problem: str) -> None:
        """Note a risk; `where` is written out as names of files are, so that it is what the sentence says."""
        self.risks.append(Risk(code, severity, printable(where), clean(problem) or code))

    def read(self, name: str, limit: int) -> bytes | None:
        """The bytes of a file; None when it is not there, too large (never opened then) or cannot be read."""
        fact = self.listing.files.get(name)
        if fact is None:
            return None
        if fact.bytes > limit:
            self.risk(
                "too-large", "warning", name, f"{fact.bytes:,} bytes; a file of its kind is not read above {limit:,}."
            )
            return None
        try:
            return read_bytes(self.path / name, limit)
        except (CheckpointError, ValueError) as error:
            reason = error.problem if isinstance(error, CheckpointError) else str(error)
            self.risk("unreadable-file", "danger", name, reason.replace(str(self.path), "").lstrip("/"))
            return None

    def json(self, name: str, limit: int = CONFIG_LIMIT) -> Any:
        """The value in a JSON file; None when there is none that can be read."""
        data = self.read(name, limit)
        return None if data is None else self.parse(name, data)

    def parse(self, name: str, data: bytes) -> Any:
        """The value of JSON text; None with a risk when it is none or `null`, or would fill the memory."""
        if too_many_values(data):
            self.risk(
                "too-large", "warning", name,
                f"It holds more than {MOST_CONTAINERS:,} lists and objects, or {MOST_VALUES:,} values, and was not read.",
            )  # fmt: skip
            return None
        try:
            value = json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            self.risk("broken-file", "danger", name, f"It is not JSON ({reason}).")
            return None
        if value is None:
            self.risk("broken-file", "danger", name, "It holds null, and so nothing.")
        return value

    def json_object(self, name: str, limit: int = CONFIG_LIMIT) -> Mapping[str, Any]:
        """The object in a JSON file; empty when there is none that can be read."""
        value = self.json(name, limit)
        if value is not None and not isinstance(value, dict):
            self.risk("broken-file", "danger", name, f"It holds a JSON {type(value).__name__}, expected an object.")
        return value if isinstance(value, dict) else {}


def too_many_values(data: bytes) -> bool:
    """Whether JSON text holds so many lists, objects or values that they would take gigabytes: `[[],[],` is 3 bytes a list in
    the file and 64 in memory. What separates them is counted, in texts as well: nothing is read."""
    return len(data) > MOST_CONTAINERS and (
        data.count(b"[") + data.count(b"{") > MOST_CONTAINERS or data.count(b",") > MOST_VALUES
    )


def clean(value: Any) -> str | None:
    """Text that any database and terminal takes: valid Unicode on one line, of limited length; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value) if not isinstance(value, int) or abs(value) < 10**18 else ""
    if not isinstance(value, str):
        return None
    text = value[: 4 * MOST_TEXT]
    if not (text.isascii() and text.isprintable()):
        text = text.encode("utf-8", "replace").decode("utf-8")
        text = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(text.split())[:MOST_TEXT] or None


def texts(value: Any, most: int = 1000) -> tuple[str, ...]:
    """One text or a list of them, without repeats."""
    values = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(text for one in values[:most] if (text := clean(one)) is not None))
