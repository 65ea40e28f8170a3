"""TIES: trim small changes, elect a sign, average what agrees with it.

  deltas            trim                elect      average what agrees
a  +3 -1 +2       a  +3  0 +2
b  -2 -4 +1  -->  b  -2 -4  0   -->   + - +  -->   +3 -4 +2
c  +1 -1 -5       c   0  0 -5          (the heavier side; c's -5 against +2 would elect -)
"""

from __future__ import annotations

import numpy as np

from regraft.merge.kept import pieces
from regraft.merge.kernels import bits_of, kernel
from regraft.merge.register import Range, Traits, merge_method
from regraft.merge.select import Kept, keep_share, largest
from regraft.merge.stack import Stack
from regraft.merge.stored import decoded, fits, store
from regraft.methods import Source

DENSITY = 0.2
# So many inputs the compiler still keeps in registers; more go through blocks of float32.
AT_ONCE = 6
DIVISORS = ("count", "weight", "none")


def prepare(
    stacks: list[Stack], *, density: np.ndarray | float = DENSITY, trim: str = "tensor", **_options: object
) -> dict[str, Kept] | None:
    """The thresholds of a global trim: over all tensors of an input taken as one vector, as in the paper's code."""
    if trim != "global" or not stacks:
        return None
    size = sum(stack.size for stack in stacks)
    kept = largest(list(stacks), keep_share(size, np.broadcast_to(density, (stacks[0].n,))))
    return {stack.name: one for stack, one in zip(stacks, kept, strict=True)}


@merge_method(
    "ties",
    source=Source("Yadav et al.", 2023, "2306.01708", "TIES-Merging: resolving interference when merging models"),
    claim="better than averaging and task arithmetic over many tasks and models, by trimming and electing signs",
    traits=Traits(
        base="required",
        per_input=("density",),
        prepare=prepare,
        whole={"trim": "global"},
        selects=True,
        options={"density": Range(0.0, 1.0), "scale": Range(-100.0, 100.0)},
        choices={"trim": ("tensor", "global"), "elect": ("mass", "weighted"), "divide": ("count", "weight", "none")},
    ),
    invariances=("zero weight", "permutation", "base"),
)
def ties(
    stack: Stack,
    *,
    density: np.ndarray | float = DENSITY,
    trim: str = "tensor",
    elect: str = "mass",
    divide: str = "count",
    scale: float = 1.0,
    prepared: dict[str, Kept] | None = None,
) -> np.ndarray | None:
    """base + scale * mean of the trimmed deltas that have the elected sign.

    Published ways differ, and all of them can be had:

    - `trim`: the `density` largest magnitudes of every delta are kept, exactly so many; counted in each "tensor" (mergekit,
      peft), or over the whole model, "global" (the paper's code).
    - `elect`: the sign of sum_i d_i, "mass" (the paper, peft), or of sum_i w_i d_i, "weighted" (mergekit). A sum of
      zero elects plus (peft, mergekit); the paper's code gives such an element the sign that most of the vector's others have.
    - `divide`: the sum of w_i d_i over the agreeing inputs is divided by their "count" (the paper, peft) or by their
      sum of "weight"s (mergekit), or by nothing, "none" (mergekit without normalising). Nothing divides where
      the weights that agree cancel out (mergekit).

    Sums are in float32, in the order of the inputs. With "weighted", an input of negative weight votes against its delta. An
    input of weight 0 takes part in nothing. Not an identity: equal inputs keep only their largest changes.
    """
    densities = np.broadcast_to(np.asarray(density, np.float64), (stack.n,))
    kept = prepared[stack.name] if prepared else largest(stack, keep_share(stack.size, densities))[0]
    weighted, divisor, one = elect == "weighted", DIVISORS.index(divide), np.float32(1)
    weights = tuple(map(np.float32, stack.weights))
    votes = tuple(weight if weighted or weight == 0 else one for weight in weights)
    units = tuple((one, weight, np.float32(0))[divisor] for weight in weights)

    def stored(out: np.ndarray, base: np.ndarray | None, inputs: tuple[np.ndarray, ...], start: int) -> bool:
        assert base is not None  # required
        fine = True
        for first, stop, least in pieces(kept, start, start + out.size):
            part = slice(first - start, stop - start)
            mine = tuple(one[part] for one in inputs)
            fine &= merge_agreeing_stored(out[part], base[part], mine, least, votes, weights, units, np.float32(scale))
        return fine

    return stack.map(
        merge_agreeing, stack.weights, kept.bits, kept.last, weighted, divisor, float(scale), deltas=True,
        stored=stored if stack.n <= AT_ONCE else None,
    )  # fmt: skip


@kernel
def merge_agreeing(
    out: np.ndarray,
    base: np.ndarray,
    deltas: np.ndarray,
    start: int,
    weights: np.ndarray,
    threshold: np.ndarray,
    last: np.ndarray,
    weighted: bool,
    divisor: int,
    scale: float,
) -> None:
    """Trim, elect and average: one simple loop after another, each of which the compiler turns into vector code."""
    trim(deltas, start, threshold, last)
    average_agreeing(out, base, deltas, weights, weighted, divisor, scale)


@kernel
def merge_agreeing_stored(
    out: np.ndarray,
    base: np.ndarray,
    inputs: tuple[np.ndarray, ...],
    least: tuple[np.uint32, ...],
    votes: tuple[np.float32, ...],
    weights: tuple[np.float32, ...],
    units: tuple[np.float32, ...],
    scale: np.float32,
) -> bool:
    """`merge_agreeing` from stored bits to stored bits: what each input elects with, adds and counts for is given."""
    zero, largest, worst = np.float32(0), np.uint32(0), np.uint32(0)
    for at in range(out.size):
        origin = decoded(base[at])
        mass = total = share = zero
        for number in range(len(inputs)):
            change = decoded(inputs[number][at]) - origin
            magnitude = bits_of(change) & np.uint32(0x7FFFFFFF)
            worst = max(worst, magnitude)
            mass += votes[number] * (change if magnitude >= least[number] else zero)
        for number in range(len(inputs)):
            change = decoded(inputs[number][at]) - origin
            kept = change if (bits_of(change) & np.uint32(0x7FFFFFFF)) >= least[number] else zero
            side = votes[number] * kept
            agrees = ((side > zero) & (mass >= zero)) | ((side < zero) & (mass < zero))
            total += weights[number] * kept if agrees else zero
            share += units[number] if agrees else zero
        mean = total / share if share != zero else total
        largest = max(largest, store(out, at, origin + scale * mean))
    return bool(fits(out, largest) and worst < np.uint32(0x7F800000))


@kernel
def trim(deltas: np.ndarray, start: int, threshold: np.ndarray, last: np.ndarray) -> None:
    """Set the elements of the deltas that are not kept (see `Kept`) to zero, in place."""
    size = deltas.shape[1]
    for number in range(deltas.shape[0]):
        words = deltas[number].view(np.uint32)
        limit = threshold[number]
        end = np.int32(min(max(last[number] - start, -1), size))
        for at in range(size):
            magnitude = words[at] & np.uint32(0x7FFFFFFF)
            keep = (magnitude > limit) | ((magnitude == limit) & (np.int32(at) <= end))
            words[at] = words[at] if keep else np.uint32(0)


@kernel
def average_agreeing(
    out: np.ndarray,
    base: np.ndarray,
    deltas: np.ndarray,
    weights: np.ndarray,
    weighted: bool,
    divisor: int,
    scale: float,
) -> None:
    """base + scale * (sum of w d over the deltas with the elected sign) / (their count, their weight, or 1)."""
    size = out.size
    mass = np.zeros(size, np.float32)
    total = np.zeros(size, np.float32)
    share = np.zeros(size, np.float32)
    zero, one = np.float32(0), np.float32(1)
    for number in range(deltas.shape[0]):
        if weights[number] == 0.0:
            continue
        weight = np.float32(weights[number]) if weighted else one
        row = deltas[number]
        for at in range(size):
            mass[at] += weight * row[at]
    for number in range(deltas.shape[0]):
        if weights[number] == 0.0:
            continue
        weight = np.float32(weights[number])
        unit = weight if divisor == 1 else one
        sign = weight if weighted else one
        row = deltas[number]
        for at in range(size):
            value = row[at]
            side = sign * value
            agrees = ((side > zero) & (mass[at] >= zero)) | ((side < zero) & (mass[at] < zero))
            total[at] += weight * value if agrees else zero
            share[at] += unit if agrees else zero
    factor = np.float32(scale)
    for at in range(size):
        change = total[at] if divisor == 2 or share[at] == zero else total[at] / share[at]
        out[at] = base[at] + factor * change
