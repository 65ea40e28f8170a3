"""What the scores share: checked inputs, and everything that several of them need of the same features, computed once.

given = prepare(features, labels)
h_score(given), transrate(given), gbc(given)     # one eigendecomposition serves them all
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regraft.errors import NonFiniteError, TaskError
from regraft.randomness import permutation

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

# Of a column's size: values that differ by no more are one value with rounding errors of whoever made the features.
ROUNDING = 1e-13

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Array = TypeVar("Array", bound=NDArray[Any])


def checked(features: ArrayLike, labels: ArrayLike) -> tuple[Floats, Labels]:
    """Features as fp64 [N, D] and labels as int64 [N], renumbered to 0..C-1 in the order of their first example.

    Raises:
        TaskError: Shapes that do not fit, fewer than two examples, one class only, or values that are no numbers.
        NonFiniteError: NaN or infinite features or labels.
    """
    given, classes = numbers(features, "features"), np.asarray(labels)
    if given.ndim != 2 or given.shape[1] == 0 or classes.shape != (len(given),):
        raise TaskError(
            f"Features of shape {given.shape} with labels of shape {classes.shape}.",
            "Expected [N, D] with D at least 1, and [N].",
        )
    if not np.isfinite(given).all():
        raise NonFiniteError("The features hold NaN or infinite values.", "Leave that checkpoint out.")
    return given, renumbered(classes)


def numbers(values: ArrayLike, what: str) -> Floats:
    """Values as fp64, without a copy where they are so already."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TaskError(f"The {what} are not an array of numbers ({error}).", "Give floats.") from error


def renumbered(classes: NDArray[np.generic]) -> Labels:
    """Labels of any kind as 0..C-1, in the order of their first example; there must be two classes."""
    if len(classes) < 2:
        raise TaskError(f"{len(classes)} examples; a score needs at least two.", "Give more examples.")
    if classes.dtype.kind == "f" and not np.isfinite(classes).all():
        raise NonFiniteError("The labels hold NaN or infinite values.", "Leave those examples out.")
    try:
        _, first, inverse = np.unique(classes, return_index=True, return_inverse=True)
    except TypeError as error:
        raise TaskError(f"Labels of several kinds ({error}).", "Give numbers or texts, not both.") from error
    if len(first) < 2:
        raise TaskError("All labels are the same; a score needs at least two classes.", "Give more examples.")
    place = np.empty(len(first), dtype=np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    return place[inverse]


@dataclass(frozen=True)
class Spectrum:
    """F = U diag(s) V^T without its null space: `u` [N, k] and `squares` s^2 [k], ascending, k = rank(F)."""

    u: Floats
    squares: Floats

    @property
    def points(self) -> Floats:
        """The rows of F in the basis V, [N, k]: all distances and angles are those of F."""
        return self.u * np.sqrt(self.squares)


@dataclass(frozen=True, eq=False)
class Prepared:
    """Features [N, D] and labels [N] of one checkpoint on one task, with what several scores need of them.

    Everything is computed when first asked for, kept, and read-only.
    """

    features: Floats
    labels: Labels

    @cached_property
    def counts(self) -> Floats:
        """Examples of each class [C]."""
        return np.bincount(self.labels).astype(np.float64)

    @cached_property
    def one_hot(self) -> Floats:
        """[N, C]."""
        return _kept(one_hot(self.labels))

    @cached_property
    def mean(self) -> Floats:
        """[D]."""
        return _kept(self.features.mean(axis=0))

    @cached_property
    def centred(self) -> Floats:
        """Features less their mean [N, D]; exactly 0 in constant columns.

        Those are told by their own range: the mean of N equal numbers is off by a rounding error that grows with N.
        """
        centred = self.features - self.mean
        high, low = self.features.max(axis=0), self.features.min(axis=0)
        centred[:, high - low <= ROUNDING * np.maximum(np.abs(high), np.abs(low))] = 0.0
        return _kept(centred)

    @cached_property
    def class_means(self) -> Floats:
        """[C, D]."""
        return _kept((self.one_hot.T @ self.features) / self.counts[:, None])

    @cached_property
    def raw_spectrum(self) -> Spectrum:
        """Of the features as they are."""
        return spectrum(self.features)

    @cached_property
    def spectrum(self) -> Spectrum:
        """Of the centred features."""
        return spectrum(self.centred)

    @cached_property
    def projected(self) -> Floats:
        """U^T Y of the centred spectrum and the one-hot labels [k, C]: where the classes lie in the feature space."""
        return _kept(self.spectrum.u.T @ self.one_hot)


# What a score takes: an array, or an array that was prepared.
Given: TypeAlias = Union[ArrayLike, Prepared]  # noqa: UP007  (ArrayLike has no `|` on every supported version)


def prepare(features: Given, labels: ArrayLike | None = None) -> Prepared:
    """Checked features and labels; what is prepared already is returned as it is.

    Features that are fp64 already are not copied: change the array afterwards, and what was computed is of the old values.

    Raises:
        TaskError: As `checked`; no labels; or other labels than the features were prepared with.
        NonFiniteError: NaN or infinite features or labels.
    """
    if isinstance(features, Prepared):
        if labels is not None and not np.array_equal(renumbered(np.asarray(labels)), features.labels):
            raise TaskError("The features were prepared with other labels.", "Prepare them again, or give no labels.")
        return features
    if labels is None:
        raise TaskError("Features without labels.", "Give labels [N], or features that were prepared with them.")
    given, classes = checked(features, labels)
    view = given.view()
    return Prepared(_kept(view), _kept(classes))


def _kept(array: Array) -> Array:
    """The array, read-only: several scores share it."""
    array.flags.writeable = False
    return array


def drawn(labels: Labels, limit: int, seed: int, purpose: str) -> NDArray[np.int64]:
    """At most `limit` rows, ascending, that hold each class in proportion; which of a class is drawn with the seed."""
    if len(labels) <= limit:
        return np.arange(len(labels))
    order = permutation(len(labels), seed, purpose)
    by_class = order[np.argsort(labels[order], kind="stable")]
    return np.sort(by_class[np.linspace(0, len(labels) - 1, limit).round().astype(np.int64)])


def fewer(given: Prepared, limit: int, seed: int, purpose: str) -> Prepared:
    """The examples themselves, or at most `limit` of them (`drawn`)."""
    if len(given.labels) <= limit:
        return given
    rows = drawn(given.labels, limit, seed, purpose)
    return prepare(given.features[rows], given.labels[rows])


def spectrum(features: Floats) -> Spectrum:
    """The left singular vectors and squared singular values of F [N, D], by the smaller Gram matrix.

    Directions below 1e-10 of the largest are rounding errors of the Gram matrix and are left out, so that appended zero
    columns change nothing.
    """
    count, width = features.shape
    if width <= count:
        squares, v = eigh(features.T @ features)
        keep = squares > 1e-10 * max(squares[-1], 1e-300)
        u = features @ v[:, keep] / np.sqrt(squares[keep])
        return Spectrum(u, squares[keep])
    squares, u = eigh(features @ features.T)
    keep = squares > 1e-10 * max(squares[-1], 1e-300)
    return Spectrum(u[:, keep], squares[keep])


def eigh(gram: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix, on one thread.

    OpenBLAS waits actively at each of the thousands of small products inside: on two busy cores two threads took 2.3 s for
    384 columns where one takes 0.03 s. One thread also gives the same bits whatever the number of cores.
    """
    with _libraries().limit(limits=1, user_api="blas"):
        squares, vectors = np.linalg.eigh(gram)
    return squares, vectors


def largest_eigenvalue(gram: Floats) -> float:
    """Of a symmetric matrix, on one thread."""
    with _libraries().limit(limits=1, user_api="blas"):
        return float(np.linalg.eigvalsh(gram)[-1])


@cache
def _libraries() -> ThreadpoolController:
    """The linear algebra libraries of this process; looking for them takes 50 ms."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def one_hot(labels: Labels) -> Floats:
    """[N, C] of zeros and ones."""
    return np.eye(int(labels.max()) + 1)[labels]
