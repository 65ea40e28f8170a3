"""How good are predicted class probabilities, and how sure is that?

Accuracy, macro F1 and calibration error, each with a bootstrap interval. Shapes: labels [N] integers in [0, C),
probabilities [N, C]. All results are plain Python floats, ready for JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regraft.errors import NonFiniteError, TaskError
from regraft.randomness import integers

METRICS = ("accuracy", "macro_f1", "calibration_error")
BINS = 15

# Bounds the memory of a bootstrap to about 200 MB, whatever the number of examples and classes.
_DRAWS_AT_ONCE = 4_000_000


class Score(TypedDict):
    """The three metrics and their 95 % intervals, as they stand in `result.json`."""

    accuracy: float
    macro_f1: float
    calibration_error: float
    intervals: dict[str, list[float]]


@dataclass(frozen=True)
class _Outcomes:
    """What the metrics need of each example: everything else about the probabilities can be forgotten.

    Attributes:
        cell: [N] which of the K pairs (label, prediction) that occur.
        cell_label, cell_prediction: [K] the pairs.
        bin: [N] bin of the top probability.
        gap: [N] top probability - 1 if correct else top probability; its sum in a bin is the bin's calibration error.
    """

    cell: NDArray[np.int64]
    cell_label: NDArray[np.int64]
    cell_prediction: NDArray[np.int64]
    bin: NDArray[np.int64]
    gap: NDArray[np.float64]
    n_classes: int

    @classmethod
    def of(cls, labels: ArrayLike, probabilities: ArrayLike) -> _Outcomes:
        target, prob = checked(labels, probabilities)
        predicted = prob.argmax(axis=1).astype(np.int64)
        confidence = prob[np.arange(len(prob)), predicted]
        # Bins are (0, 1/15], (1/15, 2/15] ... as in the paper; 0 itself joins the first.
        bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
        return cls._of(target, predicted, bins, confidence - (predicted == target), prob.shape[1])

    @classmethod
    def of_predictions(cls, labels: NDArray[np.int64], predicted: NDArray[np.int64], n_classes: int) -> _Outcomes:
        """Outcomes of predicted classes alone: their calibration error means nothing."""
        return cls._of(labels, predicted, np.zeros(len(labels), np.int64), np.zeros(len(labels)), n_classes)

    @classmethod
    def _of(
        cls, target: NDArray[np.int64], predicted: NDArray[np.int64], bins: NDArray[np.int64], gap: NDArray[np.float64],
        n_classes: int,
    ) -> _Outcomes:  # fmt: skip
        pairs, cell = np.unique(target * n_classes + predicted, return_inverse=True)
        return cls(cell.astype(np.int64), pairs // n_classes, pairs % n_classes, bins, gap, n_classes)

    def keys(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """What tells examples apart, [N] each."""
        return self.cell, self.bin, self.gap

    def taken(self, order: NDArray[np.intp]) -> _Outcomes:
        """The same examples in another order."""
        return replace(self, cell=self.cell[order], bin=self.bin[order], gap=self.gap[order])

    def measure(self, draws: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Each metric of each resample; `draws` is [B, N], row b holds the examples of resample b."""
        resamples, size = draws.shape
        counts = _counts(self.cell[draws], len(self.cell_label))
        correct = self.cell_label == self.cell_prediction
        hits = _sums(counts[:, correct], self.cell_label[correct], self.n_classes)
        support = _sums(counts, self.cell_label, self.n_classes)
        predicted = _sums(counts, self.cell_prediction, self.n_classes)
        row = np.arange(resamples)[:, None] * BINS
        gaps = np.bincount((row + self.bin[draws]).ravel(), self.gap[draws].ravel(), minlength=resamples * BINS)
        involved = support + predicted
        f1 = 2 * hits / np.maximum(involved, 1)
        return {
            "accuracy": hits.sum(axis=1) / size,
            "macro_f1": f1.sum(axis=1) / (involved > 0).sum(axis=1),
            "calibration_error": np.abs(gaps.reshape(resamples, BINS)).sum(axis=1) / size,
        }


def checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels and probabilities as arrays that the formulas can rely on.

    Raises:
        NonFiniteError: A probability is NaN, infinite or negative.
        TaskError: Shapes do not fit, there are no examples, or a label is outside [0, C).
    """
    target = np.asarray(labels, dtype=np.int64)
    prob = np.asarray(probabilities, dtype=np.float64)
    if target.ndim != 1 or prob.ndim != 2 or len(target) != len(prob) or prob.size == 0:
        raise TaskError(
            f"Cannot score labels of shape {target.shape} against probabilities of shape {prob.shape}.",
            "Expected labels [N] and probabilities [N, C] with N and C at least 1.",
        )
    bad = ~(np.isfinite(prob) & (prob >= 0)).all(axis=1)
    if bad.any():
        raise NonFiniteError(
            f"{int(bad.sum())} of {len(prob)} predictions have NaN, infinite or negative probabilities "
            f"(the first is example {int(bad.argmax())}).",
            "Leave the model out, or compute it in float32.",
        )
    if target.min() < 0 or target.max() >= prob.shape[1]:
        raise TaskError(
            f"Labels run from {target.min()} to {target.max()}, but the predictions have {prob.shape[1]} classes.",
            "Number the labels from 0 in the order of the model's classes.",
        )
    return target, prob


def metrics(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, float]:
    """Accuracy, macro F1 and expected calibration error.

    - accuracy: the fraction whose most probable class (the first of equals) is the label.
    - macro_f1: the mean of 2 TP / (support + predicted) over the classes that occur in labels or predictions.
    - calibration_error: sum over 15 equal-width bins of (n_bin / N) |accuracy(bin) - confidence(bin)| of the most probable
      class (Guo et al. 2017, "On calibration of modern neural networks", arXiv:1706.04599, eq. 3).

    Raises:
        NonFiniteError, TaskError: as `checked`.
    """
    outcomes = _Outcomes.of(labels, probabilities)
    everything = np.arange(len(outcomes.cell))[None]
    return {name: float(values[0]) for name, values in outcomes.measure(everything).items()}


def bootstrap_intervals(
    labels: ArrayLike, probabilities: ArrayLike, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals over examples (Efron 1979), for each metric of `metrics`.

    The accuracy of examples that are all right, or all wrong, is the same in every resample, as if nothing were left to doubt:
    its interval is Wilson's then (`wilson_interval`). The macro F1 keeps the interval without width in that case.

    The calibration error of a resample is biased upwards (each bin's gap is a mean of absolute values), so its interval can lie
    above the value itself; it says how the estimate varies, not where the truth is.

    Raises:
        NonFiniteError, TaskError: as `checked`.
    """
    outcomes = _Outcomes.of(labels, probabilities)
    outcomes = outcomes.taken(np.lexsort(outcomes.keys()))  # so that the order of the examples changes nothing
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in METRICS}
    for draws in _resamples(len(outcomes.cell), seed, resamples):
        for name, values in outcomes.measure(draws).items():
            found[name].append(values)
    ends = {name: _percentiles(np.concatenate(values), level) for name, values in found.items()}
    right = int((outcomes.cell_label == outcomes.cell_prediction)[outcomes.cell].sum())
    if right in (0, len(outcomes.cell)):
        ends["accuracy"] = wilson_interval(right, len(outcomes.cell), level)
    return ends


def wilson_interval(right: int, of: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a proportion `right / of`: the p with |right / of - p| <= z sqrt(p (1 - p) / of).

    Ten of ten give [0.72, 1]: a proportion of 0.72 still has all ten right now and then.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = right / of
    middle = share + z * z / (2 * of)
    half = z * ((share * (1 - share) + z * z / (4 * of)) / of) ** 0.5
    low, high = (end / (1 + z * z / of) for end in (middle - half, middle + half))
    return (0.0 if right == 0 else low), (1.0 if right == of else high)  # exact, where rounding leaves 1e-17


def score(labels: ArrayLike, probabilities: ArrayLike, seed: int = 0) -> Score:
    """The metrics with their 95 % intervals, as stored in `result.json`.

    Raises:
        NonFiniteError, TaskError: as `checked`.
    """
    value = metrics(labels, probabilities)
    intervals = bootstrap_intervals(labels, probabilities, seed)
    return Score(
        accuracy=value["accuracy"],
        macro_f1=value["macro_f1"],
        calibration_error=value["calibration_error"],
        intervals={name: list(ends) for name, ends in intervals.items()},
    )


def paired_difference(
    labels: NDArray[np.int64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    seed: int = 0,
    metric: str = "accuracy",
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """How much better `first` is than `second` on the same examples: (difference, low, high) of one metric.

    Both are measured on the same resamples, so what is hard for both cancels. An interval that holds 0 is *too close to
    call*; the ranking's groups mean the same.

    Args:
        labels, first, second: int64 [N]: the label of each example, and the class that each model predicts.
        metric: `accuracy` or `macro_f1`.

    Raises:
        TaskError: Lengths that differ, no examples, or another metric.
    """
    if metric not in ("accuracy", "macro_f1"):
        raise TaskError(f"Unknown metric {metric!r}.", "Use accuracy or macro_f1.")
    if not len(labels) == len(first) == len(second) or len(labels) == 0:
        raise TaskError(
            f"Cannot compare {len(first)} with {len(second)} predictions for {len(labels)} labels.",
            "Expected as many as labels, and at least one.",
        )
    n_classes = int(max(labels.max(), first.max(), second.max())) + 1
    a, b = (_Outcomes.of_predictions(labels, predicted, n_classes) for predicted in (first, second))
    order = np.lexsort((a.cell, b.cell))
    a, b = a.taken(order), b.taken(order)
    everything = np.arange(len(a.cell))[None]
    difference = float(a.measure(everything)[metric][0] - b.measure(everything)[metric][0])
    spread = [a.measure(draws)[metric] - b.measure(draws)[metric] for draws in _resamples(len(a.cell), seed, resamples)]
    return (difference, *_percentiles(np.concatenate(spread), level))


def proportion_interval(
    right: NDArray[np.bool_], seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Interval of a proportion from `right` [N]: the bootstrap's; Wilson's when all are right, or none is."""
    count = int(right.sum())
    if count in (0, len(right)):
        return wilson_interval(count, len(right), level)
    return mean_interval(right, seed, resamples, level)


def mean_interval(values: ArrayLike, seed: int = 0, resamples: int = 1000, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` [N] (correctness, differences of correctness, ...)."""
    numbers = np.sort(np.asarray(values, dtype=np.float64))
    means = [numbers[draws].mean(axis=1) for draws in _resamples(len(numbers), seed, resamples)]
    return _percentiles(np.concatenate(means), level)


def _resamples(size: int, seed: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """The examples of each resample, [resamples, size] in blocks of bounded memory; the same for equal sizes and seeds."""
    block = max(1, _DRAWS_AT_ONCE // size)
    for start in range(0, resamples, block):
        yield integers(size, size * min(block, resamples - start), seed, "bootstrap", start).reshape(-1, size)


def _percentiles(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _counts(values: NDArray[np.int64], below: int) -> NDArray[np.float64]:
    """How often each of 0 .. below - 1 occurs in each row, [B, below]."""
    rows = len(values)
    shifted = values + np.arange(rows)[:, None] * below
    return np.bincount(shifted.ravel(), minlength=rows * below).reshape(rows, below).astype(np.float64)


def _sums(counts: NDArray[np.float64], group: NDArray[np.int64], groups: int) -> NDArray[np.float64]:
    """The columns of `counts` [B, K] added up by group, [B, groups]."""
    from scipy.sparse import csr_array

    member = csr_array((np.ones(len(group)), (group, np.arange(len(group)))), shape=(groups, len(group)))
    return np.asarray((member @ counts.T).T)
