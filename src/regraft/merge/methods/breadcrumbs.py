"""Model Breadcrumbs: leave out the largest and the smallest changes of every tensor."""

from __future__ import annotations

import numpy as np

from regraft.merge.kernels import STRIP, kernel
from regraft.merge.register import Range, Traits, merge_method
from regraft.merge.select import largest, part_of
from regraft.merge.stack import Stack
from regraft.methods import Source


@merge_method(
    "breadcrumbs",
    source=Source(
        "Davari and Belilovsky", 2023, "2312.06795", "Model Breadcrumbs: scaling multi-task merging with sparse masks"
    ),
    claim="without outliers and small changes, deltas of many tasks add up with less harm, at settings that need no tuning",
    traits=Traits(
        base="required",
        per_input=("beta", "gamma"),
        selects=True,
        options={"beta": Range(0.0, 1.0), "gamma": Range(0.0, 1.0), "scale": Range(-100.0, 100.0)},
    ),
    invariances=("zero weight", "permutation", "base"),
)
def breadcrumbs(
    stack: Stack, *, beta: np.ndarray | float = 0.85, gamma: np.ndarray | float = 0.006, scale: float = 1.0
) -> np.ndarray | None:
    """base + scale * sum_i w_i m_i (x_i - base); m_i is 0 for the `beta` smallest and the `gamma` largest magnitudes, else 1.

    Shares of each tensor, exactly so many elements (rounded down); of equal magnitudes the first by index counts as
    larger. A gamma of 0 drops no outlier. The defaults are where the authors' search for settings begins; it begins with a
    scale of 0.2, and their code counts in each row. mergekit's density is 1 - beta - gamma.

    Not an identity: an input alone loses most of its changes.
    """
    betas = np.broadcast_to(np.asarray(beta, np.float64), (stack.n,))
    gammas = np.broadcast_to(np.asarray(gamma, np.float64), (stack.n,))
    top = part_of(stack.size, gammas)
    kept = largest(stack, stack.size - part_of(stack.size, betas))[0]
    outliers = largest(stack, top)[0] if top.any() else None
    limit = outliers.bits if outliers else np.full(stack.n, 0x7FFFFFFF, np.uint32)
    end = outliers.last if outliers else np.full(stack.n, -1)
    return stack.map(add_between, stack.weights * scale, kept.bits, kept.last, limit, end)


@kernel
def add_between(
    out: np.ndarray,
    base: np.ndarray,
    inputs: np.ndarray,
    start: int,
    weights: np.ndarray,
    low: np.ndarray,
    low_last: np.ndarray,
    high: np.ndarray,
    high_last: np.ndarray,
) -> None:
    """base + sum_i weights[i] * delta_i over what is kept by the low limit and not by the high one; float64, rounded once."""
    total, delta = np.empty(STRIP), np.empty(STRIP, np.float32)
    words = delta.view(np.uint32)
    for first in range(0, out.size, STRIP):
        size = min(STRIP, out.size - first)
        origin = base[first : first + size]
        total[:size] = 0.0
        for number in range(inputs.shape[0]):
            row, weight = inputs[number, first : first + size], weights[number]
            lower, upper = low[number], high[number]
            lower_end = np.int32(min(max(low_last[number] - start - first, -1), size))
            upper_end = np.int32(min(max(high_last[number] - start - first, -1), size))
            for at in range(size):
                delta[at] = row[at] - origin[at]
            for at in range(size):
                magnitude = words[at] & np.uint32(0x7FFFFFFF)
                enough = (magnitude > lower) | ((magnitude == lower) & (np.int32(at) <= lower_end))
                too_much = (magnitude > upper) | ((magnitude == upper) & (np.int32(at) <= upper_end))
                change = weight * (np.float64(row[at]) - np.float64(origin[at]))
                total[at] += change if enough & (not too_much) else 0.0
        target = out[first : first + size]
        for at in range(size):
            target[at] = np.float32(np.float64(origin[at]) + total[at])
