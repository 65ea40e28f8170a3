"""Which examples to label, so that few labels tell which of several classifiers is the best (MODEL SELECTOR).

Only the classifiers' hard predictions are needed:

    selector = ModelSelector(predictions)              # [N, M]
    while labels are affordable:
        row = selector.ask()
        selector.tell(row, the label that a person gives it)
    selector.best, selector.posterior
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regraft.errors import TaskError
from regraft.methods import Source
from regraft.randomness import generator, permutation

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

SOURCE = Source(
    "Okanovic, Kirsch, Kasper, Hoefler, Krause & Gurel",
    2024,
    "2410.13609",
    "All models are wrong, some are useful: model selection with limited labels",
)
# Numbers that `information` holds at once.
CELLS = 2**21
# Error rates of the best model that `choose_epsilon` tries: the range that the authors' search ends in.
GRID = tuple(round(0.35 + 0.01 * step, 2) for step in range(15))
# Of that search: pools, their examples, and the labels asked for in each.
POOLS, POOL, ASKED = 8, 200, 25


@dataclass
class ModelSelector:
    """Asks for the labels that tell most about which model is the best.

    The best model h is right with probability 1 - e, so after labels y_1 .. y_t

        P(h) ~ prod_t g^[h(x_t) = y_t],   g = (1 - e) / e

    and the next example is the one with the largest information I(h; y) = H(h) - 1/C sum_c H(h | y = c), every class alike.
    Where several are equal, the seed decides. (Okanovic et al. 2024, arXiv 2410.13609; the posterior orders models as the number
    of labels that they got right does, so e decides only what is asked next and how sure it is.)

    It helps where models are wrong on the same hard examples and agree on the rest, as trained ones do: it leaves out what all
    agree on. Where their errors are independent it asks for those examples on which the leader stands alone, and there the
    leader is mostly wrong: random labels are better then.

    Args:
        predictions: Classes that the models predict [N, M], of any kind.
        epsilon: e, in (0, 0.5); None: `choose_epsilon`.
        classes: Number of classes C, if some are never predicted.
        seed: Of ties, and of the choice of e.

    Raises:
        TaskError: Predictions that are no table of at least one example and two models, or e outside (0, 0.5).
    """

    predictions: ArrayLike
    epsilon: float | None = None
    classes: int | None = None
    seed: int = 0
    labelled: dict[int, object] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._numbers, self._names = _numbered(self.predictions)
        self._classes = max(len(self._names), self.classes or 0)
        if self.epsilon is None:
            self.epsilon = choose_epsilon(self._numbers, classes=self._classes, seed=self.seed)
        if not 0.0 < self.epsilon < 0.5:
            raise TaskError(f"An error rate of {self.epsilon}.", "Expected more than 0 and less than 0.5.")
        self._order = permutation(len(self._numbers), self.seed, "model selector")
        self._right = np.zeros(self._numbers.shape[1])

    @property
    def posterior(self) -> Floats:
        """Probability of each model to be the best [M]."""
        return posterior(self._right, float(self.epsilon or 0.5))

    @property
    def best(self) -> list[int]:
        """The models that got most labels right, all that are equal."""
        return [int(model) for model in np.flatnonzero(self._right == self._right.max())]

    def ask(self) -> int:
        """The row to label next.

        Raises:
            TaskError: Every row is labelled.
        """
        open_rows = self._order[[int(row) not in self.labelled for row in self._order]]
        if len(open_rows) == 0:
            raise TaskError("Every example is labelled.", "Take the best model.")
        told = information(self._numbers[open_rows], self.posterior, float(self.epsilon or 0.5), self._classes)
        return int(open_rows[_largest(told)])

    def tell(self, row: int, label: object) -> None:
        """The label of a row; a label that no model ever predicts is one that all got wrong.

        Raises:
            TaskError: No such row, it is labelled already, or a label that is a prediction written in another type.
        """
        if not 0 <= row < len(self._numbers) or row in self.labelled:
            state = "labelled already" if row in self.labelled else f"not one of {len(self._numbers)}"
            raise TaskError(f"Row {row} is {state}.", "Tell the label of the row that was asked for.")
        same = next((name for name in self._names if str(name) == str(label)), label)
        if label not in self._names and same != label:
            raise TaskError(
                f"The label of row {row} is {label!r}, and models predict {same!r}.",
                "Give labels of the kind that the predictions have.",
            )
        self.labelled[row] = label
        known = self._names.get(label, -1)
        self._right = self._right + (self._numbers[row] == known)


def select(
    predictions: ArrayLike, oracle: Callable[[int], object], budget: int, *, epsilon: float | None = None, seed: int = 0
) -> ModelSelector:
    """Ask `oracle(row)` for at most `budget` labels, and return the selector with what it learnt."""
    selector = ModelSelector(predictions, epsilon=epsilon, seed=seed)
    for _ in range(min(budget, len(selector._numbers))):
        row = selector.ask()
        selector.tell(row, oracle(row))
    return selector


def posterior(right: ArrayLike, epsilon: float) -> Floats:
    """P(h) ~ ((1 - e) / e)^right of each model, from the number of labels that it got right [M]."""
    logs = np.asarray(right, dtype=np.float64) * np.log((1.0 - epsilon) / epsilon)
    odds = np.exp(logs - logs.max())
    return np.asarray(odds / odds.sum())


def information(predictions: Labels, belief: Floats, epsilon: float, classes: int) -> Floats:
    """I(h; y) of each example [N] in nats, for a belief over the models [M].

    Every class is taken for equally likely, as in the authors' code. Mutual information proper would weigh them by what the
    belief expects, and could not be negative; this can. Made in blocks of examples: memory does not grow with their number.

    With A the belief in the models that predict c and L their sum of p log p, the belief after y = c has
        Z = 1 + (g - 1) A,   H = log Z - (sum p log p + (g - 1) L + g log g A) / Z
    and a class that nobody predicts changes nothing.
    """
    block = max(1, CELLS // max(classes, predictions.shape[1]))
    parts = [
        _information(predictions[start : start + block], belief, epsilon, classes)
        for start in range(0, len(predictions), block)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def _information(predictions: Labels, belief: Floats, epsilon: float, classes: int) -> Floats:
    """The same of a few examples."""
    count, _ = predictions.shape
    odds = (1.0 - epsilon) / epsilon
    logs = belief * np.log(np.maximum(belief, 1e-300))
    cells = (predictions + classes * np.arange(count)[:, None]).ravel()
    agree = np.bincount(cells, np.tile(belief, count), minlength=count * classes)
    part = np.bincount(cells, np.tile(logs, count), minlength=count * classes)
    total = 1.0 + (odds - 1.0) * agree
    after = np.log(total) - (logs.sum() + (odds - 1.0) * part + odds * np.log(odds) * agree) / total
    return np.asarray(-logs.sum() - after.reshape(count, classes).mean(axis=1))


def choose_epsilon(
    predictions: ArrayLike, *, classes: int | None = None, seed: int = 0, grid: Sequence[float] = GRID
) -> float:
    """The error rate under which selection works best on labels that the models themselves make up; no label is needed.

    In several pools of examples each is given a label that is drawn from the models' votes on it. For each e on the grid the
    selector asks for labels; e is the better the more often, over all steps and pools, a leading model is one with the most
    made-up labels right in the whole pool (a tie of k leading models counts as its part that is). Equal ones: their middle.

    Args:
        predictions: [N, M].
        classes: C, if some are never predicted.
        seed: Of the pools and the labels.
        grid: Error rates to try.
    """
    numbers, names = _numbered(predictions)
    classes = max(len(names), classes or 0)
    rows = min(POOL, len(numbers))
    success = np.zeros(len(grid))
    for pool in range(POOLS):
        draw = generator(seed, "model selector", "epsilon", pool)
        chosen = numbers[draw.permutation(len(numbers))[:rows]]
        labels = chosen[np.arange(rows), draw.integers(0, chosen.shape[1], rows)]
        right = chosen == labels[:, None]
        truth = right.sum(axis=0) == right.sum(axis=0).max()
        success += [_success(chosen, right, truth, epsilon, classes) for epsilon in grid]
    best = np.flatnonzero(success >= success.max() - 1e-9)
    return float(grid[best[len(best) // 2]])


def _success(
    predictions: Labels, right: NDArray[np.bool_], truth: NDArray[np.bool_], epsilon: float, classes: int
) -> float:
    """How often a leading model is among the best ones, over the steps of one selection."""
    left, counts, total = np.arange(len(predictions)), np.zeros(predictions.shape[1]), 0.0
    for _ in range(min(ASKED, len(predictions))):
        place = _largest(information(predictions[left], posterior(counts, epsilon), epsilon, classes))
        counts += right[left[place]]
        left = np.delete(left, place)
        total += float(truth[counts == counts.max()].mean())
    return total


def _largest(values: Floats) -> int:
    """The first of the largest values; differences of rounding do not count."""
    return int(np.argmax(values >= values.max() - 1e-12))


def _numbered(predictions: ArrayLike) -> tuple[Labels, dict[object, int]]:
    """Predictions as int64 [N, M], and the number of each class."""
    given = np.asarray(predictions)
    if given.ndim != 2 or given.shape[0] < 1 or given.shape[1] < 2:
        raise TaskError(
            f"Predictions of shape {given.shape}.", "Expected [N, M] with at least one example and two models."
        )
    if given.dtype.kind == "f" and not np.isfinite(given).all():
        raise TaskError("The predictions hold NaN or infinite values.", "Give the classes that the models predict.")
    try:
        names, inverse = np.unique(given, return_inverse=True)
    except TypeError as error:
        raise TaskError(f"Predictions of several kinds ({error}).", "Give numbers or texts, not both.") from error
    return inverse.reshape(given.shape).astype(np.int64), {name: number for number, name in enumerate(names.tolist())}
