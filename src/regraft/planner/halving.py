"""Successive halving over ways to train (Jamieson & Talwalkar 2016, arXiv 1502.07943).

All arms train for a rung, the better half goes on for twice as long, until one is left; that one gets what remains, its
learning rate falling to zero at the end. Nothing is trained twice: an arm goes on from the state it stopped at.

Two brackets: the best checkpoint on validation data, and the best one with at most half its encoder parameters, so that
the family has a member that is worth being small. What a bracket may spend is a share of what is left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from regraft.adapt import Plan
from regraft.features import shared_passes
from regraft.planner.arms import TRY_SHARE, Arm, Trainer
from regraft.planner.job import Candidate, Job
from regraft.planner.outlook import expected
from regraft.planner.soup import hold_back
from regraft.train.loop import Leg

SMALL_SHARE = 0.2
EXPLORE_SHARE = 0.2
# Below this many epochs, or seconds, a fine-tune does not get past the probe that it starts from.
FEWEST_EPOCHS = 0.3
FEWEST_SECONDS = 8.0
BFLOAT16_GAIN = 0.85
# A step has turned out to take as little as this share of what was predicted from the pace of the forward pass.
LUCKY_SHARE = 0.4
MOST_EPOCHS = 12.0
# The learning rate falls over at most this many epochs; what comes before is constant, one epoch at a time.
LAST_EPOCHS = 4.0
PATIENCE = 2
# Another encoder is tried when it is expected to come this close to the best.
RIVAL = 0.03


@dataclass(frozen=True)
class Limit:
    """What a bracket may spend: epochs of its checkpoint, and legs."""

    epochs: float
    legs: int


def train_best(job: Job, trainer: Trainer) -> None:
    """Both brackets, the small one first: its share is fixed, the main one takes what is left."""
    # Training starts from the head on the last layer's mean. First tokens vary little in shallow encoders, so a head on them
    # has large weights, and the first steps of the encoder blow up its logits (docs/diary.md).
    probes = [
        one
        for one in job.candidates.values()
        if one.method == "probe" and one.validation is not None and one.head is not None and one.head.view == "last"
    ]
    trainable = [one for one in probes if one.checkpoint.random is None] or probes
    if not trainable:
        return
    quality = expected(job, trainable)
    best = max(trainable, key=lambda one: (quality[one.name], -one.checkpoint.parameters, one.name))
    small = half_size(trainable, best, quality)
    settings = _number_format(job, trainer, best, small)
    plan = job.decide("brackets", "how much to train", lambda: _brackets(job, trainer, best, small))
    if plan["small"] and small is not None:
        arm = _arm(trainer, small, Plan("full", settings, {}, job.seed))
        _halve(job, trainer, "small", [arm], Limit(plan["small"], plan["small_legs"]))
    if plan["arms"]:
        arms = _main_arms(job, trainer, best, trainable, quality, plan["arms"], settings)
        hold_back(job, trainer, arms)
        epochs = job.decide(
            "main epochs", "epochs for the best checkpoint", lambda: _epochs_left(job, trainer, arms[0])
        )
        _halve(job, trainer, "main", arms, Limit(epochs, plan["main_legs"]))
    trainer.close()


def note_unused(job: Job) -> None:
    """Say how many of the trials that were given nothing was left to use for."""
    if job.budget.trials is None:
        return
    heads, legs = trials_used(job)
    unused = job.budget.trials - heads - legs
    if unused > 0:
        why = f"{heads} heads and models as they are, {legs} legs of training; halving has no use for more"
        job.note("unused trials", f"{unused} of {job.budget.trials} trials are not used", why)
        job.progress.say(f"{unused} of {job.budget.trials} trials are not used: {why}")


def trials_used(job: Job) -> tuple[int, int]:
    """Trials used so far: heads and models as they are, and legs of training. What only stands in the table to compare with, and
    a soup, is none."""
    untrained = [one for one in job.candidates.values() if one.plan is None and not one.parts]
    done = [key for key, _, _ in job.run.ledger.entries() if key.startswith("leg/") and key.endswith("/done")]
    return sum(one.status != "baseline" for one in untrained), len(done)


def _number_format(job: Job, trainer: Trainer, best: Candidate, small: Candidate | None) -> dict[str, Any]:
    """bfloat16 products where they are measured to be clearly faster here; float32 under a work budget, which must not
    depend on a timing, and where there is no time to train or to try."""
    if not job.timed:
        return {}

    def choose() -> tuple[bool, str]:
        arm = _arm(trainer, best, Plan("full", {}, {}, job.seed))
        if not _brackets(job, trainer, best, small, LUCKY_SHARE)[0]["arms"]:
            return False, "there is no time to train"
        if trainer.trying_s(arm) > TRY_SHARE * job.free_s():
            return False, f"trying both takes about {trainer.trying_s(arm):.0f} s, {job.free_s():.0f} s are left"
        found = trainer.measure_step(arm)
        if "bfloat16" not in found:
            return False, "a training step could not be tried in both number formats"
        words = ", ".join(f"{1000 * seconds:.0f} ms in {name}" for name, seconds in found.items())
        return found["bfloat16"] < BFLOAT16_GAIN * found["float32"], f"a training step takes {words}"

    return {"bfloat16": True} if job.decide("bfloat16", "train in bfloat16", choose) else {}


def half_size(candidates: list[Candidate], best: Candidate, quality: dict[str, float]) -> Candidate | None:
    """The best candidate with at most half the encoder parameters of the best; None when there is none. `quality` by name."""
    most = best.checkpoint.encoder_parameters / 2
    smaller = [one for one in candidates if 0 < one.checkpoint.encoder_parameters <= most]
    return max(smaller, key=lambda one: (quality[one.name], one.name), default=None)


def _brackets(
    job: Job, trainer: Trainer, best: Candidate, small: Candidate | None, share: float = 1.0
) -> tuple[dict[str, Any], str]:
    """What each bracket may spend and why, if a step takes that share of what is known or predicted of it."""
    arm = _arm(trainer, best, Plan("full", {}, {}, job.seed))
    nothing: dict[str, Any] = {"arms": 0, "small": 0.0, "small_legs": 0, "main_legs": 0}
    if not job.timed:
        legs = (job.budget.trials or 0) - trials_used(job)[0]
        if legs < 1:
            return nothing, "the trials went into probe heads"
        with_small = small is not None and legs >= 4
        arms = 4 if legs - with_small >= 8 else 2 if legs - with_small >= 4 else 1
        plan = {"arms": arms, "small": 2.0 if with_small else 0.0, "small_legs": 1, "main_legs": legs - with_small}
        return plan, f"{legs} trials are left"
    seconds = job.free_s() - trainer.measuring_s(arm) - trainer.tokenising_s(arm)
    epoch = share * trainer.seconds_a_step(arm) * trainer.steps_per_epoch(arm)
    epochs = seconds / epoch
    if seconds < FEWEST_SECONDS or epochs < FEWEST_EPOCHS:
        return (
            nothing,
            f"{max(0.0, seconds):.0f} s are left, an epoch takes {epoch:.0f} s: too little to get past the probe",
        )
    plan = {**nothing, "arms": 1 if epochs < 2.5 else 2 if epochs < 6 else 4, "main_legs": 100}
    if small is not None and epochs >= 1.5:
        small_arm = _arm(trainer, small, Plan("full", {}, {}, job.seed))
        small_epoch = trainer.seconds_a_step(small_arm) * trainer.steps_per_epoch(small_arm)
        plan["small"] = min(MOST_EPOCHS, SMALL_SHARE * seconds / small_epoch)
        plan["small_legs"] = 100
    return plan, f"{seconds:.0f} s are left, an epoch of {best.checkpoint.name} takes about {epoch:.0f} s"


def _epochs_left(job: Job, trainer: Trainer, arm: Arm) -> tuple[float, str]:
    if not job.timed:
        return 2.0, "two at most under a budget of trials"
    seconds = job.free_s() - trainer.measuring_s(arm)
    epochs = seconds / (trainer.seconds_a_step(arm) * trainer.steps_per_epoch(arm))
    return max(0.0, epochs), f"{seconds:.0f} s are left"


def _arm(trainer: Trainer, start: Candidate, plan: Plan) -> Arm:
    assert start.head is not None
    name = f"{start.checkpoint.name}-{plan.method}"
    if "learning_rate" in plan.settings:
        name += f"-lr{plan.settings['learning_rate']:g}"
    return trainer.arm(start.checkpoint, start.head, plan, name)


def _main_arms(
    job: Job,
    trainer: Trainer,
    best: Candidate,
    candidates: list[Candidate],
    quality: dict[str, float],
    count: int,
    settings: dict[str, Any],
) -> list[Arm]:
    """The best checkpoint fully and with LoRA, the best of another encoder, then a lower learning rate."""
    passes = shared_passes(job.zoo.checkpoints)
    same = next(group for group in passes.values() if best.checkpoint in group)
    others = [one for one in candidates if one.checkpoint not in same]
    rival = max(others, key=lambda one: (quality[one.name], one.name), default=None)
    full = Plan("full", settings, {}, job.seed)
    ways = [(best, full), (best, Plan("lora", settings, {}, job.seed))]
    if rival is not None and quality[rival.name] >= quality[best.name] - RIVAL:
        ways.insert(1, (rival, full))
    rate = full.tuning().settings.learning_rate
    ways.append((best, Plan("full", {**settings, "learning_rate": rate / 2}, {}, job.seed)))
    return [_arm(trainer, start, plan) for start, plan in ways[:count]]


def _halve(job: Job, trainer: Trainer, bracket: str, arms: list[Arm], limit: Limit) -> None:
    """Rungs until one arm is left, then the last legs of that one."""
    rungs = max(1, math.ceil(math.log2(len(arms)))) if len(arms) > 1 else 0
    # A rung costs what the one before did: half the arms, twice the steps.
    first = EXPLORE_SHARE * limit.epochs / (rungs * len(arms)) if rungs else 0.0
    used_epochs, used_legs = 0.0, 0
    for rung in range(rungs):
        for arm in arms:
            steps = max(1, round(first * 2**rung * trainer.steps_per_epoch(arm)))
            used_legs += 1
            used_epochs += first * 2**rung
            trainer.run(arm, lambda steps=steps: Leg(steps))  # type: ignore[misc]
        alive = sorted((arm for arm in arms if not arm.failed), key=lambda arm: -arm.quality)
        if not alive:
            return
        keep = max(1, len(arms) // 2)
        for arm in alive[keep:]:
            arm.candidate.status = "stopped"
            arm.candidate.reason = (
                f"{arm.quality:.1%} after rung {rung + 1}, {alive[0].name} reached {alive[0].quality:.1%}"
            )
        arms = alive[:keep]
    if not arms:
        return
    _finish(job, trainer, bracket, arms[0], Limit(limit.epochs - used_epochs, limit.legs - used_legs))


def _finish(job: Job, trainer: Trainer, bracket: str, arm: Arm, limit: Limit) -> None:
    """Constant legs of an epoch while they help, then one over which the learning rate falls to zero."""
    per_epoch = trainer.steps_per_epoch(arm)
    epochs, legs = min(limit.epochs, MOST_EPOCHS), limit.legs
    worse = 0
    while epochs > LAST_EPOCHS + 1 and legs > 1 and worse < PATIENCE:
        before = arm.quality
        if not trainer.run(arm, lambda: Leg(per_epoch)):
            return
        worse = 0 if arm.quality > before else worse + 1
        epochs, legs = epochs - 1, legs - 1
    if legs < 1:
        return

    def last() -> Leg:
        wanted = epochs
        if job.timed:
            share = SMALL_SHARE if bracket == "small" else 1.0
            seconds = share * (job.free_s() - trainer.measuring_s(arm))
            wanted = min(
                epochs if bracket == "small" else MOST_EPOCHS,
                0.97 * seconds / (trainer.seconds_a_step(arm) * per_epoch),
            )
        wanted = min(wanted, LAST_EPOCHS)
        return Leg(steps := max(1, round(wanted * per_epoch)), decay=steps)

    trainer.run(arm, last)
