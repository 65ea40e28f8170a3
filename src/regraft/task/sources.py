"""From a reference to the tables of its splits: a file, a folder, or a dataset of the Hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from regraft.budget import Deadline
from regraft.errors import BadReferenceError, TaskError
from regraft.task import arrow, files
from regraft.task.table import Table, concatenate

READERS: Mapping[str, Callable[[Path], Table]] = {
    ".csv": files.csv_table,
    ".tsv": lambda path: files.csv_table(path, "\t"),
    ".jsonl": files.json_table,
    ".ndjson": files.json_table,
    ".json": files.json_table,
    ".parquet": arrow.parquet_table,
}
_KINDS = ", ".join(READERS)

# What people call the splits; the first name that is present wins.
SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Source:
    """Where a task's rows come from.

    Attributes:
        name: Short name.
        tables: By split: "train" always, "validation" and "test" when given.
        notes: What reading had to decide.
    """

    name: str
    tables: Mapping[str, Table]
    notes: tuple[str, ...]


def open_source(reference: str, deadline: Deadline | None = None) -> Source:
    """Open a reference without reading its rows.

    Raises:
        BadReferenceError: Not a known kind of reference, or nothing there.
        HubError: A dataset of the Hub that is gated, absent or unreachable.
        BudgetError: Not downloaded before the deadline.
        TaskError: Something is there but cannot be used as a task.
    """
    if reference.startswith("hf:"):
        rest = reference.removeprefix("hf:")
        name = arrow.parse_hub(rest)[0].rsplit("/", 1)[-1]
        return _named(name, reference, arrow.hub_tables(rest, deadline))
    path = Path(reference).expanduser()
    if path.is_dir():
        if arrow.is_saved_dataset(path):
            return _named(path.resolve().name, reference, arrow.saved_tables(path))
        return _folder(path)
    if not path.is_file():
        raise BadReferenceError(
            f"Task {reference!r}: no such file or folder.",
            "Give a file, a folder with train/validation/test files, hf:org/name or builtin:pydoc.",
        )
    table = read_table(path)
    return Source(path.stem, {"train": table}, table.notes)


def read_table(path: Path) -> Table:
    """The rows of one file, by its ending.

    Raises:
        TaskError: A kind that is not read, an empty file, or one that cannot be opened.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise TaskError(
            f"{path}: files of the kind {path.suffix or 'without extension'} are not read.", f"Use {_KINDS}."
        )
    try:
        if path.stat().st_size == 0:
            raise TaskError(f"{path} is empty.", "Give a file with a header and rows.")
        return reader(path)
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror or error}).", "Check its permissions.") from error


def _folder(folder: Path) -> Source:
    """Files named after the splits: train.csv, test-00000-of-00002.parquet, data/dev.jsonl, train/part1.csv."""
    found: dict[str, dict[str, list[Path]]] = {}
    # Two levels and no further: the folder may be somebody's home.
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        where = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in where.parts)
        if hidden or path.suffix.lower() not in READERS or not path.is_file():
            continue
        for split, word in _split_of(where):
            found.setdefault(split, {}).setdefault(word, []).append(path)
    if "train" not in found:
        here = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
        raise TaskError(
            f"{folder}: no train file; it holds {here}.", f"Name the files train, validation and test ({_KINDS})."
        )
    tables: dict[str, Table] = {}
    notes: list[str] = []
    for split, by_name in found.items():
        name = next(name for name in SPLIT_NAMES[split] if name in by_name)
        paths = by_name[name]
        kinds = sorted({path.suffix.lower() for path in paths})
        if len(kinds) > 1:
            raise TaskError(
                f"{folder}: the {split} split is there as {' and '.join(kinds)}: the same data twice?",
                "Keep one kind of file for each split.",
            )
        tables[split] = concatenate([read_table(path) for path in paths])
        notes += tables[split].notes
        notes += [f"{folder.name}: {other} files are not used." for other in by_name if other != name]
    return Source(folder.resolve().name, tables, tuple(notes))


def _split_of(where: Path) -> list[tuple[str, str]]:
    """The split that a file belongs to by its own name, or by its folder's, with the word that says so; or nothing."""
    for part in (where.stem, *reversed(where.parts[:-1])):
        word = re.split(r"[-_.]", part.lower(), maxsplit=1)[0]
        for split, names in SPLIT_NAMES.items():
            if word in names:
                return [(split, word)]
    return []


def _named(name: str, reference: str, tables: Mapping[str, Table]) -> Source:
    """Map the split names of a dataset to ours."""
    chosen: dict[str, Table] = {}
    for split, names in SPLIT_NAMES.items():
        present = [word for word in names if word in tables]
        if present:
            chosen[split] = tables[present[0]]
    if "train" not in chosen:
        if len(tables) != 1:
            raise TaskError(f"{reference} has no train split; it has {', '.join(sorted(tables)) or 'none'}.")
        only, table = next(iter(tables.items()))
        return Source(name, {"train": table}, (f"The only split, {only!r}, is split further.",))
    used = {table.where for table in chosen.values()}
    unused = sorted(word for word, table in tables.items() if table.where not in used)
    notes = (f"Splits not used: {', '.join(unused)}.",) if unused else ()
    return Source(name, chosen, notes)
