"""Claim checks of merging: the sources' headline claims in relative form, as they come out.

    python benchmarks/claims/merge.py --data FOLDER --cache FOLDER [--claims S349,S053,S059,S044,S039] [--seeds 0,1,2] [--rows N]

All are over MiniLM experts of banking77, snips, hwu64, hwu64 by scenario, and pydoc (merge_experts.py; `--cache` is shared with
merge_quality.py), each tested under its own expert's head on the whole test split. The figure is accuracy over the expert's
accuracy, averaged over tasks; the interval is a bootstrap over seeds and test rows (merge_stats.py). A claim `holds` when the
interval lies above zero, `does not hold` when below, and is `too close to call` else; of several comparisons all must hold.

S349  TIES (Yadav et al. 2023, 2306.01708): TIES beats averaging and task arithmetic. As in the paper's code: trim over the
      whole model, signs by unweighted mass, mean over those that agree; 10 % of all weights are kept, which is the paper's
      20 % of those that were trained (the word embeddings are not, merge_grid.py). The verdict is where scales are chosen on
      validation rows, as in the paper's main table: 8 points for TIES (0.8 to 2.3) and 8 for task arithmetic (0.1 to 1.0).
      Reported beside it: without validation data (TIES 1, task arithmetic 0.4).
S053  PCB (Du et al. 2024, 2410.02396): PCB beats task arithmetic and TIES. Density 5 %, its code's 10 % of
      what was trained; the scale is chosen on validation rows among 8 points (0.8 to 2.2) against 8 each for the other two.
S059  OPCM (Tang et al. 2025, 2501.09522): merging one model after another beats averaging them, in any order. alpha 0.5 as
      published, nothing is tuned; 5 random orders of the five experts, the same for all seeds. Two comparisons with the
      plain average, which has no order: the mean over orders, and in each seed the worst order. Reported beside it: task
      arithmetic (0.4) and the standard deviation over orders.
S044  Fine-tuning transfer to a newer base: see merge_transfer.py.
S039  Robust weight signatures: see merge_signatures.py.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common
import merge_grid
import merge_tables
from claims import merge_signatures, merge_transfer
from merge_experts import TASKS, Workshop
from merge_quality import Board, Merger
from merge_stats import difference, together

from regraft.randomness import permutation

ORDERS = 5

Right = dict[str, np.ndarray]


class Contest:
    """Merges of the five experts for several seeds, each computed once: which test rows they get right."""

    def __init__(self, workshop: Workshop, seeds: tuple[int, ...]) -> None:
        self.boards = [Board(workshop, seed) for seed in seeds]
        self.chosen: dict[str, list[dict[str, Any]]] = {}
        self.published = functools.cache(self._published)
        self.tuned = functools.cache(self._tuned)

    @property
    def unit(self) -> list[dict[str, float]]:
        """The experts' own test accuracies, by seed."""
        return [board.own("test") for board in self.boards]

    def right(
        self, board: Board, method: str, options: Mapping[str, Any], order: tuple[int, ...] | None = None
    ) -> Right:
        """Which test rows a merge gets right, by task; the experts are given in an order."""
        experts = [board.experts[TASKS[at]] for at in order or range(len(TASKS))]
        folder, _ = board.merger.make(method, experts, options, board.seed)
        return board.test.right(folder, board.heads)

    def _published(self, method: str) -> list[Right]:
        return [self.right(board, method, merge_grid.published(method)) for board in self.boards]

    def _tuned(self, method: str) -> list[Right]:
        """The scale chosen on validation rows."""
        scales = {"task_arithmetic": merge_grid.TASK_ARITHMETIC, "ties": merge_grid.TIES, "pcb": merge_grid.PCB}[method]
        fixed = {name: value for name, value in merge_grid.published(method).items() if name != "scale"}
        found, self.chosen[method] = [], []
        for board in self.boards:
            best, _ = board.choose(method, [{**fixed, "scale": scale} for scale in scales])
            self.chosen[method].append(best)
            found.append(self.right(board, method, best))
        return found

    def normalised(self, rights: list[Right]) -> list[float]:
        """The mean normalised accuracy, by seed."""
        return [
            round(float(np.mean([right.mean() / unit[name] for name, right in found.items()])), 5)
            for found, unit in zip(rights, self.unit, strict=True)
        ]


def ties(contest: Contest) -> dict[str, Any]:
    """S349."""
    average = contest.published("linear")
    chosen = {
        "over averaging": difference(contest.tuned("ties"), average, contest.unit),
        "over task arithmetic": difference(contest.tuned("ties"), contest.tuned("task_arithmetic"), contest.unit),
    }
    plain = {
        "no validation data: over averaging": difference(contest.published("ties"), average, contest.unit),
        "no validation data: over task arithmetic": difference(
            contest.published("ties"), contest.published("task_arithmetic"), contest.unit
        ),
    }
    return {
        "claim": "TIES beats averaging and task arithmetic",
        "verdict": together([one.verdict for one in chosen.values()]),
        "differences": {name: one.to_json() for name, one in {**chosen, **plain}.items()},
        "normalised": {
            "averaging": contest.normalised(average),
            "task arithmetic": contest.normalised(contest.tuned("task_arithmetic")),
            "TIES": contest.normalised(contest.tuned("ties")),
        },
        "chosen": {name: contest.chosen[name] for name in ("task_arithmetic", "ties")},
    }


def pcb(contest: Contest) -> dict[str, Any]:
    """S053."""
    found = {
        "over task arithmetic": difference(contest.tuned("pcb"), contest.tuned("task_arithmetic"), contest.unit),
        "over TIES": difference(contest.tuned("pcb"), contest.tuned("ties"), contest.unit),
    }
    return {
        "claim": "PCB beats task arithmetic and TIES",
        "verdict": together([one.verdict for one in found.values()]),
        "differences": {name: one.to_json() for name, one in found.items()},
        "normalised": {
            name: contest.normalised(contest.tuned(name)) for name in ("task_arithmetic", "ties", "pcb")
        },
        "chosen": {name: contest.chosen[name] for name in ("task_arithmetic", "ties", "pcb")},
    }  # fmt: skip


def opcm(contest: Contest) -> dict[str, Any]:
    """S059."""
    orders = [tuple(map(int, permutation(len(TASKS), 0, "order of merging", number))) for number in range(ORDERS)]
    by_order = [[contest.right(board, "opcm", {}, order) for board in contest.boards] for order in orders]
    scores = np.array([contest.normalised(rights) for rights in by_order])  # [orders, seeds]
    seeds = range(len(contest.boards))
    mean = [{name: np.mean([rights[seed][name] for rights in by_order], axis=0) for name in TASKS} for seed in seeds]
    average = contest.published("linear")
    found = {"mean of the orders over averaging": difference(mean, average, contest.unit)}
    # The claim is of any order. Each has an interval of its own: the worst one would be chosen by the rows that it is tested on.
    for number, rights in enumerate(by_order, 1):
        found[f"order {number} over averaging"] = difference(rights, average, contest.unit)
    beside = difference(mean, contest.published("task_arithmetic"), contest.unit)
    return {
        "claim": "merging one after another (OPCM) beats averaging, in any order",
        "verdict": together([one.verdict for one in found.values()]),
        "differences": {name: one.to_json() for name, one in {**found, "beside: over task arithmetic": beside}.items()},
        "orders": [[TASKS[at] for at in order] for order in orders],
        "normalised": {"by order and seed": scores.tolist(), "averaging": contest.normalised(average)},
        "spread over orders": [round(float(value), 5) for value in scores.std(axis=0, ddof=1)],
    }


def main() -> None:
    """Check what is asked for and not there yet, and print the table."""
    checks: dict[str, Callable[[Contest], dict[str, Any]]] = {"S349": ties, "S053": pcb, "S059": opcm}
    alone = {"S044": merge_transfer.check, "S039": merge_signatures.check}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with banking77/, snips/ and hwu64/")
    parser.add_argument("--cache", type=Path, required=True, help="folder for experts, as of merge_quality.py")
    parser.add_argument("--claims", default=",".join([*checks, *alone]))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", type=int, help="most rows of a split, for a trial with results of its own")
    parser.add_argument("--again", action="store_true", help="check again what is in the results")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the results file")
    given = parser.parse_args()
    seeds = tuple(map(int, given.seeds.split(",")))
    wanted = given.claims.split(",")
    if unknown := [name for name in wanted if name not in {**checks, **alone}]:
        parser.error(f"unknown claim {unknown[0]}, known: {', '.join([*checks, *alone])}")
    results = common.Results("merge_claims" if given.rows is None else "merge_claims_trial", given.results)
    workshop = Workshop(given.data.resolve(), given.cache.resolve(), given.rows)
    contest = functools.cache(lambda: Contest(workshop, seeds))
    for name in wanted:
        if name in results.cells and not given.again:
            continue
        started = time.monotonic()
        found = checks[name](contest()) if name in checks else alone[name](workshop, seeds)
        results.put(
            name, {**found, "seeds": list(seeds), "rows": given.rows, "seconds": round(time.monotonic() - started)}
        )
        print(f"{name} {found['verdict']}: {found['claim']}", flush=True)
    Merger(workshop).clear()
    print("\n" + merge_tables.claims(results.content))


if __name__ == "__main__":
    main()
