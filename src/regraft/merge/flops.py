"""How much linear algebra a merge takes, and how fast this machine does it: what a preflight predicts time from.

Counted are operations of matrix products in float64 (a multiplication and an addition are two). A decomposition counts as the
products that take as long: its operations as the books have them (Golub and Van Loan 2013, Matrix Computations, 5.2, 8.3, 8.6)
over the share of a product's rate at which it runs. The shares were measured with OpenBLAS on one thread (x86-64 with AVX-512),
matrices of 384 to 1536 rows, beside a product of 384: eigenvectors 0.38 to 0.49 (18 to 24 k^3), thin singular value
decompositions 0.2 to 0.5; the steps that go through a matrix column by column (QR, LU, a reduction to tridiagonal form) 0.1
to 0.3. Matrices below a hundred rows are slower than that, and take no time.

What a method does beside it (decoding, sums, sorting) is not counted: that is a few passes over the bytes.
"""

from __future__ import annotations

import time

import numpy as np

DECOMPOSED, REDUCED = 0.4, 0.25
# Of float32, in the operations of a product of float64: twice as many fit a register.
SINGLE = 0.5
_SIDE = 384  # of the product that is timed: about 0.1e9 operations


def product(rows: int, inner: int, columns: int) -> float:
    """[rows, inner] @ [inner, columns]."""
    return 2.0 * rows * inner * columns


def gram(size: int, inner: int) -> float:
    """A A^T of [size, inner]: one half, the other is its mirror image."""
    return 1.0 * size * size * inner


def eigh(size: int) -> float:
    """All eigenvectors of a symmetric matrix."""
    return 9.0 * size**3 / DECOMPOSED


def leading_eigh(size: int, count: int) -> float:
    """The `count` largest eigenvalues of a symmetric matrix, and their vectors."""
    return (4.0 / 3.0 * size**3 + 2.0 * size * size * count) / REDUCED


def svd(rows: int, columns: int) -> float:
    """The thin singular value decomposition."""
    long, short = max(rows, columns), min(rows, columns)
    return (14.0 * long * short**2 + 8.0 * short**3) / DECOMPOSED


def qr(rows: int, columns: int) -> float:
    """An orthonormal basis of the columns, of which there are fewer than rows."""
    return 4.0 * rows * columns**2 / REDUCED


def solve(size: int, columns: int) -> float:
    """A square system with so many right sides."""
    return (2.0 / 3.0 * size**3 + 2.0 * size * size * columns) / REDUCED


def seconds_per_flop() -> float:
    """How long one operation of a product takes here and now, on the threads that linear algebra has where this is called."""
    one = np.linspace(0.5, 1.5, _SIDE * _SIDE).reshape(_SIDE, _SIDE)
    out, best = one @ one, float("inf")  # the first one makes the library get ready
    for _ in range(6):
        started = time.perf_counter()
        np.matmul(one, one, out=out)
        best = min(best, time.perf_counter() - started)
    return best / product(_SIDE, _SIDE, _SIDE)
