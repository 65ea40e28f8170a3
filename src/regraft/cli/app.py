"""The commands. Each imports what it needs when it runs, so that `--help` is immediate."""

from __future__ import annotations

import errno
import gc
import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from regraft.cli import begun
from regraft.cli import options as opt
from regraft.cli.anatomy import app as anatomy_app
from regraft.cli.listing import methods, store_app, task_app
from regraft.cli.merge import merge
from regraft.cli.rank import rank
from regraft.cli.resize import resize
from regraft.cli.single import adapt, evaluate, predict, verify
from regraft.cli.zoo import app as zoo_app
from regraft.errors import RegraftError
from regraft.version import __version__

INTERRUPTED = 130
AGAIN = "interrupted; run the same command again to go on\n"

app = typer.Typer(
    name="regraft",
    help="Bring a task, a zoo of checkpoints and a budget; get back a family of checked models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(zoo_app, name="zoo")
app.add_typer(anatomy_app, name="anatomy")
app.add_typer(task_app, name="task")
app.add_typer(store_app, name="store")


def run() -> None:
    """Run the command line and turn errors of ours into words."""
    gc.set_threshold(
        100_000, 50, 1000
    )  # imports make much that stays: looking through it for garbage takes a tenth of the start
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a letter is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except RegraftError as fault:
        sys.stderr.write(f"error: {fault.problem}\n" + (f"  {fault.remedy}\n" if fault.remedy else ""))
        raise SystemExit(fault.exit_code) from None
    except SystemExit as end:
        if end.code == INTERRUPTED:  # click has turned the key into this
            sys.stderr.write(AGAIN)
        raise
    except KeyboardInterrupt:
        sys.stderr.write(AGAIN)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:  # the reader of a pipe has gone
        raise SystemExit(0) from None
    except OSError as fault:
        if fault.filename is not None or fault.errno not in (errno.ENOSPC, errno.EIO):
            raise
        sys.stderr.write(f"error: standard output cannot be written: {fault.strerror}\n")
        os._exit(1)  # leaving in order would write it again
    finally:
        gc.freeze()  # what is left goes with the process: to look through it once more takes 0.3 s


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"regraft {__version__}")
        raise typer.Exit


@app.command()
def reuse(
    task: opt.Task,
    zoo: opt.Zoo = "builtin:minilm",
    budget: Annotated[str, typer.Option("--budget", help="30s, 10m, 1h, or 40trials.")] = "10m",
    out: Annotated[Path | None, typer.Option("--out", help="The run folder; the same one goes on with a run.")] = None,
    text_column: opt.TextColumn = None,
    label_column: opt.LabelColumn = None,
    metric: opt.Metric = "accuracy",
    max_rows: opt.MaxRows = None,
    seed: opt.Seed = 0,
    device: opt.Device = "cpu",
    dtype: opt.Dtype = "float32",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Predict the cost of each step and stop.")] = False,
    json: opt.Json = False,
) -> None:
    """Do the whole job: a task, a zoo and a budget in, a family of checked models out.

    Example: regraft reuse builtin:pydoc --zoo builtin:minilm --budget 2m --out runs/first
    """
    from regraft.cli import show

    read: dict[str, Any] = {"text_column": text_column, "label_column": label_column, "metric": metric,
                            "max_rows": max_rows, "seed": seed}  # fmt: skip
    if dry_run:
        from regraft.planner.forecast import forecast

        found = forecast(task, zoo, budget, device=device, dtype=dtype, progress=show.Terminal(), **read)
        if json:
            show.as_json(found)
        else:
            show.table(
                "", ["step", "seconds", "what"], [[one["step"], one["seconds"], one["what"]] for one in found["steps"]]
            )
            typer.echo(found["verdict"])
        return
    from regraft.planner.reuse import reuse as main_job
    from regraft.report import table, write_report

    family = main_job(task, zoo, budget, out=out, device=device, dtype=dtype, progress=show.Terminal(), started=begun(),
                      write_report=write_report, **read)  # fmt: skip
    if json:
        show.as_json(family.result)
        return
    from rich.console import Console

    Console(highlight=False).print(table(family.result))
    where = family.best.path if family.best is not None and family.answer == family.best.name else None
    typer.echo(f"\nTake:    {family.answer}" + (f" ({where})" if where else f", a baseline: {_beaten(family.result)}"))
    typer.echo(f"Family:  {family.report.parent / 'family'}")
    typer.echo(f"Report:  {family.report}")


def _beaten(result: Mapping[str, Any]) -> str:
    """Why a baseline is the answer."""
    if any(one["validation"] is not None for one in result["candidates"]):
        return "no checkpoint beat it in this budget"
    return "no checkpoint could be tried in this budget"


@app.command("run")
def run_recipe(
    recipe: Annotated[Path, typer.Argument(help="A recipe.yaml that `reuse` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder for the models.")],
    device: opt.Device = "cpu",
    json: opt.Json = False,
) -> None:
    """Replay a recipe: the same models again, from the same checkpoints and data.

    Example: regraft run runs/first/family/recipe.yaml --out runs/again
    """
    from regraft.cli import show
    from regraft.recipe import replay

    found = replay(recipe, out, device=device, progress=show.Terminal())
    if json:
        show.as_json(found)
        return
    show.table("", ["model", "same weights", "test accuracy", "path"],
               [[one["name"], one["same_weights"], one["test"]["accuracy"], one["path"]] for one in found["models"]])  # fmt: skip


for command in (rank, adapt, resize, evaluate, predict, verify, merge, methods):
    app.command()(command)
