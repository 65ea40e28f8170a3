"""Intervals for the difference of two merges on the same test rows, and what they say about a claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.randomness import generator

REPLICATES = 2000


@dataclass(frozen=True)
class Difference:
    """A mean difference and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Whether it is above zero."""
        return "holds" if self.low > 0 else "does not hold" if self.high < 0 else "too close to call"

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        found = {"mean": self.mean, "low": self.low, "high": self.high}
        return {name: round(value, 5) for name, value in found.items()} | {"verdict": self.verdict}


Rights = Sequence[Mapping[str, np.ndarray]]  # by seed, by task: which test rows were right


def difference(better: Rights, than: Rights, unit: Sequence[Mapping[str, float]] | None = None) -> Difference:
    """The mean over seeds and tasks of the difference of accuracies, each divided by its `unit` (the expert's accuracy).

    The interval comes from a bootstrap that draws seeds and, within each task, test rows: the same rows for both merges and
    for all seeds, because all saw the same test split. With few seeds their part of the interval is rough.
    """
    tasks = list(better[0])
    gaps = {}
    for task in tasks:
        units = [1.0 if unit is None else unit[seed][task] for seed in range(len(better))]
        gaps[task] = np.stack([
            (better[seed][task].astype(np.float64) - than[seed][task]) / units[seed] for seed in range(len(better))
        ])  # fmt: skip
    random = generator(0, "bootstrap of merges")
    found = np.empty(REPLICATES)
    for replicate in range(REPLICATES):
        seeds = random.integers(0, len(better), len(better))
        means = []
        for task in tasks:
            rows = random.integers(0, gaps[task].shape[1], gaps[task].shape[1])
            means.append(gaps[task][seeds].mean(axis=0)[rows].mean())
        found[replicate] = np.mean(means)
    low, high = np.quantile(found, (0.025, 0.975))
    return Difference(float(np.mean([gaps[task].mean() for task in tasks])), float(low), float(high))


def together(verdicts: Sequence[str]) -> str:
    """The verdict on a claim of several parts: all must hold; one that fails refutes it."""
    if "does not hold" in verdicts:
        return "does not hold"
    return "holds" if all(verdict == "holds" for verdict in verdicts) else "too close to call"
