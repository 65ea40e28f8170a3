"""What each checkpoint can be expected to reach in this run, by what this installation has seen before.

    ranked       scores and left-out probes of every checkpoint     what the survey found
    heads        their probe heads on validation data               before anything is trained
    kept         what fine-tuning made of them in the end           one line each in the history

The fusion (`rank.fusion`) turns the first two into predicted accuracies after fine-tuning. It takes the place of the order by
probes where it has proved itself on the history: every earlier task left out in turn, its first choice must have lost less
accuracy than those of the probe and of the head alone. Until then, and for tasks unlike any before, nothing changes.
"""

from __future__ import annotations

import math

from regraft.checkpoint import Checkpoint
from regraft.errors import StoreError, TaskError
from regraft.planner.job import Candidate, Job
from regraft.rank.fusion import fusion
from regraft.rank.fusion.history import Result, add_results, history_file, in_words_passed, latest, read_history
from regraft.rank.fusion.selfcheck import selfcheck

# Tasks with a choice among at least three, below which the history says nothing of the fusion.
FEWEST_TASKS = 5
# Tasks that are learned from, the latest: more make no better predictions, and each one is left out in turn.
MOST_TASKS = 30
# What the best probe of a checkpoint is called among the early accuracies, and its head on validation data.
PROBE, HEAD = "probe", "head"
# Candidates of these kinds are not fine-tuned.
_NOT_TRAINED = ("probe", "as-is")


def use_history(job: Job) -> None:
    """Put predictions into the ranking, and its checkpoints into their order, where the history allows that."""
    trusted = job.decide("history", "rank by predicted accuracy", lambda: _trusted(job))
    if not trusted or not job.ranking:
        return
    found = job.run.ledger.once("outlook/ranking", lambda: _predicted(job))
    ranked = []
    for place, (name, prediction) in enumerate(found.items(), start=1):
        one = next(one for one in job.ranking if one["checkpoint"] == name)
        reason = (
            f"earlier tasks, scores and probes together predict {prediction['accuracy']:.1%} "
            f"({prediction['low']:.1%} to {prediction['high']:.1%}); the best of all with a chance of {prediction['best']:.0%}"
        )
        changed = {"rank": place, "group": prediction["group"], "predicted": prediction, "reason": reason}
        ranked.append({**one, **changed})
    job.ranking = ranked


def expected(job: Job, heads: list[Candidate]) -> dict[str, float]:
    """What to expect of checkpoints with a head, by the head's name: predicted accuracy where the history is trusted, otherwise
    what the head reached on validation data under the task's metric."""
    metric = job.task.metric
    if not job.run.ledger.look("outlook/ranking")[0]:
        return {one.name: one.quality(metric) for one in heads}
    found = job.run.ledger.once("outlook/heads", lambda: _predicted(job))
    seen = {name: one["accuracy"] for name, one in found.items()}  # what was not ranked has no prediction
    return {one.name: seen.get(one.checkpoint.name, one.quality(metric)) for one in heads}


def keep_results(job: Job) -> None:
    """Add what fine-tuning reached to the history; a history that cannot be written costs a line of progress, not the run."""

    def keep() -> int:
        results = list(_results(job))
        try:
            add_results(results, history_file(job.store.root))
        except StoreError as fault:
            job.progress.say(f"The history is not kept: {fault}")
            return 0
        return len(results)

    job.run.ledger.once("history kept", keep)


def family_of(checkpoint: Checkpoint) -> str:
    """Checkpoints of one architecture and width are relatives; random weights are nobody's."""
    return "from scratch" if checkpoint.random is not None else f"{checkpoint.model_type}-{checkpoint.hidden_size}"


def facts_of(checkpoint: Checkpoint) -> dict[str, float]:
    """What is known of a checkpoint without data."""
    return {
        "log10 encoder parameters": math.log10(max(1, checkpoint.encoder_parameters)),
        "layers": float(checkpoint.num_layers),
        "hidden size": float(checkpoint.hidden_size),
        "random weights": float(checkpoint.random is not None),
    }


def _trusted(job: Job) -> tuple[bool, str]:
    """Whether the fusion's first choices lost less than a probe's alone, each task of the history left out in turn."""
    few = f"fewer than {FEWEST_TASKS} tasks of the history had a choice: the order is by the best probe"
    try:
        passed: list[int] = []
        history = _history(job, passed)
        if passed:
            job.progress.say(in_words_passed(passed, history_file(job.store.root)))
        if len({one.task for one in history}) < FEWEST_TASKS:
            return False, few
        found = {one.name: one for one in selfcheck(history, only={"fusion", PROBE, HEAD}, seed=job.seed)}
    except (StoreError, TaskError) as fault:
        return False, fault.problem
    fused = found.pop("fusion")
    if fused.parts < FEWEST_TASKS or not found:
        return False, few
    alone = min(one.regret[0] for one in found.values())
    words = f"left out in turn, the history's tasks lose {fused.regret[0]:.2%} by its first choice, {alone:.2%} by the probe's"
    return fused.regret[0] < alone, words


def _predicted(job: Job) -> dict[str, dict[str, float]]:
    """Predictions by name of checkpoint, the best first; copies of one checkpoint share theirs."""
    by_id: dict[str, list[Checkpoint]] = {}
    for one in _ranked(job):
        by_id.setdefault(one.checkpoint_id, []).append(one)
    candidates = [
        fusion.Candidate(
            name, family_of(one), facts_of(one), _scores(job, one), _early(job, one), len(job.task.validation)
        )
        for name, (one, *_) in by_id.items()
    ]
    found = fusion.predict(_history(job), candidates, job.task.task_id, seed=job.seed)
    return {
        copy.name: {"accuracy": one.accuracy, "low": one.low, "high": one.high, "best": one.best, "group": one.group}
        for one in found for copy in by_id[one.checkpoint]
    }  # fmt: skip


def _ranked(job: Job) -> list[Checkpoint]:
    names = {one["checkpoint"] for one in job.ranking}
    return [one for one in job.zoo.checkpoints if one.name in names]


def _history(job: Job, passed: list[int] | None = None) -> list[Result]:
    found = latest(read_history(history_file(job.store.root), passed))
    tasks = list(dict.fromkeys(one.task for one in reversed(found)))[:MOST_TASKS]
    return [one for one in found if one.task in tasks]


def _scores(job: Job, checkpoint: Checkpoint) -> dict[str, float]:
    """Scores that are no accuracies, by name."""
    own: dict[str, float] = next((one["scores"] for one in job.ranking if one["checkpoint"] == checkpoint.name), {})
    return {name: value for name, value in own.items() if not name.startswith("probe")}


def _early(job: Job, checkpoint: Checkpoint) -> dict[str, float]:
    """The best probe's left-out accuracy, and the head's on validation data once it is fitted."""
    own = next((one for one in job.ranking if one["checkpoint"] == checkpoint.name and one["scores"]), None)
    found = {} if own is None else {PROBE: float(own["score"])}
    heads = [
        float(one.validation["accuracy"]) for one in job.candidates.values()
        if one.checkpoint.name == checkpoint.name and one.method == "probe" and one.validation is not None
    ]  # fmt: skip
    return found | ({HEAD: max(heads)} if heads else {})


def _results(job: Job) -> list[Result]:
    """The best of each checkpoint that was fine-tuned, on validation data: no training saw it, and all were measured on it. The
    others that were ranked come without an accuracy."""
    best: dict[str, float] = {}
    for one in job.candidates.values():
        if one.competes and one.method not in _NOT_TRAINED:
            assert one.validation is not None
            name = one.checkpoint.name
            best[name] = max(best.get(name, 0.0), float(one.validation["accuracy"]))
    if not best:
        return []
    return [
        Result(
            one.checkpoint_id, job.task.task_id, best.get(one.name), len(job.task.validation), job.seed, family_of(one),
            facts_of(one), _scores(job, one), _early(job, one),
        ) for one in _ranked(job)
    ]  # fmt: skip
