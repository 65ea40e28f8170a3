"""Links between neighbours of a family, and what distances alone say of them; see `tree`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from regraft.zoo.lineage.direction import Direction
from regraft.zoo.lineage.thresholds import (
    AT_END,
    FREEDOM,
    JOIN_ERROR,
    LOST_ALONE,
    LOST_BETWEEN,
    LOST_JOINED,
    SHORT,
    TURN,
    TURN_ERRORS,
)


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
class Neighbours:
    """Two nodes with a link between them, and how likely each way it may lead is."""

    first: int
    second: int
    likelihoods: tuple[float, float, float]  # first is the parent, second is, neither
    direction: Direction | None


def joins(distances: np.ndarray, first: int, second: int, others: list[int], elements: int) -> list[bool]:
    """Of every other node z whose joining point is known to `JOIN_ERROR` of the path: whether it joins at one of the two ends.

    At an end x means: within `AT_END` of the shorter of D_xy and D_xz, so that neither a long path nor a far z hides that z
    has left it elsewhere.
    """
    found = []
    length = distances[first, second]
    for other in others:
        if other in (first, second) or length <= 0:
            continue
        one, two = distances[first, other], distances[second, other]
        if math.sqrt(one / length / elements) > JOIN_ERROR:
            continue
        along = (length + one - two) / 2
        found.append(bool(abs(along) <= AT_END * min(length, one) or abs(length - along) <= AT_END * min(length, two)))
    return found


def lost_parent(ends: list[bool], likelihoods: tuple[float, float, float]) -> float:
    """The probability that two neighbours are children of a parent that is not in the zoo.

    The prior goes by whether another node joins at one of the two, or all that join do so between them, or there are no others.
    """
    prior = LOST_JOINED if any(ends) else LOST_BETWEEN if ends else LOST_ALONE
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
    return max(TURN, FREEDOM / math.sqrt(parameters)) + TURN_ERRORS / math.sqrt(elements)
