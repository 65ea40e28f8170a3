"""What merging does to accuracy: every method over five fine-tunes of MiniLM, 3 seeds.

    python benchmarks/merge_quality.py --data FOLDER --cache FOLDER
        [--seeds 0,1,2] [--parts held-in,pair,held-out,lora] [--methods ...] [--probe] [--rows N]

held-in   The encoders of all five experts are merged, and each task is tested under its expert's own head. Accuracy over the
          expert's accuracy is the normalised accuracy. Every method runs with its published settings, which look at no data,
          and, where its paper tunes, with the best of a small grid (merge_grid.py) by mean normalised accuracy on validation
          rows. `--probe` also fits a linear head anew on 2,000 training rows of each task.
pair      Methods for two inputs, over the experts of banking77 and snips, beside the plain average and task arithmetic.
held-out  The experts of all tasks but those over one set of texts are merged with published settings; a linear probe on the
          merged encoder is tested on the task that was left out. Beside the base's own probe this is what the merge
          brought to, or took from (forgetting), an ability that none of the experts was trained on.
lora      The experts are LoRA adapters of rank 16; methods for adapters, beside task arithmetic over the same.

The base, each expert by itself, the plain average (linear) and task arithmetic are always in the table. Experts come from
merge_experts.py. Cells that are in the results are not computed again (`--again` does).
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import merge_grid
import merge_tables
import numpy as np
from merge_experts import GROUPS, TASKS, Expert, Suite, Workshop

from regraft.errors import RegraftError
from regraft.merge.recipe.spec import spec_of
from regraft.merge.register import traits_of
from regraft.merge.run import merge

PARTS = ("held-in", "pair", "held-out", "lora")
PAIR = ("banking77", "snips")
ALWAYS = ("linear", "task_arithmetic")
# Methods that decompose a matrix hold a few copies of it; the word embeddings are the largest one here.
MEMORY = 4 * 2**30
ADAPTER_METHODS = ("lora_cat", "lora_svd", "knots")


class Merger:
    """Merges into a scratch folder, where the result stays until the next merge of that name."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop

    def folder(self, name: str = "merge") -> Path:
        """Where a merge lies."""
        return self.workshop.cache / "merged" / name.replace(" ", "-")

    def make(self, method: str, experts: Sequence[Expert], options: Mapping[str, Any], seed: int) -> tuple[Path, float]:
        """Merge experts over their base; the folder, and the seconds that merging took."""
        base, wants = self.workshop.base, traits_of(method).wants
        inputs = [f"{base}+{expert.folder}" if expert.adapter else str(expert.folder) for expert in experts]
        if "fisher" in wants:
            inputs = [str(self.workshop.member(expert)) for expert in experts]
        if "statistics" in wants:
            options = {**options, "data": [self.workshop.reference(expert.task) for expert in experts]}
        return self.make_of(method, inputs, options, seed)

    def make_of(
        self, method: str, inputs: Sequence[str], options: Mapping[str, Any], seed: int, base: str | None = None,
        name: str = "merge",
    ) -> tuple[Path, float]:  # fmt: skip
        """Merge references; the base is MiniLM's unless another is given, where the method takes one."""
        out = self.folder(name)
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        traits = traits_of(method)
        given = None if traits.base == "none" else base or str(self.workshop.base)
        # Fisher information is of experts with their heads, which differ; the base has none, and so has the merge.
        allow = ("heads",) if "fisher" in traits.wants else ()
        started = time.monotonic()
        merge(spec_of(method, inputs, given, seed=seed, **options), out, max_memory=MEMORY, allow=allow)
        return out, time.monotonic() - started

    def clear(self) -> None:
        """Remove what was merged."""
        shutil.rmtree(self.workshop.cache / "merged", ignore_errors=True)


class Board:
    """One seed's experts and the suites that measure over them."""

    def __init__(self, workshop: Workshop, seed: int, tasks: Sequence[str] = TASKS, lora: bool = False) -> None:
        self.seed, self.workshop, self.merger = seed, workshop, Merger(workshop)
        self.experts = {name: workshop.expert(name, seed, lora=lora) for name in tasks}
        self.heads = {name: expert.head for name, expert in self.experts.items()}
        self.validation, self.test = (Suite(workshop, tasks, split) for split in ("validation", "test"))
        self._own: dict[str, dict[str, float]] = {}

    def own(self, split: str) -> dict[str, float]:
        """Each expert's accuracy on its own task."""
        if split not in self._own:
            suite = self.validation if split == "validation" else self.test
            self._own[split] = {
                name: suite.accuracies(self.folder_of(expert), {name: expert.head})[name]
                for name, expert in self.experts.items()
            }
        return self._own[split]

    def folder_of(self, expert: Expert) -> Path:
        """A whole encoder: an adapter is merged into the base, alone, by task arithmetic with scale 1."""
        return self.merger.make("task_arithmetic", [expert], {"scale": 1.0}, 0)[0] if expert.adapter else expert.folder

    def normalised(self, accuracies: Mapping[str, float], split: str) -> float:
        """The mean over tasks of accuracy over the expert's."""
        return float(np.mean([value / self.own(split)[name] for name, value in accuracies.items()]))

    def score(self, method: str, options: Mapping[str, Any]) -> tuple[float, float]:
        """Mean normalised accuracy on validation rows, and the seconds of merging."""
        folder, seconds = self.merger.make(method, list(self.experts.values()), options, self.seed)
        return self.normalised(self.validation.accuracies(folder, self.heads), "validation"), seconds

    def choose(self, method: str, points: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The best of the settings by validation rows (the first of equal ones), and what all of them scored."""
        tried = []
        for options in points:
            score, seconds = self.score(method, options)
            tried.append({"options": dict(options), "validation": round(score, 5), "seconds": round(seconds, 3)})
        best = max(tried, key=lambda one: one["validation"])
        return best["options"], tried

    def measure(self, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Merge and test."""
        folder, seconds = self.merger.make(method, list(self.experts.values()), options, self.seed)
        return {"options": dict(options), "seconds": round(seconds, 3), **self.tested(folder)}

    def tested(self, folder: Path) -> dict[str, Any]:
        """Test accuracies under the experts' own heads, and their normalised mean."""
        found = self.test.accuracies(folder, self.heads)
        return {"test": _rounded(found), "normalised": round(self.normalised(found, "test"), 5)}


def held_in(board: Board, method: str, probe: bool) -> dict[str, Any]:
    """One method: published settings, chosen settings."""
    found = {"published": board.measure(method, merge_grid.published(method))}
    if probe:
        found["published"]["probe"] = _probes(board)
    points = merge_grid.grid(method)
    if len(points) > 1:
        best, tried = board.choose(method, points)
        found["chosen"] = board.measure(method, best)
        found["grid"] = tried
        if probe:
            found["chosen"]["probe"] = _probes(board)
    return found


def _probes(board: Board) -> dict[str, float]:
    """Test accuracy of linear heads that were fitted anew on the encoder that was merged last."""
    return _rounded(
        {name: float(board.workshop.probe_accuracy(board.merger.folder(), name).mean()) for name in board.experts}
    )


def baselines(board: Board) -> dict[str, Any]:
    """What needs no merge: the experts, each with the others' heads too, and the base under the experts' heads."""
    found: dict[str, Any] = {"own": {split: _rounded(board.own(split)) for split in ("validation", "test")}}
    found["base"] = board.tested(board.workshop.base)
    singles = {name: board.tested(board.folder_of(expert)) for name, expert in board.experts.items()}
    scores = {
        name: board.normalised(board.validation.accuracies(board.folder_of(expert), board.heads), "validation")
        for name, expert in board.experts.items()
    }
    best = max(scores, key=lambda name: scores[name])  # by validation rows, as everything else
    return {**found, "singles": singles, "best single": {"name": best, **singles[best]}}


def held_out(workshop: Workshop, seed: int, method: str, group: Sequence[str]) -> dict[str, Any]:
    """A probe on the merge of the other experts, for the tasks of the group."""
    experts = [workshop.expert(name, seed) for name in TASKS if name not in group]
    folder, seconds = Merger(workshop).make(method, experts, merge_grid.published(method), seed)
    return {**probed(workshop, folder, group), "seconds": round(seconds, 3)}


def probed(workshop: Workshop, folder: Path, group: Sequence[str]) -> dict[str, Any]:
    """Test accuracies of linear probes on an encoder, for the tasks of a group."""
    return {"probe": _rounded({name: float(workshop.probe_accuracy(folder, name).mean()) for name in group})}


def _rounded(accuracies: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in accuracies.items()}


class Runner:
    """Computes cells that are not there yet; a method that fails is a result, too."""

    def __init__(self, results: common.Results, again: bool, workshop: Workshop) -> None:
        self.results, self.again, self.workshop = results, again, workshop

    def cell(self, key: str, compute: Callable[[], dict[str, Any]]) -> None:
        """One cell, computed when needed, printed when done."""
        if key in self.results.cells and not self.again:
            return
        started = time.monotonic()
        try:
            found = compute()
        except (RegraftError, MemoryError, np.linalg.LinAlgError) as fault:
            words = f"{type(fault).__name__}: {fault}"
            found = {"failed": words.replace(f"{self.workshop.cache}/", "").replace(f"{self.workshop.data}/", "")}
        found["cell_s"] = round(time.monotonic() - started, 1)
        self.results.put(key, found)
        print(merge_tables.quality_line(key, found), flush=True)


def run_seed(workshop: Workshop, runner: Runner, seed: int, parts: Sequence[str], only: set[str], probe: bool) -> None:
    """All parts for one seed."""
    several, _ = merge_grid.usable(len(TASKS))
    several = [name for name in several if name not in ADAPTER_METHODS and (not only or name in only)]
    if "held-in" in parts:
        board = Board(workshop, seed)
        runner.cell(f"held-in/{seed}/baselines", lambda: baselines(board))
        for name in several:
            runner.cell(f"held-in/{seed}/{name}", lambda name=name: held_in(board, name, probe))
    if "pair" in parts:
        two, _ = merge_grid.usable(len(PAIR))
        board = Board(workshop, seed, PAIR)
        runner.cell(f"pair/{seed}/baselines", lambda: baselines(board))
        for name in [name for name in two if (name not in several or name in ALWAYS) and name not in ADAPTER_METHODS]:
            if not only or name in only:
                runner.cell(f"pair/{seed}/{name}", lambda name=name: held_in(board, name, False))
    if "held-out" in parts:
        for group in GROUPS:
            _held_out_group(workshop, runner, seed, several, group)
    if "lora" in parts:
        board = Board(workshop, seed, lora=True)
        runner.cell(f"lora/{seed}/baselines", lambda: baselines(board))
        for name in [name for name in (*ADAPTER_METHODS, *ALWAYS) if not only or name in only]:
            runner.cell(f"lora/{seed}/{name}", lambda name=name: held_in(board, name, False))


def _held_out_group(workshop: Workshop, runner: Runner, seed: int, names: Sequence[str], group: Sequence[str]) -> None:
    """The base, the experts of the other tasks one by one, and every merge of them."""
    left = "+".join(group)
    runner.cell(f"held-out/{seed}/base/{left}", lambda: probed(workshop, workshop.base, group))
    for other in [name for name in TASKS if name not in group]:
        folder = workshop.expert(other, seed).folder
        runner.cell(f"held-out/{seed}/expert of {other}/{left}", lambda folder=folder: probed(workshop, folder, group))
    for name in names:
        runner.cell(f"held-out/{seed}/{name}/{left}", lambda name=name: held_out(workshop, seed, name, group))


def main() -> None:
    """Compute what is asked for and not there yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with banking77/, snips/ and hwu64/")
    parser.add_argument("--cache", type=Path, required=True, help="folder for experts (about 110 MB each)")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--methods", default="", help="only these")
    parser.add_argument("--probe", action="store_true", help="fit a linear head anew on held-in tasks, too")
    parser.add_argument("--rows", type=int, help="most rows of a split, for a trial with results of its own")
    parser.add_argument("--again", action="store_true", help="compute cells again that are in the results")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the results file")
    given = parser.parse_args()
    parts = given.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]}, known: {', '.join(PARTS)}")
    workshop = Workshop(given.data.resolve(), given.cache.resolve(), given.rows)
    results = common.Results("merge_quality" if given.rows is None else "merge_quality_trial", given.results)
    results.content["left out"] = merge_grid.usable(len(TASKS))[1]
    runner = Runner(results, given.again, workshop)
    only = set(filter(None, given.methods.split(",")))
    for seed in map(int, given.seeds.split(",")):
        run_seed(workshop, runner, seed, parts, only, given.probe)
    Merger(workshop).clear()
    print("\n" + merge_tables.quality(results.content))


if __name__ == "__main__":
    main()
