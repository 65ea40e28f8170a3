"""The tables of the zoo, from the results files: indexing, queries, lineage."""

from __future__ import annotations

from typing import Any


def index(content: dict[str, Any]) -> str:
    """Wall seconds of `regraft zoo add`: first, again, and after one checkpoint in a hundred changed."""
    lines = ["| database / checkpoints | first | nothing changed | one in a hundred changed |", "|---|---|---|---|"]
    for key, cell in content["cells"].items():
        runs = " | ".join(f"{cell[run]['wall_s']:.1f} s" for run in ("first", "again", "some_changed"))
        lines.append(f"| {key} | {runs} |")
    return "\n".join(lines) + "\n"


def query(content: dict[str, Any]) -> str:
    """Milliseconds of queries."""
    lines = ["| database / records | query | median | p95 | p99 | slowest |", "|---|---|---|---|---|---|"]
    for key, cell in content["cells"].items():
        for kind in ("filter", "search", "tree"):
            at = cell[kind]
            times = " | ".join(f"{at[name]:.1f} ms" for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms"))
            lines.append(f"| {key} | {kind} | {times} |")
    return "\n".join(lines) + "\n"


def lineage(content: dict[str, Any]) -> str:
    """Pairs of a child and its parent that were found, and relations that are right."""
    lines = [
        "| zoo | checkpoints | descendants | pairs | found | precision | recall | relations right | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key, cell in content["cells"].items():
        right = f"{cell['relations_right']} of {cell['relations']}"
        lines.append(
            f"| {key} | {cell['checkpoints']} | {cell['descendants']} | {cell['pairs']} | {cell['pairs_found']} | "
            f"{cell['precision']:.1%} | {cell['recall']:.1%} | {right} | {cell['seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"
