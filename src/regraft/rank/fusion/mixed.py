"""The linear mixed model: effects that many observations share, each drawn from a block's normal distribution.

    y = sum_k X_k b_k + e,     b_k ~ N(0, v_k I),     e_n ~ N(0, s + d_n)

d_n is what is known of the error of observation n beforehand, such as the sampling variance of an accuracy; it weighs the
observation by 1 / (s + d_n), as in random-effects meta-regression (DerSimonian & Laird 1986; Raudenbush & Bryk 1985). The
variances v_k and s are those of the largest marginal likelihood, y ~ N(0, sum_k v_k X_k X_k^T + diag(s + d)), times sqrt(v_k)
for each block, which keeps a variance that a few levels hardly tell anything of away from zero; where some d_n > 0 times
sqrt(s), too, for then s can vanish like any other variance. Given them the effects are normal, with mean and covariance in
closed form (best linear unbiased prediction). A level that was never seen keeps its prior, N(0, v_k): what is not known is
said to be not known.

Sources: Henderson (1975), Best linear unbiased estimation and prediction under a selection model, Biometrics 31; Laird & Ware
(1982), Random-effects models for longitudinal data, Biometrics 38; DerSimonian & Laird (1986), Meta-analysis in clinical
trials, Controlled Clinical Trials 7; Raudenbush & Bryk (1985), Empirical Bayes meta-analysis, Journal of Educational Statistics
10; Chung, Rabe-Hesketh, Dorie, Gelman & Liu (2013), A nondegenerate penalized likelihood estimator for variance parameters in
multilevel models, Psychometrika 78, for the factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import NonFiniteError

Floats = NDArray[np.float64]

# Variances relative to that of y: below the first an effect is nothing, above the second a prior is flat.
SMALLEST, LARGEST = 1e-8, 1e4
ROUNDS = 200
# Numbers of a design above which its zeros are left out of products: nearly all of a column for each of 1,500 checkpoints.
DENSE = 2**18


@dataclass(frozen=True)
class Fit:
    """The effects given the observations.

    Attributes:
        mean: Of all effects, [D], the blocks one after another.
        covariance: [D, D].
        variances: v_k of each block.
        noise: s, the variance of an observation around its effects, beside what was known of it.
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


def fit(
    design: Floats,
    target: Floats,
    blocks: Sequence[int],
    *,
    fixed: Sequence[float | None] = (),
    sampling: Floats | None = None,
) -> Fit:
    """Fit the model.

    Args:
        design: [N, D], the columns of all blocks side by side.
        target: [N].
        blocks: Columns of each block; they add up to D.
        fixed: v_k for blocks whose variance is not to be found (None: find it); missing ones are found.
        sampling: d [N], the known part of each observation's variance; None for zeros.

    Raises:
        NonFiniteError: NaN or infinite numbers.
        ValueError: Shapes that do not fit.
    """
    from scipy.optimize import minimize

    if design.ndim != 2 or target.shape != (len(design),) or sum(blocks) != design.shape[1] or not len(target):
        raise ValueError(f"design {design.shape}, target {target.shape}, blocks of {sum(blocks)} columns")
    sampling = np.zeros(len(target)) if sampling is None else sampling
    if sampling.shape != target.shape or (sampling < 0).any():
        raise ValueError(f"target {target.shape}, known variances {sampling.shape}, at least {sampling.min()}")
    if not (np.isfinite(design).all() and np.isfinite(target).all() and np.isfinite(sampling).all()):
        raise NonFiniteError("The observations hold NaN or infinite numbers.", "Leave those rows out.")
    scale = float(target.std()) or 1.0
    seen = _Seen.of(design, target / scale, sampling / scale**2, blocks)
    known = [None if value is None else value / scale**2 for value in [*fixed, *[None] * (len(blocks) - len(fixed))]]
    free = [at for at, value in enumerate(known) if value is None]

    def variances(logs: Floats) -> Floats:
        values = np.array([1.0 if value is None else value for value in known])
        values[free] = np.exp(logs[:-1])
        return values

    kept_from_zero = slice(None) if sampling.any() else slice(-1)

    def cost(logs: Floats) -> float:
        return -seen.evidence(variances(logs), float(np.exp(logs[-1]))) - 0.5 * float(logs[kept_from_zero].sum())

    bounds = [(np.log(SMALLEST), np.log(LARGEST))] * (len(free) + 1)
    start = np.full(len(free) + 1, np.log(0.1))
    found = minimize(cost, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": ROUNDS})
    chosen, noise = variances(found.x), float(np.exp(found.x[-1]))
    mean, covariance = seen.effects(chosen, noise)
    evidence = seen.evidence(chosen, noise) - len(target) * np.log(scale)
    return Fit(mean * scale, covariance * scale**2, tuple(chosen * scale**2), noise * scale**2, evidence)


@dataclass(frozen=True)
class _Products:
    """With W = diag(1 / (s + d)) = scale * diag(w): X^T w X, X^T w y, y^T w y, and log det W^-1."""

    scale: float
    gram: Floats
    moment: Floats
    square: float
    logdet: float


@dataclass(frozen=True)
class _Seen:
    """What the observations say, in D dimensions.

    The levels of one block never occur together in a row, so its part of X^T W X is diagonal; `levels` are the columns of the
    largest such block, which the evidence eliminates by a Schur complement: 1,500 checkpoints cost no more than their number.
    Where all d are equal the products do not depend on s but for their scale, and are made once (`plain`).
    """

    design: Any  # [N, D], an array or a sparse one
    target: Floats
    sampling: Floats
    blocks: Sequence[int]
    plain: _Products
    levels: slice

    @classmethod
    def of(cls, design: Floats, target: Floats, sampling: Floats, blocks: Sequence[int]) -> _Seen:
        from scipy.sparse import csr_array

        held = design if design.size <= DENSE else csr_array(design)
        plain = _products(held, target, np.ones(len(target)))
        ends = np.cumsum([0, *blocks])
        spans = [slice(start, end) for start, end in pairwise(ends.tolist())]
        gram = plain.gram
        apart = [span for span in spans if np.count_nonzero(gram[span, span]) == np.count_nonzero(np.diag(gram)[span])]
        largest = max(apart, key=lambda span: span.stop - span.start, default=slice(0, 0))
        return cls(held, target, sampling, blocks, plain, largest)

    def products(self, noise: float) -> _Products:
        """For s = noise."""
        if (self.sampling == self.sampling[0]).all():
            variance = noise + float(self.sampling[0])
            return replace(self.plain, scale=1.0 / variance, logdet=len(self.target) * float(np.log(variance)))
        return _products(self.design, self.target, noise + self.sampling)

    def evidence(self, variances: Floats, noise: float) -> float:
        """log N(y; 0, sum_k v_k X_k X_k^T + diag(s + d)), by the matrix determinant and inversion lemmas."""
        from scipy.linalg import solve_triangular

        made = self.products(noise)
        gram, scale = made.gram, made.scale
        spread, rest = np.repeat(variances, self.blocks), np.ones(len(gram), bool)
        rest[self.levels] = False
        own = np.diag(gram)[self.levels] * scale + 1.0 / spread[self.levels]
        cross = gram[rest, self.levels] * scale
        schur = gram[np.ix_(rest, rest)] * scale + np.diag(1.0 / spread[rest]) - (cross / own) @ cross.T
        lower = np.linalg.cholesky(schur)
        first, second = made.moment[self.levels] * scale, made.moment[rest] * scale
        half = solve_triangular(lower, second - cross @ (first / own), lower=True)
        explained = first @ (first / own) + half @ half
        logdet = made.logdet + np.log(spread).sum() + np.log(own).sum() + 2 * np.log(np.diag(lower)).sum()
        return float(-0.5 * (logdet + made.square * scale - explained + len(self.target) * np.log(2 * np.pi)))

    def effects(self, variances: Floats, noise: float) -> tuple[Floats, Floats]:
        """Mean and covariance of the effects given y: (X^T W X + diag(1 / v))^-1 X^T W y, and that inverse."""
        made = self.products(noise)
        inverse = np.linalg.inv(made.gram * made.scale + np.diag(1.0 / np.repeat(variances, self.blocks)))
        covariance = 0.5 * (inverse + inverse.T)
        return covariance @ made.moment * made.scale, covariance


def _products(design: Any, target: Floats, variance: Floats) -> _Products:
    """For variances of the observations [N]."""
    weights = 1.0 / variance
    gram = design.T @ (design * weights[:, None])
    dense = gram if isinstance(gram, np.ndarray) else gram.toarray()
    weighed = weights * target
    return _Products(1.0, dense, design.T @ weighed, float(target @ weighed), float(np.log(variance).sum()))
