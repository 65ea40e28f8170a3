"""The filter: what a user writes to say which checkpoints are meant.

    filter     = condition { blank condition }                    all of them hold
    condition  = field operator value { "," value }               several values: any of them (after = and !=)
    operator   = "=" | "!=" | "<" | "<=" | ">" | ">="             the last four for numbers
    field      = a name of `fields.FIELDS`, "claimed:" metric, "measured:" metric
    value      = word | '"' text '"' | number [ K | M | B | G | T | KB | MB | GB | TB | KiB | MiB | GiB | TiB | % ]

`=` compares without regard to case; a value that ends in `*` is a beginning; `none` means that nothing is recorded. `!=` is
everything that `=` is not, checkpoints without the value among them.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import Literal, NoReturn

from regraft.errors import CatalogueError
from regraft.zoo.catalogue.fields import ALIASES, FIELDS, Field
from regraft.zoo.catalogue.text import LONGEST, key, metric_key, plain

Operator = Literal["=", "!=", "<", "<=", ">", ">="]
Value = str | float | bool | None

EXAMPLE = 'architecture=bert "layers<=6" licence=mit,apache-2.0'
MOST_VALUES = 500  # of one condition; SQLite takes expressions no deeper than 1,000
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_VALUE = rf'(?:{_QUOTED}|[^\s,"]+)'
_FIELD = rf"[A-Za-z_]+(?::(?:{_QUOTED}|[^\s=!<>\"]+))?"
_CONDITION = re.compile(rf"\s*({_FIELD})\s*(<=|>=|!=|=|<|>)\s*({_VALUE}(?:,{_VALUE})*)(?=\s|$)")
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)([a-z%]*)", re.IGNORECASE)
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "%": 0.01} | {
    f"{letter}{unit}": float(base**power)
    for unit, base in (("b", 1000), ("ib", 1024)) for power, letter in enumerate("kmgt", 1)
}  # fmt: skip
_SWITCH = {"yes": True, "true": True, "no": False, "false": False}


@dataclass(frozen=True)
class Condition:
    """A field, an operator, and values in the field's terms: numbers, keys (a beginning ends in `*`), switches, None.

    `metric` is what follows the colon of claimed: and measured:. `exact` holds the values that were quoted: in them `*` is a
    star and `none` is a word.
    """

    field: Field
    operator: Operator
    values: tuple[Value, ...]
    metric: str = ""
    exact: frozenset[str] = frozenset()


def parse(text: str) -> tuple[Condition, ...]:
    """The conditions of a filter; none for an empty one.

    Raises:
        CatalogueError: A word that is no condition, a field that is not known, or a value that the field cannot have.
    """
    found, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = _CONDITION.match(text, at)
        if match is None:
            _no_condition(text[at:].split()[0])
        found.append(_condition(match[1], match[2], match[3]))
        at = match.end()
    return tuple(found)


def is_filter(text: str) -> bool:
    """Whether a text begins as a condition does: a field that is known, and an operator."""
    match = re.match(rf"\s*({_FIELD})\s*[=!<>]", text)
    return match is not None and _lookup(match[1]) is not None


def _no_condition(word: str) -> NoReturn:
    begun = re.match(rf"({_FIELD})\s*(<=|>=|!=|=|<|>)", word)
    if begun is None:
        raise CatalogueError(
            f"{word!r} is no condition: expected a field, an operator and a value, such as layers<=6.",
            f"Write {EXAMPLE}; words in names are found by `regraft zoo search`. Text with blanks or commas goes into "
            f"double quotes.",
        )
    raise CatalogueError(f"{word!r} has no value that can be read.", f'Write it as {begun[1]}{begun[2]}"a value".')


def _lookup(name: str) -> Field | None:
    head, colon, metric = name.partition(":")
    if colon:
        return FIELDS.get(f"{head.lower()}:METRIC") if metric else None
    return FIELDS.get(ALIASES.get(name.lower(), name.lower()))


def _condition(name: str, operator: str, values: str) -> Condition:
    field = _lookup(name)
    if field is None or "METRIC" in name:
        near = difflib.get_close_matches(name.lower(), [*FIELDS, *ALIASES], n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise CatalogueError(f"There is no field {name!r}.", f"{hint}Known fields: {', '.join(FIELDS)}.")
    if operator not in ("=", "!=") and field.kind not in ("number", "result"):
        raise CatalogueError(f"{name}{operator}{values}: {field.name} is no number.", f"Write {name}= or {name}!=.")
    written = re.findall(_VALUE, values)
    if len(written) > MOST_VALUES:
        raise CatalogueError(
            f"{name}{operator}{values[:40]}... has {len(written):,} values, expected at most {MOST_VALUES}.",
            "Ask in several parts, or with a beginning, such as name=bert*.",
        )
    if len(written) > 1 and operator not in ("=", "!="):
        raise CatalogueError(
            f"{name}{operator}{values}: {operator} takes one value.", f"Write {name}{operator}{written[0]}."
        )
    quoted = frozenset(_unquoted(one) for one in written if one.startswith('"'))
    read = tuple(_value(field, name, operator, one) for one in written)
    metric = name.partition(":")[2]
    exact = frozenset(found for one in quoted if (found := _key(field, one)) is not None)
    return Condition(
        field,
        operator,  # type: ignore[arg-type]
        read,
        metric_key(_unquoted(metric)) if metric else "",
        exact if field.kind in ("word", "words", "path") else frozenset(),
    )


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL) if text.startswith('"') else text


def _key(field: Field, text: str) -> str | None:
    return plain(text)[:LONGEST] if field.kind == "path" else key(text)


def _value(field: Field, name: str, operator: str, written: str) -> Value:
    text = _unquoted(written)
    if text.lower() == "none" and not written.startswith('"'):
        if operator not in ("=", "!="):
            raise CatalogueError(f"{name}{operator}none: nothing is neither more nor less.", f"Write {name}=none.")
        return None
    if field.kind in ("number", "result"):
        return _number(name, operator, text)
    if field.kind == "switch":
        if text.lower() not in _SWITCH:
            raise CatalogueError(
                f"{name}{operator}{text}: {field.name} is yes or no.", f"Write {name}=yes or {name}=no."
            )
        return _SWITCH[text.lower()]
    found = _key(field, text)
    if found is None:
        raise CatalogueError(
            f"{name}{operator}{written} has an empty value.", f"For nothing recorded write {name}=none."
        )
    return found


def _number(name: str, operator: str, text: str) -> float:
    match = _NUMBER.fullmatch(text)
    unit = _UNITS.get(match[2].lower()) if match else None
    value = float(match[1]) * unit if match and unit is not None else math.nan
    if not math.isfinite(value):
        raise CatalogueError(
            f"{name}{operator}{text}: {text!r} is no number.", f"Write {name}{operator}6, 50M, 1.5GB or 90%."
        )
    return value
