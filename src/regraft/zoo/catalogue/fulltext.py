"""The full-text index behind one interface: FTS5 in SQLite, tsvector columns with GIN indices in PostgreSQL.

Both are given words that are already cut (`text.words_of`), so that neither database's own ideas of language, hosts or file
names come in. A query is words that must all occur; `mini*` is a beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import Connection, text

from regraft.errors import CatalogueError
from regraft.zoo.catalogue.text import words_of

Where = Literal["name", "anywhere"]


def put(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Put the words of checkpoints (`rows.word_row`) in place of what was there."""
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        joined = [{**row, "name": " ".join(row["name"]), "anywhere": " ".join(row["anywhere"])} for row in rows]
        connection.execute(text("DELETE FROM words WHERE rowid = :id"), [{"id": row["id"]} for row in rows])
        connection.execute(text("INSERT INTO words (rowid, name, anywhere) VALUES (:id, :name, :anywhere)"), joined)
        return
    connection.execute(
        text(
            "INSERT INTO words (checkpoint_id, name, anywhere) VALUES "
            "(:id, array_to_tsvector(CAST(:name AS text[])), array_to_tsvector(CAST(:anywhere AS text[]))) "
            "ON CONFLICT (checkpoint_id) DO UPDATE SET name = excluded.name, anywhere = excluded.anywhere"
        ),
        list(rows),
    )


def query_of(words: str) -> list[str]:
    """The words of a query, each with a `*` where it is a beginning.

    Raises:
        CatalogueError: No word in it.
    """
    found = []
    for part in words.split():
        cut = words_of(part)
        if cut and part.endswith("*"):
            cut[-1] += "*"
        found += cut
    if not found:
        raise CatalogueError(f"{words!r} has no word to search for.", "Give letters or digits: minilm, or mini* .")
    return list(dict.fromkeys(found))


def matches(connection: Connection, words: Sequence[str], where: Where, limit: int) -> list[int]:
    """Ids of the first checkpoints with all of the words in their name, or anywhere."""
    if connection.dialect.name == "sqlite":
        asked = " AND ".join(f'"{word[:-1]}"*' if word.endswith("*") else f'"{word}"' for word in words)
        statement = "SELECT rowid FROM words WHERE words MATCH :asked ORDER BY rowid LIMIT :limit"
        asked = f"name : ({asked})" if where == "name" else asked
    else:
        asked = " & ".join(f"'{word[:-1]}':*" if word.endswith("*") else f"'{word}'" for word in words)
        found = f"SELECT checkpoint_id FROM words WHERE {where} @@ CAST(:asked AS tsquery)"
        statement = f"{found} ORDER BY checkpoint_id LIMIT :limit"
    return list(connection.execute(text(statement), {"asked": asked, "limit": limit}).scalars())
