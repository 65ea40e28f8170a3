"""Multinomial logistic regression: the linear probe, for ranking and for heads.

    minimise over W [C, D], b [C]:   mean_i -log softmax(W z_i + b)_{y_i}  +  (l2 / 2) ||W||_F^2

on standardised features z = (x - mean) / std, by L-BFGS (Liu & Nocedal 1989) in fp32; the standardisation is folded back,
so that W and b apply to x itself. With l2 = 1 / (C_sk N) this is scikit-learn's LogisticRegression(C=C_sk) on z; it is
written here because that one can neither stop at a deadline nor walk a path of strengths from one solution to the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regraft.budget import Deadline
from regraft.errors import NonFiniteError
from regraft.randomness import permutation

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

STRENGTHS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4)
ITERATIONS = 150
CHOICE_ITERATIONS = 40
# A step that lowers the loss by less than this share, or a gradient below this, ends the iteration.
CHANGE = 1e-5
GRADIENT = 1e-5
ABSENT = -30.0
HELD_OUT = 0.15
# Choosing the strength needs no more rows than this; the final fit uses all of them.
CHOICE_ROWS = 5000


@dataclass(frozen=True)
class Fitted:
    """A linear classifier on raw features.

    Attributes:
        weight: fp32 [C, D].
        bias: fp32 [C].
        l2: The strength that was used.
        iterations: Of the final fit; together with `l2` they make it again.
    """

    weight: Floats
    bias: Floats
    l2: float
    iterations: int

    def logits(self, features: Floats) -> Floats:
        """fp32 [N, C]."""
        return np.asarray(features @ self.weight.T + self.bias, dtype=np.float32)


def fit_logistic(
    features: Floats,
    labels: Labels,
    n_classes: int,
    *,
    l2: float | None = None,
    max_iter: int = ITERATIONS,
    seed: int = 0,
    deadline: Deadline | None = None,
) -> Fitted:
    """Fit the classifier.

    Args:
        features: fp32 [N, D].
        labels: int64 [N] in [0, n_classes); a class without examples gets a very low bias.
        l2: Strength of the penalty; None chooses from `STRENGTHS` by accuracy on a held-out part (by likelihood when equal).
        max_iter: Most L-BFGS iterations of the final fit.
        deadline: Iterating stops when it is over, with what has been found so far.

    Raises:
        NonFiniteError: NaN or infinite features.
    """
    given = np.ascontiguousarray(features, dtype=np.float32)
    if not np.isfinite(given).all():
        raise NonFiniteError("The features hold NaN or infinite values.", "Leave that checkpoint out.")
    mean = given.mean(axis=0, dtype=np.float64)
    std = np.sqrt(sum(((part - mean) ** 2).sum(axis=0) for part in _parts(given)) / len(given))
    # Constant as far as fp32 can tell, or dead: trained encoders have columns of 1e-32, and a weight of 1e31 on one of them
    # leaves the probe as it is but the gradients of a fine-tune that starts from it at infinity.
    std[(std <= 1e-7 * np.abs(mean)) | (std <= 1e-6 * std.max(initial=0.0)) | (std == 0.0)] = 1.0
    z = np.empty_like(given)
    for rows, into in zip(_parts(given), _parts(z), strict=True):
        into[...] = (rows - mean) / std
    if l2 is None:
        part = deadline.part(0.6 * deadline.left()) if deadline is not None else None
        l2 = choose_strength(z, labels, n_classes, seed=seed, deadline=part)
    theta, iterations = _minimise(z, labels, n_classes, l2, max_iter, None, deadline)
    weight, bias = theta[:, :-1].astype(np.float64), theta[:, -1].astype(np.float64)
    weight = weight / std
    return Fitted(weight.astype(np.float32), (bias - weight @ mean).astype(np.float32), l2, iterations)


def _parts(rows: Floats) -> list[Floats]:
    """Views of a few rows each: what is computed in fp64 from one is small beside the whole."""
    return [rows[start : start + 4096] for start in range(0, len(rows), 4096)]


def choose_strength(
    z: Floats, labels: Labels, n_classes: int, *, seed: int = 0, deadline: Deadline | None = None
) -> float:
    """The strength that does best on a held-out part, walking from strong to weak until it gets worse twice."""
    order = permutation(len(labels), seed, "strength")[:CHOICE_ROWS]
    held = max(1, round(HELD_OUT * len(order)))
    seen, unseen = order[held:], order[:held]
    best, best_score, worse = STRENGTHS[1], (-1.0, -np.inf), 0
    theta = None
    for l2 in STRENGTHS:
        if len(seen) < 2 or (deadline is not None and deadline.left() <= 0):
            break
        theta, _ = _minimise(z[seen], labels[seen], n_classes, l2, CHOICE_ITERATIONS, theta, deadline)
        logits = z[unseen] @ theta[:, :-1].T + theta[:, -1]
        accuracy = float((logits.argmax(axis=1) == labels[unseen]).mean())
        score = (accuracy, -_cross_entropy(logits, labels[unseen]))
        if score > best_score:
            best, best_score, worse = l2, score, 0
        else:
            worse += 1
            if worse == 2:
                break
    return best


def _minimise(
    z: Floats,
    labels: Labels,
    n_classes: int,
    l2: float,
    max_iter: int,
    start: Floats | None,
    deadline: Deadline | None,
) -> tuple[Floats, int]:
    """The minimiser as [C, D+1] (the last column is the bias), and the iterations that were made."""
    import torch

    count, width = z.shape
    present, inverse = np.unique(labels, return_inverse=True)
    x, y = torch.from_numpy(z), torch.from_numpy(inverse.astype(np.int64))
    begin = np.zeros((n_classes, width + 1), dtype=np.float32) if start is None else start
    weight = torch.from_numpy(np.ascontiguousarray(begin[present, :-1]))
    bias = torch.from_numpy(np.ascontiguousarray(begin[present, -1]))
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=1, max_eval=20, history_size=10, tolerance_grad=GRADIENT, tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip
    rows, at = torch.arange(count), weight.new_full((1,), torch.nan)
    loss = weight.new_zeros(())

    def loss_and_gradient() -> torch.Tensor:
        # A step of one iteration asks first for the point where the last one ended: that is known, and half of the work.
        nonlocal at, loss
        asked = torch.cat([weight.ravel(), bias])
        if torch.equal(asked, at):
            return loss
        # By hand: autograd would keep the logits and their logarithms, and take twice as long.
        logs = torch.addmm(bias, x, weight.T).log_softmax(dim=1)
        at, loss = asked, 0.5 * l2 * weight.square().sum() - logs[rows, y].mean()
        logs.exp_()[rows, y] -= 1.0
        weight.grad = (logs.T @ x).div_(count).add_(weight, alpha=l2)
        bias.grad = logs.mean(dim=0)
        return loss

    made, before = 0, float("inf")
    with torch.no_grad():
        while made < max_iter and (deadline is None or deadline.left() > 0 or made == 0):
            solver.step(loss_and_gradient)  # type: ignore[no-untyped-call]
            made, value = made + 1, float(loss)
            if not before - value > CHANGE * abs(value):
                break
            before = value
    # Without examples the likelihood pushes a bias down for ever; a fixed floor keeps softmax finite and the class away.
    theta = np.zeros((n_classes, width + 1), dtype=np.float32)
    theta[:, -1] = ABSENT
    theta[present] = torch.cat([weight, bias[:, None]], dim=1).numpy()
    return theta, made


def _cross_entropy(logits: Floats, labels: Labels) -> float:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]).mean())
