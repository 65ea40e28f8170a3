"""The table of true results that rankings are judged by: 13 checkpoints fine-tuned on six tasks, 1,000 examples each, two seeds.

    python benchmarks/rank_truth.py --data FOLDER --scratch FOLDER [--only TASK] [--rows 1000]

    checkpoints   MiniLM's first 1 to 6 layers; MiniLM fine-tuned on banking77, snips, hwu64, hwu64's scenarios, pydoc; random
                  weights with 2 and 6 layers. None is tried on a task over the texts that it was trained on
    tasks         banking77, snips, hwu64, its scenarios (before the first underscore) and actions (after it), pydoc
    result        accuracy on test rows (at most 1,500) after three epochs of `full` from a probe head on 1,000 training rows
    known before  every registered score on the last layer's mean and on the mean over layers; left-out accuracy of the linear
                  probe (last, mean, all); accuracy of a short run (a fifth of the steps on 800 rows) on the 200 others

One way to train serves all: random weights get no more epochs than trained ones, as in the main job, and no chance to win with
1,000 rows. Each cell is a line of benchmarks/results/rank_truth.json, written when it is done: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import merge_experts
import numpy as np
import torch

from regraft import methods
from regraft.adapt import Adaptation, Plan, probe
from regraft.checkpoint import Checkpoint, load_tokenizer, max_length, open_checkpoint
from regraft.checkpoint.batches import tokenize
from regraft.features import extract
from regraft.randomness import permutation
from regraft.rank.scores import left_out_correct, prepare
from regraft.store import Store, whole_folder
from regraft.task import load_task
from regraft.task.task import Task
from regraft.train.loop import Data, Leg

TASKS = ("banking77", "snips", "hwu64", "scenario", "action", "pydoc")
SHARED_TEXTS = ("hwu64", "scenario", "action")
SEEDS = (0, 1)
ROWS = 1000
TEST_ROWS = 1500
HELD_OUT = 0.2
EPOCHS, SHORT = 3, 0.2
LEARNING_RATE = 2e-4


@dataclass(frozen=True)
class Source:
    """A checkpoint of the table, and the task that it was fine-tuned on ("" for none)."""

    checkpoint: Checkpoint
    family: str
    trained_on: str = ""

    def fits(self, task: str) -> bool:
        """Whether the task's texts are new to it."""
        both = {task, self.trained_on}
        return task != self.trained_on and not both <= set(SHARED_TEXTS)


def sources(workshop: merge_experts.Workshop) -> Iterator[Source]:
    """The checkpoints of the table."""
    name = merge_experts.REFERENCE
    for layers in range(1, 7):
        yield Source(open_checkpoint(f"{name}#layers={layers}").renamed(f"minilm-l{layers}"), "minilm")
    for layers in (2, 6):
        yield Source(open_checkpoint(f"{name}#layers={layers}&random=0").renamed(f"random-l{layers}"), "scratch")
    for task in merge_experts.TASKS:
        folder = workshop.expert(task, 0).folder
        yield Source(open_checkpoint(str(folder)).renamed(f"minilm-{task}"), "fine-tuned", task)


def read_task(workshop: merge_experts.Workshop, name: str) -> Task:
    """A task of the table; actions are made of hwu64 like scenarios."""
    if name != "action":
        return workshop.task(name)
    folder = workshop.cache / "action"
    if not folder.is_dir():
        with whole_folder(folder) as aside:
            for split in ("train", "test"):
                rows = common.read(workshop.data / "hwu64" / f"{split}.csv")
                with (aside / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
                    writer = csv.writer(file)
                    writer.writerow(["text", "label"])
                    labels = (label.split("_", 1)[1] for label in rows.labels)
                    writer.writerows(zip(rows.texts, labels, strict=True))
    return load_task(str(folder), max_rows=workshop.rows)


def known_before(checkpoint: Checkpoint, texts: list[str], labels: np.ndarray, store: Store) -> dict[str, Any]:
    """Scores and left-out accuracies of one pass of features, and what they took."""
    started = time.monotonic()
    features = extract(checkpoint, texts, store=store)
    seconds = {"features": time.monotonic() - started}
    scores: dict[str, float] = {}
    for view in ("last", "mean"):
        ready = prepare(getattr(features, view), labels)
        for method in methods.methods("rank"):
            if not method.needs <= {"features", "labels"}:
                continue  # it wants a source head's outputs, or real-valued targets
            begun = time.monotonic()
            scores[f"{method.name}/{view}"] = float(method(ready, seed=0))
            seconds[method.name] = seconds.get(method.name, 0.0) + time.monotonic() - begun
    early = {
        f"probe_{view}": float(left_out_correct(getattr(features, view), labels).mean())
        for view in ("last", "mean", "all")
    }
    return {"scores": scores, "early": early, "seconds": {name: round(value, 3) for name, value in seconds.items()}}


def trained(
    checkpoint: Checkpoint,
    task: Task,
    rows: np.ndarray,
    test: np.ndarray | None,
    seed: int,
    epochs: float,
    trials: Path,
) -> float:
    """Accuracy on test rows (None: on the fifth of the rows that was held out) after a fine-tune from the probe head."""
    chosen, unseen = (rows, test) if test is not None else np.split(rows, [round((1 - HELD_OUT) * len(rows))])
    split = task.test if test is not None else task.train
    assert unseen is not None
    texts, labels = [task.train.texts[row] for row in chosen], task.train.labels[chosen]
    head = probe(extract(checkpoint, texts, store=Store(trials / "store")), labels, len(task.label_names), seed=seed)
    plan = Plan("full", {"learning_rate": LEARNING_RATE}, {}, seed)
    adaptation = Adaptation(checkpoint, task.label_names, head, plan, trials / "trial")
    tokenizer, length = load_tokenizer(checkpoint), min(merge_experts.LENGTH, max_length(checkpoint))
    data = Data(tokenize(tokenizer, texts, length), labels)
    steps = max(1, round(epochs * data.steps_per_epoch(adaptation.settings.batch)))
    adaptation.train(data, Leg(steps, decay=steps))
    found = adaptation.probabilities(tokenize(tokenizer, [split.texts[row] for row in unseen], length))
    shutil.rmtree(trials, ignore_errors=True)
    return float((found.argmax(axis=1) == split.labels[unseen]).mean())


def main() -> None:
    """Measure the cells that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with banking77/, snips/ and hwu64/")
    parser.add_argument("--scratch", type=Path, required=True, help="where fine-tuned sources are kept")
    parser.add_argument("--only", choices=TASKS)
    parser.add_argument("--rows", type=int, default=ROWS, help="training rows; fewer to try the script with")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the results file")
    given = parser.parse_args()
    torch.set_num_threads(common.THREADS)
    results = common.Results("rank_truth", given.results)
    workshop = merge_experts.Workshop(given.data.resolve(), given.scratch)
    everyone = list(sources(workshop))
    for name in [given.only] if given.only else TASKS:
        task = read_task(workshop, name)
        for seed in SEEDS:
            rows = permutation(len(task.train), seed, "rank truth", name)[: given.rows]
            test = permutation(len(task.test), 0, "rank truth test", name)[:TEST_ROWS]
            texts, labels = [task.train.texts[row] for row in rows], task.train.labels[rows]
            for source in everyone:
                key = f"{source.checkpoint.name}/{name}/{seed}" + ("" if given.rows == ROWS else f"/{given.rows} rows")
                if key in results.cells or not source.fits(name):
                    continue
                started, trials = time.monotonic(), given.scratch / "truth-trials"
                shutil.rmtree(trials, ignore_errors=True)
                before = known_before(source.checkpoint, texts, labels, Store(trials / "store"))
                before["early"]["short_run"] = trained(
                    source.checkpoint, task, rows, None, seed, EPOCHS * SHORT, trials
                )  # fmt: skip
                accuracy = trained(source.checkpoint, task, rows, test, seed, EPOCHS, trials)
                results.put(
                    key,
                    {
                        "checkpoint": source.checkpoint.name, "task": name, "seed": seed, "accuracy": accuracy,
                        "rows": len(test), "family": source.family,
                        "facts": {
                            "parameters": math.log10(source.checkpoint.parameters),
                            "layers": float(source.checkpoint.num_layers),
                            "trained": float(source.checkpoint.random is None),
                        },
                        **before, "wall_s": round(time.monotonic() - started, 1),
                    },
                )  # fmt: skip
                print(f"{key:32} {accuracy:.4f} {time.monotonic() - started:6.1f} s", flush=True)


if __name__ == "__main__":
    main()
