"""What README.md, the model card, says: metadata at its head (YAML), and the text after it.

Metadata: the Hub's model card specification (huggingface/hub-docs, modelcard.md). Results are `model-index` entries; emissions
are grams of CO2 equivalent there and kilograms here. Values of another form than the specification's are left out, one by one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from regraft.checkpoint.card import CARD_LIMIT
from regraft.zoo.record.folder import MOST_TEXT, Folder, clean, texts
from regraft.zoo.record.record import Claim, Parent
from regraft.zoo.record.yaml_text import YamlFault, load

CARD = "README.md"
METADATA_LIMIT = 2**20  # characters; the largest known, with the results of hundreds of tests, take a third of it
MOST_CLAIMS = 10_000
RELATIONS = {
    "finetune": "finetune", "finetuned": "finetune", "fine-tune": "finetune", "adapter": "adapter", "merge": "merge",
    "merged": "merge", "quantized": "quantized", "quantised": "quantized",
}  # fmt: skip

_HEAD = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$(.*)\Z", re.DOTALL | re.MULTILINE)
# Possessive: a card is by a stranger, and nothing here may go back over what it has read.
_FIELD = re.compile(
    r"^[ \t]*+[-*+][ \t]*+\**+([A-Za-z][A-Za-z0-9 /()\[\]-]{2,40}?)\**+[ \t]*+:[ \t]*+\**+[ \t]*+(\S.*+)$", re.MULTILINE
)
_NUMBER = re.compile(r"[-+]?[0-9][0-9,]*(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
PLACEHOLDER = re.compile(r"\[?more information needed\]?", re.IGNORECASE)


@dataclass(frozen=True)
class Card:
    """A model card: its metadata as a mapping, and the text without it. Both empty where there is no card."""

    metadata: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    name: str | None = None


def read_card(folder: Folder) -> Card:
    """The card of a folder, in whatever encoding; a fault in its metadata is a risk, and the text is read all the same."""
    name = next((name for name in folder.names() if name.lower() == "readme.md"), None)
    data = folder.read(name, CARD_LIMIT) if name is not None else None
    if name is None or data is None:
        return Card()
    text = decoded(data)
    match = _HEAD.match(text)
    if match is None:
        return Card({}, text, name)
    if len(match[1]) > METADATA_LIMIT:
        folder.risk("too-large", "warning", name, f"Its metadata takes {len(match[1]):,} characters and was not read.")
        return Card({}, match[2], name)
    try:
        metadata = load(match[1])
    except YamlFault as error:
        folder.risk("broken-card", "warning", name, f"Its metadata cannot be read: {error}.")
        return Card({}, match[2], name)
    if metadata is not None and not isinstance(metadata, dict):
        folder.risk("broken-card", "warning", name, "Its metadata is no mapping of names to values.")
    return Card(metadata if isinstance(metadata, dict) else {}, match[2], name)


def decoded(data: bytes) -> str:
    """Text in UTF-8, with a mark or without, in UTF-16 with a mark, or else in Latin-1, which takes any bytes."""
    for mark, encoding in (
        (b"\xef\xbb\xbf", "utf-8-sig"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
        (b"", "utf-8"),
    ):
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError:
                continue
    return data.decode("latin-1")


def claims_of(metadata: Mapping[str, Any]) -> tuple[Claim, ...]:
    """Every result of `model-index` that has a metric and a finite number."""
    found: list[Claim] = []
    for result in _entries(metadata, "model-index", "results"):
        task, dataset = _mapping(result.get("task")), _mapping(result.get("dataset"))
        for metric in _list(result.get("metrics")):
            about = _mapping(metric)
            name, value = clean(about.get("type")) or clean(about.get("name")), number(about.get("value"))
            if name is not None and value is not None and len(found) < MOST_CLAIMS:
                found.append(Claim(
                    clean(task.get("type")) or clean(task.get("name")),
                    clean(dataset.get("type")) or clean(dataset.get("name")),
                    clean(dataset.get("split")), name, value,
                ))  # fmt: skip
    return tuple(found)


def parents_of(metadata: Mapping[str, Any]) -> list[Parent]:
    """`base_model`, one or several, with `base_model_relation` where it is one that the Hub knows."""
    relation = RELATIONS.get(str(clean(metadata.get("base_model_relation"))).lower())
    return [Parent(name, relation) for name in texts(metadata.get("base_model"))]


@dataclass(frozen=True)
class Training:
    """What training took, as the card states it."""

    hardware: str | None = None
    hours: float | None = None
    emissions_kg: float | None = None
    energy_kwh: float | None = None


def training_of(card: Card) -> Training:
    """`co2_eq_emissions`: a number of grams, or a mapping (emissions, energy_consumed in kWh, hours_used, hardware_used).

    Where the metadata is silent: the lines "Hardware Type", "Hours used" and "Carbon Emitted" of the Hub's template; emissions
    only with their unit.
    """
    stated = card.metadata.get("co2_eq_emissions")
    about = stated if isinstance(stated, dict) else {"emissions": stated}
    lines = {
        key.strip().lower(): value[:MOST_TEXT]
        for key, value in _FIELD.findall(card.text)
        if not PLACEHOLDER.search(value[:MOST_TEXT])
    }
    grams = number(about.get("emissions"))
    hours = number(about.get("hours_used"))
    hours = _first_number(lines.get("hours used")) if hours is None else hours
    return Training(
        clean(about.get("hardware_used")) or clean(lines.get("hardware type")),
        hours,
        grams / 1000 if grams is not None else _kilograms(lines.get("carbon emitted")),
        number(about.get("energy_consumed")),
    )


def number(value: Any) -> float | None:
    """A finite number; text counts when it is a number, with a percent sign or without."""
    if isinstance(value, str):
        text = value.strip().removesuffix("%").strip()
        value = text.replace(",", "") if _NUMBER.fullmatch(text) else None
    if value is None or isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _first_number(text: str | None) -> float | None:
    match = _NUMBER.search(text or "")
    return number(match[0]) if match else None


def _kilograms(text: str | None) -> float | None:
    match = re.search(rf"({_NUMBER.pattern})\s*(kg|g|grams?|kilograms?|t|tons?|tonnes?)\b", text or "", re.IGNORECASE)
    if match is None:
        return None
    value, unit = number(match[1]), match[2].lower()
    scale = 1.0 if unit.startswith("k") else 1000.0 if unit.startswith("t") else 0.001
    return None if value is None else value * scale


def _entries(metadata: Mapping[str, Any], key: str, below: str) -> Iterator[Mapping[str, Any]]:
    for entry in _list(metadata.get(key)):
        for one in _list(_mapping(entry).get(below)):
            yield _mapping(one)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
