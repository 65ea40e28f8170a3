"""How fast each encoder is here: seconds a text in a forward pass, what every prediction of cost stands on."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np
import torch

from regraft.adapt import Head, classifier_from
from regraft.checkpoint import Checkpoint
from regraft.checkpoint.classifier import model_calls, probabilities
from regraft.errors import BudgetError, RegraftError
from regraft.features import shared_passes
from regraft.planner.job import Job

PACE_TEXTS = 64
PACE_SECONDS = 1.0
PACE_SAMPLE = 1024
PACE_GROUP = 16
# An encoder that takes longer for one text, warmed up, is timed one text at a time. Fast ones must be far from this on a busy
# machine: alone a text takes several times what it takes in a batch.
SLOW_TEXT_S = 0.25
# Reading an encoder, checking that its weights are finite and running a few texts: seconds, and bytes a second.
OPEN_SECONDS = 2.0
OPEN_BYTES = 1.5e8


def open_s(checkpoint: Checkpoint) -> float:
    """What opening a checkpoint and running a few texts takes."""
    return OPEN_SECONDS + checkpoint.bytes / OPEN_BYTES


def measure_pace(job: Job, dtype: torch.dtype = torch.float32) -> None:
    """Seconds a text takes in each encoder, over a few texts of the task; an encoder that fails is left out.

    The smallest is opened first, and none that there is no time to open: one that is slow to read must not cost the others.
    """
    texts = job.task.train.texts[:PACE_SAMPLE]
    groups = sorted(
        shared_passes(job.zoo.checkpoints).values(), key=lambda group: (group[0].random is not None, group[0].bytes)
    )
    waiting = deque(groups)
    while waiting:
        group = waiting.popleft()
        whole = group[0]
        known = job.run.ledger.look(f"pace/{whole.name}")[0]
        twin = _twin(job, whole)
        if twin is not None:
            _set_pace(job, group, job.pace[twin.name] * (whole.num_layers + 0.3) / (twin.num_layers + 0.3))
            continue
        if not known and not job.affords(open_s(whole)):
            _leave_out(job, group, BudgetError("There was no time to open it.", "Give a larger budget."))
            continue
        try:
            entry = job.run.ledger.once(
                f"pace/{whole.name}",
                lambda whole=whole: _pace(job, whole, texts, dtype),  # type: ignore[misc]
            )
        except RegraftError as fault:
            _leave_out(job, group[:1], fault)
            if group[1:]:  # what is wrong with the deepest need not be wrong with its first layers
                waiting.appendleft(group[1:])
            continue
        _set_pace(job, group, entry["seconds_a_text"])
        for checkpoint in group[1:]:
            if checkpoint.folder != whole.folder:  # of its own it may have what comes after the last layer
                try:
                    checkpoint.check_finite()
                except RegraftError as fault:
                    _leave_out(job, [checkpoint], fault)


def _leave_out(job: Job, group: list[Checkpoint], fault: Exception) -> None:
    for checkpoint in group:
        job.leave_out(checkpoint.reference, fault)
        job.zoo.checkpoints.remove(checkpoint)


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


def correct_pace(job: Job, checkpoint: Checkpoint, step: str, seconds: float, texts: int) -> None:
    """Replace the first guess by what features of many texts took in a step (nothing, when they came from the store)."""
    key = f"pace again/{checkpoint.name}/{step}"
    known, entry = job.run.ledger.look(key)
    if not known:
        if not job.timed or seconds == 0.0 or texts < 2 * PACE_TEXTS:
            return
        entry = job.run.ledger.log(key, {"seconds_a_text": seconds / texts})
    group = next(group for group in shared_passes(job.zoo.checkpoints).values() if checkpoint in group)
    _set_pace(job, group, entry["seconds_a_text"])


def _pace(job: Job, checkpoint: Checkpoint, texts: list[str], dtype: torch.dtype) -> dict[str, float]:
    with model_calls(checkpoint.reference):
        checkpoint.check_finite()
        nothing = Head(
            "last", np.zeros((job.classes, checkpoint.hidden_size), np.float32), np.zeros(job.classes, np.float32)
        )
        classifier = classifier_from(checkpoint, job.task.label_names, nothing, device=job.device, dtype=dtype)
        return {"seconds_a_text": _seconds_a_text(job, classifier, _pace_groups(texts))}


def _seconds_a_text(job: Job, classifier: Any, groups: list[list[str]]) -> float:
    def taken_by(group: list[str]) -> float:
        started = time.monotonic()
        probabilities(classifier, group)
        return time.monotonic() - started

    # One text first: sixteen of a slow encoder may be more than the budget. The first pass also takes memory and chooses
    # kernels, so what looks slow is timed a second time.
    middle = groups[len(groups) // 2]
    one = taken_by(middle[:1])
    if one > SLOW_TEXT_S:
        one = taken_by(middle[:1])
    if one > SLOW_TEXT_S:
        return _slow_text(job, taken_by, groups, one)
    warm = taken_by(middle)
    if warm > PACE_SECONDS / len(groups):
        groups = [group[::4] for group in groups]
    if warm <= PACE_SECONDS:
        for group in groups:
            taken_by(group)
    # The fastest of three: right after the imports a pass may take several times what the next one does.
    taken: list[float] = []
    while len(taken) < 3 and sum(taken) < PACE_SECONDS and not (taken and _late(job)):
        taken.append(sum(taken_by(group) for group in groups))
    return min(taken) / sum(map(len, groups))


def _slow_text(job: Job, taken_by: Any, groups: list[list[str]], one: float) -> float:
    """The mean over texts of all lengths, one at a time, as many as the time for it has room for."""
    taken = [one]
    for group in groups:
        if sum(taken) > PACE_SECONDS or _late(job):
            break
        taken.append(taken_by(group[:1]))
    return sum(taken) / len(taken)


def _late(job: Job) -> bool:
    return job.timed and job.deadline.left() <= 0.0


def _pace_groups(texts: list[str]) -> list[list[str]]:
    """Texts of all lengths, neighbours in length together, as every pass over many texts has them in its batches.

    The first texts as they come, padded to the longest of them, took three times as long (docs/diary.md).
    """
    by_length = sorted(texts, key=len)
    chosen = by_length[:: max(1, len(by_length) // PACE_TEXTS)][:PACE_TEXTS]
    return [chosen[at : at + PACE_GROUP] for at in range(0, len(chosen), PACE_GROUP)]
