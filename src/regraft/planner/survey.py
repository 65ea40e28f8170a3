"""The survey: baselines, models as they are, how fast each encoder is here, features and the ranking."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from regraft import faults, methods
from regraft.adapt import Head, classifier_from
from regraft.checkpoint import Checkpoint
from regraft.checkpoint.classifier import model_calls, probabilities
from regraft.checkpoint.export import load_classifier
from regraft.errors import BudgetError, RegraftError
from regraft.evaluate import measure_latency, measure_throughput, score
from regraft.evaluate.baselines import seconds_a_text
from regraft.features import extract_all, shared_passes
from regraft.planner.job import Candidate, Job
from regraft.rank import rank
from regraft.task import Split
from regraft.task.rows import spread_rows

# Shares of the budget; what they buy was measured on banking77, hwu64 and snips (docs/diary.md).
RANK_SHARE = 0.10
BASELINE_SHARE = 0.10
# What TF-IDF with logistic regression takes for a row and a class.
BASELINE_SECONDS = 2e-6
# Random weights are worth this share; beyond it they are only measured on a few texts.
SCRATCH_SHARE = 0.03
SCRATCH_ROWS = 200
RANK_ROWS = 2000
FEWEST_ROWS = 100
PACE_TEXTS = 64
PACE_SECONDS = 1.0
PACE_SAMPLE = 1024
PACE_GROUP = 16
# Reading an encoder, checking that its weights are finite and running a few texts: seconds, and bytes a second.
OPEN_SECONDS = 2.0
OPEN_BYTES = 1.5e8


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


def _baseline_rows(job: Job) -> np.ndarray:
    """All training rows, or as many as a short budget allows."""
    rows = len(job.task.train)
    if job.budget.seconds is None:
        return np.arange(rows)
    a_row = BASELINE_SECONDS * max(job.classes, 10) + seconds_a_text(job.task.train.texts)
    most = int(max(500, BASELINE_SHARE * job.budget.seconds / a_row))
    return spread_rows(job.task.train.labels, min(rows, most))


def measure_as_is(job: Job) -> None:
    """Checkpoints that already have a head for these labels, as they are."""
    for checkpoint in job.zoo.checkpoints:
        labels = checkpoint.labels
        if labels is None or sorted(labels) != sorted(job.task.label_names) or checkpoint.random is not None:
            continue

        def measure(checkpoint: Checkpoint = checkpoint) -> dict[str, Any]:
            with model_calls(checkpoint.reference):
                probs = as_is_probabilities(job, checkpoint, job.task.validation.texts)
            return {"validation": score(job.task.validation.labels, probs, job.seed)}

        known = job.run.ledger.look(f"as-is/{checkpoint.name}")[0]
        if not known and not job.affords(job.pace[checkpoint.name] * len(job.task.validation) + 1.0):
            continue
        try:
            entry = job.timed_once(f"as-is/{checkpoint.name}", measure)
        except RegraftError as fault:
            job.leave_out(checkpoint.reference, fault)
            continue
        candidate = Candidate(f"{checkpoint.name}-as-is", checkpoint, "as-is", validation=entry["validation"],
                              seconds=entry["seconds"])  # fmt: skip
        job.candidates[candidate.name] = candidate


def as_is_probabilities(job: Job, checkpoint: Checkpoint, texts: list[str]) -> np.ndarray:
    """Probabilities of a checkpoint with a head of its own, its columns in the order of the task's labels."""
    assert checkpoint.labels is not None
    classifier = load_classifier(checkpoint, job.device)
    order = [checkpoint.labels.index(label) for label in job.task.label_names]
    return np.asarray(probabilities(classifier, texts)[:, order])


def measure_pace(job: Job) -> None:
    """Seconds a text takes in each encoder, over a few texts of the task; an encoder that fails is left out."""
    texts = job.task.train.texts[:PACE_SAMPLE]
    for group in shared_passes(job.zoo.checkpoints).values():
        whole = group[0]
        known = job.run.ledger.look(f"pace/{whole.name}")[0]
        if not known and job.pace and not job.affords(OPEN_SECONDS + whole.bytes / OPEN_BYTES):
            for checkpoint in group:
                job.leave_out(
                    checkpoint.reference, BudgetError("There was no time to open it.", "Give a larger budget.")
                )
                job.zoo.checkpoints.remove(checkpoint)
            continue
        twin = _twin(job, whole)
        if twin is not None:
            _set_pace(job, group, job.pace[twin.name] * (whole.num_layers + 0.3) / (twin.num_layers + 0.3))
            continue
        try:
            entry = job.run.ledger.once(f"pace/{whole.name}", lambda whole=whole: _pace(job, whole, texts))  # type: ignore[misc]
        except RegraftError as fault:
            for checkpoint in group:
                job.leave_out(checkpoint.reference, fault)
                job.zoo.checkpoints.remove(checkpoint)
            continue
        _set_pace(job, group, entry["seconds_a_text"])


def _twin(job: Job, checkpoint: Checkpoint) -> Checkpoint | None:
    """For random weights, a checkpoint of the same folder whose pace is known: what the weights are does not change it."""
    if checkpoint.random is None:
        return None
    same = (one for one in job.zoo.checkpoints if one.folder == checkpoint.folder and one.name in job.pace)
    return next(same, None)


def _set_pace(job: Job, group: list[Checkpoint], seconds: float) -> None:
    whole = group[0]
    for checkpoint in group:
        share = (checkpoint.num_layers + 0.3) / (whole.num_layers + 0.3)  # embeddings and pooling: about 0.3 layers
        job.pace[checkpoint.name] = seconds * share


def correct_pace(job: Job, checkpoint: Checkpoint, seconds: float, texts: int) -> None:
    """Replace the first guess by what features of many texts took (nothing, when they came from the store)."""
    if not job.timed or seconds == 0.0 or texts < 2 * PACE_TEXTS:
        return
    group = next(group for group in shared_passes(job.zoo.checkpoints).values() if checkpoint in group)
    entry = job.run.ledger.once(f"pace again/{checkpoint.name}/{texts}", lambda: {"seconds_a_text": seconds / texts})
    _set_pace(job, group, entry["seconds_a_text"])


def _pace(job: Job, checkpoint: Checkpoint, texts: list[str]) -> dict[str, float]:
    with model_calls(checkpoint.reference):
        return _measured_pace(job, checkpoint, texts)


def _measured_pace(job: Job, checkpoint: Checkpoint, texts: list[str]) -> dict[str, float]:
    checkpoint.check_finite()
    nothing = Head(
        "last", np.zeros((job.classes, checkpoint.hidden_size), np.float32), np.zeros(job.classes, np.float32)
    )
    classifier = classifier_from(checkpoint, job.task.label_names, nothing, device=job.device)
    groups = _pace_groups(texts)
    # The first pass over a shape also chooses kernels and takes memory.
    started = time.monotonic()
    probabilities(classifier, groups[len(groups) // 2])
    if time.monotonic() - started > PACE_SECONDS / len(groups):
        groups = [group[::4] for group in groups]
    for group in groups:
        probabilities(classifier, group)
    # The fastest of three: right after the imports a pass may take several times what the next one does.
    taken: list[float] = []
    while len(taken) < 3 and sum(taken) < PACE_SECONDS:
        started = time.monotonic()
        for group in groups:
            probabilities(classifier, group)
        taken.append(time.monotonic() - started)
    return {"seconds_a_text": min(taken) / sum(map(len, groups))}


def _pace_groups(texts: list[str]) -> list[list[str]]:
    """Texts of all lengths, neighbours in length together, as every pass over many texts has them in its batches.

    The first texts as they come, padded to the longest of them, took three times as long (docs/diary.md).
    """
    by_length = sorted(texts, key=len)
    chosen = by_length[:: max(1, len(by_length) // PACE_TEXTS)][:PACE_TEXTS]
    return [chosen[at : at + PACE_GROUP] for at in range(0, len(chosen), PACE_GROUP)]


def choose_rows(job: Job) -> None:
    """How many training rows every checkpoint is ranked on, and whether random weights are ranked with the others."""
    labels, validation = job.task.train.labels, len(job.task.validation)
    budget = job.budget.seconds or 0.0

    def ranks_random() -> tuple[bool, str]:
        cost = sum(job.pace[one.name] for one in job.zoo.checkpoints if one.random is not None) * (
            RANK_ROWS + validation
        )
        if not job.timed or cost <= SCRATCH_SHARE * budget:
            return True, "it is cheap"
        return (
            False,
            f"{cost:.0f} s would be more than {SCRATCH_SHARE:.0%} of the budget; a few texts are enough to compare",
        )

    job.rank_random = job.decide("rank random", "rank random weights with the others", ranks_random)
    a_row = sum(job.pace[group[0].name] for group in shared_passes(contenders(job)).values())

    def choose() -> tuple[int, str]:
        most = min(RANK_ROWS, len(labels))
        if not job.timed:
            return most, "the most that ranking uses"
        share = min(RANK_SHARE * budget, 0.5 * job.free_s())
        rows = int(min(most, share / max(a_row, 1e-9) - validation))
        rows = max(rows, min(most, FEWEST_ROWS)) if job.affords(a_row * (FEWEST_ROWS + validation)) else 0
        return rows, f"{share:.0f} s for all encoders together, {1000 * a_row:.1f} ms a text"

    rows = job.decide("rank rows", "training rows that checkpoints are ranked on", choose)
    job.rank_rows = spread_rows(labels, rows) if rows else np.zeros(0, np.int64)
    job.rest_rows = np.setdiff1d(np.arange(len(labels)), job.rank_rows)


def contenders(job: Job) -> list[Checkpoint]:
    """The checkpoints that are ranked."""
    return [one for one in job.zoo.checkpoints if one.random is None or job.rank_random]


def rank_checkpoints(job: Job) -> None:
    """Features of validation and ranking rows for every contender, then the ranking."""
    if not len(job.rank_rows):
        return
    failed: dict[str, Exception] = {}
    job.progress.say(f"Features of {len(contenders(job))} checkpoints on {len(job.rank_rows):,} training texts")
    texts = [job.task.train.texts[row] for row in job.rank_rows] + job.task.validation.texts
    job.features = extract_all(contenders(job), texts, failed=failed, store=job.store, device=job.device,
                               dtype=job.dtype, progress=job.progress)  # fmt: skip
    for checkpoint in list(job.zoo.checkpoints):
        if checkpoint.name in failed:
            job.leave_out(checkpoint.reference, failed[checkpoint.name])
            job.zoo.checkpoints.remove(checkpoint)
    if not job.features:
        return
    for checkpoint in contenders(job):
        correct_pace(job, checkpoint, job.features[checkpoint.name].seconds, len(texts))
    chosen = np.arange(len(job.rank_rows))

    def measure() -> dict[str, Any]:
        views = {name: found.rows(chosen) for name, found in job.features.items()}
        deadline = job.deadline.part(min(RANK_SHARE * job.budget.seconds, job.free_s())) if job.budget.seconds else None
        labels = job.task.train.labels[job.rank_rows]
        with job.progress.bar("ranking", 5 * len(views)):
            ranked = rank(views, labels, n_classes=job.classes, seed=job.seed, deadline=deadline,
                          progress=lambda _name, _share: job.progress.advance())  # fmt: skip
        return {"ranking": [
            {"checkpoint": one.checkpoint, "rank": one.rank, "group": one.group, "score": one.score, "low": one.low,
             "high": one.high, "scores": one.scores, "seconds": one.seconds} for one in ranked
        ]}  # fmt: skip

    job.ranking = job.timed_once("ranking", measure)["ranking"]
    faults.point("ranked")


def measure_speed(job: Job, checkpoint: Checkpoint, classifier: Any, split: Split) -> dict[str, float]:
    """Latency of one example and throughput of a batch, once for each checkpoint: heads and training do not change it."""

    def predict(texts: list[str]) -> np.ndarray:
        return probabilities(classifier, texts)

    def measure() -> dict[str, float]:
        return {
            "latency_ms": measure_latency(predict, split.texts, deadline_s=0.6),
            "throughput": measure_throughput(predict, split.texts, deadline_s=0.6),
        }

    entry: dict[str, float] = job.run.ledger.once(f"speed/{checkpoint.name}", measure)
    return entry
