"""DELLA: drop changes at random, the smaller ones of a row more often; then elect a sign and average.

  delta of a row       ranks           kept with probability         divided by it where kept
+2 -1 +4 +3       1  0  3  2       .6  .5  .8  .7  (density .65, epsilon .15)
"""

from __future__ import annotations

import numpy as np

from regraft.errors import MethodError
from regraft.merge.kernels import kernel
from regraft.merge.methods.dare import DIVIDE, ELECT, average_elected
from regraft.merge.register import Range, Traits, merge_method
from regraft.merge.stack import Stack
from regraft.methods import Source


@merge_method(
    "della",
    source=Source(
        "Deep et al.", 2024, "2406.11617",
        "DELLA-Merging: reducing interference in model merging through magnitude-based sampling",
    ),
    claim="dropping by magnitude (MAGPRUNE) merges better than dropping evenly (DARE) or trimming (TIES)",
    traits=Traits(
        base="required",
        per_input=("density", "epsilon"),
        options={
            "density": Range(0.0, 1.0, low_open=True), "epsilon": Range(0.0, 0.5), "scale": Range(-100.0, 100.0),
        },
        choices={"elect": ELECT, "divide": DIVIDE},
    ),
    invariances=("zero weight", "base"),
)  # fmt: skip
def della(
    stack: Stack,
    *,
    density: np.ndarray | float = 0.7,
    epsilon: np.ndarray | float = 0.07,
    elect: str = "weighted",
    divide: str = "weight",
    scale: float = 1.0,
) -> np.ndarray | None:
    """base + scale * mean of the pruned deltas that have the elected sign (`elect`, `divide` as in `dare_ties`).

    An element is kept with probability p = density - epsilon + 2 epsilon r / (c - 1), and then divided by p; r is the rank
    of its magnitude among the c elements of its row (the last axis), 0 for the smallest, and of equal ones the first by
    index ranks lower. A row of one is kept with probability density; a density of 1 keeps everything. The defaults are the
    authors' example (their window is 2 epsilon), which also has a scale of 1.1; mergekit's epsilon is 0.15.

    Drops depend on the number of the input, so that the order of the inputs matters. No identity: rows come back with gaps.

    Raises:
        MethodError: A probability would not lie in (0, 1].
    """
    densities = np.broadcast_to(np.asarray(density, np.float64), (stack.n,))
    widths = np.where(densities == 1.0, 0.0, np.broadcast_to(np.asarray(epsilon, np.float64), (stack.n,)))
    for one, width in zip(densities, widths, strict=True):
        if one - width <= 0.0 or one + width > 1.0:
            raise MethodError(
                f"density {one:g} and epsilon {width:g} give probabilities from {one - width:g} to {one + width:g} in "
                f"{stack.name!r}, expected above 0 and up to 1.",
                "Make epsilon smaller.",
            )
    return stack.map(
        merge_pruned,
        densities,
        widths,
        stack.weights,
        elect == "weighted",
        DIVIDE.index(divide),
        float(scale),
        rows=True,
        noise="della",
    )


@kernel
def merge_pruned(
    out: np.ndarray,
    base: np.ndarray,
    inputs: np.ndarray,
    start: int,
    bits: np.ndarray,
    density: np.ndarray,
    epsilon: np.ndarray,
    weights: np.ndarray,
    weighted: bool,
    divide: int,
    scale: float,
) -> None:
    """Prune row by row, then elect and average."""
    count, rows, columns = inputs.shape
    values, work = np.empty((count, columns)), np.empty((3, columns))
    delta, packed, spare = np.empty(columns, np.float32), np.empty(columns, np.uint64), np.empty(columns, np.uint64)
    places = np.empty((4, 256), np.int64)
    for row in range(rows):
        for number in range(count):
            mine, origin = inputs[number, row], base[row]
            for at in range(columns):
                delta[at] = mine[at] - origin[at]
            words = delta.view(np.uint32)
            for at in range(columns):
                packed[at] = (np.uint64(words[at] & np.uint32(0x7FFFFFFF)) << np.uint64(32)) | np.uint64(at)
            order = sorted_by_magnitude(packed, spare, places)
            sample(values[number], mine, origin, bits[number, row], order, density[number], epsilon[number])
        average_elected(out[row], base[row], values, weights, weighted, divide, scale, work)


@kernel
def sample(
    kept: np.ndarray,
    mine: np.ndarray,
    origin: np.ndarray,
    bits: np.ndarray,
    order: np.ndarray,
    density: float,
    epsilon: float,
) -> None:
    """What is kept of a row's delta, divided by the probability of being kept; 0 elsewhere."""
    columns = mine.size
    low = density - epsilon if columns > 1 else density
    step = 2.0 * epsilon / (columns - 1) if columns > 1 else 0.0
    for rank in range(columns):
        at = np.int64(order[rank] & np.uint64(0xFFFFFFFF))
        chance = low + step * rank
        change = (np.float64(mine[at]) - np.float64(origin[at])) / chance
        kept[at] = change if np.float64(bits[at]) < chance * 4294967296.0 else 0.0


@kernel
def sorted_by_magnitude(packed: np.ndarray, spare: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Sort words of (magnitude's bits, index) by the upper half, stably: by one byte after another, lowest first.

    A radix sort: about ten times as fast as comparing. Both arrays are used; the one that ends sorted is returned.
    """
    size = packed.size
    places[:] = 0
    for at in range(size):
        word = packed[at]
        for byte in range(4):
            places[byte, (word >> np.uint64(32 + 8 * byte)) & np.uint64(255)] += 1
    source, target = packed, spare
    for byte in range(4):
        shift, place = np.uint64(32 + 8 * byte), places[byte]
        if size == 0 or place[(source[0] >> shift) & np.uint64(255)] == size:
            continue  # the same byte in all: the lower ones of deltas of bfloat16, often
        begin = 0
        for value in range(256):
            found = place[value]
            place[value] = begin
            begin += found
        for at in range(size):
            digit = (source[at] >> shift) & np.uint64(255)
            target[place[digit]] = source[at]
            place[digit] += 1
        source, target = target, source
    return source
