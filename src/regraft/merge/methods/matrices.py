"""What the methods share that see a weight as a matrix: deltas one at a time, singular factors, orthogonalisation.

All of it works in float64 on one matrix A [m, n] with short side k = min(m, n), through the k x k matrix A^T A. That squares
the singular values, so it keeps those down to about 1e-8 of the largest: below 6e-8, the rounding of the float32 values
that A was made of, and at a fraction of the cost and memory of a singular value decomposition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regraft.checkpoint.blocks import is_embedding
from regraft.merge import flops
from regraft.merge.low_rank import HALF_UNIT
from regraft.merge.stack import Stack

Floats = NDArray[np.float64]

# Singular values below this part of the largest are the rounding of the arithmetic, not directions.
RANK = 2.0**-20


class Factors(NamedTuple):
    """A = left @ diag(values) @ right.T, with values descending: [m, r], [r], [n, r].

    A pair of columns is known up to one sign for both, which cancels in everything that the methods compute.
    """

    left: Floats
    values: Floats
    right: Floats


def is_matrix(stack: Stack, embeddings: str) -> bool:
    """Whether a tensor is treated as a matrix: it has two axes, and is no embedding unless those are a "matrix" too."""
    return matrix_like(stack.name, stack.shape, embeddings)


def matrix_like(name: str, shape: tuple[int, ...], embeddings: str) -> bool:
    """`is_matrix` of what is known before a stack is there."""
    return len(shape) == 2 and (embeddings == "matrix" or not is_embedding(name))


def active(stack: Stack) -> Stack:
    """The stack without the inputs of weight 0."""
    kept = np.flatnonzero(stack.weights).tolist()
    return replace(stack, sources=[stack.sources[number] for number in kept], weights=stack.weights[kept])


def deltas(stack: Stack, noise: list[float] | None = None) -> Iterator[Floats]:
    """w_i (x_i - base) in float64, one input after another, each in the memory of the one before.

    Args:
        stack: The inputs.
        noise: Gets `rounding` of each, before the delta is given.
    """
    base, delta = stack.base(), np.empty(stack.shape)
    for number, weight in enumerate(stack.weights):
        values = replace(stack, sources=[stack.sources[number]], base_source=None).inputs()[0]
        if noise is not None:
            noise.append(abs(float(weight)) * rounding(values, delta))
        np.subtract(values, base, out=delta, dtype=np.float64)
        del values
        delta *= weight
        yield delta


def rounding(values: np.ndarray, room: Floats) -> float:
    """The largest singular value that rounding a matrix to float32 can be expected to have made; `room` has its shape.

    Every element is off by up to 2^-24 of itself. The largest singular value of a matrix of independent errors is about the
    length of its longest row and of its longest column together (Bandeira and van Handel 2014, 1408.6185); with the bounds in
    place of the errors, which lie evenly below them, that is 1.7 times as much. What an adapter changes may be a hundredth of
    the base: then all directions that it does not have are this, and above `RANK` of its own.
    """
    np.square(values, out=room, dtype=np.float64)
    longest = [float(np.sqrt(room.sum(axis=axis).max(initial=0.0))) for axis in (0, 1)]
    return HALF_UNIT * sum(longest)


def total(stack: Stack, noise: list[float] | None = None) -> Floats:
    """sum_i w_i (x_i - base); `noise` as in `deltas`."""
    found = np.zeros(stack.shape)
    for delta in deltas(stack, noise):
        found += delta
    return found


def merged(stack: Stack, delta: Floats) -> NDArray[np.float32]:
    """base + delta, rounded once; `delta` is used up."""
    delta += stack.base()
    return delta.astype(np.float32)


def mean(stack: Stack, scale: float) -> np.ndarray | None:
    """base + scale / n sum_i w_i (x_i - base): what becomes of the tensors that are no matrices."""
    shares = stack.weights * (scale / max(1, stack.n))
    return stack.combine(shares, base=1.0 - float(shares.sum()))


def factors(matrix: Floats, keep: int | None = None, noise: float = 0.0) -> Factors:
    """The singular values above `RANK` of the largest, and above `noise`, and their vectors, at most `keep` of them."""
    wide = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if wide else matrix
    squares, vectors = np.linalg.eigh(tall.T @ tall)
    values = np.sqrt(np.maximum(squares[::-1], 0.0))
    size = int((values > max(RANK * values[0], noise)).sum()) if values.size else 0
    size = size if keep is None else min(size, keep)
    values, short = values[:size], vectors[:, ::-1][:, :size]
    long = tall @ short
    long /= values
    return Factors(short, values, long) if wide else Factors(long, values, short)


def factors_flops(shape: tuple[int, ...], keep: int) -> float:
    """What `factors` takes, as `regraft.merge.flops` counts: A^T A, its eigenvectors, and A times `keep` of them."""
    short, long = min(shape), max(shape)
    return flops.gram(short, long) + flops.eigh(short) + flops.product(long, short, keep)


def inverse_root(gram: Floats, power: float = -0.5, cut: float = RANK**2) -> Floats:
    """gram^power on the eigenvectors whose eigenvalue is above `cut` of the largest; `gram` is symmetric, [k, k].

    C (C^T C)^-1/2 is the matrix with orthonormal columns that is nearest to C (Procrustes). Where columns of C depend on
    each other there is no such matrix; leaving their null directions out gives the nearest partial isometry, while a
    singular value decomposition would fill them with arbitrary directions.
    """
    values, vectors = np.linalg.eigh(gram)
    kept = values > cut * values[-1] if values.size else np.zeros(0, bool)
    vectors = vectors[:, kept]
    return np.asarray((vectors * values[kept] ** power) @ vectors.T)


def orthogonal_product(left: Floats, values: Floats, right: Floats) -> Floats:
    """Orthogonalise the columns of `left` [m, r] and `right` [n, r] each; then left @ diag(values) @ right.T."""
    inner = (inverse_root(left.T @ left) * values) @ inverse_root(right.T @ right)
    return np.asarray((left @ inner) @ right.T)


def orthogonal_flops(shape: tuple[int, ...], rank: int) -> float:
    """What `orthogonal_product` of `rank` columns takes: both Gram matrices, their roots, and the products of all four."""
    rows, columns = shape
    roots = flops.gram(rank, rows) + flops.gram(rank, columns) + 2 * flops.eigh(rank)
    inner = 3 * flops.product(rank, rank, rank)
    return roots + inner + flops.product(rows, rank, rank) + flops.product(rows, rank, columns)


def working(full: int, square: int) -> Callable[[tuple[int, ...], int], int]:
    """Working memory as traits want it: `full` bytes an element and `square` bytes an element of the k x k matrices.

    Tensors that do not have two axes are merged in blocks and need none.
    """

    def needed(shape: tuple[int, ...], inputs: int) -> int:
        if len(shape) != 2:
            return 0
        return full * shape[0] * shape[1] + square * min(shape) ** 2

    return needed
