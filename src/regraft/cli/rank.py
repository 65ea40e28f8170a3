"""`regraft rank`: which checkpoints are worth starting from, and how well that was known before."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from regraft.cli import begun
from regraft.cli import options as opt
from regraft.cli.zoo_show import print_left_out
from regraft.errors import TaskError


def rank(
    task: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="builtin:pydoc, a file, a folder with train/validation/test files, or hf:dataset."),
    ] = None,
    zoo: opt.Zoo = "builtin:minilm",
    budget: Annotated[str, typer.Option("--budget", help="Seconds or minutes at most: 30s, 2m.")] = "2m",
    score: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--score", help="A further score to show (`regraft methods rank`); may be given several times."),
    ] = None,
    selfcheck: Annotated[
        bool, typer.Option("--selfcheck", help="No task: how good predictions on earlier tasks would have been.")
    ] = False,
    leave_out: Annotated[
        str, typer.Option("--leave-out", help="With --selfcheck: task or family, left out in turn.")
    ] = "task",
    text_column: opt.TextColumn = None,
    label_column: opt.LabelColumn = None,
    metric: opt.Metric = "accuracy",
    max_rows: opt.MaxRows = None,
    seed: opt.Seed = 0,
    device: opt.Device = "cpu",
    dtype: opt.Dtype = "float32",
    json: opt.Json = False,
) -> None:
    """Rank the checkpoints of a zoo for a task, without training any.

    Example: regraft rank builtin:pydoc --zoo builtin:minilm --score h_score
    """
    from regraft.cli import show
    from regraft.planner.ranking import rank_zoo

    if selfcheck:
        _selfcheck(leave_out, seed, json)
        return
    if task is None:
        raise TaskError("There is no task to rank for.", "Give one: regraft rank builtin:pydoc; or --selfcheck.")
    found = rank_zoo(task, zoo, budget, device=device, dtype=dtype, progress=show.Terminal(), started=begun(), scores=score or (),
                     text_column=text_column, label_column=label_column, metric=metric, max_rows=max_rows, seed=seed)  # fmt: skip
    if json:
        show.as_json(found)
        return
    show.table("The same group: too close to call.", *_rows(found["ranking"]))
    for first, *others in found["same_weights"]:
        typer.echo(f"the same weights as {first}: {', '.join(others)}")
    for one in found["baselines"]:
        typer.echo(f"without any checkpoint: {one['name']} reaches {one['validation']['accuracy']:.3f}")
    typer.echo(
        f"predicted from earlier tasks: {'yes' if found['history']['value'] else 'no'}, {found['history']['reason']}"
    )
    print_left_out(found["left_out"])


def _rows(ranking: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the table; predictions come first where there are any."""
    names = sorted({name for one in ranking for name in one["scores"]})
    predicted = [("predicted", "accuracy"), ("from", "low"), ("to", "high"), ("best", "best")]
    predicted = predicted if any("predicted" in one for one in ranking) else []
    rows = [
        [one["rank"], one["group"], one["checkpoint"], *(one["predicted"][key] for _, key in predicted), one["score"],
         f"{one['low']:.3f} to {one['high']:.3f}", *(one["scores"].get(name) for name in names), one["seconds"]]
        for one in ranking
    ]  # fmt: skip
    return [
        "rank",
        "group",
        "checkpoint",
        *(name for name, _ in predicted),
        "probe",
        "interval",
        *names,
        "seconds",
    ], rows


def _selfcheck(leave_out: str, seed: int, json: bool) -> None:
    from regraft.cli import show
    from regraft.planner.ranking import selfcheck_history

    found = selfcheck_history(leave_out, seed=seed, progress=show.Terminal())
    if json:
        show.as_json(found)
        return
    rows = [
        [one["name"], _interval(one["tau"]), _interval(one["regret"]), _interval(one["coverage"]), one["parts"]]
        for one in found
    ]
    show.table(f"Each {leave_out} left out in turn; means with 95 % intervals.",
               ["predicted by", "weighted tau", "regret in accuracy", "inside the interval", "parts"], rows)  # fmt: skip


def _interval(values: tuple[float, float, float] | None) -> str:
    return "-" if values is None else f"{values[0]:.3f} ({values[1]:.3f} to {values[2]:.3f})"
