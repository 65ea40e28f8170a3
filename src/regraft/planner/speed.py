"""How fast the candidates are: latency of one example and throughput of a batch, once for each checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.adapt import classifier_from
from regraft.checkpoint import Checkpoint
from regraft.checkpoint.classifier import model_calls, probabilities
from regraft.checkpoint.export import load_classifier
from regraft.errors import CheckpointError
from regraft.evaluate import measure_latency, measure_throughput
from regraft.evaluate.latency import batch_within
from regraft.planner.front import Point, front
from regraft.planner.job import Candidate, Job
from regraft.planner.reserve import REPORT_S, SPEED_TEXTS

# Latency and throughput take this long each.
MEASURE_S = 0.6
# Both of them, with opening the encoder.
SPEED_S = 2.0
# Speeds that no choice needs are measured at the end, where more than this share of the budget is left over.
SPARE_SHARE = 0.2
UNKNOWN: dict[str, float | None] = {"latency_ms": None, "throughput": None}


def speed_s(job: Job, checkpoint: Checkpoint) -> float:
    """What measuring takes."""
    return SPEED_S + SPEED_TEXTS * job.pace.get(checkpoint.name, 0.01)


def measure_speed(job: Job, checkpoint: Checkpoint, classifier: Any) -> dict[str, float]:
    """`latency_ms` and `throughput` of a checkpoint, measured once: heads and training do not change them."""
    texts = job.task.validation.texts

    def predict(some: list[str]) -> np.ndarray:
        return probabilities(classifier, some)

    def measure() -> dict[str, float]:
        latency_ms = measure_latency(predict, texts, deadline_s=MEASURE_S)
        batch = batch_within(MEASURE_S, latency_ms / 1000.0)
        throughput = measure_throughput(predict, texts, batch_size=batch, deadline_s=MEASURE_S)
        return {"latency_ms": latency_ms, "throughput": throughput}

    entry: dict[str, float] = job.run.ledger.once(f"speed/{checkpoint.name}", measure)
    return entry


def measure_speeds(job: Job) -> None:
    """Speeds of every checkpoint that has a candidate on the front of quality and size."""
    metric = job.task.metric
    competing = [one for one in job.candidates.values() if one.competes]
    kept, _ = front(
        [Point(one.name, one.quality(metric), one.parameters(), None, place) for place, one in enumerate(competing)]
    )
    for one in (job.candidates[point.name] for point in kept):
        # A second one of the same kind must still fit, beside everything that is held back.
        _measure(job, one, job.reserve_s + 2 * speed_s(job, one.checkpoint))


def measure_other_speeds(job: Job) -> None:
    """Speeds of the other candidates, where time is left over at the end; what was not measured is said once."""
    spare = REPORT_S + SPARE_SHARE * (job.budget.seconds or 0.0)
    measured = [one for one in job.candidates.values() if one.validation is not None]
    for one in measured:
        _measure(job, one, spare + speed_s(job, one.checkpoint))
    names = sorted({one.checkpoint.name for one in measured if one.latency_ms is None})
    if names:
        job.note(
            "speeds", f"latency and throughput of {', '.join(names)} are not known", "no time was left to measure them"
        )


def _measure(job: Job, one: Candidate, needed_s: float) -> None:
    """Measure a candidate's checkpoint if that much time is left, and note it with every candidate of the checkpoint."""
    known = job.run.ledger.look(f"speed/{one.checkpoint.name}")[0]
    if one.latency_ms is not None or (not known and job.timed and job.deadline.left() < needed_s):
        return
    try:
        with model_calls(one.checkpoint.reference):
            found = measure_speed(job, one.checkpoint, None if known else _any_classifier(job, one))
    except CheckpointError as fault:  # its other figures stand
        job.leave_out(one.checkpoint.reference, fault)
        return
    note_speed(job.candidates.values(), one.checkpoint, found)


def note_speed(candidates: Any, checkpoint: Checkpoint, found: Any) -> None:
    """Give every candidate of a checkpoint its speed."""
    for one in candidates:
        if one.checkpoint.name == checkpoint.name:
            one.latency_ms, one.throughput = found["latency_ms"], found["throughput"]


def _any_classifier(job: Job, one: Candidate) -> Any:
    """A classifier of the candidate's shape; what its weights are does not change its speed."""
    if one.head is None:
        return load_classifier(one.checkpoint, job.device)
    return classifier_from(one.checkpoint, job.task.label_names, one.head, device=job.device)
