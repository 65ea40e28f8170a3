"""The leading singular directions of large matrices: exact, in float64, with the same signs every time.

Less than a full SVD is needed here, and had in a fraction of its time:

- `leading`: the best approximation of rank r (Eckart & Young 1936), from the r largest eigenvectors of the smaller Gram
  matrix. Its eigenvalues are squares, so that directions below 1e-7 of the largest one are blurred among each other; float32
  weights do not hold such directions either. The singular values are computed again from the matrix itself.
- `left_basis`: the left singular directions that several matrices share.

Both first look for a much smaller space that holds everything but rounding: the changes of LoRA adapters lie in one. A random
projection finds it (Halko, Martinsson & Tropp 2009, arXiv 0909.4061); what it leaves out is *measured*, and unless that is less
than the rounding of the weights, the projection is thrown away. So the result never rests on chance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from regraft.merge import flops
from regraft.randomness import raw_bits

Floats = NDArray[np.float64]
Matrix = NDArray[np.floating]

# What rounding to float32 changes a number by at most, as a share of it: two weights that differ by less are the same.
HALF_UNIT = 2.0**-24
# Singular values below this share of the largest count as zero.
NOTHING = 1e-6
# Rows and columns of a matrix that is worth a projection, and the width of the projection.
WORTH, WIDTH = 512, 128
_BLOCK = 1024  # rows or columns that are turned into float64 at a time


def leading(matrix: Matrix, rank: int, noise: float = 0.0) -> tuple[Floats, Floats, Floats]:
    """The `rank` largest singular triplets, fewer when the matrix has fewer: U [m, k], S [k], V^T [k, n].

    In every column of U the entry of the largest magnitude (the first of them) is positive.

    Args:
        matrix: [m, n], float32 or float64.
        rank: At least 1.
        noise: Frobenius norm of what may be taken for rounding and left out.
    """
    rows, columns = matrix.shape
    if not matrix.any():
        return np.zeros((rows, 0)), np.zeros(0), np.zeros((0, columns))
    found = _small_space([matrix], noise)
    if found is not None and found.shape[1] >= rank:
        inner, values, right = np.linalg.svd(product(matrix.T, found).T, full_matrices=False)
        left = found @ inner
    elif rows < columns:
        right, values, left = (part.T for part in _leading_tall(matrix.T, rank))
    else:
        left, values, right = _leading_tall(matrix, rank)
    kept = min(rank, _needed(np.square(values), energy(matrix), noise))
    left, values, right = left[:, :kept], values[:kept], right[:kept]
    signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(kept)])
    return left * signs, values, right * signs[:, None]


def left_basis(matrices: Sequence[Matrix], noise: float = 0.0) -> Floats:
    """The left singular directions U [m, k] of the matrices side by side, [M_1 ... M_n], the strongest first.

    Directions are kept until what is left of all matrices together is at most `noise`, and none below 1e-6 of the strongest.
    """
    rows = matrices[0].shape[0]
    if not any(matrix.any() for matrix in matrices):
        return np.zeros((rows, 0))
    space = _small_space(matrices, noise)
    if space is None and rows > sum(matrix.shape[1] for matrix in matrices):
        space = _orthonormal(np.concatenate(matrices, axis=1).astype(np.float64))
    gram = sum(_gram(matrix if space is None else product(matrix.T, space).T) for matrix in matrices)
    values, vectors = np.linalg.eigh(gram)
    kept = _needed(values[::-1], sum(map(energy, matrices)), noise)
    basis = vectors[:, ::-1][:, :kept]
    return np.asarray(basis if space is None else space @ basis)


def gram_bytes(shape: tuple[int, ...], inputs: int = 1) -> int:
    """Working memory of both functions for so many float32 matrices of a shape, in bytes, the matrices included."""
    rows, columns = shape
    small = min(rows, columns * inputs)
    joined = 16 * rows * columns * inputs if rows > columns * inputs else 0
    return 4 * inputs * rows * columns + 32 * small * small + 16 * _BLOCK * max(rows, columns) + joined


def leading_flops(shape: tuple[int, ...], rank: int, low: int | None = None) -> float:
    """What `leading` takes, as `regraft.merge.flops` counts; `low` is a rank that the matrix is known not to exceed.

    A projection of both sides, its basis, and of what it holds the decomposition; or, where it was not worth it or did not hold
    everything, the smaller Gram matrix, its leading eigenvectors, and the decomposition of the matrix in them.
    """
    if low == 0:
        return 0.0
    (rows, columns), total = shape, 0.0
    small, large = min(shape), max(shape)
    if small >= WORTH:
        total = 2 * flops.product(rows, columns, WIDTH) + flops.qr(rows, WIDTH)
        if low is not None and max(low, rank) <= WIDTH:
            turned = flops.product(columns, rows, WIDTH) + flops.svd(columns, WIDTH)
            return total + turned + flops.product(rows, WIDTH, WIDTH)
    kept = min(rank, small)
    total += flops.gram(small, large) + flops.leading_eigh(small, kept) + flops.product(large, small, kept)
    return total + flops.svd(large, kept) + flops.product(kept, kept, small)


def basis_flops(shape: tuple[int, ...], inputs: int, low: int | None = None) -> float:
    """What `left_basis` of so many matrices of a shape takes; `low` as in `leading_flops`, of all of them together."""
    if low == 0:
        return 0.0
    (rows, columns), total, wide = shape, 0.0, inputs * shape[1]
    if min(shape) >= WORTH:
        total = 2 * inputs * flops.product(rows, columns, WIDTH) + flops.qr(rows, WIDTH)
        if low is not None and low <= WIDTH:
            grams = inputs * (flops.product(columns, rows, WIDTH) + flops.gram(WIDTH, columns))
            return total + grams + flops.eigh(WIDTH) + flops.product(rows, WIDTH, low)
    if rows > wide:
        total += flops.qr(rows, wide) + inputs * flops.product(columns, rows, wide) + flops.product(rows, wide, wide)
    side = min(rows, wide)
    return total + inputs * flops.gram(side, columns) + flops.eigh(side)


def energy(matrix: Matrix) -> float:
    """The squared Frobenius norm, summed in float64."""
    flat = matrix.reshape(len(matrix), -1) if matrix.ndim > 1 else matrix.reshape(1, -1)
    return sum(
        float(np.square(flat[row : row + _BLOCK], dtype=np.float64).sum()) for row in range(0, len(flat), _BLOCK)
    )


def product(matrix: Matrix, other: Floats) -> Floats:
    """matrix @ other in float64, a block of rows at a time: the matrix is never there in float64 as a whole."""
    out = np.empty((len(matrix), other.shape[1]))
    for row in range(0, len(matrix), _BLOCK):
        np.matmul(matrix[row : row + _BLOCK].astype(np.float64), other, out=out[row : row + _BLOCK])
    return out


def _leading_tall(matrix: Matrix, rank: int) -> tuple[Floats, Floats, Floats]:
    """For at least as many rows as columns."""
    from scipy import linalg  # a tenth of a second that only this needs

    columns = matrix.shape[1]
    _, vectors = linalg.eigh(_gram(matrix.T), subset_by_index=[max(0, columns - rank), columns - 1])
    left, values, inner = np.linalg.svd(product(matrix, vectors), full_matrices=False)
    return left, values, inner @ vectors.T


def _gram(matrix: Matrix) -> Floats:
    """M M^T in float64, a block of columns at a time."""
    total = np.zeros((matrix.shape[0], matrix.shape[0]))
    for start in range(0, matrix.shape[1], _BLOCK):
        block = matrix[:, start : start + _BLOCK].astype(np.float64)
        total += block @ block.T
    return total


def _small_space(matrices: Sequence[Matrix], noise: float) -> Floats | None:
    """An orthonormal basis [m, WIDTH] of everything but `noise` in the matrices; None where that does not suffice."""
    rows, columns = matrices[0].shape
    if min(rows, columns) < WORTH:
        return None
    sketch = np.zeros((rows, WIDTH))
    for number, matrix in enumerate(matrices):
        sketch += product(matrix, _random_signs(columns, number))
    basis = _orthonormal(sketch)
    whole = sum(map(energy, matrices))
    held = sum(energy(product(matrix.T, basis)) for matrix in matrices)
    # The difference of the squares is itself rounded, to about 1e-15 of them.
    return basis if whole - held <= noise * noise - 1e-14 * whole else None


def _needed(energies: Floats, whole: float, noise: float) -> int:
    """How many of the directions, strongest first, hold all but `noise` of the whole energy and are worth their name."""
    left = whole - np.cumsum(energies)
    enough = int(np.argmax(left <= noise * noise)) + 1 if (left <= noise * noise).any() else len(energies)
    return min(enough, int((energies > NOTHING * NOTHING * energies[0]).sum()))


def _orthonormal(matrix: Floats) -> Floats:
    return np.asarray(np.linalg.qr(matrix)[0])


def _random_signs(rows: int, number: int) -> Floats:
    """[rows, WIDTH] of -1 and 1, always the same."""
    bits = raw_bits(-(-rows * WIDTH // 64), 0, "low rank", number)
    signs = np.unpackbits(bits.view(np.uint8), count=rows * WIDTH)
    return np.asarray(2.0 * signs.reshape(rows, WIDTH) - 1.0, np.float64)
