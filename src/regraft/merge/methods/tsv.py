"""TSV-Merge: every task gets an equal share of the singular directions, and the shares are made orthogonal."""

from __future__ import annotations

import numpy as np

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
    working,
)
from regraft.merge.register import Range, Traits, merge_method
from regraft.merge.stack import Stack
from regraft.methods import Source


def _flops(name: str, shape: tuple[int, ...], inputs: int, *, embeddings: str = "matrix", **_: object) -> float:
    """The factors of every input, of which its share is kept, and what makes all of them orthogonal."""
    if not inputs or not matrix_like(name, shape, embeddings) or min(shape) < inputs:
        return 0.0
    each = min(shape) // inputs
    return inputs * factors_flops(shape, each) + orthogonal_flops(shape, inputs * each)


@merge_method(
    "tsv_m",
    source=Source(
        "Gargiulo et al.", 2025, "2412.00081", "Task singular vectors: reducing task interference in model merging"
    ),
    claim="keeping each task's first singular vectors and making them orthogonal to the others' removes interference",
    traits=Traits(
        working=working(full=44, square=66),
        flops=_flops,
        options={"scale": Range(-100.0, 100.0)},
        choices={"embeddings": ("matrix", "vector")},
    ),
    invariances=("zero weight", "permutation", "base"),
)  # fmt: skip
def tsv_m(stack: Stack, *, scale: float = 1.0, embeddings: str = "matrix") -> np.ndarray | None:
    """base + scale * P(U) diag(s) P(V)^T: the first singular triples of the inputs side by side, made orthogonal.

        U = [U_1 .. U_n] [m, n t],  s = [s_1 .. s_n],  V = [V_1 .. V_n],  t = floor(min(m, n) / n)
        U_i, s_i, V_i: the first t singular triples of w_i (x_i - base)
        P(C) = C (C^T C)^-1/2: the nearest matrix with orthonormal columns (Procrustes)

    Weights scale the deltas, hence the singular values, while all inputs keep shares of the same size; an input of weight 0
    is left out and frees its share. Where directions of inputs coincide (equal inputs), P is a partial isometry: n equal
    inputs give the first 1/n of their delta, once. Hence no identity; a single input comes back unchanged.

    Args:
        scale: The paper's alpha. It is 1 there: no tuning needed.
        embeddings: "matrix" as in the paper, whose code decomposes everything with two axes; or "vector".

    Directions that are rounding (see `iso_c`) stay out. Other tensors, embeddings as a "vector", and matrices with fewer singular
    values than inputs (t = 0, where the paper's code gives the base) get the mean of the weighted deltas, times `scale`.
    """
    used = active(stack)
    if used.n == 0 or not is_matrix(stack, embeddings) or min(stack.shape) < used.n:
        return mean(used, scale)
    each = min(stack.shape) // used.n
    noise: list[float] = []
    parts = [factors(delta, each, noise[-1]) for delta in deltas(used, noise)]
    left, values, right = (np.concatenate(found, axis=-1) for found in zip(*parts, strict=True))
    if not values.size:
        return used.base()
    return merged(used, orthogonal_product(left, values * scale, right))
