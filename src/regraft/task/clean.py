"""From rows to clean examples: labels as words, no empty texts, no duplicates, nothing of the test set in training."""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.errors import TaskError
from regraft.task.columns import Columns, is_number, no_rows
from regraft.task.split import row_key, sample
from regraft.task.table import Table

MAX_ROWS = 100_000
_MAX_CLASSES_OF_FLOATS = 20
_INTEGER = re.compile(r"[+-]?[0-9]+(?:\.0*)?")


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled text."""

    text: str
    label: str


def read_examples(
    table: Table, columns: Columns, split: str, max_rows: int, seed: int, notes: list[str]
) -> list[Example]:
    """Read a split: rows without text or label are left out, and at most `max_rows` are kept.

    The table is read twice: once for labels and keys (16 bytes a row), once for the texts that were chosen.

    Args:
        table: The rows.
        columns: Which hold text and label.
        split: Its name, for notes.
        max_rows: Upper limit; a stratified sample that depends on content and `seed`, not on the order of rows.
        seed: Chooses the sample.
        notes: Gets a line for everything that was left out.

    Raises:
        TaskError: No rows, no texts, or a value that is neither text nor label.
    """
    names: dict[str, int] = {}
    codes, keys = array("q"), array("Q")
    without_text = without_label = repaired = 0
    for text, label, broken in _values(table, columns):
        without_text += not text
        without_label += bool(text) and not label
        repaired += broken
        if text and label:
            codes.append(names.setdefault(label, len(names)))
            keys.append(row_key(seed, "sample", text, label))
        else:
            codes.append(-1)
            keys.append(0)
    if not codes:
        raise no_rows(table)
    if without_text == len(codes):
        raise TaskError(f"{table.where}: column {columns.text!r} is empty in all rows.", "Give --text-column.")
    if not names and split == "train":
        raise TaskError(f"{table.where}: column {columns.label!r} is empty in all rows.", "Give --label-column.")
    if without_text:
        notes.append(f"{split}: {count_of(without_text, 'row')} without text left out.")
    if without_label:
        notes.append(f"{split}: {count_of(without_label, 'row')} without a label left out.")
    if repaired:
        notes.append(f"{split}: {count_of(repaired, 'row')} with broken Unicode (lone surrogates) repaired.")
    coded = np.frombuffer(codes, dtype=np.int64)
    usable = int((coded >= 0).sum())
    wanted = coded >= 0
    if usable > max_rows:
        # Class numbers in the order of names, so that remainders fall the same way whatever comes first in the file.
        order = {name: i for i, name in enumerate(sorted(names))}
        renumber = np.array([order[name] for name in names] + [-1], dtype=np.int64)
        wanted = sample(renumber[coded], np.frombuffer(keys, dtype=np.uint64), max_rows)
        kept = int(wanted.sum())
        notes.append(f"{split}: {kept:,} of {usable:,} rows used, a stratified sample (--max-rows {max_rows}).")
    rows = zip(_values(table, columns), wanted.tolist(), strict=True)
    return [Example(text, label) for (text, label, _), chosen in rows if chosen]


def _values(table: Table, columns: Columns) -> Iterator[tuple[str, str, bool]]:
    """Text, label and whether the text had to be repaired, row by row; "" stands for a missing value."""
    class_names = table.class_names.get(columns.label)
    for number, (text, label) in enumerate(table.rows((columns.text, columns.label)), 1):
        if text is not None and not isinstance(text, str):
            raise TaskError(
                f"{table.where}, row {number}: {columns.text!r} is {type(text).__name__}, expected a string.",
                "Name the column with the text: --text-column NAME.",
            )
        text = (text or "").strip()
        try:
            text.encode()
            broken = False
        except UnicodeEncodeError:  # lone surrogates, which JSON can spell and no tokenizer can read
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            broken = True
        try:
            name = label_text(label, class_names)
        except ValueError as error:
            raise TaskError(
                f"{table.where}, row {number}: the label {error}.", "Name the column of single labels: --label-column."
            ) from error
        yield text, name, broken


def label_text(value: Any, class_names: Sequence[str] | None = None) -> str:
    """A label as a word; "" if it is missing (None, empty, NaN, or -1 where integers stand for names).

    Whole-numbered floats become integers: a column of integers with gaps is often stored as floats.

    Raises:
        ValueError: A list or an object, or an integer without a name.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip().encode("utf-8", "replace").decode()
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        if class_names is None:
            return str(value)
        if value == -1:
            return ""
        if not 0 <= value < len(class_names):
            raise ValueError(f"{value} has no name among {len(class_names)} classes")
        return class_names[value]
    if isinstance(value, float):
        if value != value:
            return ""
        return str(int(value)) if value.is_integer() else repr(value)
    raise ValueError(f"is a {type(value).__name__}, expected one string or number")


def check_labels(where: str, column: str, labels: Iterable[str], rows: int) -> None:
    """Refuse what is no classification: one class, real numbers, identifiers.

    Raises:
        TaskError: In words.
    """
    names = set(labels)
    if len(names) == 1:
        raise TaskError(
            f"{where}: every row has the label {next(iter(names))!r}; at least two classes are needed.",
            "Give --label-column, or data with more classes.",
        )
    real = [name for name in names if is_number(name) and not _is_integer(name)]
    if len(names) > _MAX_CLASSES_OF_FLOATS and len(real) > len(names) / 2:
        raise TaskError(
            f"{where}: column {column!r} holds {len(names):,} different real numbers: a regression, not classes.",
            "Turn the numbers into a few classes, or give --label-column.",
        )
    if len(names) > rows / 2 and rows >= 20:
        raise TaskError(
            f"{where}: column {column!r} has {len(names):,} different values in {rows:,} rows: an identifier "
            "or a text, not a label.",
            "Give --label-column.",
        )


def unify_labels(splits: Mapping[str, list[Example]]) -> dict[str, list[Example]]:
    """Write "1.0" as "1" when all labels are whole numbers, so that files of different kinds agree."""
    names = {example.label for examples in splits.values() for example in examples}
    if not all(_is_integer(name) for name in names) or not any("." in name for name in names):
        return dict(splits)
    return {split: [Example(e.text, e.label.split(".")[0]) for e in examples] for split, examples in splits.items()}


def _is_integer(name: str) -> bool:
    return _INTEGER.fullmatch(name) is not None


def _as_integer(name: str) -> tuple[int, str]:
    return int(name.split(".")[0]), name


def sort_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Distinct labels: as numbers if all are integers, else as strings."""
    names = set(labels)
    return tuple(sorted(names, key=_as_integer if all(_is_integer(name) for name in names) else None))


def fold(text: str) -> str:
    """What makes two texts the same: NFC, case and white space put aside. For comparing only."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def collapse_duplicates(examples: Sequence[Example], notes: list[str]) -> list[Example]:
    """One example for each text; with conflicting labels the most frequent is kept, and where two are as frequent none is: nobody
    knows which is right."""
    groups: defaultdict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[fold(example.text)].append(example)
    kept: list[Example] = []
    conflicts = ties = tied_rows = 0
    for group in groups.values():
        (label, most), *others = Counter(example.label for example in group).most_common()
        if others and others[0][1] == most:
            ties, tied_rows = ties + 1, tied_rows + len(group)
            continue
        conflicts += bool(others)
        kept.append(min((e for e in group if e.label == label), key=lambda e: e.text))
    dropped = len(examples) - len(kept) - tied_rows
    if dropped:
        notes.append(f"train: {count_of(dropped, 'row')} left out, repeating another's text.")
    if conflicts:
        notes.append(f"train: {count_of(conflicts, 'text')} had more than one label; the most frequent is kept.")
    if ties:
        notes.append(f"train: {count_of(ties, 'text')} left out with labels that contradict each other equally often.")
    return kept


def remove_overlap(
    examples: Sequence[Example], other: Sequence[Example], names: tuple[str, str], notes: list[str]
) -> list[Example]:
    """The examples whose text is not in the other split. `names`: of this split and of the other."""
    seen = {fold(example.text) for example in other}
    kept = [example for example in examples if fold(example.text) not in seen]
    if len(kept) < len(examples):
        notes.append(f"{names[0]}: {count_of(len(examples) - len(kept), 'row')} left out, also in {names[1]}.")
    return kept


def count_of(count: int, noun: str) -> str:
    """A count in words: "1 row", "2,000 rows"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
