"""Probe heads of the main job: cheap candidates of their own, and where every fine-tune starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from regraft.adapt import VIEWS, Head, View, load_head, probe, save_head
from regraft.checkpoint import Checkpoint
from regraft.checkpoint.classifier import softmax
from regraft.errors import CheckpointError, RegraftError, StoreError
from regraft.evaluate import score
from regraft.features import BLOCK, Joined, extract, extract_blocks, shared_passes
from regraft.planner.job import Candidate, Job
from regraft.planner.pace import correct_pace
from regraft.planner.scope import contenders
from regraft.task.rows import spread_rows

# Of what is free, the most that features of the remaining training rows may take: a head on all rows beats a fine-tune on
# fewer, and what is left over goes into training.
FEATURE_SHARE = 0.8
# A pass that turns out slower than that is cut before it has taken this share.
CUT_SHARE = 0.9
# Of the budget, what heads beside the first may take together.
HEADS_SHARE = 0.10
SCRATCH_ROWS = 200


def fit_heads(job: Job) -> None:
    """Heads on all the rows that the budget allows for the leading encoder, on the ranking rows for the others."""
    order = _order(job)
    if not order:
        return
    leader = order[0]
    leading = next(group for group in shared_passes(contenders(job)).values() if leader in group)
    rest, rest_rows = _rest_features(job, leading)
    l2: float | None = None
    for checkpoint in order:
        if checkpoint.name not in job.features:
            continue
        more = rest.get(checkpoint.name)
        for view in VIEWS:
            if view == "mean" and job.timed and not _worth_mean(job, checkpoint):
                continue
            if view == "both" and job.timed and checkpoint not in order[:2]:
                continue
            # Truncations of one encoder want the same strength: choosing it once saves most of the time of the others.
            known = l2 if checkpoint in leading and view != "both" else None
            found = _fit_head(
                job, checkpoint, view, more, rest_rows, known, first=checkpoint is leader and view == "last"
            )
            if found is not None and checkpoint is leader and view == "last":
                l2 = found.l2


def _order(job: Job) -> list[Checkpoint]:
    """Ranked checkpoints, the best first; second comes the best of at most half its encoder, which the family wants."""
    by_name = {checkpoint.name: checkpoint for checkpoint in job.zoo.checkpoints}
    order = [by_name[one["checkpoint"]] for one in job.ranking if one["checkpoint"] in by_name]
    half = [
        one for one in order[1:] if one.random is None and 2 * one.encoder_parameters <= order[0].encoder_parameters
    ]
    if half:
        order.remove(half[0])
        order.insert(1, half[0])
    return order


def _rest_features(job: Job, group: list[Checkpoint]) -> tuple[Mapping[str, Joined], np.ndarray]:
    """Features of a checkpoint, and of those that share its pass, on further training rows, and which rows these are.

    The pass ends early when it is slower than was predicted; how far it went is logged, so that the same rows are used again.
    """
    whole = group[0]

    def choose() -> tuple[int, str]:
        if not job.timed:
            return len(job.other_rows), "all of them"
        rows = int(min(len(job.other_rows), FEATURE_SHARE * job.free_s() / max(job.pace[whole.name] * 1.1, 1e-9)))
        return rows, f"{1000 * job.pace[whole.name]:.1f} ms a text, {job.free_s():.0f} s free"

    count = job.decide("rest rows", f"further training rows whose features {whole.name} computes", choose)
    job.rest_planned = count
    if not count:
        return {}, np.zeros(0, np.int64)
    rows = job.other_rows[spread_rows(job.task.train.labels[job.other_rows], count)]
    known, entry = job.run.ledger.look("decision/rest rows made")
    if known:
        rows = rows[: entry["value"]]
    texts = [job.task.train.texts[row] for row in rows]
    job.progress.say(f"Features of {whole.name} on {len(texts):,} more training texts")
    options: dict[str, Any] = {"store": job.store, "device": job.device, "dtype": job.dtype, "progress": job.progress}
    failed: dict[str, CheckpointError] = {}
    found = extract_blocks(group, texts, stop=None if known else _cut(job, whole, len(texts)), failed=failed, **options)
    for checkpoint in group:
        if checkpoint.name in failed:
            job.leave_out(checkpoint.reference, failed[checkpoint.name])
            job.features.pop(checkpoint.name, None)
    if whole.name in found.views:
        correct_pace(job, whole, "rest", found.seconds, found.timed)
    why = "all that were planned" if found.texts == count else "the pass was slower than predicted"
    job.decide("rest rows made", "further training rows whose features were computed", lambda: (found.texts, why))
    return found.views, rows[: found.texts]


def _cut(job: Job, checkpoint: Checkpoint, texts: int) -> Callable[[int], bool]:
    """Whether a pass has to end before its next block, by the time that its blocks have taken so far."""
    if not job.timed:
        return lambda _made: False
    free, began = job.free_s(), job.deadline.left()

    def stop(made: int) -> bool:
        used = began - job.deadline.left()
        pace = used / made if made else job.pace[checkpoint.name]
        return used + pace * min(BLOCK, texts - made) > CUT_SHARE * free

    return stop


def _worth_mean(job: Job, checkpoint: Checkpoint) -> bool:
    """The layer mean costs one more fit; its cross-validated score tells beforehand whether it can win."""
    scores = next(one["scores"] for one in job.ranking if one["checkpoint"] == checkpoint.name)
    return bool(scores.get("probe_mean", 0.0) > scores.get("probe_last", 1.0))


def _fit_head(
    job: Job,
    checkpoint: Checkpoint,
    view: View,
    more: Joined | None,
    more_rows: np.ndarray,
    l2: float | None,
    *,
    first: bool,
) -> Head | None:
    name = f"{checkpoint.name}-probe" + ("" if view == "last" else f"-{view}")
    folder = job.trial_folder(name) / "head"
    found = job.features[checkpoint.name]
    at = np.arange(len(job.rank_rows))
    of_validation = np.arange(len(at), len(at) + len(job.task.validation))

    def measure(again: dict[str, Any] | None = None) -> dict[str, Any]:
        rows = job.rank_rows if more is None else np.concatenate([job.rank_rows, more_rows])
        views = found.rows(at) if more is None else Joined(found.rows(at), more)
        # The first head is what the answer rests on when all else fails: it may use what is left, the others a share.
        deadline = job.deadline.part(job.free_s() * (0.8 if first else 0.25)) if job.timed and again is None else None
        strength, iterations = (l2, None) if again is None else (again["l2"], again["iterations"])
        labels = job.task.train.labels[rows]
        head = probe(
            views, labels, job.classes, view=view, seed=job.seed, deadline=deadline, l2=strength, iterations=iterations
        )
        save_head(head, folder)
        seen = score(job.task.validation.labels, softmax(head.logits(found.rows(of_validation))), job.seed)
        return {"rows": len(rows), "l2": head.l2, "iterations": head.iterations, "validation": seen}

    known, logged = job.run.ledger.look(f"head/{name}")
    if known and not _is_there(folder):
        measure(logged)  # the ledger knows how it was fitted, the disk lost it: it comes back the same
    elif not known and not _may_fit(job, first):
        return None
    job.progress.say(f"Probe head {name}")
    return _add(job, name, checkpoint, job.timed_once(f"head/{name}", measure)).head


def _is_there(folder: Path) -> bool:
    """Whether a head that was fitted can still be read."""
    with suppress(StoreError):
        load_head(folder)
        return True
    return False


def _add(job: Job, name: str, checkpoint: Checkpoint, entry: dict[str, Any], reason: str = "") -> Candidate:
    candidate = Candidate(
        name, checkpoint, "probe", head=load_head(job.trial_folder(name) / "head"), validation=entry["validation"],
        seconds=entry["seconds"], curve=[[entry["seconds"], entry["validation"]["accuracy"]]], reason=reason,
    )  # fmt: skip
    job.candidates[name] = candidate
    return candidate


def _may_fit(job: Job, first: bool) -> bool:
    if not job.timed:
        return len(job.candidates) < max(1, (job.budget.trials or 1) // 2)
    if first:
        return job.affords(1.0)
    taken = [one.seconds for one in job.candidates.values() if one.method == "probe"]
    others = sum(taken[1:])
    return job.affords(1.3 * max(taken, default=2.0)) and others <= HEADS_SHARE * (job.budget.seconds or 0.0)


def fit_scratch(job: Job) -> None:
    """A head on random weights where none was fitted yet: on a few texts, so that the baseline is in every table."""
    if not job.features or any(one.checkpoint.random is not None for one in job.candidates.values()):
        return
    validation, train = job.task.validation, job.task.train
    rows = spread_rows(train.labels, min(SCRATCH_ROWS, len(train)))
    few = np.arange(min(SCRATCH_ROWS, len(validation)))
    for checkpoint in job.zoo.checkpoints:
        if checkpoint.random is None:
            continue
        name = f"{checkpoint.name}-probe"
        folder = job.trial_folder(name) / "head"

        def measure(checkpoint: Checkpoint = checkpoint, folder: Any = folder) -> dict[str, Any]:
            texts = [train.texts[row] for row in rows] + [validation.texts[row] for row in few]
            found = extract(checkpoint, texts, store=job.store, device=job.device, dtype=job.dtype)
            head = probe(found.rows(np.arange(len(rows))), train.labels[rows], job.classes, seed=job.seed, l2=1e-2)
            save_head(head, folder)
            logits = head.logits(found.rows(len(rows) + few))
            seen = score(validation.labels[few], softmax(logits), job.seed)
            return {"rows": len(rows), "l2": head.l2, "iterations": head.iterations, "validation": seen}

        known = job.run.ledger.look(f"head/{name}")[0]
        if not known and not job.affords(job.pace[checkpoint.name] * (len(rows) + len(few)) + 1.0):
            continue
        try:
            entry = job.timed_once(f"head/{name}", measure)
            if not _is_there(folder):
                measure()
        except RegraftError as fault:
            job.leave_out(checkpoint.reference, fault)
            continue
        candidate = _add(job, name, checkpoint, entry, f"measured on {len(few)} validation texts only, to compare with")
        candidate.status = "baseline"
