"""Texts without labels: what a model is to predict."""

from __future__ import annotations

from pathlib import Path

from regraft.errors import TaskError
from regraft.task.columns import choose_text_column
from regraft.task.sources import read_table


def read_texts(reference: str, text_column: str | None = None) -> list[str]:
    """The texts of a CSV, TSV, JSON, JSON Lines or Parquet file, in its order; an empty cell is an empty text.

    Raises:
        TaskError: The file cannot be read, or has no single column of texts.
    """
    path = Path(reference)
    if not path.is_file():
        raise TaskError(
            f"{reference}: no such file.", "Give a CSV, JSONL, Parquet or .txt file, or - for standard input."
        )
    table = read_table(path)
    column = choose_text_column(table, text_column)
    return ["" if value is None else str(value) for (value,) in table.rows([column])]
