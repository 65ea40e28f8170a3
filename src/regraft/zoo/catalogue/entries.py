"""Checkpoints of the catalogue: what is asked of them, and which ones a name means."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, and_, func, or_, select

from regraft.errors import CatalogueError
from regraft.zoo.catalogue import fulltext, rows, writing
from regraft.zoo.catalogue.schema import checkpoints, records, terms
from regraft.zoo.catalogue.text import key, path_key, words_of
from regraft.zoo.record.record import Record

# Risks that a change of permissions takes away, which no time of a file shows.
AGAIN = ("unreadable-file",)


@dataclass(frozen=True)
class Entry:
    """A checkpoint of the catalogue.

    Args:
        gone: Its folder was not there the last time.
        deep: Its weights were read.
        indexed_at, first_seen: Unix seconds: when it was last read, and when it came into the catalogue.
    """

    id: int
    record: Record
    gone: bool
    deep: bool
    indexed_at: float
    first_seen: float | None = None


@dataclass(frozen=True)
class Page:
    """Some entries, and what to pass as `after` for those that follow; None when there are none."""

    entries: tuple[Entry, ...]
    next: int | None


@dataclass(frozen=True)
class Known:
    """What indexing asks of a folder.

    Args:
        reader: By which version of the reader it was read; None for one that wrote none down.
        unread: Something of it could not be read, so that it is to be tried again.
    """

    id: int
    file_id: str
    gone: bool
    deep: bool
    reader: int | None
    unread: bool


def known(connection: Connection, roots: Sequence[Path]) -> dict[str, Known]:
    """Every checkpoint that is recorded at or below the roots, by path key."""
    columns = (checkpoints.c.path_key, checkpoints.c.id, checkpoints.c.file_id, checkpoints.c.gone, checkpoints.c.deep,
               checkpoints.c.reader, checkpoints.c.kind)  # fmt: skip
    of_risk = select(terms.c.checkpoint_id).where(terms.c.kind == "risk", terms.c.value.in_(AGAIN))
    unread = set(connection.execute(of_risk).scalars())
    found: dict[str, Known] = {}
    for root in roots:
        at = path_key(str(root))
        below = at.rstrip("/") + "/"
        inside = and_(checkpoints.c.path_key >= below, checkpoints.c.path_key < below[:-1] + "0")  # "0" follows "/"
        statement = select(*columns).where(or_(checkpoints.c.path_key == at, inside))
        for path, number, file_id, gone, deep, reader, kind in connection.execute(statement):
            found[path] = Known(number, file_id, gone, deep, reader, kind == "unreadable" or number in unread)
    return found


def named(connection: Connection, name: str) -> list[int]:
    """Ids of the checkpoints that a name means: by path, else by full name, else by its last part."""
    given = name.strip()
    ways = (
        *(
            checkpoints.c.path_key.in_({path_key(one), path_key(str(Path(os.path.expanduser(one)).absolute()))})  # noqa: PTH111
            for one in (name, given)  # blanks at the ends are legal in paths
        ),
        checkpoints.c.name_key == key(given),
        checkpoints.c.last_key == key(given),
    )
    for way in ways:
        found = list(connection.execute(select(checkpoints.c.id).where(way).order_by(checkpoints.c.id)).scalars())
        if found:
            return found
    return []


def entries(connection: Connection, numbers: Sequence[int]) -> list[Entry]:
    """The entries of ids, in their order."""
    columns = (checkpoints.c.id, records.c.record, checkpoints.c.gone, checkpoints.c.deep, checkpoints.c.indexed_at,
               checkpoints.c.first_seen)  # fmt: skip
    found: dict[int, Entry] = {}
    for part in writing.parts(numbers):
        statement = select(*columns).join(records, records.c.checkpoint_id == checkpoints.c.id)
        for number, kept, gone, deep, at, seen in connection.execute(statement.where(checkpoints.c.id.in_(part))):
            found[number] = Entry(number, rows.from_json(kept), gone, deep, at, seen)
    return [found[number] for number in numbers if number in found]


def by_length(connection: Connection, numbers: Sequence[int]) -> list[int]:
    """Those that are there, short names before long ones."""
    found: list[tuple[int, int]] = []
    for part in writing.parts(numbers):
        statement = select(func.length(checkpoints.c.name_key), checkpoints.c.id)
        present = statement.where(checkpoints.c.id.in_(part), checkpoints.c.gone.is_(False))
        found += [(length, number) for length, number in connection.execute(present)]
    return [number for _, number in sorted(found)]


def ambiguous(connection: Connection, name: str, numbers: Sequence[int]) -> CatalogueError:
    """The error for a name that several have."""
    paths = [entry.record.path for entry in entries(connection, numbers[:10])]
    more = f" and {len(numbers) - 10} more" if len(numbers) > 10 else ""
    return CatalogueError(
        f"{len(numbers)} checkpoints are called {name!r}: {', '.join(paths)}{more}.", "Give the path of one."
    )


def unknown(connection: Connection, name: str, where: str) -> CatalogueError:
    """The error for a name that none has, with names that begin alike."""
    cut = [word for word in words_of(name) if len(word) > 1][:1]
    near = fulltext.matches(connection, [f"{word}*" for word in cut], "name", 3) if cut else []
    names = [entry.record.name for entry in entries(connection, near)]
    hint = (
        f"Did you mean {' or '.join(names)}?" if names else "Look with `regraft zoo search`, or `regraft zoo add` it."
    )
    return CatalogueError(f"{name!r} is not in the catalogue {where}.", hint)
