"""Which column holds the text and which the label: named by the user, or told by name and content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from regraft.errors import TaskError
from regraft.task.table import Table

# Tiers: a name of an earlier tier settles it; two names of one tier leave it open.
TEXT_NAMES: tuple[tuple[str, ...], ...] = (
    ("text", "texts"),
    ("sentence", "utterance", "content", "document", "query", "question", "review", "comment", "tweet", "message"),
    ("title", "headline", "description", "body", "input", "abstract", "post", "prompt"),
)
LABEL_NAMES: tuple[tuple[str, ...], ...] = (
    ("label", "labels"),
    ("category", "intent", "class", "target", "topic", "sentiment", "emotion", "y"),
    ("categories", "rating", "stars", "output", "answer", "tag", "language", "type", "domain"),
)
_LOOK_AT = 1000  # rows


@dataclass(frozen=True)
class Columns:
    """The two columns that a task uses."""

    text: str
    label: str


def choose_columns(table: Table, text: str | None = None, label: str | None = None) -> Columns:
    """Choose the text and label columns.

    Args:
        table: The training rows.
        text: The user's choice, or None to guess: by name, else the only column of strings that is not the label.
        label: The user's choice, or None to guess: by name, else the only column left.

    Raises:
        TaskError: A named column that does not exist, or no single candidate; lists the columns.
    """
    for option, name in (("--text-column", text), ("--label-column", label)):
        if name is not None and name not in table.columns:
            raise TaskError(f"{table.where} has no column {name!r}; it has {_listed(table)}.", f"Correct {option}.")
    if text is not None and text == label:
        raise TaskError(f"{text!r} is named as text and as label.", "Name two columns.")
    kinds = column_kinds(table)
    label = label or _by_name(table, [name for name in table.columns if name != text], LABEL_NAMES, "label")
    strings = [name for name in table.columns if kinds[name] == "strings" and name != label]
    empty = [name for name in table.columns if kinds[name] == "nothing" and name != label]
    text = text or _by_name(table, strings, TEXT_NAMES, "text") or _by_name(table, empty, TEXT_NAMES, "text")
    if text is None and len(strings) == 1:
        text = strings[0]
    if text is None:
        found = "no column of strings" if not strings else "more than one column of strings"
        raise _unclear(table, "text", found)
    if label is None:
        rest = [name for name in table.columns if name != text]
        if len(rest) != 1:
            raise _unclear(table, "label", "no column with a usual name")
        label = rest[0]
    if kinds[text] not in ("strings", "nothing"):  # of an empty start, reading the rest decides
        raise TaskError(
            f"{table.where}: column {text!r} holds {kinds[text]}, expected strings; columns: {_listed(table)}.",
            "Name the column with the text: --text-column NAME.",
        )
    return Columns(text, label)


def choose_text_column(table: Table, text: str | None = None) -> str:
    """The column of texts of a table that need not have labels: the user's choice, a usual name, or the only strings.

    Raises:
        TaskError: The named column does not exist, or there is no single candidate; lists the columns.
    """
    if text is not None and text not in table.columns:
        raise TaskError(f"{table.where} has no column {text!r}; it has {_listed(table)}.", "Correct --text-column.")
    kinds = column_kinds(table)
    strings = [name for name in table.columns if kinds[name] == "strings"]
    found = text or _by_name(table, strings, TEXT_NAMES, "text") or (strings[0] if len(strings) == 1 else None)
    if found is None:
        raise _unclear(table, "text", "no column of strings" if not strings else "more than one column of strings")
    return found


def column_kinds(table: Table) -> dict[str, str]:
    """What each column holds, judged by its first rows: "strings", "numbers", "lists", "nothing" or "mixed values".

    Strings that are all numbers count as numbers: a CSV file knows no types.

    Raises:
        TaskError: There are no rows.
    """
    rows = list(islice(table.rows(table.columns), _LOOK_AT))
    if not rows:
        raise no_rows(table)
    return {name: _kind([row[i] for row in rows]) for i, name in enumerate(table.columns)}


def _kind(values: Sequence[Any]) -> str:
    present = [value for value in values if value is not None and value != ""]
    if not present:
        return "nothing"
    if all(isinstance(value, str) for value in present):
        return "numbers" if all(is_number(value) for value in present) else "strings"
    if all(isinstance(value, (bool, int, float)) for value in present):
        return "numbers"
    return "lists" if all(isinstance(value, (list, dict)) for value in present) else "mixed values"


def is_number(text: str) -> bool:
    """Whether a string reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def no_rows(table: Table) -> TaskError:
    """The error for a table without rows."""
    return TaskError(f"{table.where} has no rows.", "Give a file with rows below the header.")


def _by_name(table: Table, candidates: Sequence[str], tiers: Sequence[Sequence[str]], what: str) -> str | None:
    for tier in tiers:
        found = [name for name in candidates if name.lower() in tier]
        if len(found) > 1:
            raise _unclear(table, what, f"{' and '.join(found)} could all be it")
        if found:
            return found[0]
    return None


def _unclear(table: Table, what: str, why: str) -> TaskError:
    return TaskError(
        f"{table.where}: cannot tell which column holds the {what} ({why}); columns: {_listed(table)}.",
        "Name the columns: --text-column NAME --label-column NAME.",
    )


def _listed(table: Table) -> str:
    return ", ".join(table.columns) or "none"
