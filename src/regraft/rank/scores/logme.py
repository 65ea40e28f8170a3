"""LogME: the log maximum evidence of a Bayesian linear model from features to labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from regraft.errors import NonFiniteError, TaskError
from regraft.methods import Source, method
from regraft.rank.scores.prepared import Floats, Given, Prepared, Spectrum, numbers, prepare, spectrum

# alpha / beta in units of the mean squared singular value. Noiseless data have no largest evidence (beta would grow for
# ever), labels that the features say nothing of have it at infinity: both ends need a bound.
RATIOS = np.logspace(-8, 8, 65)
GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0
# Golden sections that narrow the two grid steps around the best ratio to a relative 1e-7; the evidence is flat there.
SECTIONS = 35


SOURCE = Source(
    "You, Liu, Wang & Long",
    2021,
    "2102.11005",
    "LogME: practical assessment of pre-trained models for transfer learning",
)


@method(
    "rank",
    "logme",
    source=SOURCE,
    claim="the evidence of a linear model on frozen features predicts the accuracy after fine-tuning",
    needs=("features", "labels"),
    invariances=(
        "rotation",
        "scaling",
        "zero columns",
        "column permutation",
        "label permutation",
        "row permutation",
    ),
)
def logme(features: Given, labels: ArrayLike | None = None, *, seed: int = 0) -> float:
    """Log evidence per example, averaged over one-against-rest targets y in {0, 1}^N; higher is better.

        log p(y | F) = max over alpha, beta of
            N/2 log beta + D/2 log alpha - N/2 log 2 pi - beta/2 |F m - y|^2 - alpha/2 m^T m - 1/2 log |A|
        A = alpha I + beta F^T F,   m = beta A^-1 F^T y

    |A| counts the D - k directions that F does not have: leaving out their (D - k)/2 log alpha, as common copies do, makes
    the score grow when zero columns are appended. For a given ratio r = alpha / beta the best beta is N / q(r), so that

        log p = max over r of  N/2 log(N / (2 pi q(r))) - N/2 - 1/2 sum_i log(1 + s_i^2 / r),
        q(r)  = y^T (I + F F^T / r)^-1 y

    remains, a line search for each class. The fixed point of MacKay 1992 that the paper uses climbs to the same maximum, but
    after 200 rounds it can still be 5e-4 away.

    Args:
        features: [N, D], or prepared.
        labels: [N].
        seed: Not used; the score is deterministic.
    """
    given = prepare(features, labels)
    return _evidence(given.raw_spectrum, given.one_hot)


@method(
    "rank",
    "logme_regression",
    source=SOURCE,
    claim="the same evidence ranks models for real-valued targets",
    needs=("features", "targets"),
    invariances=("rotation", "scaling", "zero columns", "column permutation", "row permutation"),
)
def logme_regression(features: Given, targets: ArrayLike, *, seed: int = 0) -> float:
    """Log evidence per example of real-valued targets, averaged over their columns: `logme` with y as it is given.

    It is the logarithm of a density, so it depends on the unit of the targets (y in thousandths: log 1000 more), alike for all
    checkpoints. An intercept is not fitted: centre the targets, or give a column of ones.

    Args:
        features: [N, D], or prepared (their labels do not matter).
        targets: [N] or [N, T].
        seed: Not used; the score is deterministic.

    Raises:
        TaskError: Shapes that do not fit, fewer than two examples, or targets that are zero throughout.
        NonFiniteError: NaN or infinite features or targets.
    """
    values = numbers(targets, "targets")
    values = values[:, None] if values.ndim == 1 else values
    if isinstance(features, Prepared):
        given, found = features.features, features.raw_spectrum
    else:
        given = numbers(features, "features")
        if not np.isfinite(given).all():
            raise NonFiniteError("The features hold NaN or infinite values.", "Leave that checkpoint out.")
        found = None
    if given.ndim != 2 or values.ndim != 2 or 0 in (given.shape[1:] + values.shape[1:]) or len(given) != len(values):
        raise TaskError(
            f"Features of shape {given.shape} with targets of shape {values.shape}.",
            "Expected [N, D] with D at least 1, and [N] or [N, T].",
        )
    if len(given) < 2:
        raise TaskError(f"{len(given)} examples; a score needs at least two.", "Give more examples.")
    if not np.isfinite(values).all():
        raise NonFiniteError("The targets hold NaN or infinite values.", "Leave those examples out.")
    if not (values != 0).any(axis=0).all():
        raise TaskError("A column of targets is zero throughout: its evidence has no bound.", "Leave it out.")
    return _evidence(spectrum(given) if found is None else found, values)


def _evidence(found: Spectrum, targets: Floats) -> float:
    """Mean over the columns of the targets [N, T] of their largest log evidence per example."""
    squared = (found.u.T @ targets) ** 2
    rest = np.maximum((targets**2).sum(axis=0) - squared.sum(axis=0), 0.0)
    squares = found.squares / found.squares.mean() if found.squares.size else found.squares
    return float(_largest(squares, squared, rest, len(targets)).mean())


def _largest(squares: Floats, squared: Floats, rest: Floats, count: int) -> Floats:
    """Largest log evidence per example of each class [C]; `squared` = (U^T y)^2 [k, C], `rest` = |y|^2 - |U^T y|^2 [C]."""

    def evidence(ratio: Floats) -> Floats:
        """At one log ratio for each class [C], or one for all [1]."""
        over = squares[:, None] * np.exp(-ratio)
        q = (squared / (1.0 + over)).sum(axis=0) + rest
        return np.asarray(0.5 * (np.log(count / (2 * np.pi * q)) - 1.0) - 0.5 * np.log1p(over).sum(axis=0) / count)

    grid = np.log(RATIOS)
    best = np.argmax([evidence(grid[place : place + 1]) for place in range(len(grid))], axis=0)
    low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]
    for _ in range(SECTIONS):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        up = evidence(left) < evidence(right)
        low, high = np.where(up, left, low), np.where(up, high, right)
    return evidence((low + high) / 2)
