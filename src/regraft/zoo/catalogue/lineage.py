"""Lineage in the tables: which checkpoint of the catalogue a named parent is, and the tree around one.

A graph, since a merge has several parents; cards may even state a circle, which ends where it began.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection, delete, func, literal, select, text

from regraft.zoo.catalogue.licences import mark_forbidden
from regraft.zoo.catalogue.schema import checkpoints, edges, records, state, terms
from regraft.zoo.catalogue.text import key, last_part, path_key, plain
from regraft.zoo.catalogue.writing import name_parents, parts, upsert

LIMIT = 300

_RELINK = """
UPDATE edges SET parent_id = looked_up.found
FROM (
  SELECT e.id AS id, CASE
    WHEN EXISTS (SELECT 1 FROM checkpoints c WHERE c.path_key = e.parent AND c.id <> e.child_id)
      THEN (SELECT c.id FROM checkpoints c WHERE c.path_key = e.parent)
    WHEN e.parent_key LIKE '%/%' AND EXISTS
        (SELECT 1 FROM checkpoints c WHERE c.name_key = e.parent_key AND c.id <> e.child_id)
      THEN (SELECT c.id FROM checkpoints c WHERE c.name_key = e.parent_key AND c.id <> e.child_id
            ORDER BY c.path_key LIMIT 1)
    WHEN EXISTS (SELECT 1 FROM checkpoints c WHERE c.name_key = e.parent_key AND c.id <> e.child_id)
      THEN (SELECT CASE WHEN count(*) = 1 THEN min(c.id) END FROM checkpoints c
            WHERE c.name_key = e.parent_key AND c.id <> e.child_id)
    ELSE (SELECT CASE WHEN count(*) = 1 THEN min(c.id) END FROM checkpoints c
          WHERE c.last_key = e.parent_last AND c.id <> e.child_id)
  END AS found
  FROM edges e
) AS looked_up
WHERE looked_up.id = edges.id AND looked_up.found {differs} edges.parent_id
"""


class EdgeLike(Protocol):
    """What lineage from weights gives: a child, its parents (names or paths), and how sure it is."""

    @property
    def child(self) -> str: ...
    @property
    def parents(self) -> tuple[str, ...]: ...
    @property
    def relation(self) -> str: ...
    @property
    def p_value(self) -> float | None: ...
    @property
    def distance(self) -> float | None: ...
    @property
    def evidence(self) -> str: ...


@dataclass(frozen=True)
class Node:
    """A checkpoint of a tree; `id` and `path` are None for a parent that is named but not in the catalogue.

    `generation` is 0 for the one that was asked for, 1 for its children, -1 for its parents: the shortest way counts. `called` is
    how many checkpoints of the catalogue have the name of a parent that is only named, where it is not known which is meant.
    """

    id: int | None
    name: str
    path: str | None
    generation: int
    gone: bool = False
    called: int = 0


@dataclass(frozen=True)
class Edge:
    """A parent and a child, by their place in `Tree.nodes`; `source` is stated or weights."""

    child: int
    parent: int
    relation: str
    source: str
    p_value: float | None
    distance: float | None
    evidence: str


@dataclass(frozen=True)
class Tree:
    """Everything above and below one checkpoint; `cut` says that there is more than was asked for."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    cut: bool


def relink(connection: Connection) -> None:
    """Look up which checkpoint of the catalogue each named parent is, as one rule over all, whatever came first; and what the
    licences of parents forbid.

    By path; then by full name (org/name; of several snapshots the first path counts); then by a name that only one
    checkpoint has; then by the last part of the name, where only one has it. What may mean several means none.
    """
    differs = "IS NOT" if connection.dialect.name == "sqlite" else "IS DISTINCT FROM"
    connection.execute(text(_RELINK.format(differs=differs)))
    mark_forbidden(connection)
    connection.execute(delete(state).where(state.c.name == "relink"))


def add_edges(
    connection: Connection,
    found: Iterable[tuple[int, EdgeLike, Sequence[tuple[int, str]]]],
    looked_at: Iterable[int] = (),
) -> int:
    """Record lineage found from weights: (child's id, edge, (id, path) of each parent). Returns how many pairs.

    What was found before for the same children, and for those that were looked at, is replaced. A child whose parent's folder
    is gone keeps what it has: without that parent another one, or none, was found.
    """
    listed = list(found)
    children = {*looked_at, *(child for child, _, _ in listed)}
    children -= _with_a_gone_parent(connection, sorted(children))
    listed = [one for one in listed if one[0] in children]
    for part in parts(sorted(children)):
        connection.execute(delete(edges).where(edges.c.child_id.in_(part), edges.c.source == "weights"))
        # As the cards name them; those that the weights show are added below.
        connection.execute(delete(terms).where(terms.c.checkpoint_id.in_(part), terms.c.kind == "parent"))
        for name in (edges.c.parent_key, edges.c.parent_last):
            stated = select(literal("parent"), name, edges.c.child_id).where(
                edges.c.child_id.in_(part), edges.c.source == "stated", name.is_not(None)
            )
            columns = ["kind", "value", "checkpoint_id"]
            connection.execute(
                upsert(connection, terms).from_select(columns, stated.distinct()).on_conflict_do_nothing()
            )
    new = {
        (child, path_key(path), edge.relation): {
            "child_id": child, "parent_id": parent, "parent": path_key(path), "parent_key": path_key(path).casefold(),
            "parent_last": None, "relation": key(edge.relation) or "", "source": "weights", "p_value": edge.p_value,
            "distance": edge.distance, "evidence": plain(edge.evidence),
        }
        for child, edge, parents in listed for parent, path in parents if parent != child
    }  # fmt: skip
    if new:
        statement = upsert(connection, edges).on_conflict_do_nothing()
        connection.execute(statement, list(new.values()))
    name_parents(connection, sorted(children))
    mark_forbidden(connection)
    return len(new)


def _with_a_gone_parent(connection: Connection, children: Sequence[int]) -> set[int]:
    """Those that have an edge from weights to a checkpoint whose folder is gone."""
    found: set[int] = set()
    for part in parts(children):
        joined = select(edges.c.child_id).join(checkpoints, checkpoints.c.id == edges.c.parent_id)
        of_gone = joined.where(edges.c.child_id.in_(part), edges.c.source == "weights", checkpoints.c.gone.is_(True))
        found.update(connection.execute(of_gone).scalars())
    return found


def tree(connection: Connection, root: int | None, name: str, limit: int = LIMIT) -> Tree:
    """Ancestors and descendants of a checkpoint of the catalogue, or the descendants of a name that it does not have.

    `limit` bounds each direction; the nearest come first.
    """
    up: list[int] = []
    limit = min(limit, 2**31)  # no tree is larger, and a database takes no number beyond 64 bits
    most = limit if root is None else limit + 1  # what is reached begins with where it starts
    if root is not None:
        up, down = (_reach(connection, [root], way, most + 1) for way in ("up", "down"))
    else:
        named = select(edges.c.child_id).where(edges.c.parent_key == key(name), edges.c.parent_id.is_(None)).distinct()
        children = list(connection.execute(named.order_by(edges.c.child_id).limit(limit + 1)).scalars())
        down = _reach(connection, children, "down", limit + 1)
    cut = len(up) > most or len(down) > most
    numbers = list(dict.fromkeys([*up[:most], *down[:most]]))
    return _assembled(connection, root, name, numbers, cut)


def _reach(connection: Connection, start: Sequence[int], way: str, limit: int) -> list[int]:
    """What can be reached over edges, each once, nearest first: UNION drops what was there before, so circles end."""
    if not start:
        return []
    here, there = (edges.c.child_id, edges.c.parent_id) if way == "up" else (edges.c.parent_id, edges.c.child_id)
    begun = select(checkpoints.c.id).where(checkpoints.c.id.in_(start))
    reached = begun.cte("reached", recursive=True)
    step = select(there).join(reached, here == reached.c.id).where(there.is_not(None))
    reached = reached.union(step)
    return list(connection.execute(select(reached.c.id).limit(limit)).scalars())


def _assembled(connection: Connection, root: int | None, name: str, numbers: Sequence[int], cut: bool) -> Tree:
    """The nodes, their generations, and the edges among them and to parents that are only named."""
    columns = (edges.c.child_id, edges.c.parent_id, edges.c.parent, edges.c.parent_key, edges.c.parent_last,
               edges.c.relation, edges.c.source, edges.c.p_value, edges.c.distance, edges.c.evidence)  # fmt: skip
    inside: set[int] = set(numbers)
    found: list[Any] = []
    for part in parts(numbers):
        found += connection.execute(select(*columns).where(edges.c.child_id.in_(part)).order_by(edges.c.id)).all()
    sought = key(name) or ""
    facts = _facts(connection, numbers)
    meant = _told_by_weights(found, facts)
    # A node is its number, or the key of a parent that is only named.
    pairs: list[tuple[int | str, int | str, Any]] = [
        (row.child_id, meant.get((row.child_id, row.parent_key), row.parent_key) if row.parent_id is None else row.parent_id, row)
        for row in found if row.parent_id is None or row.parent_id in inside
    ]  # fmt: skip
    start: int | str = root if root is not None else sought
    ups, downs = defaultdict(list), defaultdict(list)
    for child, parent, _ in pairs:
        ups[child].append(parent)
        downs[parent].append(child)
    generation = _generations(start, downs, 1)
    for node, steps in _generations(start, ups, -1).items():
        if node not in generation or abs(steps) < abs(generation[node]):
            generation[node] = steps
    named = {row.parent_key: row for _, parent, row in pairs if isinstance(parent, str)}
    shown = {given: row.parent for given, row in named.items()} | {sought: name}

    def node_of(node: int | str) -> Node:
        if isinstance(node, str):
            called = _called(connection, named[node], downs[node]) if node in named and node != start else 0
            return Node(None, shown[node], None, generation[node], called=called)
        own, path, gone = facts[node]
        return Node(node, own, path, generation[node], gone)

    made = {node: node_of(node) for node in generation}
    order = sorted(made, key=lambda node: (made[node].generation, made[node].name, made[node].path or ""))
    place = {node: number for number, node in enumerate(order)}
    lines = tuple(
        Edge(place[child], place[parent], row.relation, row.source, row.p_value, row.distance, row.evidence)
        for child, parent, row in pairs if child in place and parent in place
    )  # fmt: skip
    return Tree(tuple(made[node] for node in order), lines, cut)


def _told_by_weights(found: Sequence[Any], facts: dict[int, tuple[str, str, bool]]) -> dict[tuple[int, str], int]:
    """(child, key of a stated parent) -> the checkpoint of that name which the child's weights come from.

    The name alone did not tell which one is meant; of several that the weights show none is taken.
    """
    shown = defaultdict(list)
    for row in found:
        if row.source == "weights" and row.parent_id in facts:
            name = key(facts[row.parent_id][0]) or ""
            for way in {(row.child_id, name), (row.child_id, last_part(name))}:
                shown[way].append(row.parent_id)
    told = {}
    for row in found:
        if row.parent_id is None:
            ways = (shown.get((row.child_id, name), []) for name in (row.parent_key, row.parent_last))
            meant = set(next((way for way in ways if way), []))
            if len(meant) == 1:
                told[row.child_id, row.parent_key] = meant.pop()
    return told


def _called(connection: Connection, row: Any, children: Sequence[int | str]) -> int:
    """How many checkpoints have the name of a stated parent that was not found: its whole name, else its last part."""
    others = checkpoints.c.id.not_in([child for child in children if isinstance(child, int)][:900])
    for wanted in (checkpoints.c.name_key == row.parent_key, checkpoints.c.last_key == row.parent_last):
        count = int(
            connection.execute(select(func.count()).select_from(checkpoints).where(wanted, others)).scalar_one()
        )
        if count:
            return count
    return 0


def _generations(start: int | str, ways: dict[int | str, list[int | str]], step: int) -> dict[int | str, int]:
    found, queue = {start: 0}, deque([start])
    while queue:
        node = queue.popleft()
        for there in ways.get(node, ()):
            if there not in found:
                found[there] = found[node] + step
                queue.append(there)
    return found


def _facts(connection: Connection, numbers: Sequence[int]) -> dict[int, tuple[str, str, bool]]:
    """Name, path and whether it is gone, of checkpoints by id."""
    found = {}
    columns = select(checkpoints.c.id, records.c.name, records.c.path, checkpoints.c.gone)
    joined = columns.join(records, records.c.checkpoint_id == checkpoints.c.id)
    for part in parts(numbers):
        for number, name, path, gone in connection.execute(joined.where(checkpoints.c.id.in_(part))):
            found[number] = (name, path, gone)
    return found
