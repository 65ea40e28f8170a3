"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

Task = Annotated[
    str, typer.Argument(help="builtin:pydoc, a file, a folder with train/validation/test files, or hf:dataset.")
]
Zoo = Annotated[
    str,
    typer.Option(
        "--zoo", help="builtin:minilm, hf:org/name, hf-cache:, a folder of checkpoints; commas between several."
    ),
]
TextColumn = Annotated[
    str | None, typer.Option("--text-column", help="The column with the texts (guessed by default).")
]
LabelColumn = Annotated[
    str | None, typer.Option("--label-column", help="The column with the labels (guessed by default).")
]
Metric = Annotated[str, typer.Option("--metric", help="What models are compared by: accuracy or macro_f1.")]
MaxRows = Annotated[Optional[int], typer.Option("--max-rows", help="Use at most this many rows of each split.")]  # noqa: UP045
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of everything random.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or mps.")]
Dtype = Annotated[str, typer.Option("--dtype", help="Number format of feature passes: float32, bfloat16 or float16.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on standard output.")]
