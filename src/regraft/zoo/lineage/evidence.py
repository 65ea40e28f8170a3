"""An edge of a family, with what it rests on in words."""

from __future__ import annotations

import math

import numpy as np

from regraft.checkpoint.identity import weights_id
from regraft.zoo.lineage.direction import Direction
from regraft.zoo.lineage.edge import Edge
from regraft.zoo.lineage.family import Family, Member
from regraft.zoo.lineage.kinds import Kind, kind_of
from regraft.zoo.lineage.pairs import Pairs


def kind_between(pairs: Pairs, parent: int, child: int, slots: list[int]) -> Kind:
    """What was done to the parent that gave the child, layers that were cut away included."""
    one, other = pairs.family.members[parent], pairs.family.members[child]
    shared = pairs.shared(parent, child, slots)
    if other.kept == one.kept:
        return kind_of(shared)
    lost = sorted(one.kept - other.kept)
    words = f"{len(other.kept)} of {len(one.kept)} layers: without {', '.join(map(str, lost))}"
    equal = all(weights_id({"": mine}) == weights_id({"": theirs}) for _, mine, theirs in shared)
    if equal:
        return Kind("truncated", f"{words}; all tensors of the layers that are left are equal byte for byte")
    rest = kind_of(shared)
    return Kind(f"truncated+{rest.relation}", f"{words}; {rest.words}")


def edge_between(
    family: Family, parent: Member, child: Member, kind: Kind, distances: np.ndarray, slots: list[int], sampled: int,
    parents: list[Member] | None = None, more: str = "", stated: bool = False,
) -> Edge:  # fmt: skip
    """The edge with its evidence in words: what was done, how far apart they are, how surely they are related."""
    tested = family.test(parent, child)
    one, other = (family.members.index(member) for member in (parent, child))
    length = sum(float(np.square(parent.row(slot).astype(np.float64) * parent.sample.scale).sum()) for slot in slots)
    distance = math.sqrt(max(0.0, float(distances[one, other])) / length)
    evidence = (
        f"{kind.words}{more}. Sampled: {sampled:,} elements for the distance ({distance:.3g} of the parent's "
        f"length), {tested.elements:,} for the independence test (correlation {tested.correlation:.3f}, "
        f"p = {tested.p_value:.1e})."
    )
    return Edge(
        child.model.key,
        tuple(one.model.key for one in parents or [parent]),
        kind.relation,
        None if tested.related is None else tested.p_value,
        distance,
        evidence,
        stated,
    )


def direction_in_words(told: Direction) -> str:
    """The direction of a pair, with its error and what it rests on."""
    if not math.isfinite(told.error):
        return "no direction in the weights"
    return (
        f"direction tau = {told.tau:+.2f} +- {told.error:.2f} from {told.rows:,} rows (1/2: the parent came first, "
        f"0: siblings), kurtosis lower in {told.flatter:.0%} of the matrices"
    )


def heads_in_words(member: Member) -> str:
    """The names of a few tensors of the head."""
    return ", ".join(sorted(member.model.heads)[:4]) or "none"
