"""How good this installation's predictions would have been: each task, or each family, left out and predicted from the rest.

    weighted tau    Vigna's tau with additive hyperbolic weights, the mean of ranking by truth and by prediction
                    (scipy.stats.weightedtau, `rank=True`): what happens at the top counts most
    regret          the best accuracy among the candidates, less that of the one that was predicted to be best
    coverage        how often the result lies in its predicted 95 % interval
    noise ceiling   tau and regret of one seed's results as the prediction of another's: what chance leaves

Sources: Vigna (2015), A weighted correlation index for rankings with ties, arXiv 1404.3325; You et al. (2021), LogME, arXiv
2102.11005, for the use of it here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from regraft.errors import TaskError
from regraft.evaluate.metrics import mean_interval
from regraft.rank.fusion.design import Parts
from regraft.rank.fusion.fusion import Candidate, predict
from regraft.rank.fusion.history import Result

LeaveOut = Literal["task", "family"]
# Fewer checkpoints on a task have no order worth predicting.
FEWEST = 3


@dataclass(frozen=True)
class Figures:
    """Means over the parts that were left out, each with a 95 % bootstrap interval over them.

    Attributes:
        name: Of the way of predicting.
        tau, regret, coverage: (mean, low, high); coverage is None for what gives no intervals.
        parts: How many were left out in turn.
    """

    name: str
    tau: tuple[float, float, float]
    regret: tuple[float, float, float]
    coverage: tuple[float, float, float] | None
    parts: int


def weighted_tau(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """See the head of this file; 0 where either is constant."""
    from scipy.stats import weightedtau

    found = float(weightedtau(np.asarray(truth), np.asarray(predicted)).statistic)
    return found if np.isfinite(found) else 0.0


def regret(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """In accuracy; among equally predicted ones the mean over the choice."""
    true, guess = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    return float(true.max() - true[guess == guess.max()].mean())


def selfcheck(history: Sequence[Result], *, leave_out: LeaveOut = "task", seed: int = 0) -> list[Figures]:
    """The fusion, the prior alone, and each score and short run alone, on everything that was left out in turn.

    Leaving a task out removes all its results. Leaving a family out removes all results of its checkpoints as well, of which
    then nothing is known but facts, scores and short runs. The order among all checkpoints of the task is what is judged.

    Raises:
        TaskError: There are not two parts with at least `FEWEST` checkpoints on a task.
    """
    ways: dict[str, Callable[[Sequence[Result], Sequence[Result]], tuple[list[float], float | None]]] = {
        "fusion": lambda known, wanted: _fused(known, wanted, Parts(), seed),
        "prior": lambda known, wanted: _fused(known, wanted, Parts(scores=False, early=False), seed),
    }
    for kind in ("scores", "early"):
        for name in sorted({name for one in history for name in getattr(one, kind)}):
            ways[name] = lambda known, wanted, kind=kind, name=name: _alone(wanted, kind, name)  # type: ignore[misc]
    splits = _splits(history, leave_out)
    if len(splits) < 2:
        raise TaskError(
            f"The history holds {len(splits)} {leave_out} with at least {FEWEST} checkpoints to compare; 2 are needed.",
            "Run `regraft reuse` on more tasks.",
        )
    found = [
        _figures(name, [(wanted, *way(known, wanted)) for known, wanted in splits], seed) for name, way in ways.items()
    ]
    ceiling = noise_ceiling(history, seed)
    return found if ceiling is None else [*found, ceiling]


def noise_ceiling(history: Sequence[Result], seed: int = 0) -> Figures | None:
    """Each task's results under one seed as the prediction of those under another; None without two seeds."""
    by_task: dict[str, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for one in history:
        by_task[one.task][one.seed][one.checkpoint] = one.accuracy
    taus, regrets = [], []
    for seeds in by_task.values():
        for first in seeds:
            for second in seeds:
                shared = sorted(seeds[first].keys() & seeds[second].keys())
                if first != second and len(shared) >= FEWEST:
                    truth, guess = [seeds[second][name] for name in shared], [seeds[first][name] for name in shared]
                    taus.append(weighted_tau(truth, guess))
                    regrets.append(regret(truth, guess))
    if not taus:
        return None
    return Figures("noise ceiling", _interval(taus, seed), _interval(regrets, seed), None, len(taus))


def _splits(history: Sequence[Result], leave_out: LeaveOut) -> list[tuple[list[Result], list[Result]]]:
    """(known, wanted): wanted is one task's results under one seed."""
    found = []
    for task in sorted({one.task for one in history}):
        for number in sorted({one.seed for one in history if one.task == task}):
            wanted = [one for one in history if one.task == task and one.seed == number]
            if len({one.checkpoint for one in wanted}) < FEWEST:
                continue
            if leave_out == "task":
                found.append(([one for one in history if one.task != task], wanted))
                continue
            for family in sorted({one.family for one in wanted}):
                others = [one for one in history if one.family != family and one.task != task]
                found.append((others, wanted))
    return [(known, wanted) for known, wanted in found if known]


def _fused(
    known: Sequence[Result], wanted: Sequence[Result], parts: Parts, seed: int
) -> tuple[list[float], float | None]:
    candidates = [
        Candidate(one.checkpoint, one.family, dict(one.facts), dict(one.scores), dict(one.early)) for one in wanted
    ]
    predictions = {one.checkpoint: one for one in predict(known, candidates, wanted[0].task, parts=parts, seed=seed)}
    inside = [predictions[one.checkpoint].low <= one.accuracy <= predictions[one.checkpoint].high for one in wanted]
    return [predictions[one.checkpoint].accuracy for one in wanted], float(np.mean(inside))


def _alone(wanted: Sequence[Result], kind: str, name: str) -> tuple[list[float], float | None]:
    """One number as it is; a checkpoint without it comes last."""
    values = [getattr(one, kind).get(name) for one in wanted]
    lowest = min((value for value in values if value is not None), default=0.0)
    return [lowest - 1.0 if value is None else float(value) for value in values], None


def _figures(name: str, checked: Sequence[tuple[Sequence[Result], list[float], float | None]], seed: int) -> Figures:
    taus, regrets, covered = [], [], []
    for wanted, guess, coverage in checked:
        truth = [one.accuracy for one in wanted]
        taus.append(weighted_tau(truth, guess))
        regrets.append(regret(truth, guess))
        covered.append(coverage)
    inside = [value for value in covered if value is not None]
    return Figures(
        name, _interval(taus, seed), _interval(regrets, seed), _interval(inside, seed) if inside else None, len(checked)
    )


def _interval(values: Sequence[float], seed: int) -> tuple[float, float, float]:
    return (float(np.mean(values)), *mean_interval(values, seed))
