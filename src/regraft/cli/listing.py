"""`regraft methods`, `task` and `store`: what there is."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from regraft.cli import options as opt
from regraft.errors import RegraftError

task_app = typer.Typer(help="What a task holds.", no_args_is_help=True, rich_markup_mode=None)
store_app = typer.Typer(help="What is kept to be used again.", no_args_is_help=True, rich_markup_mode=None)


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
