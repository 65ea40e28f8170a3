"""What a filter can ask for: every field by name, what kind of value it has, and where the catalogue keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regraft.zoo.catalogue.text import key, last_part
from regraft.zoo.record.record import Record

Kind = Literal["number", "word", "path", "switch", "words", "result"]


@dataclass(frozen=True)
class Field:
    """A field of the filter.

    Args:
        name: What the user writes.
        kind: number; word (one value); path (one value, its case counts); switch (yes or no); words (several values);
            result (`claimed:METRIC`).
        column: The column of `checkpoints`, the kind of `terms`, or the table of results.
        help: A few words.
    """

    name: str
    kind: Kind
    column: str
    help: str


_NUMBERS = {
    "layers": "repeated blocks",
    "hidden_size": "width",
    "heads": "attention heads",
    "kv_heads": "heads of keys and values",
    "ffn_size": "inner width of the feed-forward part",
    "vocabulary_size": "rows of the embedding",
    "max_length": "longest input, in tokens",
    "parameters": "elements of floating-point tensors",
    "encoder_parameters": "those inside the blocks",
    "tensors": "how many",
    "hours": "of training, as the card says",
    "emissions_kg": "CO2 of training, as the card says",
    "energy_kwh": "of training, as the card says",
    "completeness": "share of the documentation that is there, 0 to 1",
}
_WORDS = {
    "kind": "checkpoint, adapter or unreadable",
    "model_type": "of config.json",
    "task": "what the card or the architecture says it does",
    "licence": "SPDX identifier, as the card states it",
    "library": "of the card, or of the layout",
    "tokenizer": "WordPiece, BPE, Unigram or a class",
    "tokenizer_id": "equal for equal tokenizers",
    "hardware": "of training, as the card says",
    "source": "where it was downloaded from: hf:org/name",
    "revision": "the commit of its source",
}
_SWITCHES = {
    "tied": "input and output embeddings are one",
    "licence_conflict": "two places state different licences",
    "deep": "the weights were read",
    "gone": "the folder is no longer there (left out unless asked for)",
}
_TERMS = {
    "name": "org/name, or the last part of it",
    "architecture": "model_type, or a class such as BertModel",
    "tag": "of the card",
    "dataset": "of the card",
    "language": "of the card",
    "label": "of the classification head",
    "dtype": "number format of a tensor",
    "risk": "code, such as pickle",
    "severity": "of a risk: danger, warning or note",
    "section": "of the card",
    "parent": "named by the folder, or found from the weights",
}

FIELDS: dict[str, Field] = {
    field.name: field
    for field in (
        *(Field(name, "words", name, text) for name, text in _TERMS.items()),
        *(Field(name, "word", name, text) for name, text in _WORDS.items()),
        *(Field(name, "number", name, text) for name, text in _NUMBERS.items()),
        Field("bytes", "number", "weight_bytes", "of the tensors"),
        Field("labels", "number", "label_count", "classes of the head"),
        *(Field(name, "switch", name, text) for name, text in _SWITCHES.items()),
        Field("path", "path", "path_key", "the folder"),
        Field("claimed:METRIC", "result", "claims", "a result that the card states, as it is written"),
        Field("measured:METRIC", "result", "measurements", "a result that was measured here"),
    )
}
ALIASES = {"license": "licence", "hidden": "hidden_size", "vocabulary": "vocabulary_size", "weight_bytes": "bytes"}


def terms_of(record: Record) -> set[tuple[str, str]]:
    """(kind, value) of every field of several values that a record has."""
    several: dict[str, tuple[str | None, ...]] = {
        "name": (record.name, last_part(record.name)),
        "architecture": (record.model_type, *record.architectures),
        "tag": record.tags,
        "dataset": record.datasets,
        "language": record.languages,
        "label": record.labels or (),
        "dtype": tuple(record.dtypes),
        "risk": tuple(risk.code for risk in record.risks),
        "severity": tuple(risk.severity for risk in record.risks),
        "section": record.sections,
        "parent": tuple(name for parent in record.parents for name in (parent.name, last_part(parent.name))),
    }
    return {(kind, found) for kind, values in several.items() for value in values if (found := key(value))}
