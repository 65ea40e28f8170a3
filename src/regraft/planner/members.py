"""Make the members of the family: a stock folder each, measured once on test data, with card and certificate."""

from __future__ import annotations

import time
from typing import Any

from regraft import faults
from regraft.adapt import classifier_from
from regraft.checkpoint.classifier import model_calls, probabilities
from regraft.checkpoint.export import load_classifier
from regraft.errors import CheckpointError
from regraft.evaluate import score
from regraft.evaluate.card import Made
from regraft.evaluate.certify import write_certified
from regraft.planner.arms import Trainer
from regraft.planner.baselines import baseline_probabilities
from regraft.planner.compare import keep_predictions
from regraft.planner.family import is_whole
from regraft.planner.job import Candidate, Job
from regraft.planner.reserve import REPORT_S, export_s, finishing_s, test_rows
from regraft.planner.soup import average
from regraft.planner.speed import UNKNOWN, measure_speed, note_speed, speed_s
from regraft.store import whole_folder


def classifier_of(job: Job, trainer: Trainer, candidate: Candidate) -> Any:
    """The candidate as a classifier on stock classes."""
    if candidate.method == "as-is":
        return load_classifier(candidate.checkpoint, job.device)
    assert candidate.head is not None
    if candidate.parts:
        return average(job, trainer, [job.candidates[name] for name in candidate.parts])
    if candidate.plan is None:
        return classifier_from(candidate.checkpoint, job.task.label_names, candidate.head, device=job.device)
    return trainer.finished(candidate)


def make_members(job: Job, trainer: Trainer, chosen: list[Candidate]) -> list[dict[str, Any]]:
    """Write, check and measure each member, the best first; one that time runs out on is not made."""
    made: list[dict[str, Any]] = []
    for candidate in chosen:
        key = f"member/{candidate.name}"
        known, entry = job.run.ledger.look(key)
        if not known or not is_whole(job.run.family / candidate.name, entry):
            if job.timed and made and not known and finishing_s(job, candidate) > job.deadline.left() - 1.0:
                candidate.status, candidate.reason = "not kept", "on the front, but no time was left to make it"
                continue
            job.progress.say(f"Member {candidate.name}: writing, checking, measuring on test data")
            try:
                with model_calls(candidate.name):
                    fresh = _make(job, trainer, candidate)
            except CheckpointError as fault:
                candidate.status, candidate.reason = "failed", str(fault)
                job.leave_out(candidate.name, fault)
                continue
            entry = entry if known else job.run.ledger.log(key, fresh)
        made.append(entry)
        faults.point("member tested")
    return made


def _make(job: Job, trainer: Trainer, candidate: Candidate) -> dict[str, Any]:
    started = time.monotonic()
    classifier = classifier_of(job, trainer, candidate)
    rows = test_rows(job)
    with job.progress.bar(f"testing {candidate.name}", rows):
        found = probabilities(classifier, job.task.test.texts[:rows], advance=job.progress.advance)
    order = [classifier.labels.index(label) for label in job.task.label_names]
    seen = score(job.task.test.labels[:rows], found[:, order], job.seed)
    keep_predictions(job, candidate.name, found[:, order])
    speed = _speed(job, candidate, classifier)
    plan = candidate.plan
    settings: dict[str, Any] = {} if plan is None else {**plan.settings, **plan.options}
    if candidate.parts:
        settings["models"] = candidate.parts
    if candidate.cut is not None:
        settings |= {"from": how_made(job.candidates[candidate.cut.name]), "cut": dict(candidate.cut.step)}
    made = Made(candidate.method, settings, [(leg.steps, leg.decay) for leg in candidate.legs], job.seed)
    with whole_folder(job.run.family / candidate.name) as aside:
        figures = {"test": seen, "test_rows": rows, **speed}
        facts = write_certified(classifier, aside, candidate.name, candidate.parent, job.task, made, figures)
        faults.point("member aside")
    faults.point("member written")
    return {
        "name": candidate.name,
        "path": str(job.run.family / candidate.name),
        "checkpoint": candidate.checkpoint.name,
        "reference": candidate.parent.reference,
        "method": candidate.method,
        "cut_from": None if candidate.cut is None else candidate.cut.name,
        "encoder_parameters": candidate.checkpoint.encoder_parameters,
        **facts,
        **speed,
        "seconds": candidate.seconds + time.monotonic() - started,
        "validation": candidate.validation,
        "test": seen,
        "test_rows": rows,
    }


def how_made(candidate: Candidate) -> dict[str, Any]:
    """How the candidate that another was cut out of was made."""
    legs = [[leg.steps, leg.decay] for leg in candidate.legs]
    return {"name": candidate.name, "method": candidate.method, "models": list(candidate.parts), "legs": legs}


def _speed(job: Job, candidate: Candidate, classifier: Any) -> dict[str, Any]:
    """How fast a member is; not known where measuring it would take the time that its folder needs."""
    checkpoint = candidate.checkpoint
    needed = speed_s(job, checkpoint) + export_s(candidate.bytes()) + REPORT_S
    known = job.run.ledger.look(f"speed/{checkpoint.name}")[0]
    if not known and job.timed and job.deadline.left() < needed:
        return dict(UNKNOWN)
    found = measure_speed(job, checkpoint, classifier)
    note_speed(job.candidates.values(), checkpoint, found)
    return dict(found)


def test_baselines(job: Job, trainer: Trainer) -> list[dict[str, Any]]:
    """Baselines on test data; "from scratch" is the best of what was tried on random weights."""
    rows = test_rows(job)
    found = []
    for entry in job.baselines:

        def measure(name: str = entry["name"]) -> dict[str, Any]:
            probs = baseline_probabilities(job, name, job.task.test.texts)
            keep_predictions(job, name, probs)
            return {"test": score(job.task.test.labels, probs, job.seed)}

        seen = job.timed_once(f"baseline test/{entry['name']}", measure)["test"]
        found.append({**entry, "test": seen, "test_rows": len(job.task.test)})
    scratch = [
        one for one in job.candidates.values() if one.checkpoint.random is not None and one.validation is not None
    ]
    if scratch:
        best = max(scratch, key=lambda one: (one.quality(job.task.metric), one.name))
        found.append(_from_scratch(job, trainer, best, rows))
    else:
        job.note(
            "from scratch",
            "from scratch is not measured",
            "no head was fitted on random weights: there was no time for it",
        )
        nothing = dict.fromkeys(("seconds", "parameters", "bytes", "latency_ms", "validation", "test"))
        found.append({"name": "from scratch", **nothing, "test_rows": rows})
    return found


def _from_scratch(job: Job, trainer: Trainer, best: Candidate, rows: int) -> dict[str, Any]:
    def measure() -> dict[str, Any]:
        # The least of the figures: left out of a short run, where members come first.
        if job.timed and finishing_s(job, best) + 2.0 > job.deadline.left():
            return {"test": None}
        try:
            with model_calls(best.checkpoint.reference):
                found = probabilities(classifier_of(job, trainer, best), job.task.test.texts[:rows])
        except CheckpointError as fault:
            job.leave_out(best.checkpoint.reference, fault)
            return {"test": None}
        keep_predictions(job, "from scratch", found)
        return {"test": score(job.task.test.labels[:rows], found, job.seed)}

    return {
        "name": "from scratch", "seconds": best.seconds, "parameters": best.parameters(), "bytes": best.bytes(),
        "latency_ms": best.latency_ms, "validation": best.validation, "test_rows": rows,
        "test": job.timed_once("baseline test/from scratch", measure)["test"],
    }  # fmt: skip
