"""A greedy soup: the average of the weights of the trials of one checkpoint, where it beats each of them.

    kept = [the best]
    for each of the others, from the best down:
        keep it if score(mean(kept + [it])) >= score(mean(kept))

Wortsman et al. 2022 (arXiv 2203.05482): averaging fine-tunes of one checkpoint, encoder and head, is often more accurate than
the best of them and costs nothing when it runs. What the trials started from, the base encoder under its probe head, is an
ingredient too: fine-tunes averaged with their start are more robust (WiSE-FT, Wortsman et al. 2021, arXiv 2109.01903).

Scores are on validation data. Every average is measured once and logged, so a run that was killed keeps the same ingredients;
the soup itself is made again from the states of its trials.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from regraft import faults
from regraft.adapt import Kept, classifier_from, combine, keep_weights, kept_state, kept_weights
from regraft.checkpoint.classifier import TextClassifier, model_calls, probabilities
from regraft.errors import CheckpointError
from regraft.evaluate import score
from regraft.planner.arms import Arm, Trainer
from regraft.planner.job import Candidate, Job

# Of what is free before the trials, the most that is held back for averaging them.
SOUP_SHARE = 0.05
# Loading the compiled loops; compiling them, the very first time.
KERNELS_S = 3.0


def hold_back(job: Job, trainer: Trainer, arms: Sequence[Arm]) -> None:
    """Keep time for a soup of arms that are about to be trained, so that the last leg does not take all of it."""
    most = max(Counter(arm.checkpoint.name for arm in arms).values(), default=0)
    if not job.timed or most < 2:
        return
    each, share = trainer.measuring_s(arms[0]), SOUP_SHARE * job.free_s()
    if KERNELS_S + each <= share:  # less would be of no use
        job.reserve_s += min(share, KERNELS_S + most * each)


def make_soups(job: Job, trainer: Trainer) -> None:
    """A soup for every checkpoint with at least two trials that were trained and measured."""
    usable = [one for one in job.candidates.values() if one.validation is not None and one.head is not None]
    groups: dict[tuple[str, str], list[Candidate]] = {}
    for one in usable:
        if one.plan is not None and one.legs:
            groups.setdefault(_start_of(one), []).append(one)
    for key, trials in groups.items():
        starts = [one for one in usable if one.method == "probe" and one.status != "baseline" and _start_of(one) == key]
        if len(trials) >= 2:
            _make_soup(job, trainer, trainer.arm_of(trials[0]), trials + starts)


def _start_of(one: Candidate) -> tuple[str, str]:
    """Checkpoint and view of the head: what weights must share to be averaged."""
    assert one.head is not None
    return one.checkpoint.name, one.head.view


def _make_soup(job: Job, trainer: Trainer, arm: Arm, ingredients: list[Candidate]) -> None:
    metric = job.task.metric
    first, *others = sorted(ingredients, key=lambda one: (-one.quality(metric), one.name))
    soup = Candidate(f"{arm.checkpoint.name}-soup", arm.checkpoint, "soup", head=arm.head)
    soup.seconds = sum(one.seconds for one in ingredients)
    kept, quality, notes = [first], first.quality(metric), []
    for number, one in enumerate(others):
        if not _has_time(job, trainer, arm, soup, one):
            notes.append(f"no time was left for {', '.join(late.name for late in others[number:])}")
            break
        job.candidates[soup.name] = soup
        parts = [*kept, one]
        found = _measured(job, trainer, arm, parts)
        soup.seconds += found["seconds"]
        seen = found["validation"]
        if seen is None:
            notes.append(f"{one.name} could not be averaged in: {found['failed']}")
            continue
        if seen[metric] >= soup.quality(metric):  # before any is kept, the nearest that averaging came
            soup.validation, soup.parts = seen, [part.name for part in parts]
        if seen[metric] >= quality:
            kept, quality = parts, seen[metric]
        else:
            notes.append(f"{one.name} lowered it to {seen[metric]:.1%}")
    if soup.name in job.candidates:
        _judge(soup, first, kept, notes, metric)


def _judge(soup: Candidate, best: Candidate, kept: list[Candidate], notes: list[str], metric: str) -> None:
    """Say what was averaged; a soup that is no better than the best of its ingredients does not compete."""
    made = f"average of {', '.join(one.name for one in kept)}" if len(kept) > 1 else f"{best.name} alone"
    soup.reason = "; ".join([made, *notes])
    if soup.validation is None:
        soup.status = "failed"
        return
    soup.curve = [[soup.seconds, soup.validation["accuracy"]]]
    if soup.quality(metric) <= best.quality(metric):
        soup.status = "not kept"
        soup.reason += f"; no better than {best.name}, {best.quality(metric):.1%}"


def _has_time(job: Job, trainer: Trainer, arm: Arm, soup: Candidate, one: Candidate) -> bool:
    def choose() -> tuple[bool, str]:
        if not job.timed:
            return True, "every ingredient is tried"
        loading = 0.0 if soup.name in job.candidates else KERNELS_S
        needed = loading + trainer.measuring_s(arm)
        return job.affords(needed), f"it takes about {needed:.0f} s, {job.free_s():.0f} s are left"

    return bool(job.decide(f"soup/{arm.checkpoint.name}/{one.name}/try", f"average {one.name} in", choose))


def _measured(job: Job, trainer: Trainer, arm: Arm, parts: list[Candidate]) -> dict[str, Any]:
    """`validation` of an average (None, and `failed` in words, where there is none) and the `seconds` that it took."""

    def measure() -> dict[str, Any]:
        job.progress.say(f"Averaging {', '.join(one.name for one in parts)}")
        try:
            with model_calls(arm.checkpoint.reference):
                _, validation = trainer.data(arm)
                found = probabilities(average(job, trainer, parts), validation)
                return {"validation": score(job.task.validation.labels, found, job.seed)}
        except CheckpointError as fault:
            trainer.close()
            return {"validation": None, "failed": str(fault)}

    found = job.timed_once(f"soup/{arm.checkpoint.name}/{parts[-1].name}", measure)
    faults.point("soup measured")
    return found


def average(job: Job, trainer: Trainer, parts: Sequence[Candidate]) -> TextClassifier:
    """The uniform average of candidates of one checkpoint, encoder and head, as a classifier."""
    from regraft.merge.methods.linear import mean  # compiled loops, which most of a run does not need

    weights = [_weights(job, trainer, one) for one in parts]
    checkpoint, head = parts[0].checkpoint, parts[0].head
    assert head is not None
    classifier = classifier_from(checkpoint, job.task.label_names, head, device=job.device)
    combine(classifier, weights, mean)
    return classifier


def _weights(job: Job, trainer: Trainer, one: Candidate) -> Kept | None:
    """Where the weights of an ingredient lie; None for the start, whose weights every average begins with."""
    if one.plan is None:
        return None
    folder, legs = job.trial_folder(one.name), len(one.legs)
    state, merged = folder / f"leg-{legs}", folder / f"merged-{legs}"
    if one.plan.tuning().adapter:
        if merged.is_dir():
            return kept_weights(merged)
        return keep_weights(trainer.finished(one), merged)
    if not state.is_dir():
        trainer.finished(one)  # what the disk lost is trained again, and kept
    return kept_state(state)
