"""How each model that was tested stands against the answer: the paired difference on the same test examples."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.evaluate import paired_difference
from regraft.planner.job import Job


def keep_predictions(job: Job, name: str, probabilities: np.ndarray) -> None:
    """Log the class that a model predicts for each test example, so that a run that was killed can still compare."""
    job.run.ledger.once(f"predictions/{name}", lambda: probabilities.argmax(axis=1).tolist())


def compared(job: Job, entries: list[dict[str, Any]], best: str) -> list[dict[str, Any]]:
    """Members or baselines with `against_best`: how much better each is than the answer on the task's metric.

    `difference`, its 95 % interval `low` to `high` (see `evaluate.paired_difference`) and the test `rows` that both predicted;
    None for the answer itself and for what was not tested.
    """
    return [{**one, "against_best": _against(job, one["name"], best)} for one in entries]


def _against(job: Job, name: str, best: str) -> dict[str, Any] | None:
    found, predicted = job.run.ledger.look(f"predictions/{name}")
    known, expected = job.run.ledger.look(f"predictions/{best}")
    if name == best or not found or not known:
        return None
    rows = min(len(predicted), len(expected))
    mine, other = (np.asarray(classes[:rows], dtype=np.int64) for classes in (predicted, expected))
    labels = job.task.test.labels[:rows]
    difference, low, high = paired_difference(labels, mine, other, job.seed, job.task.metric)
    return {"difference": difference, "low": low, "high": high, "rows": rows}
