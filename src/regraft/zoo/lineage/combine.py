"""Merges: a checkpoint that is a combination of others in the zoo.

linear   x_m = sum_i w_i x_i with sum_i w_i = 1 (averages, interpolations, task arithmetic with its base among the x_i):
         least squares of the sampled changes, sources chosen one by one (orthogonal matching pursuit; Pati et al. 1993),
         accepted where what is left is no more than storing the checkpoints rounds away.
sparse   some elements are exactly the base's, the others what TIES (Yadav et al. 2023, arXiv 2306.01708) or DARE (Yu et al.
         2023, arXiv 2311.03099) make of the sources' changes d_i: lambda_i d_i of one of them, or the sum or the mean of
         several. The lambda_i are the most frequent ratios; accepted where most elements that changed are explained.

In a linear relation every member is a combination of the others. The merge is the one with the largest coefficient of the
relation (its own weights on the others are then the smallest); where several have nearly the same (a task arithmetic with
weights of one: m = a + b - base), the one that the direction statistic puts last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from regraft.zoo.lineage.direction import Direction
from regraft.zoo.lineage.thresholds import (
    AS_LARGE,
    BASE_LEAST,
    BASE_MOST,
    BASES,
    EXPLAINED,
    FOLLOWS,
    HUBS,
    MOST,
    NO_SOURCE,
    SOURCE_COSINE,
    SOURCE_SHARE,
    SPARSE_SOURCES,
    UNEXPLAINED,
)


@dataclass(frozen=True)
class Merge:
    """A merge: sources (the base of a sparse one first) and their coefficients; what is left over or explained."""

    child: int
    sources: tuple[int, ...]
    weights: tuple[float, ...]
    words: str


def linear_merges(gram: np.ndarray, noise: np.ndarray, direction: Callable[[int, int], Direction]) -> list[Merge]:
    """Linear relations among checkpoints, the simplest for each merge.

    With several merges in a zoo their relations can be combined into longer ones. They are taken from the shortest on, each
    only if it does not follow from those before; the length is that of writing it down: sources plus twice the different
    weights (that of one source, the base, follows from the others).

    Args:
        gram: <x_i - x_0, x_j - x_0> of the samples, [n, n]; row and column 0 are zero.
        noise: Expected squared length of each one's rounding error, [n].
        direction: tau of a pair.
    """
    everyone = list(range(len(gram)))
    lengths = np.diag(gram)[:, None] + np.diag(gram)[None, :] - 2 * gram
    hubs = sorted(everyone, key=lambda one: (float(lengths[one].sum()), one))[:HUBS]
    relations: dict[tuple[int, ...], np.ndarray] = {}
    for child in everyone:
        for hub in hubs:
            relation = _relation(gram, lengths, noise, child, hub, everyone)
            if relation is not None:
                relations.setdefault(tuple(int(one) for one in np.flatnonzero(relation)), relation)
    ranked = []
    for key, relation in relations.items():
        merged = _merged_one(key, relation, lengths, direction)
        weights = -relation / relation[merged]
        ranked.append((_length(weights, merged), key, merged, weights))
    found: list[Merge] = []
    taken: list[np.ndarray] = []
    for _, key, child, weights in sorted(ranked, key=lambda one: one[:3]):
        # What follows from shorter relations is no merge of its own.
        rows = np.stack([*taken, weights / np.linalg.norm(weights)])
        if np.linalg.svd(rows, compute_uv=False)[-1] < FOLLOWS or any(one.child == child for one in found):
            continue
        taken.append(rows[-1])
        sources = sorted((one for one in key if one != child), key=lambda one: (-abs(weights[one]), one))
        nearest = min(float(lengths[child, one]) for one in sources)
        left = max(0.0, float(weights @ gram @ weights)) / nearest
        words = f"least squares leave {left:.1e} of the squared change, which is rounding"
        found.append(Merge(child, tuple(sources), tuple(float(weights[one]) for one in sources), words))
    return found


def _length(weights: np.ndarray, merged: int) -> float:
    """How long a relation is when written down; see `linear_merges`."""
    size = sorted(abs(float(weight)) for at, weight in enumerate(weights) if weight and at != merged)
    different = 1 + sum(later > earlier * 1.01 + 1e-3 for earlier, later in pairwise(size))
    alone = any(
        1 + sum(later > earlier * 1.01 + 1e-3 for earlier, later in pairwise(rest)) < different
        for rest in (size[:at] + size[at + 1 :] for at in range(len(size)))
    )
    return len(size) + 2 * (different - alone)


def _relation(
    gram: np.ndarray, lengths: np.ndarray, noise: np.ndarray, child: int, hub: int, pool: list[int]
) -> np.ndarray | None:
    """Coefficients c [n] with sum 0 and sum_i c_i x_i = 0 up to rounding, c_child = 1; at least two others; else None."""
    if child == hub:
        return None
    inner = (lengths[hub][:, None] + lengths[hub][None, :] - lengths) / 2  # <x_i - x_hub, x_j - x_hub>
    power = inner[child, child]
    others = [one for one in pool if one not in (child, hub) and inner[one, one] > 0]
    if not others or power <= 4 * noise[child]:
        return None
    chosen: list[int] = []
    weights = np.zeros(0)
    norms = np.diag(inner)[others]
    for _ in range(min(MOST, len(others))):
        pull = inner[child, others] - (weights @ inner[np.ix_(chosen, others)] if chosen else 0.0)
        score = np.square(pull) / norms
        score[[others.index(one) for one in chosen]] = -1.0
        chosen.append(others[int(score.argmax())])
        block = inner[np.ix_(chosen, chosen)]
        weights, *_ = np.linalg.lstsq(block, inner[chosen, child], rcond=1e-12)
        left = power - 2 * weights @ inner[chosen, child] + weights @ block @ weights
        allowed = 4 * (noise[child] + float(np.square(weights) @ noise[chosen])) + 1e-9 * power
        if left <= allowed:
            relation = np.zeros(len(gram))
            relation[child] = 1.0
            relation[chosen] = -weights
            relation[np.abs(relation) < NO_SOURCE] = 0.0
            relation[hub] = -relation.sum()
            if abs(relation[hub]) < NO_SOURCE:
                relation[hub] = 0.0
            sources = [int(one) for one in np.flatnonzero(relation) if one != child]
            # Rounding may be as large as the changes: then nothing is explained.
            if len(sources) < 2 or left > UNEXPLAINED * min(float(lengths[child, one]) for one in sources):
                return None
            return relation
    return None


def _merged_one(
    key: tuple[int, ...], relation: np.ndarray, lengths: np.ndarray, direction: Callable[[int, int], Direction]
) -> int:
    """The one of a relation that was made of the others; see the head of this file."""
    size = np.abs(relation)
    largest = [one for one in key if size[one] >= AS_LARGE * size.max()]
    if len(largest) == 1:
        return largest[0]
    later = {
        one: sum(max(-1.0, min(1.0, direction(other, one).tau)) for other in key if other != one) for one in largest
    }
    return max(largest, key=lambda one: (later[one], one))


@dataclass(frozen=True)
class Sparse:
    """Samples of matrices for the search of sparse merges: float32 [n, d], and units in the last place of each, [n, d]."""

    values: np.ndarray
    unit: Callable[[int], np.ndarray]


def sparse_merges(sparse: Sparse, done: set[int]) -> list[Merge]:
    """Merges by TIES or DARE: elements that are exactly the base's, and the others explained by ratios."""
    values = sparse.values
    found = []
    thin = values[:, :: max(1, values.shape[1] // 8192)]
    for child in range(len(values)):
        if child in done:
            continue
        others = [one for one in range(len(values)) if one != child and one not in done]
        equal = [(float((thin[child] == thin[one]).mean()), one) for one in others]
        # Where one source alone survived, the merge equals that source: the base need not be the first.
        for share, base in sorted(equal, key=lambda pair: (-pair[0], pair[1]))[:BASES]:
            if not BASE_LEAST <= share <= BASE_MOST:
                continue
            merge = _explained(sparse, child, base, [one for one in others if one != base])
            if merge is not None:
                found.append(merge)
                break
    return found


def _explained(sparse: Sparse, child: int, base: int, others: list[int]) -> Merge | None:
    origin = sparse.values[base].astype(np.float64)
    delta = sparse.values[child].astype(np.float64) - origin
    moving = delta != 0
    if moving.sum() < 256:
        return None
    error = 3 * sparse.unit(child)[moving]
    target = delta[moving]
    sources: list[tuple[float, int, float, np.ndarray]] = []
    for other in others:
        change = (sparse.values[other].astype(np.float64) - origin)[moving]
        cosine = float(change @ target) / max(1e-300, float(np.linalg.norm(change) * np.linalg.norm(target)))
        if cosine < SOURCE_COSINE:
            continue
        ratio, share = _mode(target, change, error)
        if share >= SOURCE_SHARE:
            sources.append((share, other, ratio, change))
    sources.sort(key=lambda one: (-one[0], one[1]))
    sources = sources[:SPARSE_SOURCES]
    if len(sources) < 2:
        return None
    right = np.zeros(len(target), bool)
    for count in range(1, len(sources) + 1):
        for group in combinations(sources, count):
            total = np.sum([ratio * change for _, _, ratio, change in group], axis=0)
            spread = error * (1 + sum(abs(ratio) for _, _, ratio, _ in group))
            right |= (np.abs(target - total) <= spread) | (np.abs(target - total / count) <= spread)
    explained = float(right.mean())
    if explained < EXPLAINED:
        return None
    words = (
        f"{1 - moving.mean():.1%} of the sampled elements are the base's, and {explained:.1%} of the others are "
        "changes of one source, or the sum or mean of several, times their coefficients (a sparse merge)"
    )
    weights = (1.0, *(ratio for _, _, ratio, _ in sources))
    return Merge(child, (base, *(other for _, other, _, _ in sources)), weights, words)


def _mode(target: np.ndarray, change: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    """The most frequent ratio of two changes where it is well known, and the share of those elements that have it."""
    size = np.abs(change)
    clear = size > max(float(np.quantile(size, 0.5)), 0.0)
    clear &= error < 0.02 * size
    if clear.sum() < 128:
        return 0.0, 0.0
    ratio = np.sort(target[clear] / change[clear])
    width = 2 * float(np.median(error[clear] / size[clear])) + 1e-6
    ends = np.searchsorted(ratio, ratio + 2 * width, side="right")
    counts = ends - np.arange(len(ratio))
    at = int(counts.argmax())
    middle = float(np.median(ratio[at : ends[at]]))
    return middle, float(counts[at]) / len(ratio)
