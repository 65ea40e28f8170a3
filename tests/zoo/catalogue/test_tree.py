"""Trees: what SQL reaches is what a breadth-first walk over plain dictionaries reaches."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import pytest

from regraft.errors import CatalogueError
from regraft.zoo.catalogue import Catalogue, writing
from regraft.zoo.record.record import Licence, Parent, Record


@dataclass(frozen=True)
class Found:
    """As lineage from weights gives it."""

    child: str
    parents: tuple[str, ...]
    relation: str = "finetuned"
    p_value: float | None = None
    distance: float | None = None
    evidence: str = ""


def named(base: Record, name: str, *parents: str, path: str = "") -> Record:
    return replace(
        base, name=name, path=path or f"/zoo/{name}", parents=tuple(Parent(one, "finetune") for one in parents)
    )


@pytest.fixture
def base(record_maker: Any) -> Record:
    return replace(record_maker(0), tags=(), languages=(), datasets=())


def reach(start: str, ways: dict[str, set[str]]) -> dict[str, int]:
    steps, queue = {start: 0}, deque([start])
    while queue:
        node = queue.popleft()
        for there in sorted(ways.get(node, ())):
            if there not in steps:
                steps[there] = steps[node] + 1
                queue.append(there)
    return steps


@pytest.mark.parametrize("circles", [False, True], ids=["no circles", "circles"])
def test_trees_agree_with_a_walk(catalogue: Catalogue, base: Record, circles: bool) -> None:
    draw = random.Random(1)
    names = [f"org/m{number}" for number in range(80)]
    above: dict[str, set[str]] = {}
    for number, name in enumerate(names):
        pool = names if circles else names[:number]
        chosen = set(draw.sample(pool, min(len(pool), draw.choice((0, 1, 1, 2, 3))))) - {name}
        above[name] = chosen | ({"far/away"} if number % 17 == 3 else set())
    order = names[:]
    draw.shuffle(order)  # children may be recorded before their parents
    for start in range(0, len(order), 9):
        catalogue.put(named(base, name, *sorted(above[name])) for name in order[start : start + 9])
    below: dict[str, set[str]] = {}
    for child, parents in above.items():
        for parent in parents:
            below.setdefault(parent, set()).add(child)
    for root in [*names[::5], "far/away"]:
        up, down = reach(root, above), reach(root, below)
        expected = {name: -steps for name, steps in up.items()}
        expected |= {name: steps for name, steps in down.items() if name not in up or steps <= up[name]}
        tree = catalogue.tree(root)
        assert {node.name: node.generation for node in tree.nodes} == expected, root
        assert {(tree.nodes[edge.child].name, tree.nodes[edge.parent].name) for edge in tree.edges} == {
            (child, parent) for child in expected for parent in above.get(child, ()) if parent in expected
        }
        assert not tree.cut and (tree.nodes[[node.name for node in tree.nodes].index(root)].id is None) == (
            root == "far/away"
        )


def test_a_limit_keeps_the_nearest(catalogue: Catalogue, base: Record) -> None:
    catalogue.put(
        [named(base, "a")]
        + [named(base, f"b{n}", "a") for n in range(20)]
        + [named(base, f"c{n}", f"b{n}") for n in range(20)]
    )
    tree = catalogue.tree("a", limit=11)
    assert tree.cut and len(tree.nodes) == 12 and {node.generation for node in tree.nodes} == {0, 1}
    assert catalogue.tree("a", limit=39).cut and not catalogue.tree("a", limit=40).cut, "itself does not count"
    assert len(catalogue.tree("a", limit=40).nodes) == 41


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("/zoo/x/bert", "/zoo/x/bert"),  # the path
        ("Google/BERT", "/zoo/google/bert"),  # the full name, whatever its case
        ("small", "/zoo/small"),  # a name that one has
        ("intel/small", "/zoo/small"),  # the last part, where one has it
        ("other/bert", None),  # two are called bert
        ("twice", None),  # two of this name
        ("org/snap", "/cache/1"),  # two snapshots of one repository: the first path
        ("absent", None),
        ("child", None),  # itself
    ],
)
def test_which_checkpoint_a_named_parent_is(
    catalogue: Catalogue, base: Record, stated: str, expected: str | None
) -> None:
    others = [
        named(base, "bert", path="/zoo/x/bert"), named(base, "google/bert"), named(base, "small"),
        named(base, "twice", path="/zoo/1/twice"), named(base, "twice", path="/zoo/2/twice"),
        named(base, "org/snap", path="/cache/2"), named(base, "org/snap", path="/cache/1"),
    ]  # fmt: skip
    child = named(base, "child", stated)
    for order in ([child, *others], [*others, child]):
        for one in order:
            catalogue.put([one])
        tree = catalogue.tree("child")
        assert [node.path for node in tree.nodes if node.generation == -1 and node.path] == (
            [expected] if expected else []
        )
        for one in order:
            catalogue.remove(one.path)


def test_of_several_with_the_name_of_a_parent_the_weights_tell_which(catalogue: Catalogue, base: Record) -> None:
    catalogue.put([named(base, "base", path="/1/base"), named(base, "base", path="/2/base")])
    catalogue.put([named(base, "tuned", "base"), named(base, "lost", "base", "far/away")])
    first, second = catalogue.tree("tuned").nodes
    assert (first.name, first.id, first.called, second.name) == ("base", None, 2, "tuned")
    catalogue.add_edges([Found("tuned", ("/2/base",))])
    tree = catalogue.tree("tuned")
    assert [(node.path, node.called) for node in tree.nodes] == [("/2/base", 0), ("/zoo/tuned", 0)]
    assert sorted(edge.source for edge in tree.edges) == ["stated", "weights"]
    assert {(node.name, node.called) for node in catalogue.tree("lost").nodes if node.id is None} == {
        ("base", 2), ("far/away", 0),
    }  # fmt: skip


def test_numbers_beyond_a_database_are_no_fault(catalogue: Catalogue, base: Record) -> None:
    catalogue.put([named(base, "a"), named(base, "b", "a")])
    assert len(catalogue.tree("a", limit=10**30).nodes) == 2
    assert len(catalogue.find(limit=10**30).entries) == 2 and catalogue.find(after=10**30).entries == ()


def test_all_are_removed_or_none(catalogue: Catalogue, base: Record) -> None:
    catalogue.put([named(base, "a"), named(base, "b"), named(base, "x", path="/1"), named(base, "x", path="/2")])
    for last in ("nobody", "x"):
        with pytest.raises(CatalogueError):
            catalogue.remove("a", "b", last)
        assert catalogue.has("a") and catalogue.has("b")
    assert catalogue.remove("a", "/zoo/a", "b") == 2 and catalogue.paths() == ["/1", "/2"]


def test_a_parent_that_goes_is_still_named(catalogue: Catalogue, base: Record) -> None:
    catalogue.put([named(base, "org/a"), named(base, "org/b", "org/a")])
    assert catalogue.tree("org/b").nodes[0].id is not None
    catalogue.remove("org/a")
    first = catalogue.tree("org/b").nodes[0]
    assert (first.name, first.id) == ("org/a", None)
    assert [node.name for node in catalogue.tree("org/a").nodes] == ["org/a", "org/b"]


def test_lineage_from_weights_is_kept_beside_what_is_stated(catalogue: Catalogue, base: Record) -> None:
    catalogue.put([named(base, "a"), named(base, "b"), named(base, "m", "a")])
    merged = Found("m", ("a", "b"), "merged", 1e-30, 0.25, "seen")
    assert catalogue.add_edges([merged, Found("b", ("/zoo/a",))]) == 3
    tree = catalogue.tree("m")
    lines = sorted(
        (tree.nodes[edge.child].name, tree.nodes[edge.parent].name, edge.relation, edge.source, edge.p_value)
        for edge in tree.edges
    )
    assert lines == [("b", "a", "finetuned", "weights", None), ("m", "a", "finetune", "stated", None),
                     ("m", "a", "merged", "weights", 1e-30), ("m", "b", "merged", "weights", 1e-30)]  # fmt: skip
    catalogue.put([named(base, "m", "a")])  # read again
    assert len(catalogue.tree("m").edges) == 4
    catalogue.add_edges([Found("m", ("b",))], children=["b", "m"])
    assert {(edge.relation, edge.source) for edge in catalogue.tree("m").edges} == {
        ("finetune", "stated"),
        ("finetuned", "weights"),
    }
    with pytest.raises(CatalogueError, match="'nobody' is not in the catalogue"):
        catalogue.add_edges([Found("m", ("nobody",))])


def test_unknown_and_ambiguous_names(catalogue: Catalogue, base: Record) -> None:
    catalogue.put([named(base, "x", path="/1"), named(base, "x", path="/2"), named(base, "org/minilm-l6")])
    with pytest.raises(CatalogueError, match="2 checkpoints are called 'x': /1, /2"):
        catalogue.tree("x")
    with pytest.raises(CatalogueError, match="Did you mean org/minilm-l6"):
        catalogue.get("minilm")
    assert catalogue.get("MiniLM-L6").record.name == "org/minilm-l6" and catalogue.get("/2").record.path == "/2"
    with pytest.raises(CatalogueError, match="2 checkpoints are called 'x': /1, /2"):
        catalogue.remove("x")
    assert catalogue.remove("/1") == 1 and catalogue.has("x")
    catalogue.put([named(base, "x", path="/1")])
    assert catalogue.remove("x", several=True) == 2 and not catalogue.has("x")


def test_an_edge_stays_while_the_parents_disk_is_away(catalogue: Catalogue, base: Record) -> None:
    catalogue.put([named(base, "a"), named(base, "b"), named(base, "c")])
    catalogue.add_edges([Found("b", ("a",)), Found("c", ("b",))], children=["a", "b", "c"])
    with catalogue.database.writing() as connection:
        writing.mark_gone(connection, [catalogue.get("a").id])
    assert catalogue.add_edges([Found("b", ("c",))], children=["b", "c"]) == 0, "nearest of those that are there"
    assert [(node.name, node.generation) for node in catalogue.tree("b").nodes] == [("a", -1), ("b", 0)]
    catalogue.put([named(base, "a")])
    catalogue.add_edges([Found("c", ("a",))], children=["a", "b", "c"])
    assert [node.name for node in catalogue.tree("a").nodes] == ["a", "c"]


def test_filters_see_parents_that_the_weights_show(catalogue: Catalogue, base: Record) -> None:
    catalogue.put([named(base, "org/a"), named(base, "b", "far/away"), named(base, "c")])

    def children(text: str) -> list[str]:
        return [entry.record.name for entry in catalogue.every(text)]

    assert children("parent=org/a") == [] and children("parent=none") == ["org/a", "c"]
    catalogue.add_edges([Found("b", ("org/a",)), Found("c", ("org/a",))])
    catalogue.put([named(base, "c")])  # read again
    assert children("parent=a") == children("parent=org/a") == ["b", "c"] and children("parent=far/away") == ["b"]
    assert children("parent=none") == ["org/a"] and catalogue.parents("b") == ["/zoo/org/a"]
    catalogue.add_edges([], children=["b"])
    assert children("parent=org/a") == ["c"] and children("parent=away") == ["b"]


def test_filters_see_licences_that_a_parent_forbids(catalogue: Catalogue, base: Record) -> None:
    def under(licence: str, name: str, *parents: str) -> Record:
        return replace(named(base, name, *parents), licence=Licence(stated=licence), risks=())

    catalogue.put([under("mit", "b", "a"), under("mit", "c"), under("cc-by-nc-4.0", "d", "a")])
    assert catalogue.count("risk=licence-forbidden") == 0
    catalogue.put([under("cc-by-nc-4.0", "a")])
    (found,) = catalogue.find("risk=licence-forbidden severity=danger").entries
    ((path, risk),) = catalogue.risks("danger")
    assert found.record.name == "b" and path == "/zoo/b" and "Its parent a is under cc-by-nc-4.0" in risk.problem
    catalogue.add_edges([Found("c", ("a",))])
    assert catalogue.count("risk=licence-forbidden") == 2 and [path for path, _ in catalogue.risks(name="c")] == [
        "/zoo/c"
    ]
    catalogue.put([under("mit", "a")])
    assert catalogue.count("risk=licence-forbidden,none") == 4 and not list(catalogue.risks())
