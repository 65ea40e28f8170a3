"""What an edge is, seen from a parent and a child that are known: pruned, quantised, low rank, or plainly trained.

pruned       of the child's elements that are not zero, nearly all equal the parent's, and more are zero than in the parent
quantised    the child's values are the parent's rounded to bf16 or fp16, or lie on a grid of few levels (of a tensor, row,
             column or group of a row) that the parent's do not, each within half a step of the parent's
lora-merged  the change of every changed matrix has low rank: what lies beyond the largest singular values is no more than
             storing the child rounds away (Hu et al. 2021, arXiv 2106.09685: W' = W + scale B A)

Corners of the matrices are read, `CORNER` rows and columns at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.reading import as_float32, read_raw
from regraft.zoo.lineage.sample import matrix_of
from regraft.zoo.lineage.thresholds import ALIKE, CORNER, COUNTS, FIRST, INHERITED, LEVELS, LOW_RANK, ON_GRID, ZEROS

# Bits of the mantissa, the leading one counted.
MANTISSA = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8}


@dataclass(frozen=True)
class Kind:
    """A relation and what speaks for it."""

    relation: str
    words: str


def values_of(info: TensorInfo) -> np.ndarray:
    """The corner of a matrix, or the head of a vector, as float64."""
    if len(info.shape) != 2:
        return as_float32(read_raw(info, 0, CORNER * CORNER), info.dtype).astype(np.float64)
    return matrix_of(info, CORNER)[:, :CORNER].astype(np.float64)


def rounding(values: np.ndarray, dtype: str) -> np.ndarray:
    """The distance of neighbouring numbers of the format at each value (a unit in the last place); 0 at 0."""
    _, exponent = np.frexp(values)
    return np.where(values == 0, 0.0, np.ldexp(1.0, exponent - MANTISSA[dtype]))


def kind_of(pairs: Sequence[tuple[str, TensorInfo, TensorInfo]]) -> Kind:
    """The relation of a child to its parent, from the tensors that they share (name, the parent's, the child's).

    Pruned, quantised and lora-merged are said only where all changed matrices bear it out.
    """
    matrices = [(name, values_of(a), values_of(b), b.dtype, a.dtype) for name, a, b in pairs if len(a.shape) == 2]
    changed = [one for one in matrices if not np.array_equal(one[1], one[2])]
    if not changed:
        return Kind("finetuned", "only vectors, heads or elements that were not sampled differ")
    rounded = _rounded(changed)
    if rounded is not None:
        return rounded
    quantised = _quantised(changed)
    if quantised is not None:
        return quantised
    pruned = _pruned(changed)
    if pruned is not None:
        return pruned
    low = _low_rank(changed)
    if low is not None:
        return low
    return Kind("finetuned", f"{len(changed)} of {len(matrices)} matrices changed, with full rank")


_Changed = list[tuple[str, np.ndarray, np.ndarray, str, str]]


def _rounded(changed: _Changed) -> Kind | None:
    """bf16 or fp16 rounding of values that had more bits."""
    for name, numpy_bits in (("bf16", 8), ("fp16", 11)):
        good = total = coarser = 0
        for _, parent, child, _, _ in changed:
            step = rounding(parent, "BF16" if numpy_bits == 8 else "F16")
            if name == "fp16":
                step = np.maximum(step, 2.0**-24)  # subnormal numbers
            good += int((np.abs(child - parent) <= 0.5 * step * (1 + 1e-6)).sum())
            total += child.size
            ticks = np.divide(child, step, out=np.zeros_like(child), where=step > 0)
            coarser += int((np.abs(2 * ticks - np.round(2 * ticks)) < 1e-6).sum())
        if good >= ALIKE * total and coarser >= ALIKE * total:
            return Kind("quantised", f"the parent's values rounded to {name} ({good / total:.2%} of {total:,} sampled)")
    return None


def _pruned(changed: _Changed) -> Kind | None:
    before = sum(int((parent == 0).sum()) for _, parent, _, _, _ in changed)
    after = sum(int((child == 0).sum()) for _, _, child, _, _ in changed)
    total = sum(child.size for _, _, child, _, _ in changed)
    if after - before < ZEROS * total:
        return None
    kept = equal = 0
    for _, parent, child, dtype, _ in changed:
        alive = child != 0
        kept += int(alive.sum())
        equal += int((np.abs(child - parent)[alive] <= rounding(parent, dtype)[alive]).sum())
    sparsity = (
        f"{after / total:.1%} of the sampled elements of {len(changed)} matrices are zero, "
        f"{before / total:.1%} in the parent"
    )
    if equal >= ALIKE * kept:
        return Kind("pruned", f"{sparsity}; {equal / max(kept, 1):.2%} of the others equal the parent's")
    inherited = sum(int(((child == 0) & (parent == 0)).sum()) for _, parent, child, _, _ in changed)
    if inherited >= INHERITED * after:
        return None
    return Kind("pruned+finetuned", f"{sparsity}; the others changed ({equal / max(kept, 1):.1%} equal)")


def grid_of(values: np.ndarray, dtype: str) -> tuple[np.ndarray, str] | None:
    """The step at every element of a matrix whose values lie on a grid of few levels, and of what the grid is; else None."""
    rows, columns = values.shape
    for name, blocks in (
        ("tensor", [values.reshape(-1)]),
        ("row", list(values)),
        ("column", list(values.T)),
        *(
            (f"group of {size} in a row", list(values.reshape(-1, size)))
            for size in (128, 64, 32)
            if not columns % size
        ),
    ):
        if min(len(block) for block in blocks) < 16:
            continue
        steps = []
        for block in blocks:
            step = _step(block, dtype)
            if step is None:
                break
            steps.append(step)
        else:
            width = len(blocks[0])
            full = np.repeat(np.array(steps)[:, None], width, axis=1)
            return (full.T if name == "column" else full.reshape(rows, columns)), name
    return None


def on_grid(info: TensorInfo) -> bool:
    """Whether a matrix lies on a grid, from few of its rows and columns."""
    return _few_on_grid(values_of(info), info.dtype)


def _few_on_grid(values: np.ndarray, dtype: str) -> bool:
    return any(grid_of(part, dtype) is not None for part in (values[:4], np.ascontiguousarray(values[:, :4])))


def _step(block: np.ndarray, dtype: str) -> float | None:
    """The step of the grid that all values lie on; 0 of constant values."""
    distinct = np.unique(block)
    if len(distinct) == 1:
        return 0.0
    if len(distinct) > LEVELS:
        return None
    error = float(rounding(distinct, dtype).max())
    gaps = np.diff(distinct)
    least = float(gaps[gaps > 4 * error].min(initial=np.inf))
    if not np.isfinite(least) or least < 16 * error:
        return None
    for part in (1, 2, 3):
        step = least / part
        # The step itself is known to the rounding error of a gap only: refine it by the whole range.
        levels = round(float(distinct[-1] - distinct[0]) / step)
        if not 1 <= levels <= LEVELS:
            continue
        step = float(distinct[-1] - distinct[0]) / levels
        ticks = (distinct - distinct[0]) / step
        # Few random values may be near some grid of as many levels as there are values between them.
        if np.abs(ticks - np.round(ticks)).max() <= max(0.02, 4 * error / step) and 4 * error / step < 0.1:
            return step
    return None


def _quantised(changed: _Changed) -> Kind | None:
    good = total = 0
    kinds = set()
    for _, parent, child, dtype, parent_dtype in changed:
        if not _few_on_grid(child, dtype) or _few_on_grid(parent, parent_dtype):
            return None
        grid = grid_of(child, dtype)
        if grid is None:
            return None
        step, name = grid
        kinds.add(name)
        near = np.abs(child - parent) <= 0.5 * step * (1 + 1e-3) + 2 * rounding(child, dtype)
        good += int(near.sum())
        total += child.size
    if good < ON_GRID * total:
        return None
    words = f"the values of {len(changed)} matrices lie on a grid (of each {', '.join(sorted(kinds))})"
    return Kind("quantised", f"{words}; {good / total:.2%} within half a step of the parent's")


def _low_rank(changed: _Changed) -> Kind | None:
    ranks = []
    for _, parent, child, dtype, _ in changed:
        rank = change_rank(child - parent, rounding(child, dtype))
        if rank is None or rank > LOW_RANK * min(child.shape):
            return None
        ranks.append(rank)
    return Kind(
        "lora-merged", f"the change of each of {len(changed)} matrices has rank {_range(ranks)} beyond rounding"
    )


def change_rank(delta: np.ndarray, ulp: np.ndarray) -> int | None:
    """The numerical rank of a change: what is left beyond it is at most what rounding to the stored format makes.

    A value that is rounded once is off by up to half a unit in the last place, of mean square ulp^2 / 12; twice that is
    allowed (the sum W + B A itself was rounded before). None where the change is not above rounding.
    """
    noise = 2 * float(np.square(ulp).mean()) / 12 * delta.size
    part = delta[:FIRST, :FIRST]
    if min(delta.shape) > FIRST and part.any():
        left = np.square(np.linalg.svd(part, compute_uv=False))[FIRST // 2 :].sum()
        if left > noise * part.size / delta.size * 4:
            return int(min(delta.shape))  # plainly of full rank: not looked at further
    power = np.square(np.linalg.svd(delta, compute_uv=False))
    if power.sum() <= 4 * noise:
        return None
    left = power[::-1].cumsum()[::-1]
    above = left > noise
    return int(above.sum())


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def is_pruned(parent: np.ndarray, child: np.ndarray) -> bool:
    """Whether the child is a pruned copy, from samples of matrices: more zeros, all others equal."""
    alive = child != 0
    if (~alive).sum() < (parent == 0).sum() + ZEROS * child.size or not alive.any():
        return False
    return bool((child[alive] == parent[alive]).mean() >= ALIKE)


def was_cut(parent: np.ndarray, child: np.ndarray) -> bool:
    """Whether the child has zeros where the parent has weights that count; later training may have changed the others.

    What grew again after pruning is small, and so does not make a retrained model the parent of the pruned one.
    """
    dead = child == 0
    if dead.sum() < (parent == 0).sum() + ZEROS * child.size:
        return False
    return bool(np.square(parent[dead]).mean() >= COUNTS * np.square(parent).mean())


def is_rounded(parent: np.ndarray, child: np.ndarray) -> bool:
    """Whether the child is the parent rounded to bf16 or fp16, from samples of matrices (float32)."""
    return any(not np.array_equal(one, parent) and bool((one == child).mean() >= ALIKE) for one in _roundings(parent))


def is_coarse(values: np.ndarray) -> bool:
    """Whether values are numbers of bf16 or fp16."""
    return any(np.array_equal(one, values) for one in _roundings(values))


def _roundings(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bits = values.view(np.uint32)
    upward = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    with np.errstate(over="ignore"):
        return upward.view(np.float32), values.astype(np.float16).astype(np.float32)
