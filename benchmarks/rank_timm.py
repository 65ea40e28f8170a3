"""Prior and fusion without features on 1,556 image models and six test sets, each set left out in turn.

    python benchmarks/rank_timm.py --data FOLDER

FOLDER holds timm_results/ (accuracies that its maintainers measured). What is predicted of a set is each model's accuracy on it,
from all other sets; beside it the number of parameters alone, and the accuracy on ImageNet alone. ImageNet itself is known to all
and not among the sets that are predicted. Then the same with the family left out as well: models of architectures that nobody has
tried. Weighted tau and regret of the first choice in points, with bootstrap intervals over the sets, and how often the truth
lies in the predicted 95 % interval. Two of the sets are ImageNet's own images with other labels (`real`) and a replication of
them (`v2`).
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import common
import numpy as np

from regraft.evaluate.metrics import mean_interval
from regraft.rank.fusion.design import Parts
from regraft.rank.fusion.fusion import Candidate, predict
from regraft.rank.fusion.history import Result
from regraft.rank.fusion.selfcheck import regret, weighted_tau

SETS = {
    "imagenet": "results-imagenet.csv", "real": "results-imagenet-real.csv",
    "v2": "results-imagenetv2-matched-frequency.csv", "a": "results-imagenet-a.csv", "r": "results-imagenet-r.csv",
    "sketch": "results-sketch.csv",
}  # fmt: skip
PREDICTED = tuple(name for name in SETS if name != "imagenet")
# Families are left out together in this many groups, so that the whole takes minutes.
GROUPS = 5


def read(folder: Path) -> list[Result]:
    """All results; facts are what the model's name and size say."""
    found = []
    for task, name in SETS.items():
        with (folder / name).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                architecture, _, training = row["model"].partition(".")
                facts = {
                    "parameters": math.log10(float(row["param_count"].replace(",", ""))),
                    "image_size": math.log10(float(row["img_size"])),
                    **{word: 1.0 for word in ("in22k", "in12k", "clip", "dist", "mim") if word in training},
                }
                found.append(
                    Result(
                        f"{row['model']}@{row['img_size']}",
                        task,
                        float(row["top1"]) / 100,
                        family=architecture.split("_")[0],
                        facts=facts,
                    )
                )
    words = {name for one in found for name in one.facts}
    return [
        Result(
            one.checkpoint, one.task, one.accuracy, family=one.family, facts={w: one.facts.get(w, 0.0) for w in words}
        )
        for one in found
    ]


def ways(history: list[Result]) -> dict[str, Callable[[list[Result], list[Result]], tuple[list[float], list[bool]]]]:
    """Name -> (known, wanted) -> predictions, and whether the truth lies inside their intervals."""
    imagenet = {one.checkpoint: one.accuracy for one in history if one.task == "imagenet"}

    def fused(known: list[Result], wanted: list[Result], parts: Parts) -> tuple[list[float], list[bool]]:
        candidates = [Candidate(one.checkpoint, one.family, one.facts, {}, {}) for one in wanted]
        made = {one.checkpoint: one for one in predict(known, candidates, wanted[0].task, parts=parts)}
        chosen = [made[one.checkpoint] for one in wanted]
        return [one.accuracy for one in chosen], [
            p.low <= one.accuracy <= p.high for p, one in zip(chosen, wanted, strict=True)
        ]

    return {
        "fusion": lambda known, wanted: fused(known, wanted, Parts()),
        "prior (record alone)": lambda known, wanted: fused(known, wanted, Parts(families=False, facts=False)),
        "facts and family alone": lambda known, wanted: fused(known, wanted, Parts(history=False)),
        "parameters": lambda known, wanted: ([one.facts["parameters"] for one in wanted], []),
        "imagenet accuracy": lambda known, wanted: ([imagenet.get(one.checkpoint, 0.0) for one in wanted], []),
    }


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), 4) for value in values]


def main() -> None:
    """Leave out, predict, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with timm_results/")
    given = parser.parse_args()
    history = read(given.data / "timm_results")
    families = sorted({one.family for one in history})
    results = common.Results("rank_timm")
    for left_out in ("set", "set and family"):
        figures: dict[str, Any] = {}
        for name, way in ways(history).items():
            started, taus, regrets, inside = time.monotonic(), [], [], []
            for task in PREDICTED:
                wanted = [one for one in history if one.task == task]
                guess: dict[str, float] = {}
                for group in [families] if left_out == "set" else [families[at::GROUPS] for at in range(GROUPS)]:
                    hidden = set() if left_out == "set" else set(group)
                    known = [one for one in history if one.task != task and one.family not in hidden]
                    some = [one for one in wanted if one.family in set(group)]
                    values, within = way(known, some)
                    guess |= {one.checkpoint: value for one, value in zip(some, values, strict=True)}
                    inside += within
                truth = [one.accuracy for one in wanted]
                predicted = [guess[one.checkpoint] for one in wanted]
                taus.append(weighted_tau(truth, predicted))
                regrets.append(100 * regret(truth, predicted))
            figures[name] = {
                "weighted_tau": round(float(np.mean(taus)), 4), "tau_interval": _rounded(mean_interval(taus)),
                "regret_points": round(float(np.mean(regrets)), 3), "regret_interval": _rounded(mean_interval(regrets)),
                "coverage": round(float(np.mean(inside)), 4) if inside else None, "sets": len(taus),
                "by_set": dict(zip(PREDICTED, _rounded(taus), strict=True)),
                "regret_by_set": dict(zip(PREDICTED, _rounded(regrets), strict=True)),
                "seconds": round(time.monotonic() - started, 1),
            }  # fmt: skip
            print(f"without the {left_out:15} {name:24} {figures[name]}", flush=True)
        results.put(left_out, {"ways": figures, "models": len({one.checkpoint for one in history})})


if __name__ == "__main__":
    main()
