"""The table of a search, the choice, and the one look at test rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regraft.evaluate import metrics, score
from regraft.merge.search.compare import Difference, Seen, differences
from regraft.merge.search.measured import Measured, normalised
from regraft.merge.search.models import merged_values, stored_values
from regraft.merge.search.session import Session
from regraft.merge.search.space import AVERAGE
from regraft.task import Task


def choose(session: Session) -> tuple[Measured, Measured, dict[str, Any]]:
    """The winner on validation rows, the answer, and how the winner stands against the plain average."""
    rows = session.usable
    average = next(one for one in rows if one.candidate.name == AVERAGE)
    winner = max([average, *rows], key=session.mean)  # the first of equals
    found = [one.found for one in rows]
    against = _against(session, found, rows.index(average), "validation", session.own())[rows.index(winner)]
    too_close = winner is not average and against.too_close
    validation = {**vars(against), "candidates": len(rows), "too_close": too_close}
    return winner, average if too_close else winner, validation


def _against(
    session: Session, rows: Sequence[Mapping[str, Any]], reference: int, split: str, own: Sequence[float]
) -> list[Difference]:
    """Every row against row number `reference` on a split, by their predictions."""
    seen = [
        Seen(
            task.splits()[split].labels,
            np.array([row["predictions"][number] for row in rows], np.int64),
            task.metric,
            1.0 / (len(session.tasks) * own[number]),
        )
        for number, task in enumerate(session.tasks)
    ]
    return differences(seen, reference, session.seed)


def tested(session: Session, winner: Measured, answer: Measured, out: Path) -> dict[str, Any]:
    """Test rows: the answer as it was written, beside the winner, the plain average and the inputs' own scores."""
    average = next(one for one in session.usable if one.candidate.name == AVERAGE)
    probes = session.base_probes()
    own, rows = _own_on_test(session), {}
    for one in (answer, winner, average):
        name = one.candidate.name
        if name in rows:
            continue
        session.progress.say(f"Testing {name}")
        session.bench.load(
            stored_values(str(out)) if one is answer else merged_values(one.candidate.spec, session.workers)
        )
        found = session.evaluated("test", probes)
        seen = zip(session.tasks, found.pop("probabilities"), strict=True)
        rows[name] = {
            "name": name, **found, "mean": normalised(found["scores"], own), "forgetting": _forgetting(session, found),
            "intervals": [score(task.test.labels, probabilities, session.seed) for task, probabilities in seen],
        }  # fmt: skip
    table = list(rows.values())
    against = None
    if answer is not average:
        reference = next(number for number, row in enumerate(table) if row["name"] == AVERAGE)
        against = vars(_against(session, table, reference, "test", own)[0])
    return {
        "own": own,
        "rows": [{key: value for key, value in row.items() if key != "predictions"} for row in table],
        "difference": against,
    }


def _own_on_test(session: Session) -> list[float]:
    """The inputs' own scores on test rows; of a soup, that of the input that is best on validation rows."""
    inputs = [max(session.inputs, key=session.mean)] if session.bench.soup else session.inputs
    found = []
    for number, (one, task) in enumerate(zip(inputs, session.tasks, strict=True)):
        session.bench.load(merged_values(one.candidate.spec, session.workers))
        seen = session.bench.probabilities(number, task, task.test.texts)
        found.append(max(metrics(task.test.labels, seen)[task.metric], 1.0 / len(task.test)))
    return found


def table_row(session: Session, one: Measured) -> dict[str, Any]:
    """What was measured of a candidate, as it stands in the result."""
    found, candidate = one.found, one.candidate
    row = {
        "name": candidate.name, "kind": candidate.kind, "status": found["status"], "reason": found["reason"],
        "recipe": candidate.spec.as_dict(), "seconds": found["seconds"],
    }  # fmt: skip
    if one.usable:
        row |= {"scores": found["scores"], "mean": session.mean(one), "held_out": found["held_out"],
                "forgetting": _forgetting(session, found)}  # fmt: skip
    return row


def _forgetting(session: Session, found: Mapping[str, Any]) -> float | None:
    """What the base's own probes lose on the held-out tasks, on average; None without base or held-out tasks."""
    base = next((one for one in session.usable if one.candidate.kind == "base"), None)
    if base is None or not session.held_out:
        return None
    return float(np.mean([
        mine["base_probe"] - theirs["base_probe"]
        for mine, theirs in zip(base.found["held_out"], found["held_out"], strict=True)
    ]))  # fmt: skip


def facts(tasks: Sequence[Task], own: Sequence[float] | None = None) -> list[dict[str, Any]]:
    """Name, reference, metric and rows of tasks; `own`: what their scores are divided by."""
    found = [
        {"name": one.name, "reference": one.reference, "task_id": one.task_id, "metric": one.metric,
         "rows": {name: len(split) for name, split in one.splits().items()}}
        for one in tasks
    ]  # fmt: skip
    return found if own is None else [{**one, "own": mine} for one, mine in zip(found, own, strict=True)]


def verdict(winner: str, validation: Mapping[str, Any]) -> str:
    """The choice in a sentence; points are hundredths of the mean."""
    points = " ".join(
        f"{100 * validation[key]:+.2f}" + ("" if key == "high" else " to" if key == "low" else " points,")
        for key in ("difference", "low", "high")
    )
    of = f"of {validation['candidates']} candidates on validation rows"
    if winner == AVERAGE:
        return f"The plain average is the best {of}."
    if validation["too_close"]:
        return (
            f"{winner} is the best {of}, but too close to the plain average to call ({points}): take the plain average."
        )
    return f"{winner} is the best {of}, better than the plain average ({points})."
