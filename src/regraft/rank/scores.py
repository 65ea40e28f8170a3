"""Shared by the scores: checked inputs, and the spectrum of centred features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regraft.errors import NonFiniteError, TaskError

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def checked(features: ArrayLike, labels: ArrayLike) -> tuple[Floats, Labels]:
    """Features as fp64 [N, D] and labels as int64 [N], renumbered to 0..C-1 in the order of their first example.

    Raises:
        TaskError: Shapes that do not fit, or one class only.
        NonFiniteError: NaN or infinite features.
    """
    given, classes = np.asarray(features, dtype=np.float64), np.asarray(labels)
    if given.ndim != 2 or given.shape[1] == 0 or classes.shape != (len(given),):
        raise TaskError(
            f"Features of shape {given.shape} with labels of shape {classes.shape}.",
            "Expected [N, D] with D at least 1, and [N].",
        )
    if not np.isfinite(given).all():
        raise NonFiniteError("The features hold NaN or infinite values.", "Leave that checkpoint out.")
    _, first, inverse = np.unique(classes, return_index=True, return_inverse=True)
    if len(first) < 2:
        raise TaskError("All labels are the same; a score needs at least two classes.", "Give more examples.")
    place = np.empty(len(first), dtype=np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    return given, place[inverse]


@dataclass(frozen=True)
class Spectrum:
    """F = U diag(s) V^T without its null space: `u` [N, k] and `squares` s^2 [k], k = rank(F)."""

    u: Floats
    squares: Floats


def spectrum(features: Floats) -> Spectrum:
    """The left singular vectors and squared singular values of F [N, D], by the smaller Gram matrix.

    Directions below 1e-10 of the largest are rounding errors of the Gram matrix and are left out, so that appended zero
    columns change nothing.
    """
    count, width = features.shape
    if width <= count:
        squares, v = _eigh(features.T @ features)
        keep = squares > 1e-10 * max(squares[-1], 1e-300)
        u = features @ v[:, keep] / np.sqrt(squares[keep])
        return Spectrum(u, squares[keep])
    squares, u = _eigh(features @ features.T)
    keep = squares > 1e-10 * max(squares[-1], 1e-300)
    return Spectrum(u[:, keep], squares[keep])


def _eigh(gram: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix, on one thread.

    OpenBLAS waits actively at each of the thousands of small products inside: on two busy cores two threads took 2.3 s for
    384 columns where one takes 0.03 s. One thread also gives the same bits whatever the number of cores.
    """
    with _libraries().limit(limits=1, user_api="blas"):
        squares, vectors = np.linalg.eigh(gram)
    return squares, vectors


@cache
def _libraries() -> ThreadpoolController:
    """The linear algebra libraries of this process; looking for them takes 50 ms."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def one_hot(labels: Labels) -> Floats:
    """[N, C] of zeros and ones."""
    return np.eye(int(labels.max()) + 1)[labels]
