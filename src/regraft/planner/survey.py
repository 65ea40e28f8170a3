"""The survey: models as they are, features and the ranking."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft import faults
from regraft.checkpoint import Checkpoint
from regraft.checkpoint.classifier import model_calls, probabilities
from regraft.checkpoint.export import load_classifier
from regraft.errors import CheckpointError, RegraftError
from regraft.evaluate import score
from regraft.features import extract_all
from regraft.planner.job import Candidate, Job
from regraft.planner.outlook import use_history
from regraft.planner.pace import correct_pace
from regraft.planner.scope import RANK_SHARE, contenders
from regraft.rank import Ranking, rank


def measure_as_is(job: Job) -> None:
    """Checkpoints that already have a head for these labels, as they are."""
    for checkpoint in job.zoo.checkpoints:
        labels, wanted = checkpoint.labels, job.task.label_names
        if labels is None or checkpoint.random is not None or not set(wanted) <= set(labels):
            continue
        what = f"measure {checkpoint.name} as it is"
        if sorted(labels) != sorted(wanted):
            why = (
                f"no: its head has {len(labels)} labels, the task {len(wanted)} of them; `regraft evaluate` measures it"
            )
            job.note(f"as-is/{checkpoint.name}", what, why)
            continue

        def measure(checkpoint: Checkpoint = checkpoint) -> dict[str, Any]:
            with model_calls(checkpoint.reference):
                probs = as_is_probabilities(job, checkpoint, job.task.validation.texts)
            return {"validation": score(job.task.validation.labels, probs, job.seed)}

        known = job.run.ledger.look(f"as-is/{checkpoint.name}")[0]
        if not known and not job.affords(job.pace[checkpoint.name] * len(job.task.validation) + 1.0):
            job.note(f"as-is/{checkpoint.name}", what, "no: there was no time for a pass over the validation examples")
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


def rank_checkpoints(job: Job) -> None:
    """Features of validation and ranking rows for every contender, then the ranking."""
    if not len(job.rank_rows):
        return
    failed: dict[str, CheckpointError] = {}
    job.progress.say(f"Features of {len(contenders(job))} checkpoints on {len(job.rank_rows):,} training texts")
    texts = [job.task.train.texts[row] for row in job.rank_rows]
    if job.validates:
        texts += job.task.validation.texts
    job.features = extract_all(contenders(job), texts, failed=failed, store=job.store, device=job.device,
                               dtype=job.dtype, progress=job.progress)  # fmt: skip
    for checkpoint in list(job.zoo.checkpoints):
        if checkpoint.name in failed:
            job.leave_out(checkpoint.reference, failed[checkpoint.name])
            job.zoo.checkpoints.remove(checkpoint)
    if not job.features:
        return
    for checkpoint in contenders(job):
        correct_pace(job, checkpoint, "rank", job.features[checkpoint.name].seconds, len(texts))
    chosen = np.arange(len(job.rank_rows))

    def measure() -> dict[str, Any]:
        views = {name: found.rows(chosen) for name, found in job.features.items()}
        deadline = job.deadline.part(min(RANK_SHARE * job.budget.seconds, job.free_s())) if job.budget.seconds else None
        labels = job.task.train.labels[job.rank_rows]
        with job.progress.bar("ranking", 5 * len(views)):
            ranked = rank(views, labels, n_classes=job.classes, seed=job.seed, more=job.more_scores, deadline=deadline,
                          progress=lambda _name, _share: job.progress.advance())  # fmt: skip
        spent = {name: found.seconds for name, found in job.features.items()}
        return {
            "ranking": [
                {
                    **vars(one),
                    "seconds": one.seconds + spent[one.checkpoint],
                    "reason": _reason(one, ranked, len(labels)),
                }
                for one in ranked
            ]
        }

    job.ranking = job.timed_once("ranking", measure)["ranking"]
    use_history(job)
    faults.point("ranked")


def _reason(one: Ranking, ranked: list[Ranking], rows: int) -> str:
    """Why a checkpoint has its place, in words."""
    probes = {name: value for name, value in one.scores.items() if name.startswith("probe")}
    if not probes:
        return "there was no time to compute a probe of it"
    others = [other.checkpoint for other in ranked if other.group == one.group and other.checkpoint != one.checkpoint]
    close = f"; too close to call with {', '.join(others)}" if others else ""
    return f"its best linear probe is right on {one.score:.1%} of up to {rows:,} examples, each left out in turn{close}"
