"""Spherical linear interpolation: from one checkpoint to another along an arc."""

from __future__ import annotations

import numpy as np

from regraft.merge.register import Range, Traits, merge_method
from regraft.merge.stack import Stack
from regraft.methods import Source

# Beyond this cosine of the angle, of either sign, the arc is a line, or not defined: the usual limit.
PARALLEL = 0.9995


@merge_method(
    "slerp",
    source=Source("Shoemake", 1985, "", "Animating rotation with quaternion curves"),
    claim="between two checkpoints the arc keeps the size of the weights, where the straight line shrinks them",
    traits=Traits(base="none", inputs=(2, 2), options={"t": Range(0.0, 1.0)}),
    invariances=("identity",),
)
def slerp(stack: Stack, *, t: float = 0.5) -> np.ndarray | None:
    """sin((1 - t) a) / sin(a) x_1 + sin(t a) / sin(a) x_2, where a is the angle between the two tensors.

    Each tensor is one vector, however many axes it has. Where the cosine of the angle is beyond 0.9995 or -0.9995, and for
    tensors of zeros, it is (1 - t) x_1 + t x_2. The inputs' weights are not used: `t` says how far to go. Neither the order
    of the inputs nor an input is indifferent: t = 0 is the first one, whatever the second is.
    """
    return stack.combine(arc_coefficients(stack.gram(deltas=False), float(t)))


def arc_coefficients(gram: np.ndarray, t: float) -> np.ndarray:
    """The two coefficients, float64 [2], from the inner products of the tensors, float64 [2, 2]."""
    norms = np.sqrt(np.diag(gram))
    straight = np.array([1.0 - t, t])
    if not norms.all():
        return straight
    cosine = gram[0, 1] / norms[0] / norms[1]
    if abs(cosine) > PARALLEL:
        return straight
    angle = np.arccos(cosine)
    return np.asarray(np.sin(straight * angle) / np.sin(angle))
