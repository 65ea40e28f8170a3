"""The tree of a family: neighbours by distance, hidden branchings left alone, the root by its posterior.

Updates of separate trainings are nearly orthogonal, so squared distances add up along the paths of the tree, as branch
lengths do in phylogenetics. Where a third checkpoint z joins the path from x to y is then known from distances alone:

    kappa_z = (D_xy + D_xz - D_yz) / (2 D_xy)          0: at x;  1: at y;  between: at a branching that is not in the zoo

- Pairs are linked from the nearest up (Kruskal 1956), each only where it is no pair of siblings of a lost parent: by where
  others join (at an end, or only between) together with the direction statistic.
- A tree of links has one root: a node, or a lost one on a link. Each has the likelihood of the directions of all links, and a
  prior by the number of orders in which the tree can have grown from it (Shah and Zaman 2011, Rumors in a network: who's the
  culprit?, arXiv 0909.4370). A link becomes an edge where one direction has at least `SURE` of the posterior.
- What the posterior leaves open, a card may decide: marked as such.

Horwitz et al. (2025, arXiv 2405.18432) take a minimum directed spanning tree instead, which always gives every checkpoint but
one a parent; here a checkpoint whose parent is not in the zoo gets none.
"""

from __future__ import annotations

import math

import numpy as np

from regraft.zoo.lineage.direction import Direction
from regraft.zoo.lineage.links import Link, Neighbours, Sight, joins, lost_parent
from regraft.zoo.lineage.roots import directed
from regraft.zoo.lineage.thresholds import ATTEMPTS, BEHIND, CERTAIN, LOST_SURE, NEITHER, NEITHER_JOINED, OPEN


def forest(nodes: list[int], sight: Sight, root: int | None = None) -> list[Link]:
    """The directed edges among nodes; `root`, where it is known, is the ancestor of all that are linked to it."""
    found: list[Link] = []
    for tree in _trees(nodes, _linked(nodes, sight)):
        found += directed(tree, sight, root)
    return found


def _linked(nodes: list[int], sight: Sight) -> list[Neighbours]:
    distances = sight.distances
    shifted, copies = _without_copies(nodes, sight), sight.copies
    pairs = [
        (copies.get(b) != a and copies.get(a) != b, float(shifted[a, b]), a, b)
        for at, a in enumerate(nodes)
        for b in nodes[at + 1 :]
    ]
    part = {node: node for node in nodes}
    attempts = dict.fromkeys(nodes, 0)
    found = []

    def top(node: int) -> int:
        while part[node] != node:
            part[node] = part[part[node]]
            node = part[node]
        return node

    for _, _, first, second in sorted(pairs):
        if top(first) == top(second) or min(attempts[first], attempts[second]) >= ATTEMPTS:
            continue
        known = sight.known(first, second)
        if not known and any(
            copy in copies and copies[copy] in nodes and shifted[copy, other] >= sight.order[copies[copy], other]
            for copy, other in ((first, second), (second, first))
        ):
            continue
        if copies.get(second) == first or copies.get(first) == second:
            likelihoods, told = (CERTAIN if known > 0 else (CERTAIN[1], CERTAIN[0], CERTAIN[2])), None
        else:
            told = sight.direction(first, second)
            forward, backward, neither = told.likelihoods
            ends = joins(distances, first, second, nodes, sight.elements)
            if known:
                # Pruning keeps what is large, which looks like growth: tau cannot tell a child from a pruned sibling.
                neither = NEITHER_JOINED if sum(ends) > 1 else NEITHER
                forward, backward = (1.0, 1e-30) if known > 0 else (1e-30, 1.0)
            likelihoods = (forward, backward, neither)
            attempts[first] += 1
            attempts[second] += 1
            if lost_parent(ends, likelihoods) > LOST_SURE and not _named(first, second, sight, told):
                continue
        part[top(first)] = top(second)
        found.append(Neighbours(first, second, likelihoods, told))
    return found


def _named(first: int, second: int, sight: Sight, told: Direction) -> bool:
    """A card may speak where the weights do not: tau is not known to `OPEN`."""
    return told.error > OPEN and (sight.stated(first, second) or sight.stated(second, first))


def _without_copies(nodes: list[int], sight: Sight) -> np.ndarray:
    """The order of pairs, with that of degraded copies raised by their error: what descends from the original is not linked
    to a copy that lies nearer by chance."""
    shifted = sight.order.copy()
    for copy in nodes:
        original = sight.copies.get(copy)
        if original not in nodes:
            continue
        for other in nodes:
            if other not in (copy, original) and other not in sight.retrained:
                error = BEHIND * math.sqrt(
                    sight.distances[original, copy] * sight.distances[original, other] / sight.elements
                )
                shifted[copy, other] += error
                shifted[other, copy] += error
    return shifted


def _trees(nodes: list[int], links: list[Neighbours]) -> list[list[Neighbours]]:
    """Links by the tree that they belong to."""
    near: dict[int, list[Neighbours]] = {node: [] for node in nodes}
    for link in links:
        near[link.first].append(link)
        near[link.second].append(link)
    seen: set[int] = set()
    found = []
    for node in nodes:
        if node in seen or not near[node]:
            continue
        waiting, tree = [node], dict[tuple[int, int], Neighbours]()
        while waiting:
            here = waiting.pop()
            if here in seen:
                continue
            seen.add(here)
            for link in near[here]:
                tree[link.first, link.second] = link
                waiting += [link.first, link.second]
        found.append(list(tree.values()))
    return found
