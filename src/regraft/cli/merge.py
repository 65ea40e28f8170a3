"""`regraft merge`: checkpoints in, one checkpoint out."""

from __future__ import annotations

import re
from math import inf
from pathlib import Path
from typing import Annotated, Optional

import typer

from regraft.cli import options as opt
from regraft.errors import BudgetError

_UNITS = {unit: 1000**power for power, unit in enumerate(("b", "kb", "mb", "gb", "tb"))} | {
    unit: 1024**power for power, unit in enumerate(("kib", "mib", "gib", "tib"), 1)
}


def merge(
    recipe: Annotated[Path, typer.Argument(help="A recipe of a merge: ours, or a mergekit YAML.")],
    out: Annotated[Optional[Path], typer.Option("--out", "-o", help="The folder that is made.")] = None,  # noqa: UP045
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what would happen and what it takes, and stop. Inputs from the Hub are downloaded."
        ),
    ] = False,
    max_memory: Annotated[
        str,
        typer.Option(
            "--max-memory",
            help="Memory beyond what the program itself takes: 512MiB, 2GiB. With --search, of merging; models come on top.",
        ),
    ] = "512MiB",
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--workers", min=1, help="Threads; all cores by default. The result is the same for any number."),
    ] = None,
    allow: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--allow", help="Let one kind of refusal pass, by the word in its message; may be given again."),
    ] = None,
    check_values: Annotated[
        bool,
        typer.Option(
            "--check-values",
            help="Look at every weight for NaN before anything is written. Of 256 MiB of inputs or less all are anyway.",
        ),
    ] = False,
    search: Annotated[
        bool, typer.Option("--search", help="Try methods and coefficients on --task within --budget; write the best.")
    ] = False,
    task: Annotated[
        str, typer.Option("--task", help="With --search: a task for each input, commas between; or one for all.")
    ] = "",
    held_out: Annotated[
        str, typer.Option("--held-out", help="With --search: tasks that are measured and not chosen by.")
    ] = "",
    budget: Annotated[str, typer.Option("--budget", help="With --search: 30s, 5m, 1h, or 20trials.")] = "",
    metric: opt.Metric = "accuracy",
    max_rows: opt.MaxRows = None,
    seed: opt.Seed = 0,
    device: opt.Device = "cpu",
    json: opt.Json = False,
) -> None:
    """Merge checkpoints into one, as a recipe says. Started again after a kill, it goes on where it was.

    Example: regraft merge recipe.yaml -o merged
    Example: regraft merge recipe.yaml --dry-run
    Example: regraft merge --search recipe.yaml --task banking77/,snips/ --budget 5m -o merged
    """
    if out is None and not dry_run:
        raise typer.BadParameter("give the folder that is made, or --dry-run.", param_hint="'-o'")
    for alone, name in ((dry_run, "--dry-run"), (check_values, "--check-values")):
        if search and alone:
            raise typer.BadParameter("looks at one merge; leave it out, or leave --search out.", param_hint=f"'{name}'")
    for value, name in ((task, "--task"), (budget, "--budget"), (held_out, "--held-out")):
        if search and not value and name != "--held-out":
            raise typer.BadParameter("is needed with --search.", param_hint=f"'{name}'")
        if value and not search:
            raise typer.BadParameter("goes with --search.", param_hint=f"'{name}'")
    given = {"--seed": seed, "--metric": metric != "accuracy", "--max-rows": max_rows, "--device": device != "cpu"}
    for name, used in given.items():
        if used and not search:
            where = "; a recipe has its own" if name == "--seed" else ""
            raise typer.BadParameter(f"goes with --search{where}.", param_hint=f"'{name}'")
    limit = size_of(max_memory)
    from regraft.cli import show
    from regraft.merge.recipe.file import read_merge

    spec = read_merge(recipe)
    if search and out is not None:
        from regraft.merge.search.search import search as find

        chosen = find(
            spec, out, listed(task), budget, held_out=listed(held_out), seed=seed, max_memory=limit, workers=workers,
            allow=allow or (), device=device, metric=metric, max_rows=max_rows, progress=show.Terminal(),
        )  # fmt: skip
        if json:
            show.as_json(chosen.to_json())
            return
        show.table("Validation rows", *chosen.rows())
        show.table("Test rows", *chosen.test_rows())
        typer.echo(chosen.verdict)
        typer.echo(f"Written to {chosen.out}: {chosen.answer}")
        return
    if dry_run or out is None:
        from regraft.merge.checks.preflight import preflight_of
        from regraft.merge.inputs import open_inputs

        ordered, opened = open_inputs(spec)
        seen = preflight_of(
            ordered, opened, out=out, max_memory=limit, workers=workers, allow=allow or (), check_values=check_values
        )
        if json:
            show.as_json(seen.to_json())
        else:
            show.table("", ["what", "found"], [list(row) for row in seen.rows()])
        if seen.errors:
            raise typer.Exit(1)
        return
    from regraft.merge.run import merge as run

    found = run(
        spec, out, max_memory=limit, workers=workers, allow=allow or (), check_values=check_values,
        progress=show.Terminal(),
    )  # fmt: skip
    if json:
        show.as_json(found.to_json())
        return
    for one in found.preflight.findings:
        if one.severity == "warning":
            typer.secho(f"WARNING: {one.problem} {one.advice}".rstrip(), fg="yellow", bold=True, err=True)
        else:
            typer.echo(f"{'allowed' if one.allowed else one.severity}: {one.problem}")
    copied = f", copied {found.copied}" if found.copied else ""
    seconds = sum(found.seconds.values())
    typer.echo(f"Merged {found.merged} tensors with {found.method}{copied}, {seconds:.1f} s.")
    typer.echo(f"Written to {found.out}")


def listed(text: str) -> list[str]:
    """What stands between the commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def size_of(text: str) -> int:
    """Bytes of `512MiB`, `2GB` or `1000000`.

    Raises:
        BudgetError: Anything else, or nothing at all.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    factor = _UNITS.get(match[2] or "b") if match else None
    size = float(match[1]) * factor if match and factor else 0.0
    if not 1.0 <= size < inf:
        raise BudgetError(f"Cannot read the size {text!r}.", "Write it as 512MiB, 2GiB or 1.5GB.")
    return int(size)
