"""How good this installation's predictions would have been: each task, or each family, left out and predicted from the rest.

    weighted tau    Vigna's tau with additive hyperbolic weights, the mean of ranking by truth and by prediction
                    (scipy.stats.weightedtau, `rank=True`): what happens at the top counts most
    regret          the best accuracy among the candidates, less that of the one that was predicted to be best
    coverage        how often the result lies in its predicted 95 % interval, of those that were left out (as it was measured:
                    on the rows that it has)
    noise ceiling   tau and regret of one seed's results as the prediction of another's: what a perfect memory of one training
                    reaches; a perfect prediction of the mean over trainings would reach a little more

Tasks of one source (the same texts under other labels) are left out together, and count as one. Seeds and families of a task are
averaged before the bootstrap: its intervals are over tasks, which are what the next one is drawn from.

Sources: Vigna (2015), A weighted correlation index for rankings with ties, arXiv 1404.3325; You et al. (2021), LogME, arXiv
2102.11005, for the use of it here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from regraft.errors import TaskError
from regraft.evaluate.metrics import mean_interval
from regraft.rank.fusion.design import Parts
from regraft.rank.fusion.fusion import Candidate, predict
from regraft.rank.fusion.history import Result

LEFT_OUT = ("task", "family")
# Fewer checkpoints on a task have no order worth predicting.
FEWEST = 3


@dataclass(frozen=True)
class Figures:
    """Means over the tasks that were left out, each with a 95 % bootstrap interval over them.

    Attributes:
        name: Of the way of predicting.
        tau, regret, coverage: (mean, low, high); coverage is None for what gives no intervals.
        parts: Sources of tasks that the means are over.
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


def selfcheck(
    history: Sequence[Result], *, leave_out: str = "task", only: Collection[str] | None = None, seed: int = 0
) -> list[Figures]:
    """The fusion, the prior alone, and each score and short run alone, on everything that was left out in turn.

    Leaving a task out removes all its results. Leaving a family out removes all results of its checkpoints as well, of which
    then nothing is known but facts, scores and short runs. The order among all checkpoints of the task is what is judged.

    `only` names the ways of predicting that are wanted; all by default.

    Raises:
        TaskError: There are not two parts with at least `FEWEST` checkpoints on a task.
    """
    if leave_out not in LEFT_OUT:
        raise TaskError(f"{leave_out!r} cannot be left out.", f"Choose {' or '.join(LEFT_OUT)}.")
    ways: dict[str, Way] = {
        "fusion": lambda split: _fused(split, Parts(), seed),
        "prior": lambda split: _fused(split, Parts(scores=False, early=False), seed),
    }
    for kind in ("scores", "early"):
        for name in sorted({name for one in history for name in getattr(one, kind)}):
            ways[name] = lambda split, kind=kind, name=name: _alone(split, kind, name)  # type: ignore[misc]
    ways = {name: way for name, way in ways.items() if only is None or name in only}
    splits = _splits(history, leave_out)
    if len({split.source for split in splits}) < 2:
        raise TaskError(
            f"The history holds {len({split.source for split in splits})} tasks with at least {FEWEST} checkpoints to compare; "
            "2 are needed.",
            "Run `regraft reuse` on more tasks.",
        )
    found = [_figures(name, [(split, *way(split)) for split in splits], seed) for name, way in ways.items()]
    ceiling = noise_ceiling(history, seed) if only is None else None
    return found if ceiling is None else [*found, ceiling]


def noise_ceiling(history: Sequence[Result], seed: int = 0) -> Figures | None:
    """Each task's results under one seed as the prediction of those under another; None without two seeds."""
    by_task: dict[tuple[str, str], dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for one in history:
        if one.accuracy is not None:
            by_task[_source(one), one.task][one.seed][one.checkpoint] = one.accuracy
    taus, regrets = defaultdict(list), defaultdict(list)
    for (source, _), seeds in by_task.items():
        for first in seeds:
            for second in seeds:
                shared = sorted(seeds[first].keys() & seeds[second].keys())
                if first != second and len(shared) >= FEWEST:
                    truth, guess = [seeds[second][name] for name in shared], [seeds[first][name] for name in shared]
                    taus[source].append(weighted_tau(truth, guess))
                    regrets[source].append(regret(truth, guess))
    if not taus:
        return None
    return Figures("noise ceiling", _interval(taus, seed), _interval(regrets, seed), None, len(taus))


@dataclass(frozen=True)
class Split:
    """One task's results under one seed, to be predicted from what is known.

    Attributes:
        source: What the figures are averaged over first.
        known: Results, and what was surveyed of the task itself.
        wanted: Results whose accuracies are to be predicted.
        strangers: Names of those that nothing else is known of; all of them where a task is left out.
    """

    source: str
    known: Sequence[Result]
    wanted: Sequence[Result]
    strangers: frozenset[str]

    @property
    def truth(self) -> list[float]:
        """The accuracies that were reached."""
        return [one.accuracy for one in self.wanted if one.accuracy is not None]


Way = Callable[[Split], tuple[list[float], "float | None"]]


def _source(one: Result) -> str:
    return one.source or one.task


def _splits(history: Sequence[Result], leave_out: str) -> list[Split]:
    found = []
    for task in sorted({one.task for one in history}):
        of_task = [one for one in history if one.task == task]
        source = _source(of_task[0])
        others = [one for one in history if one.task != task and _source(one) != source]
        surveyed = [one for one in of_task if one.accuracy is None]
        for number in sorted({one.seed for one in of_task}):
            wanted = [one for one in of_task if one.seed == number and one.accuracy is not None]
            names = {one.checkpoint for one in wanted}
            if len(names) < FEWEST:
                continue
            beside = [one for one in surveyed if one.checkpoint not in names]
            families = sorted({one.family for one in wanted}) if leave_out == "family" else [None]
            for family in families:
                kept = [one for one in others if family is None or one.family != family]
                strangers = frozenset(one.checkpoint for one in wanted if family is None or one.family == family)
                if any(one.accuracy is not None for one in kept):
                    found.append(Split(source, [*kept, *beside], wanted, strangers))
    return found


def _fused(split: Split, parts: Parts, seed: int) -> tuple[list[float], float | None]:
    candidates = [
        Candidate(one.checkpoint, one.family, dict(one.facts), dict(one.scores), dict(one.early), one.rows)
        for one in split.wanted
    ]
    task = split.wanted[0].task
    predictions = {one.checkpoint: one for one in predict(split.known, candidates, task, parts=parts, seed=seed)}
    inside = [
        predictions[one.checkpoint].low <= one.accuracy <= predictions[one.checkpoint].high
        for one in split.wanted if one.checkpoint in split.strangers and one.accuracy is not None
    ]  # fmt: skip
    return [predictions[one.checkpoint].accuracy for one in split.wanted], float(np.mean(inside))


def _alone(split: Split, kind: str, name: str) -> tuple[list[float], float | None]:
    """One number as it is; a checkpoint without it comes last."""
    values = [getattr(one, kind).get(name) for one in split.wanted]
    lowest = min((value for value in values if value is not None), default=0.0)
    return [lowest - 1.0 if value is None else float(value) for value in values], None


def _figures(name: str, checked: Sequence[tuple[Split, list[float], float | None]], seed: int) -> Figures:
    taus, regrets, covered = defaultdict(list), defaultdict(list), defaultdict(list)
    for split, guess, coverage in checked:
        taus[split.source].append(weighted_tau(split.truth, guess))
        regrets[split.source].append(regret(split.truth, guess))
        if coverage is not None:
            covered[split.source].append(coverage)
    inside = _interval(covered, seed) if covered else None
    return Figures(name, _interval(taus, seed), _interval(regrets, seed), inside, len(taus))


def _interval(values: Mapping[str, Sequence[float]], seed: int) -> tuple[float, float, float]:
    """Mean over sources of their means, and its bootstrap interval over sources."""
    means = [float(np.mean(values[source])) for source in sorted(values)]
    return (float(np.mean(means)), *mean_interval(means, seed))
