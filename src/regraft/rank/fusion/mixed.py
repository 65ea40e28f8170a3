"""The linear mixed model: effects that many observations share, each drawn from a block's normal distribution.

    y = sum_k X_k b_k + e,     b_k ~ N(0, v_k I),     e ~ N(0, s I)

The variances v_k and s are those of the largest marginal likelihood, y ~ N(0, sum_k v_k X_k X_k^T + s I), times sqrt(v_k) for
each block, which keeps a variance that a few levels hardly tell anything of away from zero; given them the effects are normal,
with mean and covariance in closed form (best linear unbiased prediction). A level that was never seen keeps its prior,
N(0, v_k): what is not known is said to be not known.

Sources: Henderson (1975), Best linear unbiased estimation and prediction under a selection model, Biometrics 31; Laird & Ware
(1982), Random-effects models for longitudinal data, Biometrics 38; Chung, Rabe-Hesketh, Dorie, Gelman & Liu (2013), A
nondegenerate penalized likelihood estimator for variance parameters in multilevel models, Psychometrika 78, for the factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from regraft.errors import NonFiniteError

Floats = NDArray[np.float64]

# Variances relative to that of y: below the first an effect is nothing, above the second a prior is flat.
SMALLEST, LARGEST = 1e-8, 1e4
ROUNDS = 200


@dataclass(frozen=True)
class Fit:
    """The effects given the observations.

    Attributes:
        mean: Of all effects, [D], the blocks one after another.
        covariance: [D, D].
        variances: v_k of each block.
        noise: s, the variance of an observation around its effects.
        evidence: Log marginal likelihood of y.
    """

    mean: Floats
    covariance: Floats
    variances: tuple[float, ...]
    noise: float
    evidence: float

    def predict(self, design: Floats) -> tuple[Floats, Floats]:
        """Mean [M] and covariance [M, M] of the values at new rows [M, D]; the noise of an observation is not in it."""
        return design @ self.mean, design @ self.covariance @ design.T


def fit(design: Floats, target: Floats, blocks: Sequence[int], *, fixed: Sequence[float | None] = ()) -> Fit:
    """Fit the model.

    Args:
        design: [N, D], the columns of all blocks side by side.
        target: [N].
        blocks: Columns of each block; they add up to D.
        fixed: v_k for blocks whose variance is not to be found (None: find it); missing ones are found.

    Raises:
        NonFiniteError: NaN or infinite numbers.
        ValueError: Shapes that do not fit.
    """
    from scipy.optimize import minimize

    if design.ndim != 2 or target.shape != (len(design),) or sum(blocks) != design.shape[1] or not len(target):
        raise ValueError(f"design {design.shape}, target {target.shape}, blocks of {sum(blocks)} columns")
    if not (np.isfinite(design).all() and np.isfinite(target).all()):
        raise NonFiniteError("The observations hold NaN or infinite numbers.", "Leave those rows out.")
    scale = float(target.std()) or 1.0
    seen = _Seen.of(design, target / scale, blocks)
    known = [None if value is None else value / scale**2 for value in [*fixed, *[None] * (len(blocks) - len(fixed))]]
    free = [at for at, value in enumerate(known) if value is None]

    def variances(logs: Floats) -> Floats:
        values = np.array([1.0 if value is None else value for value in known])
        values[free] = np.exp(logs[:-1])
        return values

    def cost(logs: Floats) -> float:
        return -seen.evidence(variances(logs), float(np.exp(logs[-1]))) - 0.5 * float(logs[:-1].sum())

    bounds = [(np.log(SMALLEST), np.log(LARGEST))] * (len(free) + 1)
    start = np.full(len(free) + 1, np.log(0.1))
    found = minimize(cost, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": ROUNDS})
    chosen, noise = variances(found.x), float(np.exp(found.x[-1]))
    mean, covariance = seen.effects(chosen, noise)
    evidence = seen.evidence(chosen, noise) - len(target) * np.log(scale)
    return Fit(mean * scale, covariance * scale**2, tuple(chosen * scale**2), noise * scale**2, evidence)


@dataclass(frozen=True)
class _Seen:
    """What the observations say, in D dimensions: X^T X, X^T y, y^T y and N.

    The levels of one block never occur together in a row, so its part of X^T X is diagonal; `levels` are the columns of the
    largest such block, which the evidence eliminates by a Schur complement: 1,500 checkpoints cost no more than their number.
    """

    gram: Floats
    moment: Floats
    square: float
    count: int
    blocks: Sequence[int]
    levels: slice

    @classmethod
    def of(cls, design: Floats, target: Floats, blocks: Sequence[int]) -> _Seen:
        gram, ends = design.T @ design, np.cumsum([0, *blocks])
        spans = [slice(start, end) for start, end in pairwise(ends.tolist())]
        apart = [span for span in spans if np.count_nonzero(gram[span, span]) == np.count_nonzero(np.diag(gram)[span])]
        largest = max(apart, key=lambda span: span.stop - span.start, default=slice(0, 0))
        return cls(gram, design.T @ target, float(target @ target), len(target), blocks, largest)

    def evidence(self, variances: Floats, noise: float) -> float:
        """log N(y; 0, sum_k v_k X_k X_k^T + s I), by the matrix determinant and inversion lemmas."""
        from scipy.linalg import solve_triangular

        spread, rest = np.repeat(variances, self.blocks), np.ones(len(self.gram), bool)
        rest[self.levels] = False
        own = np.diag(self.gram)[self.levels] / noise + 1.0 / spread[self.levels]
        cross = self.gram[rest, self.levels] / noise
        schur = self.gram[np.ix_(rest, rest)] / noise + np.diag(1.0 / spread[rest]) - (cross / own) @ cross.T
        lower = np.linalg.cholesky(schur)
        first, second = self.moment[self.levels] / noise, self.moment[rest] / noise
        half = solve_triangular(lower, second - cross @ (first / own), lower=True)
        explained = first @ (first / own) + half @ half
        logdet = (
            self.count * np.log(noise) + np.log(spread).sum() + np.log(own).sum() + 2 * np.log(np.diag(lower)).sum()
        )
        return float(-0.5 * (logdet + self.square / noise - explained + self.count * np.log(2 * np.pi)))

    def effects(self, variances: Floats, noise: float) -> tuple[Floats, Floats]:
        """Mean and covariance of the effects given y: (X^T X / s + diag(1 / v))^-1 X^T y / s, and that inverse."""
        inverse = np.linalg.inv(self.gram / noise + np.diag(1.0 / np.repeat(variances, self.blocks)))
        covariance = 0.5 * (inverse + inverse.T)
        return covariance @ self.moment / noise, covariance
