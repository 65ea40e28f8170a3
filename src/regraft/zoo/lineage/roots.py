"""The root of a tree of links: a node, or one that is not in the zoo; and the direction of every link from it; see `tree`."""

from __future__ import annotations

import math

import numpy as np

from regraft.zoo.lineage.links import Link, Neighbours, Sight, joins
from regraft.zoo.lineage.thresholds import LOST_BETWEEN, LOST_JOINED, SURE


def directed(tree: list[Neighbours], sight: Sight, root: int | None) -> list[Link]:
    """The edges of a tree whose direction is sure; `root` is its ancestor, where it is known and in the tree."""
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
        score += math.log(LOST_JOINED if supported else LOST_BETWEEN)
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


def _decided(link: Neighbours, forward: float, backward: float, sight: Sight) -> list[Link]:
    if forward > SURE:
        return [Link(link.first, link.second, forward, link.direction, "")]
    if backward > SURE:
        return [Link(link.second, link.first, backward, link.direction, "")]
    for parent, child, share in ((link.first, link.second, forward), (link.second, link.first, backward)):
        if sight.stated(parent, child) and not sight.stated(child, parent):
            return [Link(parent, child, share, link.direction, "the card names it", True)]
    return []


def _away(root: int, tree: list[Neighbours]) -> list[tuple[int, int]]:
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


def _orders(root: int, tree: list[Neighbours], nodes: int) -> float:
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
