"""KnOTS: turn all changes into the directions that they share, merge there, and turn back.

[D_1 ... D_n] = U S [V_1 ... V_n]      one SVD of the changes side by side
C_i = U^T D_i = S V_i                  change i in the shared directions
W   = base + U merge(C_1 ... C_n)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.merge import flops
from regraft.merge.low_rank import HALF_UNIT, basis_flops, energy, gram_bytes, left_basis, product
from regraft.merge.methods.matrices import active
from regraft.merge.methods.task_arithmetic import task_arithmetic
from regraft.merge.methods.ties import ties
from regraft.merge.register import Range, Traits, merge_method
from regraft.merge.select import Kept, keep_share
from regraft.merge.stack import Stack
from regraft.merge.turns import each_alone
from regraft.methods import Source

_BINS = 2**16


def working(shape: tuple[int, ...], inputs: int) -> int:
    """Bytes for a tensor of a shape; other tensors than matrices work in blocks."""
    return gram_bytes(shape, inputs) + (8 * inputs + 24) * shape[0] * shape[1] if len(shape) == 2 else 0


def _flops(
    _name: str, shape: tuple[int, ...], inputs: int, *, low: int | None = None, rule: str = "ties", trim: str = "tensor",
    side: str = "rows", **_: object,
) -> float:  # fmt: skip
    """The shared directions, every change turned into them, and the result turned back. A global trim turns all of them twice
    more, to count. Task arithmetic needs none of it."""
    if not inputs or len(shape) != 2 or rule != "ties":
        return 0.0
    rows, columns = shape if side == "rows" else (shape[1], shape[0])
    rank = min(rows, inputs * columns) if low is None else min(rows, inputs * columns, low)
    turned = basis_flops((rows, columns), inputs, low) + inputs * flops.product(columns, rows, rank)
    return (3 if trim == "global" else 1) * turned + flops.product(rows, rank, columns)


def prepare(
    stacks: list[Stack],
    *,
    density: np.ndarray | float = 0.2,
    trim: str = "tensor",
    rule: str = "ties",
    side: str = "rows",
    **_: Any,
) -> np.ndarray | None:
    """The thresholds (bits, uint32 [n]) of a trim over all tensors of an input taken as one vector, as in the paper's code.

    The turned changes are made anew for each of two counting passes, rather than kept: time for memory.
    """
    if trim != "global" or rule != "ties" or not stacks:
        return None
    n = stacks[0].n

    def coarse(stack: Stack) -> tuple[np.ndarray, np.ndarray]:
        counts, sizes = np.zeros((n, _BINS), np.int64), np.zeros(n, np.int64)
        for number, bits in enumerate(_magnitudes(stack, side)):
            counts[number], sizes[number] = np.bincount(bits >> np.uint32(16), minlength=_BINS), bits.size
        return counts, sizes

    upper, size = np.zeros((n, _BINS), np.int64), np.zeros(n, np.int64)
    for counts, sizes in each_alone(coarse, stacks):
        upper += counts
        size += sizes
    densities = np.broadcast_to(np.asarray(density, np.float64), (n,))
    keep = np.array([keep_share(int(size[number]), densities[number]) for number in range(n)])
    place, above = _reached(upper, keep)

    def exact(stack: Stack) -> np.ndarray:
        counts = np.zeros((n, _BINS), np.int64)
        for number, bits in enumerate(_magnitudes(stack, side)):
            same = bits[bits >> np.uint32(16) == place[number]]
            counts[number] = np.bincount(same & np.uint32(0xFFFF), minlength=_BINS)
        return counts

    lower = np.zeros((n, _BINS), np.int64)
    for counts in each_alone(exact, stacks):
        lower += counts
    fine, _above = _reached(lower, keep - above)
    found = (place.astype(np.uint32) << np.uint32(16)) | fine.astype(np.uint32)
    return np.where(keep > 0, found, np.uint32(0x7FFFFFFF)).astype(np.uint32)


@merge_method(
    "knots",
    source=Source("Stoica et al.", 2024, "2410.19735", "Model merging with SVD to tie the Knots"),
    claim="merging LoRA fine-tunes in the singular directions that they share beats merging their changes as they are",
    traits=Traits(
        base="required",
        per_input=("density",),
        working=working,
        flops=_flops,
        prepare=prepare,
        whole={"trim": "global", "rule": "ties"},
        selects=True,
        options={"density": Range(0.0, 1.0), "scale": Range(-100.0, 100.0)},
        choices={
            "rule": ("ties", "task_arithmetic"), "trim": ("tensor", "global"), "elect": ("mass", "weighted"),
            "divide": ("count", "weight"), "side": ("rows", "columns"),
        },
    ),
    invariances=("zero weight", "permutation", "base"),
)  # fmt: skip
def knots(
    stack: Stack,
    *,
    rule: str = "ties",
    density: np.ndarray | float = 0.2,
    trim: str = "tensor",
    elect: str = "mass",
    divide: str = "count",
    scale: float = 1.0,
    side: str = "rows",
    prepared: np.ndarray | None = None,
) -> np.ndarray | None:
    """base + scale * U merge(U^T D_1 ... U^T D_n), U the left singular vectors of [D_1 ... D_n].

    `rule` merges the turned changes; `density`, `trim`, `elect` and `divide` are those of `ties`. The paper trims over all
    layers taken as one ("global") and keeps 20 %. Turning does not touch sums: "task_arithmetic" in the shared directions is
    task arithmetic.

    `side` is the side of a stored matrix that the changes share: "rows" for the outputs of a torch Linear (the paper),
    "columns" for its inputs; the other way round for GPT-2, which stores [in, out].

    Directions that together hold less than the rounding of float32 weights are left out, so that `density` counts in the rank
    of the adapters, as in the paper. Inputs of weight 0 take no part in the SVD. Tensors that are no matrices are merged
    by the rule as they are; under a global trim they have the threshold of all.

    Not an identity: equal inputs are trimmed. The order of the inputs changes the rounding of the SVD, and nothing else.
    """
    used = active(stack)
    density = np.broadcast_to(np.asarray(density, np.float64), (stack.n,))[stack.weights != 0.0]
    if used.n == 0:
        return stack.map(_keep_base)
    if rule == "task_arithmetic":
        return task_arithmetic(used, scale=scale)
    options: dict[str, Any] = {"density": density, "elect": elect, "divide": divide, "scale": scale}
    if prepared is not None:
        threshold = prepared[stack.weights != 0.0]
        # Equal values at the threshold are all kept: turned changes are equal where they are 0, and that adds nothing.
        options["prepared"] = {stack.name: Kept(threshold, np.full(used.n, np.iinfo(np.int64).max))}
    if len(stack.shape) != 2 or stack.size == 0:
        return ties(used, **options)
    basis, turned = _turned(used, side)
    if basis.shape[1] == 0:
        return stack.base()
    still = np.zeros_like(turned[0])
    merged = ties(Stack.of(turned, still, used.weights, stack.name, stack.seed), **options)
    change = basis @ np.asarray(merged, np.float64)
    return np.asarray(stack.base() + (change if side == "rows" else change.T), np.float32)


def _turned(stack: Stack, side: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """The shared directions U [m, k], and each change in them, float32 [k, columns]."""
    inputs = stack.inputs()
    noise = HALF_UNIT * float(np.sqrt(sum(map(energy, inputs))))
    inputs -= stack.base()
    changes = list(inputs) if side == "rows" else [change.T for change in inputs]
    basis = left_basis(changes, noise)
    return basis, [np.ascontiguousarray(product(change.T, basis).T, np.float32) for change in changes]


def _magnitudes(stack: Stack, side: str) -> list[np.ndarray]:
    """The bits of the magnitudes of every (turned) change, flat; empty for inputs of weight 0."""
    used, found = active(stack), [np.zeros(0, np.uint32)] * stack.n
    if used.n == 0:
        return found
    turned = _turned(used, side)[1] if len(stack.shape) == 2 and stack.size else list(used.deltas())
    for number, values in zip(np.flatnonzero(stack.weights), turned, strict=True):
        found[number] = values.reshape(-1).view(np.uint32) & np.uint32(0x7FFFFFFF)
    return found


def _reached(counts: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row the bin of the k-th largest, and how many lie in the bins above it."""
    from_top = np.cumsum(counts[:, ::-1], axis=1)
    at = np.argmax(from_top >= np.maximum(keep, 1)[:, None], axis=1)
    rows = np.arange(len(counts))
    return counts.shape[1] - 1 - at, from_top[rows, at] - counts[:, ::-1][rows, at]


def _keep_base(out: np.ndarray, base: np.ndarray, inputs: np.ndarray, start: int) -> None:
    """Nothing has a weight: the base."""
    out[...] = base
