"""A filter as SQL.

Answers come in the order of their ids, page by page, so a page is found as soon as it is full. What takes long is a filter
that few checkpoints pass. PostgreSQL knows how often each value occurs and plans by it; SQLite knows only how many values a
column has. So for SQLite each condition that an index answers is counted, up to `CAP` entries (about a millisecond), and the
rarest *drives*: its index gives the ids, and the other conditions are checked of those alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import ColumnElement, Connection, Select, and_, exists, func, not_, or_, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import KeyedColumnElement
from sqlalchemy.sql.functions import FunctionElement

from regraft.zoo.catalogue.grammar import Condition
from regraft.zoo.catalogue.schema import INDEXED, checkpoints, claims, measurements, terms

CAP = 20_000
BIGGEST = 2**63 - 1
_LAST = "\U0010ffff"
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_RESULTS = {"claims": claims, "measurements": measurements}


class Unindexed(FunctionElement[Any]):
    """A column that SQLite is not to look up by an index: it cannot know how many rows a range of it has."""

    name = "unindexed"
    inherit_cache = True


@compiles(Unindexed)
def _as_it_is(element: Unindexed, compiler: SQLCompiler, **options: Any) -> str:
    return str(compiler.process(element.clauses, **options))


@compiles(Unindexed, "sqlite")
def _with_a_plus(element: Unindexed, compiler: SQLCompiler, **options: Any) -> str:
    return f"+{compiler.process(element.clauses, **options)}"


@dataclass(frozen=True)
class Compiled:
    """A condition as a predicate over `checkpoints`; and as the ids that an index gives, where one does.

    `ordered` says that these ids come in order, so that reading them can stop early.
    """

    predicate: ColumnElement[bool]
    driver: Select[Any] | None = None
    ordered: bool = False


def page_of(connection: Connection, conditions: Sequence[Condition], after: int, limit: int) -> list[int]:
    """The ids of the first `limit` checkpoints above the id `after` that pass all conditions, in order."""
    after, limit = min(after, BIGGEST), min(limit, BIGGEST)  # beyond what a database can be asked for there is nothing
    compiled = [_compiled(one) for one in conditions]
    own = [one.predicate for one in compiled] + _present(conditions)
    if connection.dialect.name == "sqlite":
        driving = _rarest(connection, compiled, after)
        if driving is not None and driving.driver is not None:
            (number,) = driving.driver.selected_columns
            # In an EXISTS of their own, so that no other index is chosen for them.
            rest = [one for one in own if one is not driving.predicate]
            holds = [exists().where(checkpoints.c.id == number, *rest)] if rest else []
            driven = driving.driver.where(number > after, *holds).order_by(number)
            return list(connection.execute(driven.limit(limit)).scalars())
        outer = checkpoints.alias("every")
        statement: Select[Any] = select(outer.c.id).where(outer.c.id > after)
        if own:
            statement = statement.where(exists().where(checkpoints.c.id == outer.c.id, *own))
        return list(connection.execute(statement.order_by(outer.c.id).limit(limit)).scalars())
    every = select(checkpoints.c.id).where(checkpoints.c.id > after, *own)
    return list(connection.execute(every.order_by(checkpoints.c.id).limit(limit)).scalars())


def count_of(connection: Connection, conditions: Sequence[Condition]) -> int:
    """How many checkpoints pass all conditions."""
    own = [_compiled(one).predicate for one in conditions] + _present(conditions)
    return int(connection.execute(select(func.count()).select_from(checkpoints).where(*own)).scalar_one())


def _present(conditions: Sequence[Condition]) -> list[ColumnElement[bool]]:
    """What is gone is left out unless the filter speaks of it."""
    if any(one.field.name == "gone" for one in conditions):
        return []
    return [checkpoints.c.gone.is_(False)]


def _rarest(connection: Connection, compiled: Sequence[Compiled], after: int) -> Compiled | None:
    """The condition with the fewest ids; where all have more than CAP, one whose ids come in order; else none."""
    best: Compiled | None = None
    ordered: Compiled | None = None
    size = CAP
    for one in compiled:
        if one.driver is None:
            continue
        (number,) = one.driver.selected_columns
        few = one.driver.where(number > after).limit(size).subquery()
        found = int(connection.execute(select(func.count()).select_from(few)).scalar_one())
        if found < size:
            best, size = one, found
        if one.ordered and ordered is None:
            ordered = one
    return best if best is not None else ordered


def _compiled(condition: Condition) -> Compiled:
    kind, column = condition.field.kind, condition.field.column
    if kind == "words":
        return _words(condition)
    if kind == "result":
        return _result(condition)
    # The driver reads a table of its own: the predicate speaks of another row of the same name.
    driving = checkpoints.alias("driving")
    if kind == "number":
        predicate, driver = (_number(condition, table.c[column]) for table in (checkpoints, driving))
    elif kind == "switch":
        predicate, driver = (_any(condition, table.c[column], _same) for table in (checkpoints, driving))
    else:
        predicate, driver = (_any(condition, table.c[column], _text(condition)) for table in (checkpoints, driving))
    if condition.operator == "!=" or (column not in INDEXED and kind != "path"):
        return Compiled(predicate)
    single = (
        condition.operator == "=" and len(condition.values) == 1 and not _is_beginning(condition, condition.values[0])
    )
    return Compiled(predicate, select(driving.c.id).where(driver), single)


def _words(condition: Condition) -> Compiled:
    """A field of several values: one of them is meant."""
    mine = and_(terms.c.kind == condition.field.column, terms.c.checkpoint_id == checkpoints.c.id)
    given = [value for value in condition.values if value is not None]
    ways: list[ColumnElement[bool]] = []
    if given:
        ways.append(exists().where(mine, or_(*_ways(condition, terms.c.value, _text(condition)))))
    if None in condition.values:
        ways.append(not_(exists().where(mine)))
    predicate = or_(*ways)
    if condition.operator == "!=":
        return Compiled(not_(predicate))
    if None in condition.values:
        return Compiled(predicate)
    driving = terms.alias("driving")
    wanted = or_(*_ways(condition, driving.c.value, _text(condition)))
    driver = select(driving.c.checkpoint_id).where(driving.c.kind == condition.field.column, wanted)
    single = len(given) == 1 and not _is_beginning(condition, given[0])
    return Compiled(predicate, driver if single else driver.distinct(), single)


def _result(condition: Condition) -> Compiled:
    """A result of a metric, claimed or measured: one of them is meant."""
    table = _RESULTS[condition.field.column]
    driving = table.alias("driving")

    def wanted(metric: Any, value: Any) -> ColumnElement[bool]:
        given = [one for one in condition.values if one is not None]
        if not given:
            return cast("ColumnElement[bool]", metric == condition.metric)
        compare = _COMPARE.get(condition.operator)
        passes = value.in_(given) if compare is None else compare(value, given[0])
        return and_(metric == condition.metric, passes)

    mine = table.c.checkpoint_id == checkpoints.c.id
    ways: list[ColumnElement[bool]] = []
    if any(value is not None for value in condition.values):
        # Of one checkpoint: its few results are gone through, not all that pass.
        ways.append(exists().where(mine, wanted(Unindexed(table.c.metric_key), Unindexed(table.c.value))))
    if None in condition.values:
        ways.append(not_(exists().where(mine, table.c.metric_key == condition.metric)))
    predicate = or_(*ways)
    if condition.operator == "!=":
        return Compiled(not_(predicate))
    if None in condition.values:
        return Compiled(predicate)
    return Compiled(
        predicate, select(driving.c.checkpoint_id).where(wanted(driving.c.metric_key, driving.c.value)).distinct()
    )


def _number(condition: Condition, column: KeyedColumnElement[Any]) -> ColumnElement[bool]:
    if condition.operator in ("=", "!="):
        return _any(condition, column, _same)
    (value,) = condition.values
    compared: ColumnElement[bool] = _COMPARE[condition.operator](column, _plain_number(value))
    return compared


def _any(
    condition: Condition, column: KeyedColumnElement[Any], same: Callable[[Any, Any], ColumnElement[bool]]
) -> ColumnElement[bool]:
    """One of the values; for != everything else, rows without a value among them."""
    given = _ways(condition, column, same)
    if condition.operator == "=":
        return or_(*given, *([column.is_(None)] if None in condition.values else []))
    if None in condition.values:
        return and_(column.is_not(None), *(not_(one) for one in given))
    return or_(column.is_(None), not_(or_(*given)))


def _ways(
    condition: Condition, column: Any, same: Callable[[Any, Any], ColumnElement[bool]]
) -> list[ColumnElement[bool]]:
    """What each value asks of a column; whole numbers and texts as one IN: a database takes few hundred ORs."""
    given = dict.fromkeys(_plain_number(value) for value in condition.values if value is not None)
    exact = {
        value: None for value in given
        if isinstance(value, (int, str)) and not isinstance(value, bool) and not _is_beginning(condition, value)
    }  # fmt: skip
    if len(exact) < 2:
        return [same(column, value) for value in given]
    return [column.in_(list(exact)), *(same(column, value) for value in given if value not in exact)]


def _same(column: Any, value: Any) -> ColumnElement[bool]:
    found: ColumnElement[bool] = column.is_(value) if isinstance(value, bool) else column == _plain_number(value)
    return found


def _plain_number(value: Any) -> Any:
    """A whole number as one, so that the index of a whole-number column is used."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else value


def _is_beginning(condition: Condition, value: Any) -> bool:
    return isinstance(value, str) and value.endswith("*") and value not in condition.exact


def _text(condition: Condition) -> Callable[[Any, Any], ColumnElement[bool]]:
    def same(column: Any, value: Any) -> ColumnElement[bool]:
        if _is_beginning(condition, value):
            return and_(column >= value[:-1], column < value[:-1] + _LAST)
        found: ColumnElement[bool] = column == value
        return found

    return same
