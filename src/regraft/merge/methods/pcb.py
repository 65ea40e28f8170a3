"""PCB-Merging: score every parameter of every task by its size and its agreement, drop the low scores, weigh the rest."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2, tanh
from threading import local

import numpy as np

from regraft.merge.kernels import STRIP, kernel
from regraft.merge.register import Range, Traits, merge_method
from regraft.merge.select import largest
from regraft.merge.stack import GRAIN, Stack
from regraft.methods import Source

# The share of the smallest and of the largest magnitudes that are pulled in, in the authors' code.
CLIPPED = 0.0001


@dataclass(frozen=True)
class Limits:
    """What must be known of a task's delta as a whole; float32 [n] each.

    Args:
        low: Magnitudes below are raised to it.
        high: Magnitudes above are lowered to it.
        cut: Scores below are dropped.
        peak: The highest score.
    """

    low: np.ndarray
    high: np.ndarray
    cut: np.ndarray
    peak: np.ndarray


def prepare(stacks: list[Stack], *, density: float = 0.1, scope: str = "global", **_options: object) -> Limits | None:
    """The limits over all tensors of a task taken as one vector; None where every tensor has its own."""
    return limits_of(list(stacks), density) if scope == "global" and stacks else None


@merge_method(
    "pcb",
    source=Source("Du et al.", 2024, "2410.02396", "Parameter competition balancing for model merging"),
    claim="weighing parameters by their size in the task and agreement between tasks beats trimming and signs alone",
    traits=Traits(
        base="required",
        prepare=prepare,
        whole={"scope": "global"},
        selects=True,
        options={"density": Range(0.0, 1.0, low_open=True), "scale": Range(-100.0, 100.0)},
        choices={"scope": ("global", "tensor")},
    ),
    invariances=("permutation", "base"),
)
def pcb(
    stack: Stack,
    *,
    density: float = 0.1,
    scale: float = 1.0,
    scope: str = "global",
    prepared: Limits | None = None,
) -> np.ndarray | None:
    """base + scale * sum_i w_i b_i t_i / sum_i b_i, with b_i the balance of each parameter between the n tasks.

        score_i = exp(n * norm(|t_i|)^2) * tanh(d_i * sum_j d_j)          norm: to [0, 1] over the task
        b_i     = norm(max(score_i, the lowest of the `density` highest scores))

    d_i is the delta, t_i the same with the 0.01 % smallest and largest magnitudes pulled in. Ranks are exact, over all
    tensors of a task taken as one vector ("global", the authors' way) or over each "tensor". This is the authors' code; the
    paper writes softmax for exp and tanh. Where a norm would divide by 0, it is 0. They search for w_i, around 1.2.

    A weight of 0 does not take an input out: its scores still count. Not an identity: an input alone keeps its highest
    scores.
    """
    limits = prepared or limits_of([stack], density)
    return stack.map(
        balance,
        stack.weights,
        limits.low,
        limits.high,
        limits.cut,
        limits.peak,
        float(scale),
        _halvings(stack.n),
    )


def limits_of(stacks: list[Stack], density: float) -> Limits:
    """The limits over tensors taken as one vector."""
    n, size = stacks[0].n, sum(stack.size for stack in stacks)
    if size == 0:
        return Limits(*np.zeros((4, n), np.float32))
    low = _from_below(stacks, np.full(n, int(size * CLIPPED)))
    high = _from_below(stacks, np.full(n, int(size * (1 - CLIPPED) - 1)))
    cut, peak = _score_limits(stacks, low, high, min(size - 1, int(size * (1 - density))))
    return Limits(low, high, cut, peak)


def _from_below(stacks: list[Stack], index: np.ndarray) -> np.ndarray:
    """The magnitude that comes at an index in ascending order (from 0 on), of each input; float32 [n]."""
    size = sum(stack.size for stack in stacks)
    return largest(stacks, size - index)[0].bits.view(np.float32)


def _score_limits(stacks: list[Stack], low: np.ndarray, high: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
    """The score at an index in ascending order, and the highest, of each input; float32 [n].

    Scores have a sign, and `largest` orders magnitudes: the positive ones and the negative ones are asked apart.
    """
    n, size = stacks[0].n, sum(stack.size for stack in stacks)
    recent = local()  # one for all: a thread keeps the last block, not the last of each tensor
    scored = [_Scores(stack, low, high, recent) for stack in stacks]
    counts, peak = np.zeros((2, n), np.int64), np.full(n, -np.inf)
    for one in scored:
        highest = np.full((max(1, -(-one.stack.size // GRAIN)), n), -np.inf)
        counts += one.signed(0.0).count(_survey, 2 * n, highest, GRAIN).reshape(2, n)
        peak = np.maximum(peak, highest.max(axis=0))
    negative, positive = counts
    # Ascending: the negative ones from the largest magnitude on, the zeros, the positive ones.
    cut = np.zeros(n, np.float32)
    if (index >= size - positive).any():
        above = largest([one.signed(1.0) for one in scored], np.clip(size - index, 1, np.maximum(positive, 1)))[0]
        cut = np.where(index >= size - positive, above.bits.view(np.float32), cut)
    if (index < negative).any():
        below = largest([one.signed(-1.0) for one in scored], np.clip(index + 1, 1, np.maximum(negative, 1)))[0]
        cut = np.where(index < negative, -below.bits.view(np.float32), cut)
    return cut, peak.astype(np.float32)


@dataclass(frozen=True)
class _Scores:
    """The scores of a stack, as if they were tensors that can be read; a thread computes those of all inputs at once."""

    stack: Stack
    low: np.ndarray
    high: np.ndarray
    recent: local

    def signed(self, sign: float) -> Stack:
        """A stack of all the scores (0), of the positive ones (1) or of the negative ones' magnitudes (-1); else zeros."""
        sources = [_Score(self, number, sign) for number in range(self.stack.n)]
        stack = self.stack
        return Stack(stack.name, stack.shape, sources, None, stack.weights, pool=stack.pool, workers=stack.workers)

    def block(self, start: int, size: int) -> tuple[np.ndarray, bool]:
        """The scores, float32 [n, size], and whether all that they are made of is finite."""
        key = (id(self.stack), start, size)
        if getattr(self.recent, "key", None) != key:
            block = np.zeros((self.stack.n + 1, size), np.float32)
            sources = [*self.stack.sources, *([self.stack.base_source] if self.stack.base_source else [])]
            finite = [source.read(values, start) for source, values in zip(sources, block, strict=False)]
            scores = np.empty((self.stack.n, size), np.float32)
            scores_of(scores, block[-1], block[:-1], self.low, self.high, _halvings(self.stack.n))
            self.recent.key, self.recent.found = key, (scores, all(finite))
        found: tuple[np.ndarray, bool] = self.recent.found
        return found


@dataclass(frozen=True)
class _Score:
    """The scores of one input."""

    scores: _Scores
    number: int
    sign: float

    def read(self, out: np.ndarray, start: int) -> bool:
        """See `regraft.merge.stack.Source`."""
        block, finite = self.scores.block(start, out.size)
        np.multiply(block[self.number], np.float32(self.sign or 1.0), out=out)
        if self.sign:
            np.maximum(out, np.float32(0.0), out=out)
        return finite

    def where(self) -> str:
        """See `regraft.merge.stack.Source`."""
        return f"An input's {self.scores.stack.name!r}"


@kernel
def _survey(
    counts: np.ndarray, base: np.ndarray, inputs: np.ndarray, start: int, highest: np.ndarray, grain: int
) -> None:
    """Count negative and positive scores, and keep the highest of a grain in the grain's own row."""
    count = inputs.shape[0]
    mine = highest[start // grain]
    for number in range(count):
        row = inputs[number]
        top, negative, positive = mine[number], 0, 0
        for at in range(row.size):
            top = max(top, np.float64(row[at]))
            negative += row[at] < np.float32(0)
            positive += row[at] > np.float32(0)
        mine[number] = top
        counts[number] += negative
        counts[count + number] += positive


def _halvings(count: int) -> int:
    """How often `count` must be halved to be at most a half: then the exponential's series is short."""
    return max(0, ceil(log2(2 * count)))


@kernel
def scores_of(
    out: np.ndarray, base: np.ndarray, inputs: np.ndarray, low: np.ndarray, high: np.ndarray, halvings: int
) -> None:
    """The scores of every input, float32 [n, g]: in float64, rounded once. Loops without branches, for vector code."""
    count = inputs.shape[0]
    mass, agreement, growth = np.empty(STRIP), np.empty(STRIP), np.empty(STRIP)
    shrink = count / 2.0**halvings
    for first in range(0, base.size, STRIP):
        size = min(STRIP, base.size - first)
        origin = base[first : first + size]
        mass[:size] = 0.0
        for number in range(count):
            row = inputs[number, first : first + size]
            for at in range(size):
                mass[at] += np.float64(row[at]) - np.float64(origin[at])
        for number in range(count):
            row, target = inputs[number, first : first + size], out[number, first : first + size]
            least, span = np.float64(low[number]), np.float64(high[number]) - np.float64(low[number])
            factor = 1.0 / span if span > 0.0 else 0.0
            large = 0
            for at in range(size):
                delta = np.float64(row[at]) - np.float64(origin[at])
                own = min(max(abs(delta) - least, 0.0), span) * factor
                growth[at] = own * own * shrink
                agreement[at] = delta * mass[at]
                large += abs(agreement[at]) >= 1e-3
            _exp(growth, size, halvings)
            if large:
                for at in range(size):
                    agreement[at] = tanh(agreement[at])
            else:  # products of deltas are small; the series is tanh to the last bit there
                for at in range(size):
                    square = agreement[at] * agreement[at]
                    agreement[at] *= 1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0))
            for at in range(size):
                target[at] = np.float32(growth[at] * agreement[at])


@kernel
def _exp(values: np.ndarray, size: int, squarings: int) -> None:
    """exp(2^squarings * value) for values in [0, 1/2], in place: the series up to the 14th power, then squared."""
    for at in range(size):
        value = values[at]
        total = 1.0
        for power in range(14, 0, -1):
            total = 1.0 + total * value * (1.0 / power)
        values[at] = total
    for _ in range(squarings):
        for at in range(size):
            values[at] *= values[at]


@kernel
def balance(
    out: np.ndarray,
    base: np.ndarray,
    inputs: np.ndarray,
    start: int,
    weights: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    cut: np.ndarray,
    peak: np.ndarray,
    scale: float,
    halvings: int,
) -> None:
    """Weigh the tasks by their balanced scores; in float64, rounded once."""
    count = inputs.shape[0]
    scores, total, divisor = np.empty((count, base.size), np.float32), np.empty(STRIP), np.empty(STRIP)
    scores_of(scores, base, inputs, low, high, halvings)
    for first in range(0, out.size, STRIP):
        size = min(STRIP, out.size - first)
        origin = base[first : first + size]
        total[:size] = 0.0
        divisor[:size] = 0.0
        for number in range(count):
            row, score, weight = (
                inputs[number, first : first + size],
                scores[number, first : first + size],
                weights[number],
            )
            least, most, bottom = np.float64(low[number]), np.float64(high[number]), np.float64(cut[number])
            span = np.float64(peak[number]) - bottom
            factor = 1.0 / span if span > 0.0 else 0.0
            for at in range(size):
                delta = np.float64(row[at]) - np.float64(origin[at])
                magnitude = min(max(abs(delta), least), most)
                change = magnitude if delta > 0.0 else (-magnitude if delta < 0.0 else 0.0)
                share = max(np.float64(score[at]) - bottom, 0.0) * factor
                total[at] += weight * share * change
                divisor[at] += share
        target = out[first : first + size]
        for at in range(size):
            target[at] = np.float32(np.float64(origin[at]) + scale * total[at] / max(divisor[at], 1e-12))
