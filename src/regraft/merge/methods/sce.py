"""SCE: select what differs between the inputs, calculate a coefficient for each, erase the minority's signs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from regraft.merge.kernels import STRIP, kernel
from regraft.merge.register import Range, Traits, merge_method
from regraft.merge.select import Kept, keep_share, largest
from regraft.merge.stack import Stack
from regraft.methods import Source


@merge_method(
    "sce",
    source=Source("Wan et al.", 2024, "2408.07990", "FuseChat: knowledge fusion of chat models"),
    claim="coefficients for each tensor, from where the inputs differ most, merge chat models better than fixed ones",
    traits=Traits(
        base="required",
        inputs=(2, None),
        selects=True,
        options={"weight": Range(1.0, 1.0), "density": Range(0.0, 1.0), "scale": Range(-100.0, 100.0)},
    ),
    invariances=("permutation", "base"),
)
def sce(stack: Stack, *, density: float = 0.1, scale: float = 1.0) -> np.ndarray | None:
    """base + scale * sum_i c_i d_i / sum_i c_i, both over the inputs whose delta d_i has the sign of sum_j d_j there.

    Select: of the elements whose variance between the deltas is not 0, the `density` with the largest are kept, exactly so
    many (rounded down, but one of them unless the density is 0; equal ones by index), and the others left as in the base; a
    density of 1 keeps every element. Calculate: c_i = sum of d_i^2 over what is kept, divided by that of all inputs. Erase: a
    sum of zero elects plus. This is mergekit's form, which however takes equal coefficients where the mean squares of all
    inputs sum to less than 1e-6, and may keep no element of a small tensor; the authors' first code selects for the
    coefficients alone and merges every element.

    The inputs' weights are not used: coefficients are calculated. Not an identity: equal inputs do not vary, and give the
    base unless the density is 1.
    """
    if density >= 1.0:
        kept = Kept(np.zeros(1, np.uint32), np.array([np.iinfo(np.int64).max]))
    else:
        spread = _spread_stack(stack)
        kept = largest(spread, keep_share(int(spread.count(_count_nonzero, 1)[0]), np.array([density])))[0]
    energy = stack.reduce(selected_energy, stack.n, kept.bits[0], kept.last[0])
    total = energy.sum()
    shares = energy / total if total > 0.0 else np.full(stack.n, 1.0 / stack.n)
    return stack.map(merge_selected, shares, kept.bits[0], kept.last[0], float(scale))


@dataclass(frozen=True)
class _Spread:
    """The standard deviation between the deltas of a stack, as if it were a tensor that can be read.

    It orders elements as the variance does, whose square would be lost below 1e-38.
    """

    stack: Stack

    def read(self, out: np.ndarray, start: int) -> bool:
        """See `regraft.merge.stack.Source`."""
        block = np.zeros((self.stack.n + 1, out.size), np.float32)
        sources = [*self.stack.sources, *([self.stack.base_source] if self.stack.base_source else [])]
        finite = [source.read(values, start) for source, values in zip(sources, block, strict=False)]
        spread_of(out, block[-1], block[:-1])
        return all(finite)

    def where(self) -> str:
        """See `regraft.merge.stack.Source`."""
        return f"An input's {self.stack.name!r}"


def _spread_stack(stack: Stack) -> Stack:
    """The spread of a stack, as a stack."""
    return Stack(stack.name, stack.shape, [_Spread(stack)], None, np.ones(1), pool=stack.pool, workers=stack.workers)


@kernel
def spread_of(out: np.ndarray, base: np.ndarray, inputs: np.ndarray) -> None:
    """The standard deviation between the deltas, element by element: in float64, rounded once."""
    count = inputs.shape[0]
    mean, square = np.empty(STRIP), np.empty(STRIP)
    for first in range(0, out.size, STRIP):
        size = min(STRIP, out.size - first)
        origin, target = base[first : first + size], out[first : first + size]
        mean[:size] = 0.0
        square[:size] = 0.0
        for number in range(count):
            row = inputs[number, first : first + size]
            for at in range(size):
                mean[at] += np.float64(row[at]) - np.float64(origin[at])
        for at in range(size):
            mean[at] /= count
        for number in range(count):
            row = inputs[number, first : first + size]
            for at in range(size):
                apart = np.float64(row[at]) - np.float64(origin[at]) - mean[at]
                square[at] += apart * apart
        for at in range(size):
            target[at] = np.float32(np.sqrt(square[at] / count))


@kernel
def _count_nonzero(counts: np.ndarray, base: np.ndarray, inputs: np.ndarray, start: int) -> None:
    found = 0
    row = inputs[0]
    for at in range(row.size):
        found += row[at] > np.float32(0)
    counts[0] += found


@kernel
def _selected(keep: np.ndarray, base: np.ndarray, inputs: np.ndarray, start: int, limit: int, last: int) -> None:
    """1 where the spread is above the limit, or is it and comes early enough; else 0."""
    spread = np.empty(keep.size, np.float32)
    spread_of(spread, base, inputs)
    words = spread.view(np.uint32)
    end = np.int32(min(max(last - start, -1), keep.size))
    threshold = np.uint32(limit)
    for at in range(keep.size):
        keep[at] = 1.0 if (words[at] > threshold) | ((words[at] == threshold) & (np.int32(at) <= end)) else 0.0


@kernel
def selected_energy(
    partial: np.ndarray, base: np.ndarray, inputs: np.ndarray, start: int, limit: int, last: int
) -> None:
    """Add sum of delta^2 over what is kept, for each input. Lanes are summed apart, so that the loop can be vector code."""
    keep, lanes = np.empty(base.size), np.empty(STRIP)
    _selected(keep, base, inputs, start, limit, last)
    for number in range(inputs.shape[0]):
        lanes[:] = 0.0
        for first in range(0, base.size, STRIP):
            size = min(STRIP, base.size - first)
            row, origin, chosen = (
                inputs[number, first : first + size],
                base[first : first + size],
                keep[first : first + size],
            )
            for at in range(size):
                delta = np.float64(row[at]) - np.float64(origin[at])
                lanes[at] += chosen[at] * delta * delta
        for at in range(STRIP):
            partial[number] += lanes[at]


@kernel
def merge_selected(
    out: np.ndarray,
    base: np.ndarray,
    inputs: np.ndarray,
    start: int,
    shares: np.ndarray,
    limit: int,
    last: int,
    scale: float,
) -> None:
    """Erase the minority's signs and average with the coefficients, where selected; in float64, rounded once."""
    keep, mass, total, divisor = np.empty(out.size), np.empty(STRIP), np.empty(STRIP), np.empty(STRIP)
    _selected(keep, base, inputs, start, limit, last)
    for first in range(0, out.size, STRIP):
        size = min(STRIP, out.size - first)
        origin = base[first : first + size]
        mass[:size] = 0.0
        total[:size] = 0.0
        divisor[:size] = 0.0
        for number in range(inputs.shape[0]):
            row = inputs[number, first : first + size]
            for at in range(size):
                mass[at] += np.float64(row[at]) - np.float64(origin[at])
        for number in range(inputs.shape[0]):
            row, share = inputs[number, first : first + size], shares[number]
            for at in range(size):
                delta = np.float64(row[at]) - np.float64(origin[at])
                agrees = ((delta > 0.0) & (mass[at] >= 0.0)) | ((delta < 0.0) & (mass[at] < 0.0))
                total[at] += share * delta if agrees else 0.0
                divisor[at] += share if agrees else 0.0
        target, chosen = out[first : first + size], keep[first : first + size]
        for at in range(size):
            change = total[at] / divisor[at] if divisor[at] > 0.0 else 0.0
            target[at] = np.float32(np.float64(origin[at]) + scale * chosen[at] * change)
