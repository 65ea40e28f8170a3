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
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from regraft.zoo.lineage.direction import Direction

SURE = 0.8
AT_END = 0.25
TURN = 0.03  # second trainings of MiniLM: 0.015 and less; separate ones that look like a chain: 0.05 and more
FREEDOM = 12.0
SHORT = 0.25  # a first step of less than this of the way tells nothing
ATTEMPTS = 8  # links that are tried for a checkpoint
CERTAIN = (1.0, 1e-30, 1e-30)


@dataclass(frozen=True)
class Link:
    """A directed edge of the tree, and how it was found."""

    parent: int
    child: int
    posterior: float
    direction: Direction | None
    why: str
    stated: bool = False


@dataclass(frozen=True)
class Sight:
    """What the tree is built from.

    Args:
        distances: D, squared, [n, n].
        order: What pairs are sorted by: D, but of what pruning has left where one was pruned and trained.
        elements: In the sample: the error of a cosine is 1 / sqrt(elements).
        copies: The original of each degraded copy (pruned, rounded).
        retrained: What was pruned and then trained: its zeros tell what it was made from, `order` takes them in.
        direction: tau of a pair; reads weights.
        known: 1 or -1 where structure says that the first or the second of a pair is the older one, else 0.
        stated: Whether the second's card names the first.
    """

    distances: np.ndarray
    order: np.ndarray
    elements: int
    copies: Mapping[int, int]
    retrained: frozenset[int]
    direction: Callable[[int, int], Direction]
    known: Callable[[int, int], int]
    stated: Callable[[int, int], bool]


@dataclass(frozen=True)
class _Neighbours:
    first: int
    second: int
    likelihoods: tuple[float, float, float]  # first is the parent, second is, neither
    direction: Direction | None


def forest(nodes: list[int], sight: Sight, root: int | None = None) -> list[Link]:
    """The directed edges among nodes; `root`, where it is known, is the ancestor of all that are linked to it."""
    found: list[Link] = []
    for tree in _trees(nodes, _linked(nodes, sight)):
        found += _directed(tree, sight, root)
    return found


def joins(distances: np.ndarray, first: int, second: int, others: list[int], elements: int) -> list[bool]:
    """Of every other node z whose joining point is known to 0.1 of the path: whether it joins at one of the two ends.

    At an end x means: within `AT_END` of the shorter of D_xy and D_xz, so that neither a long path nor a far z hides that z
    has left it elsewhere.
    """
    found = []
    length = distances[first, second]
    for other in others:
        if other in (first, second) or length <= 0:
            continue
        one, two = distances[first, other], distances[second, other]
        if math.sqrt(one / length / elements) > 0.1:
            continue
        along = (length + one - two) / 2
        found.append(bool(abs(along) <= AT_END * min(length, one) or abs(length - along) <= AT_END * min(length, two)))
    return found


def lost_parent(ends: list[bool], likelihoods: tuple[float, float, float]) -> float:
    """The probability that two neighbours are children of a parent that is not in the zoo.

    Prior: 0.02 where another node joins at one of the two, 1/2 where all that join do so between them, 1/3 without others.
    """
    prior = 0.02 if any(ends) else 0.5 if ends else 1 / 3
    forward, backward, neither = likelihoods
    related = (1 - prior) * max(forward, backward)
    return prior * neither / (prior * neither + related)


def is_chain(distances: np.ndarray, first: int, middle: int, last: int, turn: float) -> bool:
    """Whether first -> middle -> last fits better than two children of the first: the second step is at a right angle to the
    first one (cosine within `turn`, see `turn_of`), and the first is long enough for that to mean something."""
    one, two, both = distances[first, middle], distances[middle, last], distances[first, last]
    if one <= 0 or two <= 0:
        return True
    cosine = (both - one - two) / (2 * math.sqrt(one * two))
    return bool(abs(cosine) <= turn and one >= SHORT**2 * (one + two))


def turn_of(parameters: int, elements: int) -> float:
    """The cosine up to which two steps count as at a right angle: trainings of small models have fewer directions to go, and
    the cosine is of a sample."""
    return max(TURN, FREEDOM / math.sqrt(parameters)) + 3 / math.sqrt(elements)


def _linked(nodes: list[int], sight: Sight) -> list[_Neighbours]:
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
                neither = 3.0 if sum(ends) > 1 else 60.0
                forward, backward = (1.0, 1e-30) if known > 0 else (1e-30, 1.0)
            likelihoods = (forward, backward, neither)
            attempts[first] += 1
            attempts[second] += 1
            if lost_parent(ends, likelihoods) > 0.5 and not _named(first, second, sight, told):
                continue
        part[top(first)] = top(second)
        found.append(_Neighbours(first, second, likelihoods, told))
    return found


def _named(first: int, second: int, sight: Sight, told: Direction) -> bool:
    """A card may speak where the weights do not: tau is not known to 0.25."""
    return told.error > 0.25 and (sight.stated(first, second) or sight.stated(second, first))


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
                error = 6 * math.sqrt(
                    sight.distances[original, copy] * sight.distances[original, other] / sight.elements
                )
                shifted[copy, other] += error
                shifted[other, copy] += error
    return shifted


def _trees(nodes: list[int], links: list[_Neighbours]) -> list[list[_Neighbours]]:
    """Links by the tree that they belong to."""
    near: dict[int, list[_Neighbours]] = {node: [] for node in nodes}
    for link in links:
        near[link.first].append(link)
        near[link.second].append(link)
    seen: set[int] = set()
    found = []
    for node in nodes:
        if node in seen or not near[node]:
            continue
        waiting, tree = [node], dict[tuple[int, int], _Neighbours]()
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


def _directed(tree: list[_Neighbours], sight: Sight, root: int | None) -> list[Link]:
    nodes = sorted({node for link in tree for node in (link.first, link.second)})
    if root is not None and root in nodes:
        away = _away(root, tree)
        return [Link(*ends, 1.0, link.direction, "") for link, ends in zip(tree, away, strict=True)]
    scores, ways = [], []
    orders = {node: _orders(node, tree, len(nodes)) for node in nodes}
    for node in nodes:
        away = _away(node, tree)
        score = orders[node]
        for link, (parent, _) in zip(tree, away, strict=True):
            score += math.log(link.likelihoods[0 if parent == link.first else 1] + 1e-300)
        scores.append(score)
        ways.append(away)
    hidden = []
    for link in tree:
        supported = any(joins(sight.distances, link.first, link.second, nodes, sight.elements))
        score = float(np.logaddexp(orders[link.first], orders[link.second])) - math.log(2)
        score += math.log(0.02 if supported else 0.5)
        away = ways[nodes.index(link.first)]
        for other, (parent, _) in zip(tree, away, strict=True):
            way = 2 if other is link else 0 if parent == other.first else 1
            score += math.log(other.likelihoods[way] + 1e-300)
        hidden.append((away, score))
    everything = np.array([*scores, *(score for _, score in hidden)])
    posterior = np.exp(everything - everything.max())
    posterior /= posterior.sum()
    found = []
    for number, link in enumerate(tree):
        forward = sum(float(p) for p, away in zip(posterior, ways, strict=False) if away[number][0] == link.first)
        backward = float(posterior[: len(nodes)].sum()) - forward
        for inside, (away, _) in enumerate(hidden):
            share = float(posterior[len(nodes) + inside])
            if inside != number:  # from a lost node on another link, this one leads away from that link's ends
                forward += share * (away[number][0] == link.first)
                backward += share * (away[number][0] != link.first)
        found += _decided(link, forward, backward, sight)
    return found


def _decided(link: _Neighbours, forward: float, backward: float, sight: Sight) -> list[Link]:
    if forward > SURE:
        return [Link(link.first, link.second, forward, link.direction, "")]
    if backward > SURE:
        return [Link(link.second, link.first, backward, link.direction, "")]
    for parent, child, share in ((link.first, link.second, forward), (link.second, link.first, backward)):
        if sight.stated(parent, child) and not sight.stated(child, parent):
            return [Link(parent, child, share, link.direction, "the card names it", True)]
    return []


def _away(root: int, tree: list[_Neighbours]) -> list[tuple[int, int]]:
    """(parent, child) of every link when the tree hangs from `root`."""
    near: dict[int, list[int]] = {}
    for number, link in enumerate(tree):
        near.setdefault(link.first, []).append(number)
        near.setdefault(link.second, []).append(number)
    ends: dict[int, tuple[int, int]] = {}
    waiting = [root]
    while waiting:
        node = waiting.pop()
        for number in near[node]:
            if number not in ends:
                other = tree[number].second if tree[number].first == node else tree[number].first
                ends[number] = (node, other)
                waiting.append(other)
    return [ends[number] for number in range(len(tree))]


def _orders(root: int, tree: list[_Neighbours], nodes: int) -> float:
    """The logarithm of the number of orders in which the tree can have grown from `root`: n! / product of subtree sizes."""
    children: dict[int, list[int]] = {}
    for parent, child in _away(root, tree):
        children.setdefault(parent, []).append(child)
    order, sizes = [root], dict[int, int]()
    for node in order:
        order += children.get(node, [])
    for node in reversed(order):
        sizes[node] = 1 + sum(sizes[child] for child in children.get(node, []))
    return math.lgamma(nodes + 1) - sum(math.log(size) for size in sizes.values())
