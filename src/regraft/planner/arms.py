"""An arm: one way to train one checkpoint, taken further leg by leg; every leg is planned, trained, measured, logged."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from regraft import faults
from regraft.adapt import Adaptation, Head, Plan
from regraft.checkpoint import Checkpoint, load_tokenizer, max_length
from regraft.checkpoint.batches import Tokens, tokenize
from regraft.checkpoint.classifier import TextClassifier, model_calls
from regraft.errors import CheckpointError
from regraft.evaluate import score
from regraft.planner.job import Candidate, Job
from regraft.train.loop import Data, Leg, seconds_a_step

# A training step costs this many forward passes over its batch (forward, backward twice that, optimiser); a first guess,
# replaced by what the legs measure.
STEP_PASSES = 3.6
# A step beside its forward and backward pass: clipping, optimiser and moving average, and batches longer than the median.
OPTIMISER = 1.3
# Trying the number formats takes this many steps.
TRIED_STEPS = 12
# Of what is free, the most that trying them may take.
TRY_SHARE = 0.25
# Seconds a tokenizer takes for a character.
CHARACTER_S = 1.5e-6


@dataclass
class Arm:
    """A candidate in training. `best` is the number of legs after which it measured best."""

    candidate: Candidate
    checkpoint: Checkpoint
    head: Head
    plan: Plan
    legs: list[Leg] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    best: int = 0
    failed: bool = False

    @property
    def name(self) -> str:
        """The candidate's name."""
        return self.candidate.name

    @property
    def quality(self) -> float:
        """Its best validation score; -1 before the first leg."""
        return max(self.scores, default=-1.0)


class Trainer:
    """Trains arms; holds the one adaptation that is in memory, so that an arm that goes on is not loaded again."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._open: tuple[str, Adaptation] | None = None
        self._data: dict[str, tuple[Data, Tokens]] = {}
        # By name of a checkpoint: a teacher's logits of the training texts, which arms on it are trained beside.
        self.teachers: dict[str, np.ndarray] = {}
        self._seconds_a_step: dict[tuple[str, str], float] = {}

    def arm(self, checkpoint: Checkpoint, head: Head, plan: Plan, name: str) -> Arm:
        """A new arm, listed among the candidates."""
        candidate = Candidate(name, checkpoint, plan.method, head=head, plan=plan, status="measured")
        return Arm(candidate, checkpoint, head, plan)

    def arm_of(self, candidate: Candidate) -> Arm:
        """A trained candidate as an arm, in the state that measured best."""
        assert candidate.head is not None and candidate.plan is not None
        return Arm(candidate, candidate.checkpoint, candidate.head, candidate.plan, legs=list(candidate.legs))

    def finished(self, candidate: Candidate) -> TextClassifier:
        """A trained candidate as a stock encoder and a head."""
        classifier = self.adaptation(self.arm_of(candidate), len(candidate.legs)).finished()
        self.close()
        return classifier

    def steps_per_epoch(self, arm: Arm) -> int:
        """Steps in which every training example is seen once."""
        batch = arm.plan.tuning().settings.batch
        return -(-len(self._job.task.train) // batch)

    def seconds_a_step(self, arm: Arm) -> float:
        """What a step takes: as measured, or predicted from the pace of the forward pass."""
        measured = self._seconds_a_step.get((arm.checkpoint.name, arm.plan.method))
        if measured is None and arm.plan.method == "full":
            _, tried = self._job.run.ledger.look(f"step/{arm.checkpoint.name}")
            measured = OPTIMISER * min(tried.values()) if tried else None
        if measured is not None:
            return measured
        return STEP_PASSES * self._job.pace[arm.checkpoint.name] * arm.plan.tuning().settings.batch

    def tokenising_s(self, arm: Arm) -> float:
        """What tokenising the training texts takes; nothing when that is done."""
        if str(arm.checkpoint.folder) in self._data:
            return 0.0
        return CHARACTER_S * sum(map(len, self._job.task.train.texts))

    def trying_s(self, arm: Arm) -> float:
        """What `measure_step` takes, by what is known before."""
        return TRIED_STEPS * self.seconds_a_step(arm) + self.tokenising_s(arm)

    def measure_step(self, arm: Arm) -> dict[str, float]:
        """Seconds a training step takes in each number format that there was time for and that could be computed; measured
        once for a checkpoint."""

        def measure() -> dict[str, float]:
            limit = self._job.deadline.part(TRY_SHARE * self._job.free_s())
            found: dict[str, float] = {}
            try:
                with model_calls(arm.checkpoint.reference):
                    adaptation = self.adaptation(arm, 0)
                    data, _ = self.data(arm)
                    for name, bfloat16 in (("float32", False), ("bfloat16", True)):
                        if found and limit.left() <= 0.0:
                            break
                        settings = replace(adaptation.settings, bfloat16=bfloat16)
                        found[name] = seconds_a_step(
                            adaptation.classifier, data, settings, stop=lambda: limit.left() <= 0.0
                        )
            except CheckpointError as fault:  # training in float32 says what is wrong, if something is
                self.close()
                self._job.progress.say(f"Trying a training step: {fault.problem}")
            return found

        found: dict[str, float] = self._job.run.ledger.once(f"step/{arm.checkpoint.name}", measure)
        return found

    def measuring_s(self, arm: Arm) -> float:
        """What measuring an arm on validation data and keeping its state takes."""
        state = 16 * arm.checkpoint.encoder_parameters / 3e8  # weights, average and two moments in fp32, to disk
        return 1.2 * self._job.pace[arm.checkpoint.name] * len(self._job.task.validation) + 0.5 + state

    def run(self, arm: Arm, choose: Callable[[], Leg]) -> bool:
        """Plan, train and measure one more leg; False when the arm failed."""
        job, number = self._job, len(arm.legs)
        key = f"leg/{arm.name}/{number}"
        if job.timed and not job.run.ledger.look(f"decision/{key}/plan")[0] and job.free_s() < self.measuring_s(arm):
            arm.candidate.status, arm.candidate.reason = "cut short", "no time was left for it"
            return False
        planned = job.decide(f"{key}/plan", f"train {arm.name}", lambda: _plan(choose(), self._why(arm)))
        leg = Leg(planned["steps"], planned["decay"])
        found, done = job.run.ledger.look(f"{key}/done")
        if not found:
            done = job.run.ledger.log(f"{key}/done", self._train(arm, leg))
            faults.point("leg measured")
        job.candidates[arm.name] = arm.candidate
        if "failed" in done:
            arm.failed = True
            arm.candidate.reason = done["failed"]
            arm.candidate.status = "cut short" if arm.scores else "failed"
            return False
        self._record(arm, Leg(done["made"], leg.decay), done)
        return True

    def adaptation(self, arm: Arm, legs: int) -> Adaptation:
        """The arm's model after that many legs; what is not on disk is trained again, to the same weights."""
        if self._open is None or self._open[0] != arm.name:
            self._open = None
            fresh = Adaptation(arm.checkpoint, self._job.task.label_names, arm.head, arm.plan,
                               self._job.trial_folder(arm.name), device=self._job.device)  # fmt: skip
            self._open = (arm.name, fresh)
        adaptation = self._open[1]
        if not adaptation.resume(legs):
            adaptation.restart()
            for leg in arm.legs[:legs]:
                adaptation.train(self.data(arm)[0], leg, progress=self._job.progress)
        return adaptation

    def close(self) -> None:
        """Free the model in memory."""
        self._open = None

    def data(self, arm: Arm) -> tuple[Data, Tokens]:
        """Tokenised training data with labels, and tokenised validation texts; shared by arms of one tokenizer."""
        key = str(arm.checkpoint.folder)
        if key not in self._data:
            task, length = self._job.task, max_length(arm.checkpoint)
            tokenizer = load_tokenizer(arm.checkpoint)
            self._data[key] = (
                Data(
                    tokenize(tokenizer, task.train.texts, length),
                    task.train.labels,
                    self.teachers.get(arm.checkpoint.name),
                ),
                tokenize(tokenizer, task.validation.texts, length),
            )
        return self._data[key]

    def _train(self, arm: Arm, leg: Leg) -> dict[str, Any]:
        job = self._job
        started = time.monotonic()
        number = len(arm.legs)
        try:
            with model_calls(arm.checkpoint.reference):
                adaptation = self.adaptation(arm, number)
                data, validation = self.data(arm)
                before = adaptation.steps
                if not adaptation.resume(number + 1):
                    self._advance(arm, adaptation, data, leg)
                made = adaptation.steps - before
                seen = score(job.task.validation.labels, adaptation.probabilities(validation), job.seed)
        except CheckpointError as fault:
            self.close()
            return {"failed": str(fault)}
        return {"made": made, "seconds": time.monotonic() - started, "validation": seen}

    def _advance(self, arm: Arm, adaptation: Adaptation, data: Data, leg: Leg) -> None:
        job, margin = self._job, self.measuring_s(arm)

        def stop() -> bool:
            return job.timed and job.free_s() < margin

        began = time.monotonic()
        with job.progress.bar(f"training {arm.name}", leg.steps):
            made = adaptation.train(data, leg, stop=stop, progress=job.progress)
        if made:
            self._seconds_a_step[arm.checkpoint.name, arm.plan.method] = (time.monotonic() - began) / made

    def _record(self, arm: Arm, leg: Leg, done: dict[str, Any]) -> None:
        arm.legs.append(leg)
        quality = float(done["validation"][self._job.task.metric])
        if quality >= arm.quality:
            arm.best = len(arm.legs)
            arm.candidate.validation = done["validation"]
            arm.candidate.legs = list(arm.legs)
        arm.scores.append(quality)
        if self._open is not None and self._open[0] == arm.name:
            self._open[1].forget_before(arm.best)  # what is measured and logged, and no longer the best, can go
        if leg.steps:
            self._seconds_a_step.setdefault((arm.checkpoint.name, arm.plan.method), done["seconds"] / leg.steps)
        arm.candidate.seconds += done["seconds"]
        arm.candidate.curve.append([arm.candidate.seconds, done["validation"]["accuracy"]])

    def _why(self, arm: Arm) -> str:
        if not arm.scores:
            return "first leg"
        return f"{arm.scores[-1]:.1%} on validation after {len(arm.scores)} legs"


def _plan(leg: Leg, why: str) -> tuple[dict[str, int], str]:
    way = "the learning rate falls to zero" if leg.decay else "at a constant learning rate"
    return {"steps": leg.steps, "decay": leg.decay}, f"{leg.steps} steps, {way}; {why}"
