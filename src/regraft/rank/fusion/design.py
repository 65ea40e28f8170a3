"""What the fusion knows, as rows and columns: one row a result or a candidate, one block of columns a term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Accuracies of 0 and 1 have no logit where nobody says how many rows they were measured on.
EDGE = 1e-3
# Checkpoints that the spread of a task is trusted against one that is like all others.
DOUBT = 4.0


class Known(Protocol):
    """What a row is made of: see `history.Result`."""

    @property
    def checkpoint(self) -> str: ...

    @property
    def family(self) -> str: ...

    @property
    def facts(self) -> Mapping[str, float]: ...

    @property
    def scores(self) -> Mapping[str, float]: ...

    @property
    def early(self) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Parts:
    """Which terms take part; what is left out is as if nobody knew it."""

    history: bool = True
    families: bool = True
    facts: bool = True
    scores: bool = True
    early: bool = True


@dataclass(frozen=True)
class Table:
    """Rows of the history, then of the candidates, each divided by its task's spread a_t.

    Attributes:
        rows: The mean's column first, then the blocks that take part.
        blocks: Columns of each.
        spread: a_t of each row.
        unknown: The variance of each number that nobody knows, of the shape of `rows`; 0 for those that are known.
    """

    rows: Floats
    blocks: list[int]
    spread: Floats
    unknown: Floats

    @classmethod
    def of(cls, rows: Sequence[Known], tasks: Sequence[str], target: Floats, parts: Parts) -> Table:
        """The first rows are those whose results are known; `target` are their logits."""
        known = len(target)
        spread = spreads(tasks, target)
        columns = [sure(np.ones((len(rows), 1)) / spread[:, None]), sure(levels(tasks) / spread[:, None])]
        if parts.history:
            columns.append(sure(levels([one.checkpoint for one in rows])))
        if parts.families:
            columns.append(sure(levels([one.family for one in rows])))
        if parts.facts:
            columns.append(at_the_mean(standardised(named([one.facts for one in rows]), known)))
        if parts.scores:
            columns.append(at_the_mean(within(named([one.scores for one in rows]), tasks, known)))
        if parts.early:
            early = named([{name: logit(value) for name, value in one.early.items()} for one in rows])
            values, variance = completed(standardised(early, known), tasks)
            columns.append((values / spread[:, None], variance / spread[:, None] ** 2))
        kept = [block for block in columns if block[0].shape[1]]
        return cls(
            np.concatenate([values for values, _ in kept], axis=1), [values.shape[1] for values, _ in kept], spread,
            np.concatenate([variance for _, variance in kept], axis=1),
        )  # fmt: skip


def sure(values: Floats) -> tuple[Floats, Floats]:
    """Columns in which nothing is unknown."""
    return values, np.zeros_like(values)


def at_the_mean(table: Floats) -> tuple[Floats, Floats]:
    """Unknown values of standardised columns stand at the mean, with the variance 1 of their column."""
    unknown = np.isnan(table)
    return np.where(unknown, 0.0, table), unknown.astype(np.float64)


def completed(table: Floats, tasks: Sequence[str]) -> tuple[Floats, Floats]:
    """Unknown values from what is next to them: the row's other columns, else the mean of its task; else the mean of all.

    They say where the level of a task lies: the mean of all tasks would put a checkpoint without a short run above all others
    of a hard task. Their variance is that of the column within tasks, or 1 where the task is not known either.
    """
    filled, unknown, names = table.copy(), np.isnan(table), np.array(tasks)
    inside = table - np.array([_mean(table[names == task]) for task in tasks]).reshape(table.shape)
    variance = np.where(unknown, _mean(inside**2), 0.0)
    for row in np.flatnonzero(unknown.any(axis=1)):
        near = table[row][~unknown[row]]
        task = table[names == names[row]]
        for column in np.flatnonzero(unknown[row]):
            own = task[:, column][np.isfinite(task[:, column])]
            source = near if len(near) else own if len(own) else task[np.isfinite(task)]
            filled[row, column] = source.mean() if len(source) else 0.0
            variance[row, column] = variance[row, column] if len(source) else 1.0
    return filled, variance


def spreads(tasks: Sequence[str], target: Floats) -> Floats:
    """a_t of each row: the standard deviation of the known logits of its task, over the geometric mean of all tasks'.

    1 for a task without results. Few checkpoints say little: log a_t is taken times n / (n + DOUBT).
    """
    names, seen = np.array(tasks), {}
    for task in sorted(set(tasks)):
        own = target[names[: len(target)] == task]
        if len(own) > 1 and own.std() > 0:
            seen[task] = (np.log(own.std()), len(own))
    found, level = np.ones(len(tasks)), np.mean([value for value, _ in seen.values()]) if seen else 0.0
    for task, (value, count) in seen.items():
        found[names == task] = np.exp((value - level) * count / (count + DOUBT))
    return found


def levels(names: Sequence[str]) -> Floats:
    """One column for each name: 1 in its rows."""
    levels = {name: at for at, name in enumerate(sorted(set(names)))}
    return np.eye(len(levels))[[levels[name] for name in names]]


def named(rows: Sequence[Mapping[str, float]]) -> Floats:
    """Columns by name, NaN where a row lacks one."""
    names = sorted({name for row in rows for name in row})
    return np.array([[row.get(name, np.nan) for name in names] for row in rows]).reshape(len(rows), len(names))


def standardised(table: Floats, known: int) -> Floats:
    """Each column less its mean over its standard deviation in the first `known` rows; NaN stays, 0 in columns without spread."""
    return _scaled(table, table[:known])


def within(table: Floats, tasks: Sequence[str], known: int) -> Floats:
    """Each column less its mean within the row's task, over its spread around those means in the first `known` rows."""
    centred = table.copy()
    names = np.array(tasks)
    for task in sorted(set(tasks)):
        rows = names == task
        centred[rows] -= _mean(table[rows])
    return _scaled(centred, centred[:known])


def _mean(table: Floats) -> Floats:
    """Of the known values of each column; 0 where there is none."""
    known = np.isfinite(table)
    return np.asarray(np.where(known, table, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))


def _scaled(table: Floats, by: Floats) -> Floats:
    mean, count = _mean(by), np.isfinite(by).sum(axis=0)
    spread = np.sqrt(_mean((by - mean) ** 2))
    usable = (count > 1) & (spread > 1e-12 * np.maximum(1.0, np.abs(mean)))
    scaled = (table - mean) / np.where(usable, spread, 1.0)
    return np.where(usable, scaled, 0.0)


def logit(accuracy: float) -> float:
    clipped = min(max(accuracy, EDGE), 1 - EDGE)
    return float(np.log(clipped / (1 - clipped)))


def measured(accuracy: float, rows: int | None) -> tuple[float, float]:
    """The logit of an accuracy that was measured on so many examples, and its sampling variance; that is 0 where nobody says.

        of n examples k right:    log((k + 1/2) / (n - k + 1/2)),    1 / (k + 1/2) + 1 / (n - k + 1/2)

    The variance is the binomial p (1 - p) / n carried to logits (delta method: over (p (1 - p))^2), with p = (k + 1/2) / (n + 1)
    and n + 1 for n; both stay finite where all or none are right (Haldane 1956, The estimation and significance of the logarithm
    of a ratio of frequencies, Annals of Human Genetics 20; Gart & Zweifel 1967, On the bias of various estimators of the logit
    and its variance, Biometrika 54).
    """
    if rows is None or rows < 1:
        return logit(accuracy), 0.0
    right, wrong = rows * accuracy + 0.5, rows * (1.0 - accuracy) + 0.5
    return float(np.log(right / wrong)), 1.0 / right + 1.0 / wrong
