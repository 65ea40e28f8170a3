"""`regraft merge --search`: which merge of some checkpoints to take, chosen on validation rows, measured once on test rows.

    held-in     each task under its input's own head (several tasks), or under the merged head (one task: a soup)
    mean        of score / the input's own score: what is chosen by
    held-out    linear probes on the merged encoder: what it is still good for; never chosen by
    forgetting  what the base's own probes lose on the held-out tasks when they read the merged encoder instead of the base

The plain average, task arithmetic at its default, every input and the base are always in the table. Where the winner cannot
be told from the plain average (see `regraft.merge.search.compare`), the plain average is the answer, and that is said.
Protocol after MergeBench (He et al. 2025, arXiv 2505.10833): multi-task performance, forgetting, time; held-in and held-out
apart (Yadav et al. 2024, arXiv 2410.03617).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.budget import Budget, Deadline
from regraft.checkpoint.files import optional_json_object
from regraft.errors import MethodError, RunError
from regraft.merge.align import align
from regraft.merge.certificate.record import ABOUT
from regraft.merge.checks.data import memory_of as statistics_memory
from regraft.merge.checks.preflight import preflight_of
from regraft.merge.checks.room import memory_of, size, threads_that_fit
from regraft.merge.inputs import open_inputs
from regraft.merge.recipe.spec import Spec
from regraft.merge.run import MAX_MEMORY, merge
from regraft.merge.search.folder import SearchRun
from regraft.merge.search.measured import Held
from regraft.merge.search.models import Bench, open_bench
from regraft.merge.search.session import Session
from regraft.merge.search.space import SPACES, average_of, made, not_in_space
from regraft.merge.search.table import choose, facts, table_row, tested, verdict
from regraft.progress import SILENT, Progress
from regraft.store import write_whole
from regraft.task import Task, load_task

RESULT = "search.json"


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        out: The folder that was written.
        tasks, held_out: Of each: `name`, `reference`, `metric`, and the rows of its splits; held-in ones with `own`.
        table: A row a candidate, in the order of measuring: `name`, `kind` (input, base, baseline, recipe, greedy soup, look,
            proposal), `status`, `reason`, `recipe`, `scores`, `mean`, `held_out`, `forgetting`, `seconds`.
        winner: The name of the row with the highest mean on validation rows.
        answer: The name of the row that was written: the winner, or the plain average.
        best_input: The name of the input with the highest mean.
        validation: The winner against the plain average: `difference` of the means, `low`, `high`, `candidates`, `too_close`.
        test: On test rows: `own`, a row for each of answer, winner and plain average, and the answer's `difference` to the
            plain average.
        verdict: All this in a sentence.
        not_tried: Methods of the space that could not be tried, and why.
        budget, trials, seconds: What was allowed, candidates beyond the baselines, and what it took.
    """

    out: str
    tasks: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    table: list[dict[str, Any]]
    winner: str
    answer: str
    best_input: str
    validation: dict[str, Any]
    test: dict[str, Any]
    verdict: str
    not_tried: dict[str, str]
    budget: str
    trials: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return dict(vars(self))

    def rows(self, most: int = 12) -> tuple[list[str], list[list[Any]]]:
        """The table to show, columns and rows: what is always measured, then the best of the others, `most` of them."""
        dull = [row for row in self.table if row["kind"] in ("input", "base", "baseline")]
        others = [row for row in self.table if row not in dull and row["status"] == "measured"]
        others.sort(key=lambda row: -float(row["mean"]))
        others = [
            row for number, row in enumerate(others) if number < most or row["name"] in (self.winner, self.answer)
        ]
        columns = ["", *(task["name"] for task in self.tasks), "mean", *(f"({task['name']})" for task in self.held_out)]
        shown = [
            [row["name"], *row["scores"], row["mean"], *(one["probe"] for one in row["held_out"]), row["forgetting"],
             round(sum(row["seconds"].values()), 1)]
            for row in dull + others
        ]  # fmt: skip
        return [*columns, "forgetting", "s"], shown

    def test_rows(self) -> tuple[list[str], list[list[Any]]]:
        """The scores on test rows to show, each task's with its interval."""
        metrics = [task["metric"] for task in self.tasks]
        rows = [
            [row["name"], *map(_with_interval, row["intervals"], metrics), row["mean"],
             *(one["probe"] for one in row["held_out"]), row["forgetting"]]
            for row in self.test["rows"]
        ]  # fmt: skip
        return self.rows(0)[0][:-1], rows


def search(
    recipe: Spec,
    out: Path,
    tasks: Sequence[str],
    budget: str,
    *,
    held_out: Sequence[str] = (),
    methods: Sequence[str] | None = None,
    seed: int = 0,
    max_memory: int = MAX_MEMORY,
    workers: int | None = None,
    allow: Sequence[str] = (),
    device: str = "cpu",
    progress: Progress = SILENT,
    **read: Any,
) -> SearchResult:
    """Try methods and coefficients on validation rows, and write the best merge, or the plain average.

    Args:
        recipe: Base and inputs, output and seed; its method with its options is one candidate.
        out: The folder that is made. Beside it lies `OUT.search`, from which a search goes on that was killed.
        tasks: A task for each input, in their order; or one for all of them.
        budget: `5m`, or `20trials` (beyond the baselines), under which no decision looks at the clock.
        held_out: Tasks that the inputs were not made for.
        methods: Those of `SPACES` that are tried; all by default.
        seed: Of proposals, probes and resampling.
        max_memory, workers, allow: See `regraft.merge.run.merge`. With several tasks heads may always differ: each input
            keeps its own.
        read: Columns, metric and rows (`regraft.task.load_task`).

    Raises:
        TaskError: A task that cannot be read; another number of tasks than inputs.
        CheckpointError: An input without a head, or with one that does not fit its task; whatever preflight refuses.
        BudgetError: A budget in which not even the baselines can be measured.
        RegraftError: See `regraft.merge.run.merge`.
    """
    started = time.monotonic()
    if recipe.output.format != "checkpoint":
        raise MethodError(
            "A search writes a checkpoint; the recipe asks for a LoRA.", "Leave format out of the output."
        )
    limit = Budget.parse(budget)
    held_in = [load_task(one, seed=seed, **read) for one in tasks]
    others = [load_task(one, seed=seed, **read) for one in held_out]
    let_pass = tuple(allow) if len(held_in) == 1 else (*allow, "heads")
    with SearchRun(out, _arguments(recipe, held_in, others, methods, seed, let_pass)) as run:
        known, found = run.ledger.look("result")
        chosen, answered = run.ledger.look("answer")
        if chosen and answered["budget"] != limit.text:
            raise RunError(f"{run.folder} has chosen within {answered['budget']} already.", "Give another output.")
        if known and _is_written(out, _row(found, found["answer"])["recipe"]):
            return SearchResult(**found)
        deadline = Deadline(limit.seconds, run.ledger.spent_before() + time.monotonic() - started)
        run.ledger.spent = deadline.spent
        not_tried = _look_before(recipe, out, let_pass, max_memory, workers, methods, chosen)
        bench = open_bench([one.reference for one in recipe.inputs], held_in, device)
        _check_heads(bench, recipe)
        run.begin()
        usable = [one for one in SPACES if one not in not_tried and (methods is None or one in methods)]
        session = Session(
            recipe, bench, held_in, [Held.of(one) for one in others], usable, limit, deadline, run.ledger, progress, seed,
            workers, chosen,
        )  # fmt: skip
        session.work()
        winner, answer, validation = choose(session)
        run.ledger.once("answer", lambda: {"name": answer.candidate.name, "budget": limit.text})
        if not _is_written(out, answer.candidate.spec.as_dict()):
            progress.say(f"Writing {answer.candidate.name} to {out}")
            merge(answer.candidate.spec, out, max_memory=max_memory, workers=workers, allow=let_pass, progress=progress)
        test = run.ledger.once("test", lambda: tested(session, winner, answer, out))
        result = {
            "out": str(out), "tasks": facts(held_in, session.own()), "held_out": facts(others),
            "table": [table_row(session, one) for one in session.measured.values()],
            "winner": winner.candidate.name, "answer": answer.candidate.name,
            "best_input": max(session.inputs, key=session.mean).candidate.name, "validation": validation, "test": test,
            "verdict": verdict(winner.candidate.name, validation), "not_tried": not_tried, "budget": limit.text,
            "trials": session.trials, "seconds": deadline.spent(),
        }  # fmt: skip
        if not known:
            found = run.ledger.log("result", result)
        write_whole(out / RESULT, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        return SearchResult(**found)


def _arguments(
    recipe: Spec, tasks: list[Task], held_out: list[Task], methods: Sequence[str] | None, seed: int, allow: Sequence[str]
) -> dict[str, Any]:  # fmt: skip
    """What must be the same to go on; the budget may grow."""
    _, opened = open_inputs(recipe)
    return {
        "recipe": recipe.as_dict(), "checkpoints": sorted(one.file_id for one in opened.all),
        "tasks": [one.task_id for one in tasks], "held_out": [one.task_id for one in held_out],
        "methods": None if methods is None else sorted(methods), "seed": seed, "allow": sorted(allow),
    }  # fmt: skip


def _look_before(
    recipe: Spec, out: Path, allow: Sequence[str], max_memory: int, workers: int | None, methods: Sequence[str] | None,
    chosen: bool,
) -> dict[str, str]:  # fmt: skip
    """Refuse what preflight refuses, and say which methods cannot be tried.

    Args:
        chosen: Whether an earlier process has come as far as writing the output.
    """
    target = None if chosen else out
    for spec in (recipe, average_of(recipe)):
        ordered, opened = open_inputs(spec)
        preflight_of(ordered, opened, out=target, max_memory=max_memory, workers=workers, allow=allow).refuse()
    found = not_in_space(recipe, methods)
    for name in SPACES:
        if name in found or (methods is not None and name not in methods):
            continue
        ordered, opened = open_inputs(made(recipe, name, {}))
        merged, more = align(opened).merged, statistics_memory(ordered, opened)
        threads = workers or threads_that_fit(ordered, opened, merged, max_memory, more)
        needed = more + memory_of(ordered, opened, merged, max_memory, threads)["predicted"]
        if needed > max_memory:
            found[name] = f"it needs {size(needed)} of memory, the limit is {size(max_memory)}"
    return found


def _check_heads(bench: Bench, recipe: Spec) -> None:
    """Whether what scores depend on is merged by methods without a base, and by those with one."""
    first = recipe.inputs[0].reference
    specs = {first: average_of(recipe)} | (
        {} if recipe.base is None else {recipe.base: made(recipe, "task_arithmetic", {})}
    )
    for reference, spec in specs.items():
        bench.check(align(open_inputs(spec)[1]).merged, reference)


def _is_written(out: Path, recipe: Mapping[str, Any]) -> bool:
    """Whether the output is there, and is this merge."""

    # The engine puts the inputs of some methods into an order of its own.
    def plain(one: Mapping[str, Any]) -> dict[str, Any]:
        return {**one, "inputs": sorted(one.get("inputs", []), key=json.dumps)}

    written = optional_json_object(out / ABOUT).get("merge")
    return isinstance(written, dict) and plain(written) == plain(json.loads(json.dumps(recipe)))


def _with_interval(seen: Mapping[str, Any], metric: str) -> str:
    low, high = seen["intervals"][metric]
    return f"{seen[metric]:.4f} ({low:.3f} to {high:.3f})"


def _row(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in result["table"] if row["name"] == name)
