"""Which source models to take together (OSBORN): near the task's data, sure about its labels, and of one opinion.

What is added up is lower for better ensembles; the score is its negative, so that higher is better as everywhere:

    f(S) = -[ sum_{s in S} (W_D(s) + W_T(s)) + sum_{i != j in S} H(p_i | p_j) ]

    W_D   Wasserstein distance between the source data's features and the task's, both by model s
    W_T   H(p_s | y): entropy of the model's predictions on the task's examples, given their labels
    W_C   conditional entropies of one model's predictions given another's, over ordered pairs

**What greedy selection guarantees.** f is submodular: a model's gain -(W_D + W_T) - sum_j [H(p|p_j) + H(p_j|p)] only falls as S
grows. The paper concludes that f is monotone and that greedy reaches 1 - 1/e of the best. The first does not follow and is
false: every gain is negative, f falls with every model (so the paper's "the maximum is the whole pool" is the minimum), and a
ratio of negative numbers bounds nothing. What holds: g(S) = f(S) + c |S| with c the largest loss that any model can cause is
non-negative, monotone and submodular, has the same greedy order and, among sets of one size, the same best set; so
g(greedy) >= (1 - 1/e) g(best). `Ensemble.bound` is what follows for f.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb, e

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regraft.errors import NonFiniteError, TaskError
from regraft.methods import Source
from regraft.randomness import permutation
from regraft.rank.scores.prepared import numbers

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

SOURCE = Source(
    "Vimal, Bachu, Garg, Narasimhan, Konuru & Balasubramanian",
    2023,
    "2309.02429",
    "Building a winning team: selecting source model ensembles using a submodular transferability estimation approach",
)
# Examples of either side whose transport is computed; an assignment of 1,000 takes a tenth of a second.
LIMIT = 1000
# Cells of a transport problem with unequal sides that linear programming solves exactly; above, both sides are cut to one size.
CELLS = 20_000
# Ensembles that `exact` looks through at most.
SUBSETS = 200_000


@dataclass(frozen=True)
class SourceModel:
    """What is known of one source model.

    Attributes:
        source_features: Features of its source data, by itself [n, D].
        target_features: Features of the task's examples, by itself [m, D].
        predictions: The source class that it predicts for each of the task's examples [m].
    """

    source_features: ArrayLike
    target_features: ArrayLike
    predictions: ArrayLike


@dataclass(frozen=True)
class Ensemble:
    """A selected ensemble.

    Attributes:
        models: Names, in the order of selection.
        gains: What each added to f when it was selected (all are negative).
        score: f, higher is better.
        bound: No ensemble of this size has a higher f. From the guarantee above; f itself where all were looked through.
    """

    models: tuple[str, ...]
    gains: tuple[float, ...]
    score: float
    bound: float


@dataclass(frozen=True)
class Terms:
    """The parts of f for a pool of models.

    Attributes:
        names: The models, sorted.
        domain: W_D [M].
        task: W_T [M].
        disagreement: H(p_i | p_j) + H(p_j | p_i) [M, M], 0 on the diagonal.
    """

    names: tuple[str, ...]
    domain: Floats
    task: Floats
    disagreement: Floats

    def score(self, chosen: list[int]) -> float:
        """f of the models with these numbers."""
        own = float((self.domain + self.task)[chosen].sum())
        return -own - float(self.disagreement[np.ix_(chosen, chosen)].sum()) / 2.0


def terms(
    models: Mapping[str, SourceModel],
    labels: ArrayLike,
    *,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    seed: int = 0,
) -> Terms:
    """The parts of f; computed once, they serve every ensemble.

    The paper adds them unweighted, though W_D has the unit of squared features and the others are nats: where models differ in
    the scale of their features, W_D compares scales. Standardise the features, or weigh.

    Args:
        models: By name; all have predictions for the same m examples.
        labels: Of those examples [m].
        weights: Of W_D, W_T and W_C.
        seed: Of the draw, where there are more than 1,000 examples on a side.

    Raises:
        TaskError: No models, or shapes that do not fit.
        NonFiniteError: NaN or infinite features.
    """
    if not models:
        raise TaskError("No source models.", "Give at least one.")
    if min(weights) < 0:
        raise TaskError(
            f"Weights {weights}.", "Expected none below 0: a negative one makes greedy selection worthless."
        )
    names = tuple(sorted(models))
    classes = _numbered(labels, "labels", None)
    predicted = [_numbered(models[name].predictions, f"predictions of {name}", len(classes)) for name in names]
    domain = [
        domain_difference(models[name].source_features, models[name].target_features, seed=seed) for name in names
    ]
    given = [conditional_entropy(predictions, classes) for predictions in predicted]
    disagreement = np.zeros((len(names), len(names)))
    for first, second in combinations(range(len(names)), 2):
        left, right = predicted[first], predicted[second]
        both = conditional_entropy(left, right) + conditional_entropy(right, left)
        disagreement[first, second] = disagreement[second, first] = both
    return Terms(names, weights[0] * np.array(domain), weights[1] * np.array(given), weights[2] * disagreement)


def greedy(parts: Terms, size: int) -> Ensemble:
    """The ensemble that takes, one after the other, the model with the largest gain; of equal ones the first by name."""
    _check_size(parts, size)
    own = -(parts.domain + parts.task)
    against = np.zeros(len(own))
    chosen: list[int] = []
    gains: list[float] = []
    for _ in range(size):
        gain = own - against
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
        gains.append(float(gain[chosen[-1]]))
        against = against + parts.disagreement[chosen[-1]]
    score = parts.score(chosen)
    loss = float((parts.disagreement.sum(axis=1) - own).max())
    bound = (score + loss * size) / (1.0 - 1.0 / e) - loss * size
    return Ensemble(tuple(parts.names[one] for one in chosen), tuple(gains), score, max(bound, score))


def exact(parts: Terms, size: int) -> Ensemble:
    """The best ensemble of a size, by looking through all; its order is by name.

    Raises:
        TaskError: More than 200,000 ensembles.
    """
    _check_size(parts, size)
    if comb(len(parts.names), size) > SUBSETS:
        raise TaskError(
            f"{comb(len(parts.names), size):,} ensembles of {size} among {len(parts.names)} models.",
            "Use greedy selection.",
        )
    best = max((list(chosen) for chosen in combinations(range(len(parts.names)), size)), key=parts.score)
    grown = [parts.score(best[:place]) for place in range(size + 1)]
    gains = tuple(after - before for before, after in pairwise(grown))
    return Ensemble(tuple(parts.names[one] for one in best), gains, parts.score(best), parts.score(best))


def domain_difference(source: ArrayLike, target: ArrayLike, *, seed: int = 0) -> float:
    """W_D: the least mean cost of moving one set of features onto the other, at |x - z|_2^2, every example alike.

    Exact, where the paper uses Sinkhorn's approximation: an assignment for sides of one size, linear programming for small ones
    of two sizes. Otherwise examples are drawn, as many of either side, at most 1,000.

    Args:
        source: [n, D].
        target: [m, D].
        seed: Of the draw.
    """
    left, right = numbers(source, "source features"), numbers(target, "target features")
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1] or 0 in left.shape + right.shape:
        raise TaskError(
            f"Source features of shape {left.shape}, target features of shape {right.shape}.",
            "Expected [n, D], [m, D].",
        )
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise NonFiniteError("The features hold NaN or infinite values.", "Leave that model out.")
    if max(len(left), len(right)) > LIMIT or (len(left) != len(right) and len(left) * len(right) > CELLS):
        size = min(len(left), len(right), LIMIT)
        left = left[np.sort(permutation(len(left), seed, "osborn", "source")[:size])]
        right = right[np.sort(permutation(len(right), seed, "osborn", "target")[:size])]
    cost = ((left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)) - 2.0 * left @ right.T
    cost = np.maximum(cost, 0.0)
    return float((transport(cost) * cost).sum())


def transport(cost: Floats) -> Floats:
    """The coupling [n, m] of least cost between two uniform distributions, exactly."""
    from scipy.optimize import linear_sum_assignment, linprog
    from scipy.sparse import eye_array, kron, vstack

    count, other = cost.shape
    if count == other:  # some vertex of the feasible couplings is best, and those are permutations (Birkhoff)
        coupling = np.zeros((count, count))
        coupling[linear_sum_assignment(cost)] = 1.0 / count
        return coupling
    rows = kron(eye_array(count), np.ones((1, other)), format="csr")
    columns = kron(np.ones((1, count)), eye_array(other), format="csr")
    upper = [np.full(count, 1.0 / count), np.full(other, 1.0 / other)]
    found = linprog(cost.ravel(), A_eq=vstack([rows, columns]), b_eq=np.concatenate(upper), method="highs")
    if found.x is None:
        raise TaskError(
            f"No coupling of {count} and {other} examples was found ({found.message}).", "Give other examples."
        )
    return np.asarray(found.x.reshape(count, other))


def conditional_entropy(values: Labels, given: Labels) -> float:
    """H(values | given) = -sum P(v, g) log(P(v, g) / P(g)) in nats, from counts of the same examples.

    The paper's W_T is this of predictions given labels (OTCE has labels given predictions). A model that predicts one class for
    everything has W_T = 0 and disagrees with nobody: such a one wins, and should be left out beforehand.
    """
    joint = np.zeros((int(values.max()) + 1, int(given.max()) + 1))
    np.add.at(joint, (values, given), 1.0 / len(values))
    marginal = np.broadcast_to(joint.sum(axis=0), joint.shape)
    full = joint > 0
    return float(max(-(joint[full] * np.log(joint[full] / marginal[full])).sum(), 0.0))


def _numbered(values: ArrayLike, what: str, count: int | None) -> Labels:
    given = np.asarray(values)
    if given.ndim != 1 or len(given) == 0 or (count is not None and len(given) != count):
        raise TaskError(f"The {what} have shape {given.shape}.", f"Expected [{'m' if count is None else count}].")
    return np.asarray(np.unique(given, return_inverse=True)[1], dtype=np.int64)


def _check_size(parts: Terms, size: int) -> None:
    if not 1 <= size <= len(parts.names):
        raise TaskError(f"An ensemble of {size} among {len(parts.names)} models.", "Expected 1 to all of them.")
