"""The baselines of the main job: measured first, whatever the budget, so that there is always an answer."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from regraft import faults, methods
from regraft.evaluate import measure_latency, score
from regraft.evaluate.baselines import seconds_a_text
from regraft.planner.job import Job
from regraft.task.rows import spread_rows

# Of the budget, what TF-IDF with logistic regression may take; what that buys was measured (docs/diary.md).
BASELINE_SHARE = 0.10


def measure_baselines(job: Job) -> None:
    """Majority and TF-IDF with logistic regression, whatever the budget: there must always be an answer."""
    task = job.task
    for method in methods.methods("baseline"):
        rows = _baseline_rows(job)
        started = time.monotonic()

        def fit(method: methods.Method = method, rows: np.ndarray = rows) -> Any:
            texts = [task.train.texts[row] for row in rows]
            return method(texts, task.train.labels[rows], job.classes)

        job.progress.say(f"Baseline {method.name}")
        found, entry = job.run.ledger.look(f"baseline/{method.name}")
        if not found:
            fitted = fit()
            seen = score(task.validation.labels, fitted.predict(task.validation.texts), job.seed)
            entry = job.run.ledger.log(f"baseline/{method.name}", {
                "name": method.name, "seconds": time.monotonic() - started, "parameters": fitted.parameters,
                "bytes": fitted.bytes, "validation": seen,
                "latency_ms": measure_latency(fitted.predict, task.validation.texts, deadline_s=0.3),
            })  # fmt: skip
            job.fitted[method.name] = fitted
        else:
            job.fitted[method.name] = fit
        job.baselines.append(entry)
        faults.point("baseline measured")


def baseline_probabilities(job: Job, name: str, texts: list[str]) -> np.ndarray:
    """Probabilities of a baseline; one that an earlier process fitted is fitted again first."""
    fitted = job.fitted[name]
    if not hasattr(fitted, "predict"):
        fitted = job.fitted[name] = fitted()
    return np.asarray(fitted.predict(texts))


def measure_on_part(job: Job) -> None:
    """Score the baselines again on the part of validation data that everything else is measured on."""
    for place, entry in enumerate(job.baselines):

        def measure(name: str = entry["name"]) -> dict[str, Any]:
            found = baseline_probabilities(job, name, job.task.validation.texts)
            return {"validation": score(job.task.validation.labels, found, job.seed)}

        seen = job.timed_once(f"baseline part/{entry['name']}", measure)
        job.baselines[place] = {**entry, "validation": seen["validation"]}


def fit_again_s(job: Job) -> float:
    """What fitting again takes, for the baselines that an earlier process fitted and that have not been tested yet."""
    waiting = [one for one in job.baselines if not hasattr(job.fitted[one["name"]], "predict")]
    return sum(float(one["seconds"]) for one in waiting if not job.run.ledger.look(f"baseline test/{one['name']}")[0])


def _baseline_rows(job: Job) -> np.ndarray:
    """All training rows, or as many as a short budget allows."""
    rows = len(job.task.train)
    if job.budget.seconds is None:
        return np.arange(rows)
    a_row = seconds_a_text(job.task.train.texts, job.classes)
    most = int(max(500, BASELINE_SHARE * job.budget.seconds / max(a_row, 1e-9)))
    return spread_rows(job.task.train.labels, min(rows, most))
