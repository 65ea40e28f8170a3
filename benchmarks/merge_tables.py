"""The results of the merge benchmarks as Markdown tables, and as the line that a cell prints when it is done."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Cells = Mapping[str, Mapping[str, Any]]

# At base + 3 fine-tunes of 287M: times as fast as mergekit, a part of its memory, and at most so many times the limit.
FASTER = {"ties": 20.0, "dare_ties": 6.0, "task_arithmetic": 2.0, "linear": 2.0}
MEMORY = 1 / 3
OF_LIMIT = {"ties": 4.0, "linear": 1.5}
COUNTS = "287M/3"
NOTHING = "Not measured yet.\n"


def inner_s(ours: Mapping[str, Any]) -> float:
    """The median seconds of a merge by the command's own clock, everything but start-up."""
    return sum(float(value) for phase, value in ours["phases_s_median"].items() if not phase.startswith("start"))


def speed_line(key: str, cell: Mapping[str, Any]) -> str:
    """One cell."""
    ours, theirs = cell["regraft"], cell["mergekit"]
    return (
        f"{key:28} {ours['wall_s_median']:7.2f} s  mergekit {theirs['wall_s_median']:7.2f} s"
        f"  {theirs['wall_s_median'] / ours['wall_s_median']:5.1f} x"
        f"  memory {ours['anonymous_mib'] / theirs['anonymous_mib']:5.2f}"
        f"  inner {inner_s(ours):6.2f} s = {inner_s(ours) / cell['limit']['seconds']:4.2f} limits"
    )


def speed(content: Mapping[str, Any]) -> str:
    """Two tables: against mergekit with its targets, and what is left without start-up beside the limit."""
    cells: Cells = content["cells"]
    if not cells:
        return NOTHING
    lines = [
        "| size / fine-tunes / method | Regraft | mergekit | times as fast | target | peak memory | mergekit | share | target "
        "| processor time |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, cell in sorted(cells.items(), key=lambda pair: _order(pair[0])):
        ours, theirs = cell["regraft"], cell["mergekit"]
        method = key.split("/")[2]
        counts = key.startswith(COUNTS)
        faster, share = theirs["wall_s_median"] / ours["wall_s_median"], ours["anonymous_mib"] / theirs["anonymous_mib"]
        lines.append(
            f"| {key} | {ours['wall_s_median']:.2f} s | {theirs['wall_s_median']:.2f} s | {faster:.1f} | "
            f"{_met(faster >= FASTER[method], f'>= {FASTER[method]:g}') if counts and method in FASTER else ''} | "
            f"{ours['anonymous_mib']:.0f} MiB | {theirs['anonymous_mib']:.0f} MiB | {share:.2f} | "
            f"{_met(share <= MEMORY, '<= 1/3') if counts else ''} | "
            f"{ours['cpu_s_median']:.1f} s, {theirs['cpu_s_median']:.1f} s |"
        )
    lines += [
        "",
        "| size / fine-tunes / method | merge | limit: best | times the limit | target | limit: median | times it "
        "| ns a byte read | above imports | mergekit | share | equal values |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, cell in sorted(cells.items(), key=lambda pair: _order(pair[0])):
        ours, theirs = cell["regraft"], cell["mergekit"]
        method, seconds = key.split("/")[2], inner_s(ours)
        times = seconds / cell["limit"]["seconds"]
        usual = statistics.median(turn["seconds"] for turn in cell["limit"]["turns"])
        target = OF_LIMIT.get(method) if key.startswith(COUNTS) else None
        lines.append(
            f"| {key} | {seconds:.2f} s | {cell['limit']['seconds']:.2f} s | {times:.2f} | "
            f"{_met(times <= target, f'<= {target:g}') if target else ''} | {usual:.2f} s | {seconds / usual:.2f} | "
            f"{1e9 * seconds / cell['bytes_read']:.2f} | "
            f"{ours['above_imports_mib']:.0f} MiB | {theirs['above_imports_mib']:.0f} MiB | "
            f"{ours['above_imports_mib'] / max(theirs['above_imports_mib'], 1e-9):.2f} | {cell['same_bits']:.1%} |"
        )
    return "\n".join(lines) + "\n"


def _order(key: str) -> tuple[Any, ...]:
    size, count, method = key.split("/")
    return (not key.startswith(COUNTS), int(size.removesuffix("M")), int(count), method)


def _met(met: bool, words: str) -> str:
    return f"{words}, {'met' if met else 'missed'}"


def quality_line(key: str, cell: Mapping[str, Any]) -> str:
    """One cell."""
    if "failed" in cell:
        return f"{key:40} failed: {' '.join(cell['failed'].split())[:140]}"
    if "probe" in cell:
        shown = ", ".join(f"{name} {value:.3f}" for name, value in cell["probe"].items())
        return f"{key:40} probe {shown}  ({cell['cell_s']:.0f} s)"
    if "base" in cell:
        best = cell["best single"]
        return f"{key:40} base {cell['base']['normalised']:.4f}, best single {best['name']} {best['normalised']:.4f}"
    chosen = cell.get("chosen")
    tail = f", chosen {chosen['normalised']:.4f} {chosen['options']}" if chosen else ""
    return f"{key:40} published {cell['published']['normalised']:.4f}{tail}  ({cell['cell_s']:.0f} s)"


def quality(content: Mapping[str, Any]) -> str:
    """All parts that there are results of."""
    cells: Cells = content["cells"]
    parts = [
        ("held-in", "All five experts, each task under its expert's own head; normalised accuracy"),
        ("pair", "Two experts (banking77, snips)"),
        ("lora", "LoRA experts"),
    ]
    tables = [
        f"{title}\n\n{_held_in(cells, part)}" for part, title in parts if any(key.startswith(part) for key in cells)
    ]
    if any(key.startswith("held-out") for key in cells):
        tables.append(
            f"A probe on the tasks that were left out of the merge; against the base's own\n\n{_held_out(cells)}"
        )
    if tables:
        tables.append(
            "Methods are not tuned alike: 'of settings' says among how many validation rows chose. The word embeddings, half of "
            "the weights, are not trained: a share that is counted over the whole model is half of one that is counted in each "
            "tensor, where the embeddings' share is one of zeros.\n"
        )
    left_out = content.get("left out", {})
    if left_out:
        tables.append(
            "Not among those of all five: "
            + "; ".join(f"{name} ({why})" for name, why in sorted(left_out.items()))
            + ".\n"
        )
    return "\n".join(tables) or NOTHING


def _held_in(cells: Cells, part: str) -> str:
    """One row a method, the best first; mean over seeds with the spread between them."""
    rows: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    experts: dict[str, Mapping[str, float]] = {}
    for key, cell in cells.items():
        where, seed, name = key.split("/", 2)
        if where != part:
            continue
        if name == "baselines" and "failed" not in cell:
            experts[seed] = cell["own"]["test"]
            rows.setdefault("the base", []).append((seed, {"published": {**cell["base"], "seconds": 0.0}}))
            rows.setdefault("best single expert", []).append(
                (seed, {"published": {**cell["best single"], "seconds": 0.0}})
            )
        elif name != "baselines":
            rows.setdefault(name, []).append((seed, cell))
    tasks = list(next(iter(experts.values()), {}))
    lines = [
        f"| method | published settings | chosen on validation rows | of settings | {' | '.join(tasks)} | seconds |",
        f"|---|---|---|---|{'---|' * len(tasks)}---|",
    ]
    own = [_spread([experts[seed][task] for seed in experts]) for task in tasks]
    lines.append(f"| each expert on its own task: accuracy | | | | {' | '.join(own)} | |")
    for name, found in sorted(rows.items(), key=lambda pair: -_best(cell for _, cell in pair[1])):
        failed = [cell["failed"] for _, cell in found if "failed" in cell]
        if failed:
            lines.append(f"| {name} | failed: {' '.join(failed[0].split())[:80]} |{' |' * (len(tasks) + 3)}")
            continue
        shown = [(seed, cell.get("chosen", cell["published"])) for seed, cell in found]
        by_task = [_spread([one["test"][task] / experts[seed][task] for seed, one in shown]) for task in tasks]
        chosen = [cell["chosen"]["normalised"] for _, cell in found if "chosen" in cell]
        tried = max((len(cell.get("grid", ())) for _, cell in found), default=0)
        seconds = statistics.median(cell["published"]["seconds"] for _, cell in found)
        lines.append(
            f"| {name} | {_spread([cell['published']['normalised'] for _, cell in found])} | "
            f"{_spread(chosen) if chosen else 'nothing to choose'} | {tried or 1} | {' | '.join(by_task)} | {seconds:.1f} |"
        )
    return "\n".join(lines) + "\n"


def _best(cells: Iterable[Mapping[str, Any]]) -> float:
    values = [cell.get("chosen", cell["published"])["normalised"] for cell in cells if "failed" not in cell]
    return statistics.fmean(values) if values else -1.0


def _held_out(cells: Cells) -> str:
    """Mean over the tasks left out of probe accuracy, and its difference to the base's; the best first."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    for key, cell in cells.items():
        if key.startswith("held-out/") and "failed" not in cell:
            _, seed, name, _ = key.split("/")
            found.setdefault(name, {}).update({(seed, task): value for task, value in cell["probe"].items()})
    base = found.get("base", {})
    tasks = list(dict.fromkeys(task for _, task in base))
    lines = [f"| method | mean | {' | '.join(tasks)} |", f"|---|---|{'---|' * len(tasks)}"]
    rows = []
    for name, values in found.items():
        gains = {at: value - base[at] for at, value in values.items() if at in base}
        by_task = [[gain for (_, one), gain in gains.items() if one == task] for task in tasks]
        rows.append((statistics.fmean(gains.values()) if gains else 0.0, name, by_task))
    accuracies = [_spread([value for (_, one), value in base.items() if one == task]) for task in tasks]
    overall = f"{100 * statistics.fmean(base.values()):.1f}" if base else ""
    lines.append(f"| the base: accuracy | {overall} | {' | '.join(accuracies)} |")
    for mean, name, by_task in sorted(rows, reverse=True):
        if name != "base":
            lines.append(f"| {name} | {100 * mean:+.1f} | {' | '.join(_spread(values, '+') for values in by_task)} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], sign: str = "") -> str:
    """Per cent, with the standard deviation where there are several."""
    if not values:
        return ""
    mean = f"{100 * statistics.fmean(values):{sign}.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def claims(content: Mapping[str, Any]) -> str:
    """One row a claim."""
    cells: Cells = content["cells"]
    if not cells:
        return NOTHING
    lines = ["| source | claim, in relative form | verdict | measured |", "|---|---|---|---|"]
    for key, cell in sorted(cells.items()):
        parts = "; ".join(
            f"{name}: {100 * one['mean']:+.2f} points [{100 * one['low']:+.2f}, {100 * one['high']:+.2f}]"
            for name, one in cell["differences"].items()
        )
        lines.append(f"| {key} | {cell['claim']} | {cell['verdict']} | {parts} |")
    return "\n".join(lines) + "\n"
