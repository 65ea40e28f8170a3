"""The results as Markdown, and into the places of README.md and docs/ that are marked for them.

    python benchmarks/summary.py            print every table
    python benchmarks/summary.py --write    replace what stands between <!-- results:NAME --> and <!-- /results -->

The pages hold no figure that was typed by hand: what stands in a marked place is what the results files say.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import merge_tables
import rank_tables
import zoo_tables

ROOT = common.HERE.parent
NAMES = {"regraft": "Regraft", "setfit": "SetFit", "trainer": "Trainer fine-tune", "tfidf": "TF-IDF + LR"}
PLACE = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- /results -->)", re.DOTALL)
# How far behind the answer, in accuracy, the member with half its encoder may be.
WITHIN = 0.03
# The budget under which TF-IDF is measured, for all.
TFIDF_S = 60
NOTHING = "Not measured yet.\n"


def mean_and_half_width(cells: list[dict[str, Any]]) -> tuple[float, float]:
    """Mean test accuracy and the half width of its 95 % interval.

    The variance is that of the finite test set, p (1 - p) / n, plus that between seeds over their number, s^2 / k: the
    same test rows are used for every seed, so more seeds reduce only the second.
    """
    values = [cell["accuracy"] for cell in cells]
    mean = statistics.fmean(values)
    between = statistics.variance(values) / len(values) if len(values) > 1 else 0.0
    return mean, 1.96 * math.sqrt(mean * (1 - mean) / cells[0]["of"] + between)


def half_size(cells: list[dict[str, Any]]) -> str:
    """Test accuracy of the best member with at most half the encoder of the answer, and points it is behind, over seeds.

    The target is 3 points at most; what misses it is marked.
    """
    found = []
    for cell in cells:
        answer = next((one for one in cell["family"] if one["name"] == cell["best"]), None)
        small = [
            one for one in cell["family"] if answer and 2 * one["encoder_parameters"] <= answer["encoder_parameters"]
        ]
        if not answer or not small:
            return "none"
        best = max(small, key=lambda one: one["validation_accuracy"])
        found.append((best["test_accuracy"], answer["test_accuracy"] - best["test_accuracy"]))
    reached, behind = (statistics.fmean(values) for values in zip(*found, strict=True))
    missed = "" if behind <= WITHIN else ", more than 3"
    return f"{100 * reached:.1f} ({100 * abs(behind):.1f} {'ahead' if behind < 0 else 'behind'}{missed})"


def validation(content: dict[str, Any]) -> str:
    """How often the answer was at least as good on validation data as the best probe head of its run."""
    checked = {key: cell["validation"] for key, cell in content["cells"].items() if "validation" in cell}
    if not checked:
        return ""
    missed = sorted(key for key, found in checked.items() if not found["holds"])
    but = f"; not in {', '.join(missed)}" if missed else ""
    return (
        f"\nOn validation data Regraft's answer was at least as good as the best probe of its run in "
        f"{len(checked) - len(missed)} of {len(checked)} runs{but}.\n"
    )


def classification(content: dict[str, Any]) -> str:
    """One row a task and budget, one column a system; the best and those within its interval in bold."""
    groups: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = {}
    for key, cell in content["cells"].items():
        system, task, budget, _ = key.split("/")
        groups.setdefault((task, int(budget)), {}).setdefault(system, []).append(cell)
    for (task, _), systems in groups.items():  # it ends in seconds, and nothing about it is random
        systems.setdefault("tfidf", groups.get((task, TFIDF_S), {}).get("tfidf", []))
    lines = [
        f"| task | budget | seeds | {' | '.join(NAMES.values())} | Regraft, half the encoder |",
        f"|---|---|---|{'---|' * len(NAMES)}---|",
    ]
    for (task, budget_s), systems in sorted(groups.items()):
        good = {
            name: mean_and_half_width(cells)
            for name, cells in systems.items()
            if cells and all(cell["status"] == "ok" for cell in cells)
        }
        best, width = max(good.values(), default=(0.0, 0.0))
        shown = [_figure(systems.get(name), good.get(name), best - width) for name in NAMES]
        seeds = max(len(cells) for cells in systems.values())
        shown.append(half_size(systems["regraft"]) if "regraft" in good else "-")
        lines.append(f"| {task} | {budget_s // 60} min | {seeds} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n" + validation(content) + _measured_on(content)


def _figure(cells: list[dict[str, Any]] | None, figure: tuple[float, float] | None, bar: float) -> str:
    if not cells:
        return "-"
    if figure is None:
        return ", ".join(sorted({cell["status"] for cell in cells if cell["status"] != "ok"}))
    mean, half = figure
    text = f"{100 * mean:.1f} ± {100 * half:.1f}"
    late_s = max(cell["wall_s"] for cell in cells)
    return f"{f'**{text}**' if mean >= bar else text} ({late_s:.0f} s)"


def features(content: dict[str, Any]) -> str:
    """Throughput against the bare pass."""
    lines = ["| checkpoint and task | texts/s | bare pass, texts/s | share |", "|---|---|---|---|"]
    for key, cell in content["cells"].items():
        ours, theirs = cell["regraft_texts_per_s"], cell["bare_texts_per_s"]
        lines.append(f"| {key} | {ours:.0f} | {theirs:.0f} | {cell['share']:.0%} |")
    return "\n".join(lines) + "\n" + _measured_on(content)


def budget(content: dict[str, Any]) -> str:
    """Overrun and memory."""
    lines = ["| task | budget | wall time beyond it | peak memory above imports |", "|---|---|---|---|"]
    runs = [(key.split("/"), cell) for key, cell in content["cells"].items() if "/" in key]
    for (task, seconds), cell in sorted(runs, key=lambda run: (run[0][0], int(run[0][1]))):
        lines.append(f"| {task} | {seconds} s | {cell['over_s']:+.1f} s | {cell['above_imports_mib']} MiB |")
    shown = content["cells"].get("help")
    first = f"\n`regraft --help` takes {shown['seconds']:.2f} s (median).\n" if shown else ""
    return "\n".join(lines) + "\n" + first + _measured_on(content)


def kill(content: dict[str, Any]) -> str:
    """Kills and differences."""
    lines = ["| run | kills | runs started again | ended with other weights |", "|---|---|---|---|"]
    lines += [
        f"| {key} | {cell['kills']} | {cell['runs']} | {len(cell['different'])} |"
        for key, cell in content["cells"].items()
    ]
    return "\n".join(lines) + "\n" + _measured_on(content)


def _measured_on(content: dict[str, Any]) -> str:
    used = {cell["machine"] for cell in content["cells"].values()}
    machines = {
        f"{at['processor']}, {at['cores']} cores, torch {at['packages'].get('torch', '?')}"
        for name, at in content["machines"].items()
        if name in used
    }
    return f"\nMeasured on: {'; '.join(sorted(machines))}.\n"


def _with_machine(show: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], str]:
    return lambda content: show(content) + _measured_on(content)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "classification": classification, "features": features, "budget": budget, "kill": kill,
    "merge_speed": merge_tables.speed, "merge_quality": merge_tables.quality, "merge_claims": merge_tables.claims,
    **{name: _with_machine(show) for name, show in {
        "rank_truth": rank_tables.truth, "rank_selfcheck": rank_tables.selfcheck, "rank_speed": rank_tables.speed,
        "rank_timm": rank_tables.timm, "zoo_index": zoo_tables.index, "zoo_query": zoo_tables.query,
        "zoo_lineage": zoo_tables.lineage,
    }.items()},
}  # fmt: skip


def table(name: str) -> str:
    """The Markdown of one results file."""
    content = common.Results(name).content
    return TABLES[name](content) if content["cells"] else NOTHING


def filled(text: str) -> str:
    """A page with its marked places filled from the results."""
    return PLACE.sub(lambda found: found[1] + table(found[2]) + found[3], text)


def pages() -> list[Path]:
    """The pages that may have marked places."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> None:
    """Print, or write into the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if not parser.parse_args().write:
        print("\n".join(f"## {name}\n\n{table(name)}" for name in TABLES))
        return
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if filled(text) != text:
            page.write_text(filled(text), encoding="utf-8")
            print(f"{page.relative_to(ROOT)} filled")


if __name__ == "__main__":
    main()
