"""A table of rows that can be read again and again, without being held in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regraft.errors import TaskError

Rows = Callable[[Sequence[str]], Iterator[tuple[Any, ...]]]


@dataclass(frozen=True)
class Table:
    """Named columns over rows that are streamed.

    Attributes:
        where: File or split, as named in messages.
        columns: Column names, in the file's order.
        rows: Given column names, yields the values of one row at a time, from the first row on each call.
        class_names: For columns whose integers stand for names (`datasets.ClassLabel`): the names.
        notes: What reading this table had to decide.
    """

    where: str
    columns: tuple[str, ...]
    rows: Rows
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def concatenate(tables: Sequence[Table]) -> Table:
    """One table out of the shards of a split.

    Raises:
        TaskError: The shards do not have the same columns.
    """
    first = tables[0]
    if len(tables) == 1:
        return first
    for table in tables[1:]:
        if set(table.columns) != set(first.columns) or table.class_names != first.class_names:
            raise TaskError(
                f"{table.where} has the columns {', '.join(table.columns)}, {first.where} has "
                f"{', '.join(first.columns)}.",
                "Give all files of a split the same columns.",
            )

    def rows(names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        for table in tables:
            yield from table.rows(names)

    notes = tuple(note for table in tables for note in table.notes)
    return Table(f"{first.where} and {len(tables) - 1} more", first.columns, rows, first.class_names, notes)
