"""Licences between the checkpoints of the catalogue: which children state one that a parent's forbids.

That is known only when parent and child are both recorded, and changes with either of them: so it is looked up anew whenever
parents are, and kept as risks, which filters and `zoo check` see.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, and_, delete, exists, insert, not_, select

from regraft.zoo.catalogue.schema import checkpoints, edges, records, risks, terms
from regraft.zoo.catalogue.text import plain
from regraft.zoo.catalogue.writing import upsert
from regraft.zoo.record.licences import forbids

CODE = "licence-forbidden"


def mark_forbidden(connection: Connection) -> None:
    """Bring the risks of that code up to date, for all checkpoints."""
    found: dict[tuple[int, str], str] = {}
    for child, own, parent, licence in _pairs(connection):
        reason = forbids(licence, own)
        if reason is not None:
            found.setdefault((child, parent), f"Its parent {parent} is under {licence}. {reason}")
    connection.execute(delete(risks).where(risks.c.code == CODE))
    connection.execute(delete(terms).where(terms.c.kind == "risk", terms.c.value == CODE))
    in_danger = exists().where(risks.c.checkpoint_id == terms.c.checkpoint_id, risks.c.severity == "danger")
    danger = and_(terms.c.kind == "severity", terms.c.value == "danger")
    connection.execute(delete(terms).where(danger, not_(in_danger)))
    if not found:
        return
    connection.execute(insert(risks), [
        {"checkpoint_id": child, "severity": "danger", "code": CODE, "place": plain(parent), "problem": plain(words)}
        for (child, parent), words in found.items()
    ])  # fmt: skip
    new: list[dict[str, Any]] = [
        {"kind": kind, "value": value, "checkpoint_id": child}
        for child in {child for child, _ in found} for kind, value in (("risk", CODE), ("severity", "danger"))
    ]  # fmt: skip
    connection.execute(upsert(connection, terms).on_conflict_do_nothing(), new)


def _pairs(connection: Connection) -> list[tuple[int, str | None, str, str]]:
    """(child, its licence, parent's name, its licence) of pairs that are both in the catalogue and state different ones."""
    below, above = checkpoints.alias("below"), checkpoints.alias("above")
    statement = (
        select(edges.c.child_id, below.c.licence, records.c.name, above.c.licence)
        .select_from(edges)
        .join(below, below.c.id == edges.c.child_id)
        .join(above, above.c.id == edges.c.parent_id)
        .join(records, records.c.checkpoint_id == above.c.id)
        .where(above.c.licence.is_not(None), above.c.licence.is_distinct_from(below.c.licence))
        .distinct()
        .order_by(edges.c.child_id, records.c.name)
    )
    return [(child, own, name, licence) for child, own, name, licence in connection.execute(statement)]
