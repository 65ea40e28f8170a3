"""S044, fine-tuning transfer (Lin et al. 2025, 2503.20110): a fine-tune's changes make a newer base better.

Protocol
    old base     MiniLM
    newer base   MiniLM trained further, one epoch on a mixture of the other three tasks (of banking77, snips, hwu64, pydoc; up
                 to 3,000 training rows of each, all their labels in one head, which is thrown away)
    fine-tune    the expert of the task over the old base (merge_experts.py)
    transferred  newer base + (fine-tune - old base), by the method `transfer`, scale 1 as published
Each of the four tasks in turn, 3 seeds of all training. The newer base has no head for the task, so both it and the
transferred model get a linear head that is fitted on the same 2,000 training rows of the task; the verdict is on the difference
of their test accuracies. Reported beside it: the same under the fine-tune's own head, without any fitting; and
the dull alternative of keeping the old fine-tune as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from merge_experts import Lesson, Suite, Workshop
from merge_quality import Merger
from merge_stats import Rights, difference

from regraft.randomness import permutation

CLAIM = "a fine-tune transferred to a newer base beats the newer base alone"
TASKS = ("banking77", "snips", "hwu64", "pydoc")
MIXTURE_ROWS = 3000


def mixture(workshop: Workshop, tasks: tuple[str, ...]) -> Lesson:
    """Training rows of several tasks as one task; labels are named after theirs."""
    texts: list[str] = []
    labels: list[np.ndarray] = []
    names: list[str] = []
    for name in tasks:
        task = workshop.task(name)
        rows = permutation(len(task.train), 0, "mixture", name)[:MIXTURE_ROWS]
        texts += [task.train.texts[row] for row in rows]
        labels.append(task.train.labels[rows] + len(names))
        names += [f"{name}/{label}" for label in task.label_names]
    return Lesson(texts, np.concatenate(labels), tuple(names))


def check(workshop: Workshop, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Train what is missing, transfer, measure."""
    rights: dict[str, list[dict[str, np.ndarray]]] = {
        way: [] for way in ("newer, probe", "transferred, probe", "newer, head", "transferred, head", "old fine-tune")
    }
    suite = Suite(workshop, TASKS, "test")
    for seed in seeds:
        found: dict[str, dict[str, np.ndarray]] = {way: {} for way in rights}
        for name in TASKS:
            others = tuple(other for other in TASKS if other != name)
            newer = workshop.train(f"newer-without-{name}-{seed}", mixture(workshop, others), seed).folder
            expert = workshop.expert(name, seed)
            heads = {name: expert.head}
            found["newer, probe"][name] = workshop.probe_accuracy(newer, name)
            found["newer, head"][name] = suite.right(newer, heads)[name]
            found["old fine-tune"][name] = suite.right(expert.folder, heads)[name]
            merger = Merger(workshop)
            folder = merger.make_of("transfer", [str(expert.folder), str(newer)], {"scale": 1.0}, seed)[0]
            found["transferred, probe"][name] = workshop.probe_accuracy(folder, name)
            found["transferred, head"][name] = suite.right(folder, heads)[name]
        for way, by_task in found.items():
            rights[way].append(by_task)
    probes = difference(rights["transferred, probe"], rights["newer, probe"])
    return {
        "claim": CLAIM,
        "verdict": probes.verdict,
        "differences": {
            "transferred over newer base, heads fitted": probes.to_json(),
            "the same, the fine-tune's head": difference(rights["transferred, head"], rights["newer, head"]).to_json(),
            "transferred (head fitted) over the old fine-tune": difference(
                rights["transferred, probe"], rights["old fine-tune"]
            ).to_json(),
        },
        "accuracy": {way: accuracies(found) for way, found in rights.items()},
    }


def accuracies(rights: Rights) -> dict[str, float]:
    """By task, the mean over seeds."""
    return {name: round(float(np.mean([found[name].mean() for found in rights])), 5) for name in rights[0]}
