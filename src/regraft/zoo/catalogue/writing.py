"""Put records into the tables, many at a time; take checkpoints out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from regraft.zoo.catalogue import fulltext, rows
from regraft.zoo.catalogue.schema import checkpoints, claims, edges, records, risks, state, terms
from regraft.zoo.catalogue.text import path_key
from regraft.zoo.record.record import Record

T = TypeVar("T")
_AT_ONCE = 900  # ids in one IN (...)


def upsert(connection: Connection, table: Table) -> Any:
    """An insert that can be told what to do on conflict; the two databases share the words."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def put(connection: Connection, found: Sequence[tuple[Record, bool]], moved: Collection[str] = ()) -> dict[str, int]:
    """Record checkpoints with all that belongs to them; returns path key -> id.

    `found` has (record, whether its weights were read). What was recorded of the same folder is replaced; its
    measurements and the lineage that was found from weights stay; the latter not of those in `moved` (path keys), whose weights
    are others now. To be run inside one transaction.
    """
    by_path = {path_key(record.path): (record, deep) for record, deep in found}
    if not by_path:
        return {}
    given = [rows.checkpoint_row(record, deep=deep) for record, deep in by_path.values()]
    statement = upsert(connection, checkpoints)
    statement = statement.on_conflict_do_update(
        index_elements=["path_key"],
        set_={name: statement.excluded[name] for name in given[0] if name not in ("path_key", "first_seen")},
    ).returning(checkpoints.c.path_key, checkpoints.c.id)
    ids = {row.path_key: row.id for row in connection.execute(statement, given)}
    _forget(connection, list(ids.values()))
    for part in parts([ids[at] for at in ids if at in moved]):
        connection.execute(delete(edges).where(edges.c.child_id.in_(part), edges.c.source == "weights"))
    numbered = [(ids[key], record) for key, (record, _) in by_path.items()]
    for table, rows_of in (
        (terms, rows.term_rows), (claims, rows.claim_rows), (risks, rows.risk_rows), (edges, rows.edge_rows),
    ):  # fmt: skip
        new = [row for number, record in numbered for row in rows_of(number, record)]
        if new:
            connection.execute(insert(table), new)
    name_parents(connection, list(ids.values()))
    connection.execute(insert(records), [rows.record_row(number, record) for number, record in numbered])
    fulltext.put(connection, [rows.word_row(number, record) for number, record in numbered])
    ask_relink(connection)
    return ids


def name_parents(connection: Connection, children: Sequence[int]) -> None:
    """Let the filter `parent` find children by the names of parents that were found from their weights."""
    for part in parts(children):
        found = (
            select(edges.c.child_id, checkpoints.c.name_key, checkpoints.c.last_key)
            .join(checkpoints, checkpoints.c.id == edges.c.parent_id)
            .where(edges.c.child_id.in_(part), edges.c.source == "weights")
        )
        new = {(child, name) for child, *names in connection.execute(found) for name in names if name}
        if new:
            statement = upsert(connection, terms).on_conflict_do_nothing()
            connection.execute(statement, [
                {"kind": "parent", "value": name, "checkpoint_id": child} for child, name in sorted(new)
            ])  # fmt: skip


def _forget(connection: Connection, numbers: Sequence[int]) -> None:
    for part in parts(numbers):
        for table in (terms, claims, risks, records):
            connection.execute(delete(table).where(table.c.checkpoint_id.in_(part)))
        connection.execute(delete(edges).where(edges.c.child_id.in_(part), edges.c.source == "stated"))


def mark_gone(connection: Connection, numbers: Sequence[int]) -> None:
    """Their folders are no longer there. Nothing else is forgotten: a disk may come back."""
    for part in parts(numbers):
        connection.execute(update(checkpoints).where(checkpoints.c.id.in_(part)).values(gone=True))


def move(connection: Connection, number: int, path: str) -> None:
    """Give a checkpoint the path by which it is known from now on; its `file_id` goes, so that it is read and named anew."""
    connection.execute(
        update(checkpoints).where(checkpoints.c.id == number).values(path_key=path_key(path), file_id="")
    )


def remove(connection: Connection, numbers: Sequence[int]) -> None:
    """Take checkpoints out of the catalogue with everything that is known of them; their files stay."""
    for part in parts(numbers):
        connection.execute(delete(checkpoints).where(checkpoints.c.id.in_(part)))
    ask_relink(connection)


def ask_relink(connection: Connection) -> None:
    """Note that parents are to be looked up again, in the same transaction as what made it necessary."""
    statement = upsert(connection, state).values(name="relink", value="1")
    connection.execute(statement.on_conflict_do_nothing(index_elements=["name"]))


def relink_asked(connection: Connection) -> bool:
    """Whether parents are to be looked up again."""
    return connection.execute(select(state.c.value).where(state.c.name == "relink")).scalar() is not None


def parts(numbers: Sequence[T]) -> Iterable[Sequence[T]]:
    """Lists short enough for one statement."""
    for start in range(0, len(numbers), _AT_ONCE):
        yield numbers[start : start + _AT_ONCE]
