"""The tables of ranking, from the results files: true results, self-check, speed, and image models."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np


def truth(content: dict[str, Any]) -> str:
    """True accuracies: a row for each checkpoint, a column for each task, means over the seeds."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in content["cells"].values():
        found[cell["checkpoint"]][cell["task"]].append(100 * cell["accuracy"])
    tasks = list(dict.fromkeys(cell["task"] for cell in content["cells"].values()))
    lines = [f"| checkpoint | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]
    for name, of in sorted(found.items()):
        shown = [f"{np.mean(of[task]):.1f}" if task in of else "-" for task in tasks]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def selfcheck(content: dict[str, Any]) -> str:
    """Order, regret and coverage of every way of predicting, best order first; without the task, and without the family."""
    lines = [
        "| left out | predicted by | weighted tau | regret, points | inside the interval |",
        "|---|---|---|---|---|",
    ]
    for key, cell in content["cells"].items():
        for name, way in sorted(cell["ways"].items(), key=lambda one: -one[1]["tau"][0]):
            mean, low, high = way["tau"]
            lost, least, most = (100 * value for value in way["regret"])
            inside = "-" if way["coverage"] is None else f"{way['coverage'][0]:.0%}"
            lines.append(
                f"| {key} | {name} | {mean:.3f} ({low:.3f} to {high:.3f}) | {lost:.2f} ({least:.2f} to {most:.2f}) | {inside} |"
            )
    return "\n".join(lines) + "\n"


def speed(content: dict[str, Any]) -> str:
    """Wall times beside transformer-ranker, and with the features in the store."""
    lines = [
        "| checkpoints / texts | Regraft | transformer-ranker | times as fast | features in the store |",
        "|---|---|---|---|---|",
    ]
    for key, cell in content["cells"].items():
        lines.append(
            f"| {key} | {cell['regraft_s']:.1f} s | {cell['peer_s']:.1f} s | {cell['times']:.2f} | {cell['stored_s']:.1f} s |"
        )
    return "\n".join(lines) + "\n"


def timm(content: dict[str, Any]) -> str:
    """Order and first choice of each way of predicting image models."""
    lines = [
        "| left out | predicted by | weighted tau | regret, points | inside the interval | sets |",
        "|---|---|---|---|---|---|",
    ]
    for key, cell in content["cells"].items():
        for name, way in sorted(cell["ways"].items(), key=lambda one: -one[1]["weighted_tau"]):
            inside = "-" if way["coverage"] is None else f"{way['coverage']:.1%}"
            lines.append(
                f"| {key} | {name} | {way['weighted_tau']:.3f}{_between(way.get('tau_interval'), 3)} | "
                f"{way['regret_points']:.2f}{_between(way.get('regret_interval'), 2)} | {inside} | {way['sets']} |"
            )
    return "\n".join(lines) + "\n"


def _between(interval: list[float] | None, digits: int) -> str:
    return "" if interval is None else f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"
