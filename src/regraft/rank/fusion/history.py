"""What this installation has seen: results of checkpoints on tasks, one line of JSON each.

A result is appended under a lock; a line that a killed process left half-written is passed over when the file is read and
never joined by the next one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from regraft.errors import StoreError
from regraft.paths import open_regular
from regraft.store import default_root, in_words


@dataclass(frozen=True)
class Result:
    """How good a checkpoint was on a task in the end, and what was known of it before.

    Args:
        checkpoint: Its `checkpoint_id`, or another name that is the same wherever the same model is meant.
        task: The task's `task_id`, or its name.
        accuracy: After adaptation, on examples that no training saw, in [0, 1]; None for a checkpoint that was surveyed beside
            the others and not adapted: its scores are what theirs are compared with.
        rows: Examples that it was measured on; None where nobody says.
        seed: Of the adaptation: results of one checkpoint and task under several seeds tell how noisy they are.
        family: What it shares with its relatives: the architecture, or the checkpoint that all descend from.
        facts: What is known without data (log10 of parameters, layers, ...).
        scores: What its features on this task gave, by name (`logme`, `linear_probe`, ...).
        early: What short runs showed: left-out or validation accuracies in [0, 1], by name.
        source: Where the task's texts come from; tasks of one source are no evidence for each other. "" is the task itself.
    """

    checkpoint: str
    task: str
    accuracy: float | None
    rows: int | None = None
    seed: int = 0
    family: str = ""
    facts: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    early: Mapping[str, float] = field(default_factory=dict)
    source: str = ""


def history_file(root: Path | None = None) -> Path:
    """Where this installation keeps its history: beside the store's entries."""
    return (root or default_root()) / "history.jsonl"


def latest(results: Iterable[Result]) -> list[Result]:
    """Of several results of one checkpoint, task and seed the last: a run that was repeated counts once. One that was adapted
    stands before one that was only surveyed."""
    found: dict[tuple[str, str, int], Result] = {}
    for one in results:
        key = (one.checkpoint, one.task, one.seed)
        if one.accuracy is None and key in found and found[key].accuracy is not None:
            continue
        found.pop(key, None)
        found[key] = one
    return list(found.values())


def read_history(path: Path | None = None, passed: list[int] | None = None) -> list[Result]:
    """All results, the oldest first; empty when there are none. Lines that are no result are passed over.

    Args:
        path: The file; this installation's by default.
        passed: Takes the numbers, from 1 on, of the lines that were passed over; empty ones are none.

    Raises:
        StoreError: The file is there and cannot be read, or is no file.
    """
    path = path or history_file()
    try:
        with open_regular(path) as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    except OSError as fault:
        raise StoreError(f"{path} cannot be read: {fault.strerror}.", "Check its permissions.") from fault
    found = [_result(line) for line in lines]
    if passed is not None:
        passed += [number for number, one in enumerate(found, start=1) if one is None and lines[number - 1].strip()]
    return [one for one in found if one is not None]


def in_words_passed(passed: Sequence[int], path: Path) -> str:
    """What is said of lines that were passed over."""
    if len(passed) == 1:
        return f"Line {passed[0]} of {path} is no result, and was passed over."
    return f"{len(passed):,} lines of {path} are no results, and were passed over (the first is line {passed[0]:,})."


def add_results(results: Iterable[Result], path: Path | None = None) -> None:
    """Append results.

    Raises:
        StoreError: The disk is full, or the file cannot be written.
    """
    path = path or history_file()
    text = "".join(json.dumps(dataclasses.asdict(one), sort_keys=True) + "\n" for one in results)
    if not text:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")), path.open("ab+") as file:
            if file.tell() and not _ends_line(path):
                text = "\n" + text
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as fault:
        raise in_words(fault, path) from fault


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _result(line: bytes) -> Result | None:
    """A result, where a line is one."""
    try:
        content = json.loads(line)
        one = Result(
            checkpoint=str(content["checkpoint"]), task=str(content["task"]),
            accuracy=None if content["accuracy"] is None else float(content["accuracy"]),
            rows=None if content.get("rows") is None else int(float(content["rows"])), seed=int(content.get("seed", 0)),
            family=str(content.get("family", "")), source=str(content.get("source", "")), facts=_numbers(content.get("facts")),
            scores=_numbers(content.get("scores")), early=_numbers(content.get("early")),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return one if one.accuracy is None or 0.0 <= one.accuracy <= 1.0 else None


def _numbers(content: Any) -> dict[str, float]:
    """The finite numbers of a mapping by name."""
    return {str(name): float(value) for name, value in (content or {}).items() if math.isfinite(float(value))}
