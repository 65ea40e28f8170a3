"""The Karcher mean: the centre of the checkpoints on the sphere, any number of them."""

from __future__ import annotations

import numpy as np

from regraft.errors import MethodError
from regraft.merge.register import Range, Traits, merge_method
from regraft.merge.stack import Stack
from regraft.methods import Source

STEPS = 100
# A step on the sphere, in radians, below which the mean has been reached.
CLOSE = 1e-12
# The logarithm of the opposite point is not defined; this near to it, it is not to be trusted.
OPPOSITE = np.pi - 1e-3


@merge_method(
    "karcher",
    source=Source("Karcher", 1977, "", "Riemannian center of mass and mollifier smoothing"),
    claim="slerp for any number of checkpoints: the point of the sphere with the least sum of squared angles",
    traits=Traits(base="none", options={"weight": Range(0.0, 1e6)}),
    invariances=("identity", "zero weight", "permutation"),
)
def karcher(stack: Stack) -> np.ndarray | None:
    """r * m, where m minimises sum_i w_i angle(m, x_i / |x_i|)^2 over the unit sphere, and r = sum_i w_i |x_i| / sum_i w_i.

    Each tensor is one vector. m is found by m <- exp_m(sum_i w_i log_m(u_i)) in the coefficients of the inputs, for which
    their inner products are enough. A tensor of zeros has no direction: it counts in r alone. Where an input lies opposite
    to the mean (numbers of different sign, say) there is no mean on the sphere, and the weighted average is taken.

    Raises:
        MethodError: A negative weight, or only zeros.
    """
    weights = stack.weights
    if (weights < 0.0).any() or not weights.any():
        raise MethodError(
            f"The weights of {stack.name!r} are {weights.tolist()}, expected positive ones.", "Correct the weights."
        )
    return stack.combine(mean_coefficients(stack.gram(deltas=False), weights / weights.sum()))


def mean_coefficients(gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The coefficients of the mean, float64 [n], from inner products, float64 [n, n], and weights that sum to 1."""
    norms = np.sqrt(np.diag(gram))
    share = np.where(norms > 0.0, weights, 0.0)
    if not share.any():
        return weights
    share = share / share.sum()
    safe = np.where(norms > 0.0, norms, 1.0)
    cosines = gram / safe / safe[:, None]

    def length(vector: np.ndarray) -> float:
        return float(np.sqrt(max(0.0, vector @ cosines @ vector)))

    start = length(share)
    if start < CLOSE:
        return weights
    mean = share / start
    for _ in range(STEPS):
        cosine = np.clip(cosines @ mean, -1.0, 1.0)
        angle = np.arccos(cosine)
        if (angle[share > 0.0] > OPPOSITE).any():
            return weights
        sine = np.sin(angle)
        pull = share * np.where(sine > 0.0, angle / np.where(sine > 0.0, sine, 1.0), 1.0)
        step = pull - (pull @ cosine) * mean
        size = length(step)
        if size < CLOSE:
            break
        mean = np.cos(size) * mean + np.sin(size) / size * step
        mean = mean / length(mean)
    return np.asarray((weights @ norms) * mean / safe)
