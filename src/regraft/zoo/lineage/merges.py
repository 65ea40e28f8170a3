"""Which checkpoints of a family are merges of others, and which were trained from a merge."""

from __future__ import annotations

import math

import numpy as np

from regraft.zoo.lineage.combine import Merge, Sparse, linear_merges, sparse_merges
from regraft.zoo.lineage.kinds import rounding
from regraft.zoo.lineage.pairs import Pairs
from regraft.zoo.lineage.thresholds import AT_END, SHORT


def find_merges(pairs: Pairs, nodes: list[int], distances: np.ndarray, slots: list[int]) -> list[Merge]:
    """Merges among the nodes: linear ones, and those that take each element from one source."""
    if len(nodes) < 3:
        return []
    members = [pairs.family.members[node] for node in nodes]
    inner = distances[np.ix_(nodes, nodes)]
    gram = (inner[0][None, :] + inner[0][:, None] - inner) / 2
    noise = np.array([pairs.noise(member, slots) for member in members])
    linear = linear_merges(gram, noise, lambda a, b: pairs.direction(nodes[a], nodes[b], slots))
    done = {merge.child for merge in linear}
    samples = np.stack([pairs.matrices(node, slots) for node in nodes])
    changed = ~(samples == samples[0]).all(axis=0)

    def unit(number: int) -> np.ndarray:
        dtype = next(iter(members[number].model.tensors.values())).dtype
        return rounding(samples[number][changed].astype(np.float64), dtype)

    sparse = sparse_merges(Sparse(samples[:, changed], unit), done) if changed.sum() >= 1024 else []
    return [
        Merge(nodes[one.child], tuple(nodes[source] for source in one.sources), one.weights, one.words)
        for one in [*linear, *sparse]
    ]


def with_descendants(
    pairs: Pairs, turn: float, nodes: list[int], merges: list[Merge], distances: np.ndarray, slots: list[int]
) -> list[tuple[int | None, list[int]]]:
    """Nodes by the merge that they descend from (the merge first in its group), and the rest."""
    left = [node for node in nodes if node not in {merge.child for merge in merges}]
    found: list[tuple[int | None, list[int]]] = []
    for merge in merges:
        own = _descendants(pairs, turn, merge, left, distances, slots)
        left = [node for node in left if node not in own]
        found.append((merge.child, [merge.child, *own]))
    return [(None, left), *found]


def _descendants(
    pairs: Pairs, turn: float, merge: Merge, left: list[int], distances: np.ndarray, slots: list[int]
) -> list[int]:
    """What was trained from a merge m: y leaves it at a right angle to the directions of all its sources, and of all else
    that came before; it is nearer to m than to any source, and came later."""
    child = merge.child

    def cosine(node: int, other: int) -> float:
        near, far = distances[child, node], distances[child, other]
        return float((near + far - distances[node, other]) / (2 * math.sqrt(near * far)))

    def leaves(node: int) -> bool:
        near = distances[child, node]
        return (
            near > 0
            and near < min(distances[node, one] for one in merge.sources)
            and all(abs(cosine(node, one)) * math.sqrt(near / distances[child, one]) <= AT_END for one in merge.sources)
            and pairs.direction(child, node, slots).tau > 0
        )

    later = [node for node in left if node not in merge.sources and leaves(node)]
    before = [
        node for node in left
        if node not in later and node not in merge.sources and pairs.degraded.get(node) not in merge.sources
        and distances[child, node] > 0
    ]  # fmt: skip
    found = []
    for node in later:
        forward, backward, neither = pairs.direction(child, node, slots).likelihoods
        if before:
            nearest = min(before, key=lambda one: (float(distances[child, one]), one))
            turned = any(abs(cosine(node, one)) > turn for one in before)
            # A way that is long against the merge's own change tells nothing.
            turned |= distances[child, nearest] < SHORT**2 * (distances[child, nearest] + distances[child, node])
            if turned and not pairs.shares_more(nearest, child, node):
                continue
        elif forward <= max(backward, neither):
            continue  # nothing but the sources: a child of their base is at a right angle, too
        found.append(node)
    # A copy goes where its original goes.
    return [
        node for node in left
        if (node in found and pairs.degraded.get(node, node) in [*found, child]) or pairs.degraded.get(node) in [*found, child]
    ]  # fmt: skip
