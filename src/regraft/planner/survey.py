"""The cheap half of the main job: baselines, models as they are, pace, features, ranking, probe heads."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from regraft import faults, methods
from regraft.adapt import VIEWS, Head, View, classifier_from, load_head, probe, save_head
from regraft.checkpoint import Checkpoint
from regraft.checkpoint.classifier import probabilities, softmax
from regraft.checkpoint.export import load_classifier
from regraft.errors import RegraftError
from regraft.evaluate import measure_latency, measure_throughput, score
from regraft.features import Features, Joined, extract_all, shared_passes
from regraft.planner.job import Candidate, Job
from regraft.rank import rank
from regraft.task import Split
from regraft.task.rows import spread_rows

# Shares of the budget; what they buy was measured on banking77, hwu64 and snips (docs/diary.md).
RANK_SHARE = 0.10
FEATURE_SHARE = 0.60
RANK_ROWS = 2000
FEWEST_ROWS = 100
PACE_TEXTS = 64


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
    """All training rows, or as many as a short budget allows (TF-IDF takes about 1 s for 2,000 rows and 77 classes)."""
    rows = len(job.task.train)
    if job.budget.seconds is None:
        return np.arange(rows)
    most = int(max(500, 4e5 * job.budget.seconds * 0.3 / max(job.classes, 10) / 100))
    return np.arange(rows) if rows <= most else spread_rows(job.task.train.labels, most)


def measure_as_is(job: Job) -> None:
    """Checkpoints that already have a head for these labels, as they are."""
    for checkpoint in job.zoo.checkpoints:
        labels = checkpoint.labels
        if labels is None or sorted(labels) != sorted(job.task.label_names) or checkpoint.random is not None:
            continue

        def measure(checkpoint: Checkpoint = checkpoint) -> dict[str, Any]:
            probs = as_is_probabilities(job, checkpoint, job.task.validation.texts)
            return {"validation": score(job.task.validation.labels, probs, job.seed)}

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
    texts = job.task.train.texts[:PACE_TEXTS]
    for group in shared_passes(job.zoo.checkpoints).values():
        whole = group[0]
        try:
            entry = job.run.ledger.once(f"pace/{whole.name}", lambda whole=whole: _pace(job, whole, texts))  # type: ignore[misc]
        except RegraftError as fault:
            for checkpoint in group:
                job.leave_out(checkpoint.reference, fault)
                job.zoo.checkpoints.remove(checkpoint)
            continue
        for checkpoint in group:
            share = (checkpoint.num_layers + 0.3) / (whole.num_layers + 0.3)  # embeddings and pooling: about 0.3 layers
            job.pace[checkpoint.name] = entry["seconds_a_text"] * share


def _pace(job: Job, checkpoint: Checkpoint, texts: list[str]) -> dict[str, float]:
    checkpoint.check_finite()
    nothing = Head(
        "last", np.zeros((job.classes, checkpoint.hidden_size), np.float32), np.zeros(job.classes, np.float32)
    )
    classifier = classifier_from(checkpoint, job.task.label_names, nothing, device=job.device)
    probabilities(classifier, texts[:8])
    started = time.monotonic()
    probabilities(classifier, texts)
    return {"seconds_a_text": (time.monotonic() - started) / len(texts)}


def choose_rows(job: Job) -> None:
    """How many training rows every checkpoint is ranked on, so that ranking takes its share of the budget."""
    labels = job.task.train.labels
    a_row = sum(job.pace[group[0].name] for group in shared_passes(job.zoo.checkpoints).values())

    def choose() -> tuple[int, str]:
        most = min(RANK_ROWS, len(labels))
        if not job.timed:
            return most, "the most that ranking uses"
        share = min(RANK_SHARE * (job.budget.seconds or 0.0), 0.5 * job.free_s())
        rows = int(min(most, share / max(a_row, 1e-9) - len(job.task.validation)))
        rows = max(rows, min(most, FEWEST_ROWS)) if job.affords(a_row * (FEWEST_ROWS + len(job.task.validation))) else 0
        return rows, f"{share:.0f} s for all encoders together, {1000 * a_row:.1f} ms a text"

    rows = job.decide("rank rows", "training rows that checkpoints are ranked on", choose)
    job.rank_rows = spread_rows(labels, rows) if rows else np.zeros(0, np.int64)
    job.rest_rows = np.setdiff1d(np.arange(len(labels)), job.rank_rows)


def rank_checkpoints(job: Job) -> None:
    """Features of validation and ranking rows for every checkpoint, then the ranking."""
    if not len(job.rank_rows):
        return
    failed: dict[str, Exception] = {}
    texts = [job.task.train.texts[row] for row in job.rank_rows] + job.task.validation.texts
    job.features = extract_all(job.zoo.checkpoints, texts, failed=failed, store=job.store, device=job.device,
                               dtype=job.dtype, progress=job.progress)  # fmt: skip
    for checkpoint in list(job.zoo.checkpoints):
        if checkpoint.name in failed:
            job.leave_out(checkpoint.reference, failed[checkpoint.name])
            job.zoo.checkpoints.remove(checkpoint)
    chosen = np.arange(len(job.rank_rows))

    def measure() -> dict[str, Any]:
        views = {name: found.rows(chosen) for name, found in job.features.items()}
        deadline = job.deadline.part(min(RANK_SHARE * job.budget.seconds, job.free_s())) if job.budget.seconds else None
        labels = job.task.train.labels[job.rank_rows]
        with job.progress.bar("ranking", len(views)):
            ranked = rank(views, labels, n_classes=job.classes, seed=job.seed, deadline=deadline,
                          progress=lambda _name, _share: job.progress.advance())  # fmt: skip
        return {"ranking": [
            {"checkpoint": one.checkpoint, "rank": one.rank, "group": one.group, "score": one.score, "low": one.low,
             "high": one.high, "scores": one.scores, "seconds": one.seconds} for one in ranked
        ]}  # fmt: skip

    job.ranking = job.timed_once("ranking", measure)["ranking"]
    faults.point("ranked")


def ranked(job: Job) -> list[Checkpoint]:
    """Checkpoints with features, the best first."""
    by_name = {checkpoint.name: checkpoint for checkpoint in job.zoo.checkpoints}
    return [by_name[one["checkpoint"]] for one in job.ranking if one["checkpoint"] in by_name]


def fit_heads(job: Job) -> None:
    """Probe heads: on all the rows that the budget allows for the leading encoder, on the ranking rows for the others."""
    order = ranked(job)
    if not order:
        return
    leader = order[0]
    passes = shared_passes(job.zoo.checkpoints)
    leading = next(group for group in passes.values() if leader in group)
    rest, rest_rows = _rest_features(job, leading)
    for checkpoint in order:
        more = rest.get(checkpoint.name)
        for view in VIEWS:
            if view == "mean" and job.timed and not _worth_mean(job, checkpoint):
                continue
            _fit_head(job, checkpoint, view, more, rest_rows, first=checkpoint is leader and view == "last")


def _rest_features(job: Job, group: list[Checkpoint]) -> tuple[dict[str, Features], np.ndarray]:
    whole = group[0]

    def choose() -> tuple[int, str]:
        if not job.timed:
            return len(job.rest_rows), "all of them"
        rows = int(min(len(job.rest_rows), FEATURE_SHARE * job.free_s() / max(job.pace[whole.name] * 1.1, 1e-9)))
        return rows, f"{1000 * job.pace[whole.name]:.1f} ms a text, {job.free_s():.0f} s free"

    count = job.decide("rest rows", f"further training rows whose features {whole.name} computes", choose)
    if not count:
        return {}, np.zeros(0, np.int64)
    rows = job.rest_rows[spread_rows(job.task.train.labels[job.rest_rows], count)]
    texts = [job.task.train.texts[row] for row in rows]
    return extract_all(group, texts, store=job.store, device=job.device, dtype=job.dtype, progress=job.progress), rows


def _worth_mean(job: Job, checkpoint: Checkpoint) -> bool:
    """The layer mean costs one more fit; its cross-validated score tells beforehand whether it can win."""
    scores = next(one["scores"] for one in job.ranking if one["checkpoint"] == checkpoint.name)
    return bool(scores.get("probe_mean", 0.0) >= scores.get("probe_last", 1.0))


def _fit_head(
    job: Job, checkpoint: Checkpoint, view: View, more: Features | None, more_rows: np.ndarray, *, first: bool
) -> None:
    name = f"{checkpoint.name}-probe" + ("" if view == "last" else f"-{view}")
    folder = job.trial_folder(name) / "head"
    found = job.features[checkpoint.name]
    at = np.arange(len(job.rank_rows))
    of_validation = np.arange(len(at), len(at) + len(job.task.validation))

    def measure() -> dict[str, Any]:
        rows = job.rank_rows if more is None else np.concatenate([job.rank_rows, more_rows])
        views = found.rows(at) if more is None else Joined(found.rows(at), more)
        # The first head is what the answer rests on when all else fails: it may use what is left, the others a share.
        deadline = job.deadline.part(job.free_s() * (0.8 if first else 0.25)) if job.timed else None
        head = probe(views, job.task.train.labels[rows], job.classes, view=view, seed=job.seed, deadline=deadline)
        save_head(head, folder)
        return {"rows": len(rows), "l2": head.l2, "iterations": head.iterations, **_head_score(job, head, found.rows(of_validation))}

    if job.run.ledger.look(f"head/{name}")[0] and not folder.is_dir():
        # The ledger knows the score, the disk lost the head: fitting is deterministic, so it comes back the same.
        measure()
    elif not job.run.ledger.look(f"head/{name}")[0] and not _may_fit(job, first):
        return
    job.progress.say(f"Probe head {name}")
    entry = job.timed_once(f"head/{name}", measure)
    job.candidates[name] = Candidate(
        name, checkpoint, "probe", head=load_head(folder), validation=entry["validation"], seconds=entry["seconds"],
        curve=[[entry["seconds"], entry["validation"]["accuracy"]]],
    )  # fmt: skip


def _may_fit(job: Job, first: bool) -> bool:
    if not job.timed:
        return len(job.candidates) < max(1, (job.budget.trials or 1) // 2)
    longest = max((one.seconds for one in job.candidates.values() if one.method == "probe"), default=2.0)
    return job.affords(1.0 if first else 1.3 * longest)


def _head_score(job: Job, head: Head, features: Any) -> dict[str, Any]:
    return {"validation": dict(score(job.task.validation.labels, softmax(head.logits(features)), job.seed))}


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
