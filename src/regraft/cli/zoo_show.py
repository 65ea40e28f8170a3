"""How `regraft zoo` shows checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from regraft.zoo.catalogue import Catalogue, Compared, Entry

# What lists show.
KEYS = [
    "name",
    "model_type",
    "layers",
    "hidden_size",
    "parameters",
    "encoder_parameters",
    "licence",
    "task",
    "reference",
]


def print_left_out(left_out: list[dict[str, Any]]) -> None:
    """What a zoo could not use, and why."""
    for one in left_out:
        line = f"left out {one['reference']}: {one['problem']} {one['remedy']}"
        typer.echo(line.encode("utf-8", "backslashreplace").decode())  # names of files that are no UTF-8


def list_zoo(reference: str, json: bool, limit: int | None = None) -> None:
    """The checkpoints of a zoo, all of them unless there is a limit."""
    from regraft.cli import show
    from regraft.planner.single import describe
    from regraft.zoo import open_zoo

    found = open_zoo(reference)
    rows = [describe(one) for one in found.checkpoints[:limit]]
    left_out = [vars(one) for one in found.left_out]
    if json:
        show.as_json({"checkpoints": rows, "left_out": left_out})
        return
    keys = [key for key in KEYS if key != "task"]
    show.table("", keys, [[row[key] for key in keys] for row in rows])
    if len(rows) < len(found.checkpoints):
        typer.echo(f"Only the first {len(rows):,} of {len(found.checkpoints):,} are shown.")
    print_left_out(left_out)


def row_of(entry: Entry) -> dict[str, Any]:
    """What lists show of an entry, under the names that `describe` uses."""
    one = entry.record
    return {
        "name": one.name, "reference": one.path, "kind": one.kind, "model_type": one.model_type,
        "architectures": list(one.architectures), "layers": one.layers, "hidden_size": one.hidden_size,
        "parameters": one.parameters, "encoder_parameters": one.encoder_parameters, "bytes": one.weight_bytes,
        "licence": one.licence.stated, "parents": [parent.name for parent in one.parents],
        "labels": None if one.labels is None else list(one.labels), "task": one.task, "gone": entry.gone,
    }  # fmt: skip


def show_entry(opened: Catalogue, name: str, json: bool) -> None:
    from regraft.cli import show

    entry = opened.get(name)
    measured, compared = opened.measurements(name), opened.compare(name)
    if json:
        show.as_json({
            **row_of(entry), "record": asdict(entry.record), "deep": entry.deep, "indexed_at": entry.indexed_at,
            "first_seen": entry.first_seen, "risks": [asdict(risk) for _, risk in opened.risks(name=entry.record.path)],
            "measurements": [asdict(one) for one in measured], "results": [_result(one) for one in compared],
        })  # fmt: skip
        return
    kept = asdict(entry.record)
    for key in ("files", "claims", "risks", "labels"):
        kept.pop(key)
    facts = {**kept, "files": len(entry.record.files), "gone": entry.gone}
    print_facts({key: value for key, value in facts.items() if value not in (None, (), {}, "")})
    if compared:
        columns = ["metric", "data", "claimed", "measured", "low", "high", "n", "protocol", "verdict"]
        show.table("\nClaimed and measured", columns, [[_result(one)[key] for key in columns] for one in compared])
    risks = [risk for _, risk in opened.risks(name=entry.record.path)]
    if risks:
        show.table("\nRisks", ["severity", "risk", "where", "problem"],
                   [[one.severity, one.code, one.where, one.problem] for one in risks])  # fmt: skip


def _result(one: Compared) -> dict[str, Any]:
    """A claim and a measurement, side by side."""
    claim, found = one.claim, one.measurement
    data = dict.fromkeys(text for text in (claim and claim.dataset, found and found.task) if text)
    return {
        "metric": one.metric, "data": " / ".join(data), "claimed": None if claim is None else claim.value,
        "measured": None if found is None else found.value, "low": found and found.low, "high": found and found.high,
        "n": found and found.n, "protocol": found and found.protocol, "difference": one.difference,
        "verdict": one.verdict + ("" if found is None or found.current else " (measured on other files than those recorded)"),
    }  # fmt: skip


def print_facts(found: dict[str, Any]) -> None:
    from regraft.cli import show

    show.table("", ["what", "value"],
               [[key, value if isinstance(value, int) else str(value)] for key, value in found.items()])  # fmt: skip
