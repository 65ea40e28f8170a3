"""Smaller members out of the best one: half of its encoder's blocks are cut, and what stays is trained again.

    the best fine-tune or soup -> shapes with half of its blocks -> the best one or two, cut -> trained again under its head,
                                                                                               beside its answers

This uses what training has left over and nothing else: no time is held back for it beforehand, and what the family as it stands
needs to the end (members, speeds, tests, report) is held back from it. Under a budget of trials a cut takes one trial that
halving has no use for. What comes out is a candidate like the others: measured on validation data, chosen by the front.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from regraft import faults
from regraft.adapt import Plan, head_of, load_head, save_head
from regraft.checkpoint import Checkpoint, open_checkpoint
from regraft.checkpoint.classifier import TextClassifier, logits_of, model_calls
from regraft.errors import AnatomyError, RegraftError, RunError, StoreError
from regraft.planner.arms import Arm, Trainer
from regraft.planner.halving import LAST_EPOCHS, trials_used
from regraft.planner.job import Candidate, CutFrom, Job
from regraft.planner.members import classifier_of
from regraft.planner.reserve import reserve
from regraft.planner.spare import held_s, like, one_s, shapes_s
from regraft.store import whole_folder
from regraft.task.rows import spread_rows
from regraft.train.loop import Leg

MOST_CUTS = 2
# Seconds below which a budget is not asked: what it leaves is for the fine-tune itself.
SHORTEST_S = 120.0
# Of the time that is left, what training is planned to take.
TRAIN_SHARE = 0.95
# Of what is free, the most that the whole model's answers to all training texts may take.
TEACH_SHARE = 0.2
# Under a budget of trials.
TRIAL_EPOCHS = 2.0


def make_cuts(job: Job, trainer: Trainer) -> None:
    """Candidates cut out of the best one that was trained, where there is room."""
    started = job.run.ledger.look("decision/cuts")[0]
    if job.run.ledger.look("decision/family")[0] and not started:
        return  # begun when there were no cuts, and the family is chosen
    start = _start(job)
    count = job.decide("cuts", "models to cut out of the best fine-tune", lambda: _count(job, trainer, start))
    if not count or start is None:
        return
    try:
        _hold(job)
        shapes = job.decide("cut shapes", f"shapes to cut {start.name} to", lambda: _shapes(job, trainer, start))
        for number, sizes in enumerate(shapes["sizes"][:count]):
            _hold(job)
            _cut_one(job, trainer, start, number, sizes)
    except (StoreError, RunError):
        raise
    except RegraftError as fault:
        job.note("cut failed", f"{start.name} is not cut", fault.problem)
        job.progress.say(f"{start.name} is not cut: {fault.problem}")
    trainer.close()
    reserve(job)


def _hold(job: Job) -> None:
    """Keep what the family needs, the cuts that are made already included."""
    reserve(job)
    if job.timed:
        job.reserve_s = held_s(job)


def _start(job: Job) -> Candidate | None:
    """The best candidate that was trained; of equals the one measured first."""
    trained = [
        one for one in job.candidates.values()
        if one.competes and one.checkpoint.random is None and one.cut is None and (one.legs or one.parts)
    ]  # fmt: skip
    return max(trained, key=lambda one: one.quality(job.task.metric), default=None)


def _count(job: Job, trainer: Trainer, start: Candidate | None) -> tuple[int, str]:
    """How many there is room for, and why. Under a time budget each is asked again when its turn comes."""
    if start is None:
        return 0, "nothing was trained"
    if (job.budget.seconds or SHORTEST_S) < SHORTEST_S:
        return 0, f"a budget under {SHORTEST_S:.0f} s is for the fine-tune alone"
    from regraft.anatomy import load

    try:
        load(start.checkpoint.model_type)
    except AnatomyError as fault:
        return 0, fault.problem
    if not job.timed:
        left = _trials_left(job)
        return min(MOST_CUTS, left), f"{left} trials are left, a cut takes one"
    needed = shapes_s(job, start) + one_s(job, trainer, start)
    free = job.deadline.left() - held_s(job)
    words = f"{max(0.0, free):.0f} s are left beside what the family needs, a cut takes at least {needed:.0f} s"
    return (MOST_CUTS if free >= needed else 0), words


def _trials_left(job: Job) -> int:
    return max(0, (job.budget.trials or 0) - sum(trials_used(job)))


def _shapes(job: Job, trainer: Trainer, start: Candidate) -> tuple[dict[str, Any], str]:
    """Units of each shape, the best first."""
    from regraft.planner.halves import half_shapes, scored
    from regraft.planner.recovery import Recovery
    from regraft.resize.classifier import opened_encoder

    job.progress.say(f"Shapes with half of the blocks of {start.name}")
    classifier = _classifier(job, trainer, start)
    with (
        model_calls(start.checkpoint.reference),
        TemporaryDirectory(prefix=".shapes-", suffix=".partial", dir=job.run.trials) as place,
        opened_encoder(classifier, Path(place)) as opened,
    ):
        del classifier
        scratch = Path(place) / "scratch"
        scratch.mkdir()
        recovery = Recovery(job.task, scratch, job.seed, job.device)
        needed = one_s(job, trainer, start)
        found = scored(
            opened, half_shapes(opened), recovery, _texts(job), job.seed, scratch, lambda: not job.affords(needed)
        )
    words = "; ".join(f"{_said(one.counts)}: {one.score:.1%}" for one in found)
    return {"sizes": [dict(one.counts) for one in found]}, f"probes of half of the blocks, untrained: {words}"


def _said(sizes: Any) -> str:
    return ", ".join(f"{axis} {keep}" for axis, keep in sorted(sizes.items()))


def _texts(job: Job) -> list[str]:
    """The training texts that importance is measured on."""
    from regraft.resize.classifier import TEXTS

    return [job.task.train.texts[row] for row in spread_rows(job.task.train.labels, TEXTS)]


def _classifier(job: Job, trainer: Trainer, start: Candidate) -> TextClassifier:
    classifier = classifier_of(job, trainer, start)
    assert isinstance(classifier, TextClassifier)
    return classifier


def _cut_one(job: Job, trainer: Trainer, start: Candidate, number: int, sizes: dict[str, int]) -> None:
    """Cut, train again, measure."""
    name = f"{start.checkpoint.name}-cut" + (f"-{number + 1}" if number else "")
    while any(one.name == name for one in job.zoo.checkpoints):
        name += "-again"

    def choose() -> tuple[bool, str]:
        if not job.timed:
            return _trials_left(job) > 0, f"{_said(sizes)}; {_trials_left(job)} trials are left"
        needed = one_s(job, trainer, start)
        return job.affords(needed), f"{_said(sizes)}; it takes at least {needed:.0f} s, {job.free_s():.0f} s are left"

    if not job.decide(f"cut/{name}/try", f"cut {start.name} as {name}", choose):
        return
    folder = job.trial_folder(name)

    def make() -> dict[str, Any]:
        from regraft.resize.classifier import cut_encoder

        job.progress.say(f"Cutting {start.name} to {_said(sizes)}")
        shutil.rmtree(folder / "encoder", ignore_errors=True)
        classifier = _classifier(job, trainer, start)
        with model_calls(start.checkpoint.reference):
            step = cut_encoder(classifier, sizes, folder / "encoder", texts=_texts(job), seed=job.seed)
        save_head(head_of(classifier), folder / "head")
        return {"step": step, "checkpoint_id": open_checkpoint(str(folder / "encoder")).checkpoint_id}

    entry = job.timed_once(f"cut/{name}", make)
    faults.point("cut written")
    if not _is_there(folder, entry["checkpoint_id"]):
        make()
    checkpoint = open_checkpoint(str(folder / "encoder")).renamed(name)
    job.pace[name] = job.pace[start.checkpoint.name] * _share(checkpoint, start.checkpoint)
    settings = _settings(job, start) | _teacher(job, trainer, start, name)
    arm = trainer.arm(checkpoint, load_head(folder / "head"), Plan("full", settings, {}, job.seed), name)
    one = arm.candidate
    one.method, one.seconds = "cut", entry["seconds"]
    one.cut = CutFrom(start.name, start.checkpoint, sizes, entry["step"])
    a_step = trainer.seconds_a_step(like(trainer, start)) * _share(checkpoint, start.checkpoint)
    if trainer.run(arm, lambda: _leg(job, trainer, arm, a_step)):
        one.reason = f"{one.cut.said()}; trained again for {sum(leg.steps for leg in one.legs):,} steps"
    trainer.close()


def _teacher(job: Job, trainer: Trainer, start: Candidate, name: str) -> dict[str, float]:
    """Have a cut trained beside the answers of what it was cut from; the setting that says so."""
    from regraft.planner.recovery import DISTILL

    def choose() -> tuple[bool, str]:
        seconds = job.pace[start.checkpoint.name] * len(job.task.train)
        words = f"its answers to {len(job.task.train):,} training texts take about {seconds:.0f} s"
        return not job.timed or seconds <= TEACH_SHARE * job.free_s(), words if job.timed else "there is no clock"

    if not job.decide("cut teacher", f"train cuts beside the answers of {start.name}", choose):
        return {}
    trainer.teachers[name] = _answers(job, trainer, start)
    return {"distill": DISTILL}


def _answers(job: Job, trainer: Trainer, start: Candidate) -> np.ndarray:
    """Logits of all training texts, fp32 [N, C]: from the disk, or computed."""
    path = job.trial_folder(start.name) / "answers" / "logits.npy"
    with suppress(OSError, ValueError, EOFError):
        found = np.load(path, allow_pickle=False)
        if found.shape == (len(job.task.train), job.classes):
            return np.asarray(found, np.float32)
    job.progress.say(f"Answers of {start.name} to {len(job.task.train):,} training texts")
    classifier = _classifier(job, trainer, start)
    with model_calls(start.checkpoint.reference):
        found = logits_of(classifier, job.task.train.texts)
    with whole_folder(path.parent) as aside:
        np.save(aside / path.name, found)
    return found


def _leg(job: Job, trainer: Trainer, arm: Arm, a_step: float) -> Leg:
    """One leg, the learning rate falling to zero over it."""
    epochs, per_epoch = TRIAL_EPOCHS, trainer.steps_per_epoch(arm)
    if job.timed:
        seconds = TRAIN_SHARE * (job.free_s() - trainer.measuring_s(arm)) - trainer.tokenising_s(arm)
        epochs = min(LAST_EPOCHS, seconds / (a_step * per_epoch))
    return Leg(steps := max(1, round(epochs * per_epoch)), decay=steps)


def _settings(job: Job, start: Candidate) -> dict[str, Any]:
    """The number format that the best was trained in; the rest is the method's own."""
    plans = [one.plan for one in (start, *(job.candidates[name] for name in start.parts)) if one.plan is not None]
    return {key: value for key, value in plans[0].settings.items() if key == "bfloat16"} if plans else {}


def _share(checkpoint: Checkpoint, whole: Checkpoint) -> float:
    """Of the time of a pass over the whole, what one over a cut of it takes; embeddings and pooling are about 0.3 layers."""
    blocks = whole.num_layers * checkpoint.encoder_parameters / max(1, whole.encoder_parameters)
    return (blocks + 0.3) / (whole.num_layers + 0.3)


def _is_there(folder: Path, checkpoint_id: str) -> bool:
    """Whether what was cut can still be read, and is what it was."""
    try:
        load_head(folder / "head")
        return open_checkpoint(str(folder / "encoder")).checkpoint_id == checkpoint_id
    except (OSError, RegraftError):
        return False
