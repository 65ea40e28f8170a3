"""PED: SFDA after the classes have pushed each other apart, as fine-tuning would."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from regraft.errors import TaskError
from regraft.methods import Source, method
from regraft.rank.scores.prepared import Floats, Given, numbers, prepare, renumbered
from regraft.rank.scores.sfda import class_means, drawn_points, separation

STEPS = 6
TIME_STEP = 0.1
# Radius of a class in units of its standard deviation.
RADIUS = 2.0
# The motion ends when a step is no longer than this part of the first one.
EXIT = 0.5
LEAST_SPREAD = 1e-3


@method(
    "rank",
    "ped",
    source=Source(
        "Li, Hu, Ge, Shan & Duan",
        2023,
        "2308.15074",
        "Exploring model transferability through the lens of potential energy",
    ),
    claim="features that moved towards less potential energy are scored better, above all those learnt without labels",
    needs=("features", "labels"),
    invariances=("column permutation", "label permutation", "row permutation", "saturates at N < D"),
)
def ped(
    features: Given,
    labels: ArrayLike | None = None,
    *,
    seed: int = 0,
    reference: ArrayLike | None = None,
    radius: float = RADIUS,
    time_step: float = TIME_STEP,
) -> float:
    """SFDA of x_i + v_y, where the displacements v_c of the classes come from a repulsion between those that overlap.

    In columns standardised by reference data, classes are balls of mean m_c and radius r_c = b sqrt(sum_d var_cd). In each of at
    most 6 steps every pair moves apart along the line of the means by

        min(t^2 / 2 o, o),   o = max(r_i + r_j - |m_i - m_j|, 0)

    until a step's length sum_c |v_c|_1 is at most half the first one's; that step is not taken. Radii do not change. The authors
    standardise by features of the ImageNet validation set, and their code cannot do without; here the default is the task's own.
    Classes with equal means have no direction and do not push each other (the authors' code divides 0 by 0).

    Neither rotation (columns are standardised) nor scaling or zero columns (SFDA) leave it as it is. More than 5,000 examples are
    drawn from, each class in proportion.

    Args:
        features: [N, D], or prepared.
        labels: [N].
        seed: Of the draw.
        reference: Features of other data [M, D] whose mean and standard deviation standardise the columns.
        radius: b.
        time_step: t.

    Raises:
        TaskError: A reference that does not fit.
    """
    given = prepare(features, labels)
    other = given.features if reference is None else numbers(reference, "reference features")
    if other.ndim != 2 or len(other) == 0 or other.shape[1] != given.features.shape[1] or not np.isfinite(other).all():
        raise TaskError(
            f"Reference features of shape {other.shape} for features of shape {given.features.shape}.",
            "Expected finite numbers [M, D].",
        )
    spread = np.maximum(other.std(axis=0), LEAST_SPREAD)
    means = (given.class_means - other.mean(axis=0)) / spread
    variances = given.one_hot.T @ ((given.features - given.class_means[given.labels]) / spread) ** 2
    radii = radius * np.sqrt((variances / given.counts[:, None]).sum(axis=1))
    rows, points = drawn_points(given, seed, "ped")
    # Classes move along the lines between their means, so in any basis their new means are the same mixture of the old ones.
    mixture = displaced(means, radii, time_step)
    whole = class_means(given.spectrum.points, given.labels)
    moved = (mixture @ whole - whole)[given.labels[rows]]
    return separation(points + moved, renumbered(given.labels[rows]), given.features.shape[1])


def displaced(means: Floats, radii: Floats, time_step: float) -> Floats:
    """Where the classes are when the motion ends, as mixtures of their first means, [C, C]."""
    mixture, first = np.eye(len(means)), 0.0
    for step in range(STEPS):
        here = mixture @ means
        push = _push(here, radii, time_step)
        length = float(np.abs(push @ here).sum())
        first = length if step == 0 else first
        if length <= EXIT * first:
            break
        mixture = mixture + push @ mixture
    return mixture


def _push(means: Floats, radii: Floats, time_step: float) -> Floats:
    """One step of every class, as a mixture of the means, [C, C]: its rows add up to 0."""
    push = np.zeros((len(means), len(means)))
    for label, mean in enumerate(means):
        distance = np.sqrt(((mean - means) ** 2).sum(axis=1))
        overlap = np.maximum(radii[label] + radii - distance, 0.0)
        apart = distance > 0
        push[label, apart] = -np.minimum(0.5 * time_step**2, 1.0) * overlap[apart] / distance[apart]
        push[label, label] = -push[label].sum()
    return push
