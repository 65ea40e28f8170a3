"""Prior, scores and short runs in one prediction, by a small model that learns from the history how much each is worth.

    logit(accuracy of checkpoint m on task t)  =  mean + task_t + early_mt . c
                                                  + a_t (checkpoint_m + family_m + facts_m . a + scores_mt . b + noise)

with every term's variance learned from the history (`mixed.fit`). A checkpoint that did well on other tasks is expected to do
well again (checkpoint_m: the prior), relatives resemble each other, facts such as size help where nothing else is known, scores
count as much as they have counted, and accuracies that short runs reached move the prediction most where they have been right.
What is not known of a checkpoint (a score that was not computed, a task that it has not seen) widens its interval: it stands at
what is next to it, such as the mean of the task, with the variance of its kind. Some tasks set checkpoints further apart than
others: a_t is that spread, 1 on the average task (`design.spreads`).

An accuracy on 50 test rows says less than one on 5,000. Where `Result.rows` tells how many there were, the result enters as
an empirical logit with the binomial sampling variance d_mt (`design.measured`), known beside the noise of a training, which
is learned: its weight is 1 / (a_t^2 noise + d_mt), as in random-effects meta-regression with known within-study variances
(DerSimonian & Laird 1986; Raudenbush & Bryk 1985; see `mixed`). Checkpoints that were tested on the same rows share part of
that error; it is then in task_t, and d_mt is more than the rest. Without rows it is part of the noise.

Scores are comparable within a task only: they enter as distances from the mean of their task, in units of their spread around
those means in the whole history, so that another candidate moves all of a task alike and changes no order. Facts are
standardised over the history. Early accuracies enter as logits, less the history's mean, on one scale for all tasks, and say
where the level of a new task lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from regraft.errors import TaskError
from regraft.rank.fusion.design import Parts, Table, measured
from regraft.rank.fusion.history import Result
from regraft.rank.fusion.mixed import fit

Floats = NDArray[np.float64]

# Of the mean over everything, in logits: flat.
MEAN_VARIANCE = 100.0
TWO_SIDED_95 = 1.959964


@dataclass(frozen=True)
class Candidate:
    """A checkpoint whose result on the task is wanted; fields as of `Result`.

    `rows` are the examples that its accuracy will be measured on: the interval is then of what is measured there. None: of the
    accuracy itself, as on endlessly many examples, as far as the history says on how many its own were measured.
    """

    checkpoint: str
    family: str
    facts: Mapping[str, float]
    scores: Mapping[str, float]
    early: Mapping[str, float]
    rows: int | None = None


@dataclass(frozen=True)
class Prediction:
    """What to expect of a checkpoint.

    Attributes:
        checkpoint: Its name.
        accuracy, low, high: The median and a 95 % interval of its accuracy on the task; the noise of one training is in it,
            and that of measuring it where the candidate says on how many rows.
        best: The chance that it is the best of all that were compared.
        group: 1 holds the leader and all that cannot be told from it, and so on down.
    """

    checkpoint: str
    accuracy: float
    low: float
    high: float
    best: float
    group: int


def predict(
    history: Sequence[Result], candidates: Sequence[Candidate], task: str, *, parts: Parts | None = None, seed: int = 0
) -> list[Prediction]:
    """Predict the accuracy of candidates on a task, the best first.

    Args:
        history: Results of any checkpoints on any tasks; those on `task` itself count too. Those without an accuracy tell what
            scores looked like beside the others.
        candidates: With distinct names.
        task: Its name in the history.
        parts: Terms to use; all by default.
        seed: Of the draws behind `best`.

    Raises:
        TaskError: No history to learn from, no candidates, or two of one name.
    """
    if all(one.accuracy is None for one in history):
        raise TaskError("There are no results to learn from.", "Run `regraft reuse` on some tasks first.")
    if not candidates or len({one.checkpoint for one in candidates}) < len(candidates):
        raise TaskError(f"{len(candidates)} candidates, not all of different names.", "Give each checkpoint once.")
    mean, covariance, noise = values(history, candidates, task, parts or Parts())
    order = sorted(range(len(candidates)), key=lambda at: (-mean[at], candidates[at].checkpoint))
    chance = _chances(mean, covariance, seed)
    group, leader, found = 0, -1, []
    for at in order:
        if leader < 0 or not _close(mean, covariance, leader, at):
            group, leader = group + 1, at
        sampling = measured(_accuracy(mean[at]), candidates[at].rows)[1]
        half = TWO_SIDED_95 * sqrt(covariance[at, at] + noise + sampling)
        found.append(
            Prediction(
                candidates[at].checkpoint, _accuracy(mean[at]), _accuracy(mean[at] - half), _accuracy(mean[at] + half),
                float(chance[at]), group,
            )
        )  # fmt: skip
    return found


def values(
    history: Sequence[Result], candidates: Sequence[Candidate], task: str, parts: Parts
) -> tuple[Floats, Floats, float]:
    """Logits of the candidates' accuracies: mean [M], covariance [M, M], and the variance of one result around them, but for
    sampling variance that the history knows."""
    adapted = [one for one in history if one.accuracy is not None]
    others = [*(one for one in history if one.accuracy is None)]
    rows: list[Result | Candidate] = [*adapted, *others, *candidates]
    tasks = [*(one.task for one in [*adapted, *others]), *[task] * len(candidates)]
    results = np.array([measured(one.accuracy, one.rows) for one in adapted if one.accuracy is not None])
    target, sampling = results[:, 0], results[:, 1]
    table = Table.of(rows, tasks, target, parts)
    known, wanted, spread = len(adapted), slice(len(rows) - len(candidates), len(rows)), table.spread[-1]
    own = table.spread[:known]
    found = fit(table.rows[:known], target / own, table.blocks, fixed=[MEAN_VARIANCE], sampling=sampling / own**2)
    mean, covariance = found.predict(table.rows[wanted])
    # A number that is not known adds its own variance, by what its column is worth.
    worth = found.mean**2 + np.diag(found.covariance)
    covariance = covariance + np.diag(table.unknown[wanted] @ worth)
    return mean * spread, covariance * spread**2, found.noise * spread**2


def _close(mean: Floats, covariance: Floats, leader: int, other: int) -> bool:
    """Whether the 95 % interval of the difference holds 0."""
    variance = covariance[leader, leader] + covariance[other, other] - 2 * covariance[leader, other]
    return bool(mean[leader] - mean[other] <= TWO_SIDED_95 * sqrt(max(variance, 0.0)))


def _chances(mean: Floats, covariance: Floats, seed: int, draws: int = 4000) -> Floats:
    """How often each is the largest in draws of N(mean, covariance)."""
    from regraft.randomness import generator

    values, vectors = np.linalg.eigh(covariance)
    noise = generator(seed, "fusion", len(mean)).standard_normal((draws, len(mean)))
    drawn = mean + noise @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    return np.bincount(drawn.argmax(axis=1), minlength=len(mean)) / draws


def _accuracy(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))
