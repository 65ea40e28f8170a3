"""The course of a search: measure candidates within the budget, each once, each in the ledger.

baselines    inputs, base, plain average, task arithmetic: always, or the budget is refused
recipe       its own method and options
soup         greedy, where one task was named for all inputs
looks        every method that fits, at its first values
proposals    TPE, until the budget is used up
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from regraft import faults
from regraft.budget import Budget, Deadline
from regraft.errors import BudgetError, CheckpointError, RegraftError
from regraft.ledger import Ledger
from regraft.merge.options import options_of
from regraft.merge.recipe.spec import Spec
from regraft.merge.search.measured import Held, Measured, evaluated, normalised
from regraft.merge.search.models import Bench, Tick, merged_values
from regraft.merge.search.space import SPACES, Candidate, Proposer, average_of, baselines, built, described
from regraft.progress import Progress
from regraft.task import Task
from regraft.train.logistic import Fitted

# Predictions of what is left to do are made with this much to spare, and this many seconds for the files around a merge.
SPARE, FILES_S = 1.3, 1.0
# Writing the answer: the merge, and the certificate that makes a part of it again.
WRITINGS = 3.0
# Proposals in a row that were all measured before: there is nothing left to try.
REPEATS = 25


class OutOfTimeError(Exception):
    """The time for trying is over; what is being measured is abandoned."""


@dataclass
class Session:
    """What a search works with, and what it has measured, in this order.

    Args:
        recipe: The merge whose inputs are searched over.
        bench: The models.
        tasks: The held-in tasks: one for each input, or one for all.
        held_out: Tasks that are measured and not chosen by.
        methods: Methods of the space that may be tried.
        chosen: Whether an earlier process has chosen already: nothing more is tried then.
    """

    recipe: Spec
    bench: Bench
    tasks: Sequence[Task]
    held_out: Sequence[Held]
    methods: Sequence[str]
    budget: Budget
    deadline: Deadline
    ledger: Ledger
    progress: Progress
    seed: int = 0
    workers: int | None = None
    chosen: bool = False
    measured: dict[str, Measured] = field(default_factory=dict)
    trials: int = 0
    _base_probes: list[Fitted] | None = None

    @property
    def usable(self) -> list[Measured]:
        """What has scores."""
        return [one for one in self.measured.values() if one.usable]

    @property
    def inputs(self) -> list[Measured]:
        """The inputs as they are, in the recipe's order."""
        return [one for one in self.measured.values() if one.candidate.kind == "input"]

    def own(self) -> list[float]:
        """What scores are divided by: each input's score on its own task; of a soup, the best input's."""
        if self.bench.soup:
            return [max(one.found["scores"][0] for one in self.inputs)]
        return [float(one.found["scores"][number]) for number, one in enumerate(self.inputs)]

    def mean(self, one: Measured) -> float:
        """The mean over the tasks of score / own score."""
        return normalised(one.found["scores"], self.own())

    def work(self) -> None:
        """Measure what the budget allows.

        Raises:
            BudgetError: It does not allow the baselines.
            RegraftError: A baseline cannot be measured.
        """
        dull = baselines(self.recipe)
        for number, candidate in enumerate(dull):
            self._baseline(candidate, len(dull) - number)
        self._refuse_strangers()
        for candidate in self._fixed():
            if not self._may_go_on(candidate) or self._try(candidate).abandoned:
                return
        if self.bench.soup and not self._greedy_soup():
            return
        self._propose()

    def _refuse_strangers(self) -> None:
        for number, score in enumerate(self.own()):
            if score == 0.0:
                raise CheckpointError(
                    f"{self.recipe.inputs[number].reference} gets no validation row of {self.tasks[number].reference} right.",
                    "Name the tasks in the order of the inputs.",
                )

    def _baseline(self, candidate: Candidate, left: int) -> None:
        if candidate.key not in self.measured and self.budget.seconds is not None:
            known = [sum(one.found["seconds"].values()) for one in self.usable]
            needed = SPARE * left * max(known, default=0.0) + self.end_s()
            if needed > self.deadline.left() and not self._is_logged(candidate):
                raise self._too_little(needed)
        try:
            self._measure(candidate, must=True)
        except OutOfTimeError:
            known = [sum(one.found["seconds"].values()) for one in self.usable]
            raise self._too_little(self.end_s() + SPARE * left * max(known, default=self.deadline.spent())) from None

    def _too_little(self, needed: float) -> BudgetError:
        about = self.deadline.spent() + needed
        return BudgetError(
            f"{self.budget.text} is too little: what is always measured, and writing the answer, takes about {about:.0f} s here.",
            "Give more time, or use fewer rows.",
        )

    def _fixed(self) -> Iterator[Candidate]:
        """The recipe as it is, and methods without coefficients."""
        yield Candidate(described(self.recipe), "recipe", self.recipe)
        for method in self.methods:
            if not SPACES[method]:
                yield built(self.recipe, method, {}, "look")

    def _greedy_soup(self) -> bool:
        """Add inputs from the best down, each kept if the average is no worse for it; false when the budget is used up.

        Wortsman et al. 2022, arXiv 2203.05482, recipe 1.
        """
        order = sorted(self.inputs, key=lambda one: -self.mean(one))
        kept, best = order[:1], self.mean(order[0])
        for one in order[1:]:
            parts = [part for part in self.inputs if part in [*kept, one]]  # in the recipe's order: one key for one set
            name = f"soup of {', '.join(part.candidate.name for part in parts)}"
            references = [part.candidate.spec.inputs[0].reference for part in parts]
            candidate = Candidate(name, "greedy soup", average_of(self.recipe, references))
            if not self._may_go_on(candidate):
                return False
            found = self._try(candidate)
            if found.abandoned:
                return False
            if found.usable and self.mean(found) >= best:
                kept, best = parts, self.mean(found)
        return True

    def _propose(self) -> None:
        proposer = Proposer(self.recipe, self.methods, self.seed)
        if not proposer.looks:
            return
        repeats = 0
        while repeats < REPEATS:
            trial, candidate = proposer.ask()
            if not self._may_go_on(candidate):
                return
            repeats = repeats + 1 if candidate.key in self.measured else 0
            found = self._try(candidate)
            if found.abandoned:
                return
            proposer.tell(trial, self.mean(found) if found.usable else 0.0)

    def _may_go_on(self, candidate: Candidate) -> bool:
        """Whether the budget has room for a candidate; what is known already takes none of a time budget."""
        if self.budget.trials is not None:
            return self.trials < self.budget.trials or candidate.key in self.measured
        known = candidate.key in self.measured or self._is_logged(candidate)
        return known or (not self.chosen and self._affords(candidate))

    def _affords(self, candidate: Candidate) -> bool:
        same = [one.found["seconds"]["merge"] for one in self.usable if _alike(one, candidate)]
        merge_s = max(same, default=0.0)
        return self.deadline.allows(SPARE * (merge_s + self._evaluate_s()), self.end_s(merge_s))

    def _evaluate_s(self) -> float:
        return max((float(one.found["seconds"]["evaluate"]) for one in self.usable), default=0.0)

    def end_s(self, merge_s: float = 0.0) -> float:
        """Seconds to write the answer and to measure it, the plain average and the inputs on test rows.

        Args:
            merge_s: What merging takes that may become the answer.
        """
        slowest = max([merge_s, *(float(one.found["seconds"]["merge"]) for one in self.usable)])
        probed = sum(len(one.texts) for one in self.held_out)
        seen = probed + sum(len(one.validation) for one in self._all_tasks())
        ahead = probed + sum(len(one.test) for one in self._all_tasks())
        return FILES_S + SPARE * (WRITINGS * slowest + 3.0 * self._evaluate_s() * ahead / seen)

    def _all_tasks(self) -> list[Task]:
        return [*self.tasks, *(one.task for one in self.held_out)]

    def _is_logged(self, candidate: Candidate) -> bool:
        return self.ledger.look(f"measured/{candidate.key}")[0]

    def _try(self, candidate: Candidate) -> Measured:
        """Measure a candidate that counts against a budget of trials, unless it is in the table as a baseline."""
        known = self.measured.get(candidate.key)
        if known is None or known.candidate.kind not in ("input", "base", "baseline"):
            self.trials += 1
        return self._measure(candidate)

    def _measure(self, candidate: Candidate, must: bool = False) -> Measured:
        """Measure a candidate, or find it measured. What fails is logged with its reason, unless it must not fail.

        What is abandoned for time is not logged: the same command with more time measures it.
        """
        if candidate.key not in self.measured:
            logged, found = self.ledger.look(f"measured/{candidate.key}")
            if not logged:
                found = self._measurement(candidate, must)
                if found["status"] == "abandoned":
                    self.ledger.beat()
                else:
                    found = self.ledger.log(f"measured/{candidate.key}", found)
            self.measured[candidate.key] = Measured(candidate, found)
            faults.point("candidate measured")
        return self.measured[candidate.key]

    def _measurement(self, candidate: Candidate, must: bool) -> dict[str, Any]:
        self.progress.say(f"Measuring {candidate.name}")
        seconds = {"merge": 0.0, "evaluate": 0.0}
        started = time.monotonic()

        def tick(_rows: int) -> None:
            if self.deadline.left() < self.end_s(seconds["merge"] or time.monotonic() - started):
                raise OutOfTimeError

        timed = tick if self.budget.seconds is not None else None
        try:
            probes = self.base_probes(timed)
            started = time.monotonic()
            self.bench.load(merged_values(candidate.spec, self.workers, timed))
            seconds["merge"] = time.monotonic() - started
            found = self.evaluated("validation", probes, timed)
            seconds["evaluate"] = time.monotonic() - started - seconds["merge"]
        except (OutOfTimeError, RegraftError) as fault:
            if must:
                raise
            late = isinstance(fault, OutOfTimeError)
            reason = "the time for trying was over" if late else str(fault)
            return {"status": "abandoned" if late else "failed", "reason": reason, "seconds": seconds}
        found.pop("probabilities")
        return {"status": "measured", "reason": "", **found, "seconds": seconds}

    def base_probes(self, timed: Tick | None = None) -> list[Fitted] | None:
        """Linear probes on the base's features, one for each held-out task; None without a base."""
        if self.recipe.base is None:
            return None
        if self._base_probes is None:
            if self.held_out:
                self.bench.load(merged_values(average_of(self.recipe, [self.recipe.base]), self.workers, timed))
            self._base_probes = [one.fit(self.bench.features(one.texts, timed), self.seed) for one in self.held_out]
        return self._base_probes

    def evaluated(self, split: str, probes: list[Fitted] | None, timed: Tick | None = None) -> dict[str, Any]:
        """See `regraft.merge.search.measured.evaluated`."""
        return evaluated(self.bench, self.tasks, self.held_out, split, probes, self.seed, timed)


def _alike(one: Measured, candidate: Candidate) -> bool:
    """Whether what merging took says what it will take: the same method, or another that looks at examples, too."""
    known, asked = one.candidate.spec.method, candidate.spec.method
    return known == asked or ("data" in options_of(known) and "data" in options_of(asked))
