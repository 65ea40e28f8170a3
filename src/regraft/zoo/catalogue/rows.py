"""Records as JSON, and as the rows of the tables."""

from __future__ import annotations

import json
import time
import types
import typing
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from typing import Any

from regraft.zoo.catalogue.fields import terms_of
from regraft.zoo.catalogue.text import finite, key, last_part, metric_key, path_key, plain, whole, words_of
from regraft.zoo.record.record import READER, Record


def to_json(record: Record) -> str:
    """A record as JSON text, in ASCII: what is no Unicode survives as an escape."""
    return json.dumps(asdict(record), separators=(",", ":"), default=str)


def from_json(text: str) -> Record:
    """The record of `to_json`; fields that a newer Regraft added are passed over, those that it lacks get their default."""
    record: Record = _maker(Record)(json.loads(text))
    return record


@cache
def _maker(kind: Any) -> Any:
    """What makes a value of a field's type of plain JSON (dataclasses, tuples, mappings, optional or not); None: it is one."""
    if is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        makers = {field.name: _maker(hints[field.name]) for field in fields(kind)}

        def made(given: dict[str, Any]) -> Any:
            return kind(**{
                name: value if value is None or makers[name] is None else makers[name](value)
                for name, value in given.items() if name in makers
            })  # fmt: skip

        return made
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [one for one in typing.get_args(kind) if one is not type(None)]
        return _maker(inner[0]) if len(inner) == 1 else None
    if origin is tuple:
        inside = _maker(typing.get_args(kind)[0])
        return tuple if inside is None else lambda values: tuple(map(inside, values))
    return None


def checkpoint_row(record: Record, *, deep: bool) -> dict[str, Any]:
    """The row of `checkpoints`, without its id."""
    now = time.time()
    return {
        "path_key": path_key(record.path),
        "name_key": key(record.name) or "",
        "last_key": key(last_part(record.name)) or "",
        "file_id": record.file_id,
        **{name: key(getattr(record, name)) for name in
           ("kind", "model_type", "task", "library", "tokenizer", "tokenizer_id", "hardware", "source", "revision")},
        "licence": key(record.licence.stated),
        **{name: whole(getattr(record, name)) for name in
           ("layers", "hidden_size", "heads", "kv_heads", "ffn_size", "vocabulary_size", "max_length", "parameters",
            "encoder_parameters", "weight_bytes", "tensors")},
        "label_count": None if record.labels is None else len(record.labels),
        **{name: finite(getattr(record, name)) for name in ("completeness", "hours", "emissions_kg", "energy_kwh")},
        "tied": record.tied,
        "licence_conflict": record.licence.conflict,
        "deep": deep,
        "gone": False,
        "indexed_at": now,
        "first_seen": now,
        "reader": READER,
    }  # fmt: skip


def record_row(number: int, record: Record) -> dict[str, Any]:
    """The row of `records`."""
    return {
        "checkpoint_id": number, "name": plain(record.name), "path": plain(record.path), "record": to_json(record),
    }  # fmt: skip


def term_rows(number: int, record: Record) -> list[dict[str, Any]]:
    """The rows of `terms`."""
    return [{"kind": kind, "value": value, "checkpoint_id": number} for kind, value in sorted(terms_of(record))]


def claim_rows(number: int, record: Record) -> list[dict[str, Any]]:
    """The rows of `claims`; a value that is no number stays in the record alone."""
    return [
        {"checkpoint_id": number, "metric_key": metric_key(claim.metric), "value": claim.value}
        for claim in record.claims if finite(claim.value) is not None
    ]  # fmt: skip


def risk_rows(number: int, record: Record) -> list[dict[str, Any]]:
    """The rows of `risks`."""
    return [
        {"checkpoint_id": number, "severity": risk.severity, "code": key(risk.code) or "",
         "place": plain(risk.where), "problem": plain(risk.problem)} for risk in record.risks
    ]  # fmt: skip


def edge_rows(number: int, record: Record) -> list[dict[str, Any]]:
    """The rows of `edges` that the folder itself states; their `parent_id` is looked up later (`lineage.relink`)."""
    found = {}
    for parent in record.parents:
        named, relation = key(parent.name), key(parent.relation) or ""
        if named not in (None, key(record.name)):  # a card that names itself names no parent
            found[named, relation] = {
                "child_id": number, "parent": plain(parent.name), "parent_key": named,
                "parent_last": key(last_part(parent.name)), "relation": relation, "source": "stated", "evidence": "",
            }  # fmt: skip
    return list(found.values())


def word_row(number: int, record: Record) -> dict[str, Any]:
    """What the search looks through: the name's words; those of tags, datasets, languages, task and parents as well."""
    name = words_of(record.name)
    rest = (*record.tags, *record.datasets, *record.languages, record.task or "", record.model_type or "")
    anywhere = dict.fromkeys([*name, *(word for text in rest for word in words_of(text))])
    return {"id": number, "name": list(dict.fromkeys(name)), "anywhere": list(anywhere)}
