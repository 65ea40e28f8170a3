"""`load_task`: read, clean, split, and put a name to it.

The order matters: labels first, then duplicates, then what train shares with test (removed from train, so that test
stays comparable with what others report on it), and only then the splits that the data does not bring.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from regraft.budget import Deadline
from regraft.errors import BadReferenceError, TaskError
from regraft.task import clean, pydoc
from regraft.task.clean import MAX_ROWS, Example
from regraft.task.columns import LABEL_NAMES, TEXT_NAMES, Columns, choose_columns
from regraft.task.sources import Source, open_source
from regraft.task.split import MAX_VALIDATION, Codes, Keys, hold_out, row_key, sample
from regraft.task.table import Table
from regraft.task.task import METRICS, Split, Task, content_id, row_digest

MIN_TRAIN = 10
MAX_UNSEEN = 0.2
# Fewer rows to choose or judge by are worth a warning.
FEW_ROWS = 30
VALIDATION_PART, TEST_PART = 0.1, 0.2


def load_task(
    reference: str,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    metric: str = "accuracy",
    max_rows: int | None = None,
    seed: int = 0,
    deadline: Deadline | None = None,
) -> Task:
    """Read and check a text classification task.

    Args:
        reference: A CSV, TSV, JSON, JSON Lines or Parquet file; a folder with train/validation/test files, or one that
            `datasets` saved; `hf:org/name[@revision][:config]`; `builtin:pydoc`.
        text_column, label_column: Names; None guesses, and says so when it cannot.
        metric: What models are compared by, one of `METRICS`.
        max_rows: Most rows of each split that are used (a stratified sample); None means `MAX_ROWS`.
        seed: Chooses samples and splits, together with the text and label of each row; never by position.
        deadline: Of a download; None lets it take as long as it needs. Reading what is there is not cut short.

    Returns:
        A task with three splits. Without a test split a fifth of train is held out; without validation a tenth.

    Raises:
        TaskError: Data that cannot be used, in words.
        BadReferenceError: Nothing at the reference (`HubError` when it is the Hub that says so).
        BudgetError: Not downloaded before the deadline.
    """
    check_metric(metric)
    if max_rows is not None and max_rows < MIN_TRAIN:
        raise TaskError(f"At most {max_rows} rows are too few.", f"Allow at least {MIN_TRAIN}.")
    if reference.startswith("builtin:"):
        if reference != "builtin:pydoc":
            raise BadReferenceError(f"There is no built-in task {reference!r}.", "The built-in task is builtin:pydoc.")
        if text_column or label_column:
            raise TaskError(f"{reference} has no columns to choose.", "Leave --text-column and --label-column out.")
        built = pydoc.build()
        notes = list(built.notes)
        limited = {name: _limit(rows, name, max_rows or MAX_ROWS, seed, notes) for name, rows in built.splits.items()}
        return _finish(reference, "pydoc", metric, limited, notes)
    source = open_source(reference, deadline)
    notes = list(source.notes)
    splits = _read(source, text_column, label_column, max_rows or MAX_ROWS, seed, notes)
    splits = _clean(source, splits, notes)
    _split(splits, seed, notes)
    _drop_unseen(reference, splits, notes)
    return _finish(reference, source.name, metric, splits, notes)


def check_metric(metric: str) -> None:
    """Refuse a metric that there is not.

    Raises:
        TaskError: Lists those that there are.
    """
    if metric not in METRICS:
        raise TaskError(f"Unknown metric {metric!r}.", f"Choose one of {', '.join(METRICS)}.")


def _read(
    source: Source, text: str | None, label: str | None, max_rows: int, seed: int, notes: list[str]
) -> dict[str, list[Example]]:
    columns = choose_columns(source.tables["train"], text, label)
    chosen = (("text", columns.text, text, TEXT_NAMES[0]), ("label", columns.label, label, LABEL_NAMES[0]))
    guessed = [f"{what} {name!r}" for what, name, given, usual in chosen if given is None and name not in usual]
    if guessed:
        notes.append(f"columns: {' and '.join(guessed)}, guessed by name and content.")
    splits: dict[str, list[Example]] = {}
    for split, table in source.tables.items():
        _check_columns(table, columns)
        splits[split] = clean.read_examples(table, columns, split, max_rows, seed, notes)
        if not splits[split]:
            notes.append(f"{split}: no row has a label, so this split is not used.")
            del splits[split]
    splits = clean.unify_labels(splits)
    train = splits["train"]
    clean.check_labels(source.tables["train"].where, columns.label, (e.label for e in train), len(train))
    return splits


def _check_columns(table: Table, columns: Columns) -> None:
    missing = [name for name in (columns.text, columns.label) if name not in table.columns]
    if missing:
        raise TaskError(
            f"{table.where} has no column {missing[0]!r}; it has {', '.join(table.columns)}.",
            "Give all splits the same columns.",
        )


def _clean(source: Source, splits: dict[str, list[Example]], notes: list[str]) -> dict[str, list[Example]]:
    """Duplicates and overlaps, in place of the splits given."""
    cleaned = dict(splits)
    cleaned["train"] = clean.collapse_duplicates(cleaned["train"], notes)
    for kept, reduced in (("test", "validation"), ("test", "train"), ("validation", "train")):
        if kept in cleaned and reduced in cleaned:
            cleaned[reduced] = clean.remove_overlap(cleaned[reduced], cleaned[kept], (reduced, kept), notes)
            if not cleaned[reduced]:
                raise TaskError(
                    f"{source.tables[reduced].where}: all texts of {reduced} are also in {kept}.",
                    "Give splits that do not hold the same texts.",
                )
    return cleaned


def _split(splits: dict[str, list[Example]], seed: int, notes: list[str]) -> None:
    """Hold out the splits that are missing; changes `splits`."""
    _check_size(splits["train"])
    missing = [name for name in ("test", "validation") if name not in splits]
    whole = len(splits["train"])
    for name in missing:
        train = splits["train"]
        part = TEST_PART if name == "test" else VALIDATION_PART
        most = None if name == "test" else MAX_VALIDATION
        # Parts are of the rows before any split was taken out of them.
        held = hold_out(*_coded(train, name, seed), part * whole / len(train), most)
        splits[name] = [e for e, out in zip(train, held, strict=True) if out]
        splits["train"] = [e for e, out in zip(train, held, strict=True) if not out]
        if not splits[name]:
            raise TaskError(f"No class has two examples, so none can be held out for {name}.", "Give more rows.")
        notes.append(f"{name}: {clean.count_of(len(splits[name]), 'row')} held out of train, stratified.")


def _limit(examples: list[Example], split: str, max_rows: int, seed: int, notes: list[str]) -> list[Example]:
    """At most `max_rows`, a stratified sample."""
    if len(examples) <= max_rows:
        return examples
    chosen = sample(*_coded(examples, "sample", seed), max_rows)
    notes.append(f"{split}: {int(chosen.sum()):,} of {len(examples):,} rows used, a stratified sample.")
    return [e for e, kept in zip(examples, chosen, strict=True) if kept]


def _coded(examples: Sequence[Example], purpose: str, seed: int) -> tuple[Codes, Keys]:
    """Class numbers (in the order of names) and keys of examples."""
    number = {label: i for i, label in enumerate(clean.sort_labels(e.label for e in examples))}
    codes = np.array([number[e.label] for e in examples], dtype=np.int64)
    return codes, np.array([row_key(seed, purpose, e.text, e.label) for e in examples], dtype=np.uint64)


def _check_size(train: Sequence[Example]) -> None:
    if len(train) < MIN_TRAIN:
        raise TaskError(
            f"{len(train)} training examples are left after duplicates and held-out splits: too few.",
            f"Give data that leaves at least {MIN_TRAIN}, with a few of each class.",
        )


def _drop_unseen(reference: str, splits: dict[str, list[Example]], notes: list[str]) -> None:
    """Leave out rows of validation and test whose label training never shows; changes `splits`."""
    known = {e.label for e in splits["train"]}
    for split in ("validation", "test"):
        unseen = Counter(e.label for e in splits[split] if e.label not in known)
        count = sum(unseen.values())
        if not count:
            continue
        some = ", ".join(repr(label) for label in sorted(unseen)[:5]) + (", ..." if len(unseen) > 5 else "")
        if count > MAX_UNSEEN * len(splits[split]):
            raise TaskError(
                f"{reference}: {count:,} of {len(splits[split]):,} rows of {split} have labels that train "
                f"lacks ({some}).",
                "Check that the splits use the same labels.",
            )
        splits[split] = [e for e in splits[split] if e.label in known]
        notes.append(f"{split}: {clean.count_of(count, 'row')} left out with labels that are not in train ({some}).")


def _finish(reference: str, name: str, metric: str, splits: Mapping[str, list[Example]], notes: list[str]) -> Task:
    _check_size(splits["train"])
    counts = Counter(e.label for e in splits["train"])
    label_names = clean.sort_labels(counts)
    if len(label_names) < 2:
        raise TaskError(
            f"{reference}: one class is left in train ({label_names[0]!r}); at least two are needed.",
            "Give more rows, or splits that overlap less.",
        )
    single = [label for label in label_names if counts[label] == 1]
    if single:
        some = ", ".join(single[:5]) + (", ..." if len(single) > 5 else "")
        notes.append(f"train: a single example of {clean.count_of(len(single), 'label')} ({some}).")
    for split in ("validation", "test"):
        shown = len({e.label for e in splits[split]})
        if len(splits[split]) < FEW_ROWS or shown < len(label_names) / 2:
            count = clean.count_of(len(splits[split]), "row")
            notes.append(
                f"{split}: {count}, of {shown} of {len(label_names)} classes: figures on so little say little."
            )
    number = {label: i for i, label in enumerate(label_names)}
    made: dict[str, Split] = {}
    digests: list[list[bytes]] = []
    for split in ("train", "validation", "test"):
        # Sorted by digest: what is computed from a task must not depend on the order of rows in a file.
        rows = sorted((row_digest(e.text, e.label), e.text, number[e.label]) for e in splits[split])
        digests.append([digest for digest, _, _ in rows])
        labels = np.array([label for _, _, label in rows], dtype=np.int64)
        made[split] = Split([text for _, text, _ in rows], labels)
    task_id = content_id(label_names, metric, digests)
    return Task(reference, name, label_names, metric, **made, notes=tuple(notes), task_id=task_id)
