"""Whether two checkpoints descend from one: a test of their weights, from a small sample.

Merging works on checkpoints whose units (dimensions of the residual stream) mean the same. Those of a fine-tune and of its
base do: a unit's weights hardly turn in training (Zeng et al. 2023). Those of two independent trainings do not: both the
random initialisation and the training treat all units alike, so any order of the units of one model was as likely as the
one that it has (Zhu et al. 2025). That makes a permutation test, whose moments are exact and whose tail is taken to be normal:

    a_i, b_i    the sampled weights of unit i in the two models: float64 [features], centred by feature, length 1
    c_ij        <a_i, b_j>, [units, units], made doubly centred
    T           mean of c_ii: the correlation of matching elements; near 1 for a fine-tune
    z           T / sd(T); over all orders of the units of one model, mean(T) = 0 and
                var(T) = sum_ij c_ij^2 / (units^2 (units - 1))            (Hoeffding 1951)
    p           the normal tail above z, at least 1 / units! (there are no more orders than that)

For independent weights sd(T) is 1 / sqrt(sampled elements). Since lengths are 1, no unit with huge weights decides. Only
matrices count: norm weights are near one in every model, and tables of positions may be a formula.

What it cannot see: whether the ancestor is the *base* (the test is symmetric: two fine-tunes of one checkpoint are related,
and so are a base and its own base); layers that were not sampled; a relation that was hidden by permuting or rotating units
(which computes the same, but cannot be merged either); a relation that somebody forged.

Sources: Zhu, Ahmed, Kuditipudi, Liang (2025), Independence Tests for Language Models, arXiv 2502.12292, whose test permutes
hidden units and simulates the null distribution (here its first two moments are exact, and one permutation serves all
layers); Zeng et al. (2023), HuRef, arXiv 2312.04828, for the direction that stays; Hoeffding (1951), A combinatorial central
limit theorem, Annals of Mathematical Statistics 22.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.checkpoint.blocks import block_of, in_blocks
from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.reading import read_at
from regraft.checkpoint.sampled import decoded
from regraft.checkpoint.weights import FLOATS
from regraft.randomness import integers

MATRICES = 8
UNITS = 256
FEATURES = 64  # of each matrix
# The chance of calling independent models related. Related ones have p-values far below it (1e-100 and less).
LEVEL = 1e-6
# A correlation below this is far for a fine-tune: long training, or another branch of the family.
FAR = 0.5

_POSITIONS = re.compile(r"position|pos_emb|wpe|rotary")


@dataclass(frozen=True)
class Ancestry:
    """What the test found.

    Args:
        related: Whether independence is rejected; None when there is too little to test (no matrices, under 10 units).
        correlation: T, of matching elements.
        p_value: The chance of such a T for independent models.
        elements: How many were sampled in each checkpoint.
        tensors: The sampled matrices: (correlation, p-value) of each by itself.
    """

    related: bool | None
    correlation: float
    p_value: float
    elements: int
    tensors: Mapping[str, tuple[float, float]]

    @property
    def replaced(self) -> tuple[str, ...]:
        """Sampled matrices that are unrelated by themselves although the models are related."""
        return tuple(name for name, (_, p_value) in self.tensors.items() if p_value > LEVEL) if self.related else ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, of six digits: the last bits are the linear algebra library's own."""
        return {
            "related": self.related, "correlation": _short(self.correlation), "p_value": _short(self.p_value),
            "elements": self.elements,
            "tensors": {name: [_short(one), _short(p_value)] for name, (one, p_value) in self.tensors.items()},
        }  # fmt: skip


def ancestry(first: Mapping[str, TensorInfo], second: Mapping[str, TensorInfo], seed: int = 0) -> Ancestry:
    """Test whether two checkpoints share an ancestor; see the head of this file.

    Args:
        first: Tensors by name.
        second: Those of the other one; only matrices of the same name and shape are compared.
        seed: Of the sample.
    """
    names, width = _matrices(first, second)
    parts: list[tuple[str, np.ndarray, np.ndarray]] = []
    if math.lgamma(min(width, UNITS) + 1) >= -math.log(LEVEL):
        unit = int(integers(max(1, width - UNITS + 1), 1, seed, "ancestry units")[0])
        parts = [(n, _sample(n, first[n], width, unit, seed), _sample(n, second[n], width, unit, seed)) for n in names]
    # A constant matrix says nothing; what is not finite is reported elsewhere.
    parts = [part for part in parts if all(np.isfinite(sample).all() and sample.any() for sample in part[1:])]
    if not parts:
        return Ancestry(None, 0.0, 1.0, 0, {})
    tensors = {name: matched(mine, theirs) for name, mine, theirs in parts}
    mine = np.concatenate([part[1] for part in parts], axis=1)
    theirs = np.concatenate([part[2] for part in parts], axis=1)
    correlation, p_value = matched(mine, theirs)
    return Ancestry(p_value <= LEVEL, correlation, p_value, mine.size, tensors)


def _matrices(first: Mapping[str, TensorInfo], second: Mapping[str, TensorInfo]) -> tuple[list[str], int]:
    """The names of up to `MATRICES` matrices over the depth of the model, and the width of its residual stream.

    The width is the size that most axes of matrices have. Matrices with one axis of that size are taken first (which of a
    square's axes is the residual stream is the architecture's own affair), then squares, then those outside the blocks.
    """
    shapes = {
        name: info.shape
        for name, info in first.items()
        if info.dtype in FLOATS and len(info.shape) == 2 and name in second and second[name].shape == info.shape
        and second[name].dtype in FLOATS and not _POSITIONS.search(name)
    }  # fmt: skip
    sizes = Counter(size for shape in shapes.values() for size in shape)
    if not sizes:
        return [], 0
    width = max(sizes, key=lambda size: (sizes[size], size))
    shared = [name for name, shape in shapes.items() if width in shape]
    inside = [name for name in shared if in_blocks(name)]
    oblong = [name for name in inside if shapes[name] != (width, width)]
    found = sorted(oblong or inside or shared, key=lambda name: (block_of(name) or 0, name))
    count = min(MATRICES, len(found))
    return [found[place * len(found) // count] for place in range(count)], width


def _sample(name: str, info: TensorInfo, width: int, unit: int, seed: int) -> np.ndarray:
    """Up to `UNITS` units from `unit` on, as float64 [units, features]: centred by feature, of mean square 1 (or all 0)."""
    rows, columns = info.shape
    units = min(width, UNITS)
    chosen_units = unit + np.arange(units)
    if columns == width:  # every row is a feature, with the units side by side
        chosen = np.unique(integers(rows, min(rows, FEATURES), seed, "ancestry rows", name))
        part = read_at(info, (chosen[:, None] * columns + chosen_units).reshape(-1)).reshape(-1, units).T
    else:
        count = min(columns, FEATURES)
        at = int(integers(columns - count + 1, 1, seed, "ancestry columns", name)[0])
        places = chosen_units[:, None] * columns + at + np.arange(count)
        part = read_at(info, places.reshape(-1)).reshape(units, count)
    found = decoded(np.ascontiguousarray(part), info.dtype)
    constant = found.max(axis=0) == found.min(axis=0)  # before the rounding of the mean makes something of nothing
    found -= found.mean(axis=0)
    found[:, constant] = 0.0
    scale = math.sqrt(float(np.square(found).mean()))
    return np.asarray(found / scale) if scale > 0 else found


def matched(mine: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """(T, p-value) of two samples, float64 [units, features], against all orders of the units of one; see the head."""
    found = _directions(mine) @ _directions(theirs).T
    found += found.mean() - found.mean(axis=0) - found.mean(axis=1, keepdims=True)
    units = len(found)
    correlation = float(np.trace(found)) / units
    deviation = math.sqrt(float(np.square(found).sum()) / (units - 1)) / units
    if deviation < 1e-12:
        return correlation, 1.0
    tail = 0.5 * math.erfc(correlation / deviation / math.sqrt(2))
    return correlation, max(tail, math.exp(-math.lgamma(units + 1)), 1e-300)


def _directions(sample: np.ndarray) -> np.ndarray:
    """Every unit's weights at length 1; units without weights stay zero."""
    lengths = np.sqrt(np.square(sample).sum(axis=1, keepdims=True))
    return np.asarray(sample / np.where(lengths > 0, lengths, 1.0))


def _short(value: float) -> float:
    return float(f"{value:.6g}")
