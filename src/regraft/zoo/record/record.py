"""The record of a checkpoint: what a catalogue keeps of it, in one schema whatever hub or tool the folder comes from.

The fields are the ones that reusers were found to look for and that registries of different hubs share (Jiang et al. 2023,
arXiv 2303.08934, PTMTorrent; Jiang et al. 2024, arXiv 2401.00699, PeaTMOSS). A field that a folder says nothing of is None or
empty: nothing is guessed. All of it is plain data; reading it runs nothing of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# Of what `read_record` makes of a folder: raised when that changes, so that catalogues read what they hold again.
READER = 3

Kind = Literal["checkpoint", "adapter", "unreadable"]
Severity = Literal["danger", "warning", "note"]


@dataclass(frozen=True)
class FileFact:
    """A file of the folder: its name below it, bytes, and time of change in nanoseconds."""

    name: str
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Claim:
    """A result that the card states; `value` as stated, not checked. Percentages stay as they are written."""

    task: str | None
    dataset: str | None
    split: str | None
    metric: str
    value: float


@dataclass(frozen=True)
class Licence:
    """The licence as each place states it, in SPDX identifiers where they can be recognised, and what follows.

    `conflict` is set where two places name different licences; `stated` is then the card's.
    """

    stated: str | None = None
    card: str | None = None
    config: str | None = None
    file: str | None = None
    conflict: bool = False


@dataclass(frozen=True)
class Parent:
    """A parent that the folder itself names: relation is finetune, adapter, merge, quantized, or None where it is not said."""

    name: str
    relation: str | None = None


@dataclass(frozen=True)
class Risk:
    """Something that a user should know before using the checkpoint.

    `code` is a stable word ("pickle", "code", "nan", "dead-layer", "missing-file", "licence-conflict", ...), `where` a file or
    tensor, `problem` a sentence.
    """

    code: str
    severity: Severity
    where: str
    problem: str


@dataclass(frozen=True)
class Record:
    """See the head of this file.

    Args:
        path: The absolute folder.
        name: Its short name: org/name of a Hub cache, else the folder's name.
        kind: What it is; "unreadable" has a risk that says why.
        file_id: Hash of its files' names, sizes and times of change: tells whether it changed, never equality.
        files: Every regular file, by name.
        model_type, architectures: Of config.json.
        layers, hidden_size, heads, kv_heads, ffn_size, vocabulary_size, max_length: Of config.json, under one name each.
        parameters, encoder_parameters: Elements of floating-point tensors; those inside the repeated blocks.
        weight_bytes: Bytes of the tensors.
        dtypes: Bytes of tensors by number format.
        tensors: How many.
        tied: Whether input and output embeddings are one.
        tokenizer_id: Hash of what decides how text becomes ids; equal for equal tokenizers.
        tokenizer: Its class or kind (WordPiece, BPE, Unigram), where it can be told.
        labels: Of a classification head, in the order of its logits.
        task: The pipeline that the card names, or that the architecture implies.
        languages, tags, datasets: Of the card.
        licence: See `Licence`.
        source, revision: Where it was downloaded from (hf:org/name), and which commit of it.
        parents: Named by the card, adapter config, merge record, or provenance of ours.
        claims: Results that the card states.
        hardware, hours, emissions_kg, energy_kwh: Of training, as the card states (co2_eq_emissions and the like).
        sections: Which of the sections that a card should have are there (intended use, limits, data, evaluation, ...).
        completeness: The share of documentation fields that are filled, 0 to 1.
        library: Of the card, or of the layout.
        risks: Found without reading weights.
        extra: Facts of one hub only (downloads, likes), by name.
    """

    path: str
    name: str
    kind: Kind
    file_id: str
    files: tuple[FileFact, ...] = ()
    model_type: str | None = None
    architectures: tuple[str, ...] = ()
    layers: int | None = None
    hidden_size: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    ffn_size: int | None = None
    vocabulary_size: int | None = None
    max_length: int | None = None
    parameters: int | None = None
    encoder_parameters: int | None = None
    weight_bytes: int | None = None
    dtypes: Mapping[str, int] = field(default_factory=dict)
    tensors: int | None = None
    tied: bool | None = None
    tokenizer_id: str | None = None
    tokenizer: str | None = None
    labels: tuple[str, ...] | None = None
    task: str | None = None
    languages: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    licence: Licence = field(default_factory=Licence)
    parents: tuple[Parent, ...] = ()
    source: str | None = None
    revision: str | None = None
    claims: tuple[Claim, ...] = ()
    hardware: str | None = None
    hours: float | None = None
    emissions_kg: float | None = None
    energy_kwh: float | None = None
    sections: tuple[str, ...] = ()
    completeness: float = 0.0
    library: str | None = None
    risks: tuple[Risk, ...] = ()
    extra: Mapping[str, str | float] = field(default_factory=dict)
