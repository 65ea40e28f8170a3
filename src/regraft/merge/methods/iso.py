"""Isotropic merging: add the task vectors, then make all singular values the same.

spectrum of the sum        Iso-C                     Iso-CTS
|                                                    common     a  b  c
||                         --------------            ---------- -- -- --
||||__________             ||||||||||||||            |||||||||| || || ||
"""

from __future__ import annotations

import numpy as np

from regraft.merge import flops
from regraft.merge.methods.matrices import (
    active,
    deltas,
    factors,
    factors_flops,
    is_matrix,
    matrix_like,
    mean,
    merged,
    orthogonal_flops,
    orthogonal_product,
    total,
    working,
)
from regraft.merge.register import Range, Traits, merge_method
from regraft.merge.stack import Stack
from regraft.methods import Source

_SOURCE = Source(
    "Marczak et al.", 2025, "2502.04959",
    "No task left behind: isotropic model merging with common and task-specific subspaces",
)  # fmt: skip
_EMBEDDINGS = ("matrix", "vector")


def _flops_c(name: str, shape: tuple[int, ...], inputs: int, *, embeddings: str = "matrix", **_: object) -> float:
    """The factors of the sum, all of them, and U V^T."""
    if not inputs or not matrix_like(name, shape, embeddings):
        return 0.0
    return factors_flops(shape, min(shape)) + flops.product(shape[0], min(shape), shape[1])


def _flops_cts(
    name: str, shape: tuple[int, ...], inputs: int, *, common: float = 0.8, embeddings: str = "matrix", **_: object
) -> float:
    """The factors of the sum and of every input, which is first projected (two products), and what makes all orthogonal."""
    if not inputs or not matrix_like(name, shape, embeddings):
        return 0.0
    shared, each = shares(min(shape), inputs, common)
    own = 2 * flops.product(shape[0], shared, shape[1]) + factors_flops(shape, each) if each else 0.0
    return factors_flops(shape, shared) + inputs * own + orthogonal_flops(shape, shared + inputs * each)


@merge_method(
    "iso_c",
    source=_SOURCE,
    claim="a flat spectrum keeps the directions of the weaker tasks: better than task arithmetic over many tasks",
    traits=Traits(
        working=working(full=30, square=28),
        flops=_flops_c,
        options={"scale": Range(-100.0, 100.0)},
        choices={"embeddings": _EMBEDDINGS},
    ),
    invariances=("zero weight", "permutation", "base"),
)
def iso_c(stack: Stack, *, scale: float = 1.0, embeddings: str = "matrix") -> np.ndarray | None:
    """Iso-C: base + scale * s U V^T, where U diag(s_1 .. s_r) V^T = sum_i w_i (x_i - base) and s is the mean of the s_i.

    U [m, r] and V [n, r] are the singular vectors, r the rank: directions below 2^-20 of the largest singular value,
    or below what rounding the inputs to float32 can have made, stay out. The paper's code always takes r = min(m, n); that is the
    same for a sum of full rank, and for a lower one (LoRA, a zero sum) it would put s on arbitrary directions. Of an adapter
    that was merged into a checkpoint of 16 bits nothing tells the directions from rounding: give the adapter itself. The sum of
    the singular values is kept.
    Weights scale the deltas.

    Not an identity, by design: a single input comes back with its spectrum made flat (unless the delta has rank 1, such as
    a row or a column), and n equal inputs with n times that.

    Args:
        scale: The paper's alpha, which it chooses on held-out data.
        embeddings: "matrix" as in the paper, whose code flattens everything with two axes; or "vector".

    Other tensors, and embeddings as a "vector", get the mean of the weighted deltas, times `scale`.
    """
    used = active(stack)
    if used.n == 0 or not is_matrix(stack, embeddings):
        return mean(used, scale)
    noise: list[float] = []
    left, values, right = factors(total(used, noise), noise=sum(noise))
    if not values.size:
        return used.base()
    left *= scale * values.mean()
    return merged(used, left @ right.T)


def shares(rank: int, inputs: int, common: float) -> tuple[int, int]:
    """Directions for the common subspace and for each input: together all `rank`, the inputs' shares being equal.

    As in the paper's code: `common` of them, rounded down, then the rest to the nearest multiple of the inputs; but never
    more than there are (3 directions, 2 inputs, nothing in common would ask for 4).
    """
    each = min(round((rank - int(rank * common)) / inputs), rank // inputs)
    return rank - each * inputs, each


@merge_method(
    "iso_cts",
    source=_SOURCE,
    claim="replacing the weakest common directions by task-specific ones beats Iso-C, the more so the more tasks",
    traits=Traits(
        working=working(full=52, square=72),
        flops=_flops_cts,
        options={"scale": Range(-100.0, 100.0), "common": Range(0.0, 1.0)},
        choices={"embeddings": _EMBEDDINGS},
    ),
    invariances=("zero weight", "permutation", "base"),
)
def iso_cts(stack: Stack, *, common: float = 0.8, scale: float = 1.0, embeddings: str = "matrix") -> np.ndarray | None:
    """Iso-CTS: Iso-C in which the last directions of the sum make room for directions of the single inputs.

        common      U_0, s_0, V_0: the first c singular triples of sum_i D_i, D_i = w_i (x_i - base)
        specific    U_i, s_i, V_i: the first t singular triples of D_i - U_0 U_0^T D_i
        merged      base + scale * s P([U_1 .. U_n U_0]) P([V_1 .. V_n V_0])^T

    with c + n t = min(m, n) (see `shares`), s the mean of all these singular values, and P(C) = C (C^T C)^-1/2 the nearest
    matrix with orthonormal columns. Weights scale the deltas, so an input of more weight also bends the common subspace.
    Directions that are rounding (see `iso_c`) stay out. With fewer singular values than inputs there is no room for
    task-specific ones: the same as `iso_c`. Not an identity: see `iso_c`.

    Args:
        common: The part of the directions that is common; 0.8 in the paper. 1 gives `iso_c`.
        scale: The paper's alpha, chosen there on held-out data.
        embeddings: As in `iso_c`, and so are the tensors that are no matrices.
    """
    used = active(stack)
    if used.n == 0 or not is_matrix(stack, embeddings):
        return mean(used, scale)
    shared, each = shares(min(stack.shape), used.n, common)
    noise: list[float] = []
    summed = total(used, noise)
    parts = [factors(summed, shared, sum(noise))]
    del summed
    if each:
        axes = parts[0].left
        own = zip(deltas(used), noise, strict=True)
        parts += [factors(delta - axes @ (axes.T @ delta), each, floor) for delta, floor in own]
    left, values, right = (np.concatenate(found, axis=-1) for found in zip(*parts, strict=True))
    if not values.size:
        return used.base()
    level = np.full(values.size, scale * values.mean())
    return merged(used, orthogonal_product(left, level, right))
