"""What changed between two checkpoints, in words, and what its version should be called.

The version follows Ajibode et al. (2025), Towards semantic versioning of open pre-trained language model releases on Hugging
Face, arXiv 2409.10472, who found that 40.87 % of changes of weights leave no trace in name or documentation: **major** where
what goes in or comes out changes (architecture, tokenizer, labels), **minor** where only weights do, **patch** where only
metadata does. A change of weights that neither name nor card mentions is said to be undocumented.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regraft.checkpoint.ancestry import ancestry
from regraft.checkpoint.checkpoint import Checkpoint
from regraft.checkpoint.reference import exists
from regraft.checkpoint.weights import let_go, open_weights
from regraft.zoo.lineage.changes import (
    BlockChange,
    Vocabulary,
    block_changes,
    compare_vocabularies,
    config_changes,
    layer_map,
    vocabulary_of,
)
from regraft.zoo.lineage.kinds import kind_of
from regraft.zoo.lineage.model import Model, model_of
from regraft.zoo.lineage.version import bump_of, some, tokenizer_words, undocumented
from regraft.zoo.record.read import read_record
from regraft.zoo.record.record import Record

_LABELS = frozenset({"id2label", "label2id", "num_labels", "problem_type"})


@dataclass(frozen=True)
class Diff:
    """What changed from one checkpoint to another.

    Args:
        first, second: Their names.
        related: Whether the independence test calls them related; None where there was too little to test.
        p_value: Of that test.
        layers: What happened to the layers, in words; empty where they are the same.
        blocks: The change of each block and tensor outside them.
        relation: What the change of weights looks like, as for an edge; None where shapes do not agree or nothing changed.
        relation_words: What speaks for it.
        vocabulary: None where either has none that can be read.
        tokenizer: Whether text becomes other ids, as it does where one of them has no tokenizer; None where neither has one.
        tokenizer_ids: Before and after (see `Record`); None where there is no tokenizer that can be read.
        config: Keys of config.json: (before, after).
        dtypes: Number formats before and after.
        labels: Before and after.
        heads: Names of head tensors added, and removed.
        licences: Before and after, as the cards state them.
        bump: "major", "minor", "patch" or "none".
        reason: Why.
        undocumented: What changed without a word in name or card.
    """

    first: str
    second: str
    related: bool | None
    p_value: float | None
    layers: tuple[str, ...]
    blocks: tuple[BlockChange, ...]
    relation: str | None
    relation_words: str
    vocabulary: Vocabulary | None
    tokenizer: bool | None
    tokenizer_ids: tuple[str | None, str | None]
    config: Mapping[str, tuple[Any, Any]]
    dtypes: tuple[str, str]
    labels: tuple[tuple[str, ...] | None, tuple[str, ...] | None]
    heads: tuple[tuple[str, ...], tuple[str, ...]]
    licences: tuple[str | None, str | None]
    bump: str
    reason: str
    undocumented: tuple[str, ...]

    @property
    def weights_changed(self) -> bool:
        """Whether any weight that both have differs, or one has weights that the other has not."""
        return any(one.changed or one.relative is None for one in self.blocks) or bool(self.layers or any(self.heads))

    @property
    def not_finite(self) -> tuple[str, ...]:
        """Tensors that hold NaN or infinite values which the first checkpoint's do not."""
        return tuple(name for one in self.blocks for name in one.not_finite)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "config": {key: list(pair) for key, pair in self.config.items()}}

    def words(self) -> list[str]:
        """A line for each thing that changed, the version last."""
        found = list(self.layers)
        moved = [one for one in self.blocks if one.changed]
        if moved:
            known = [one for one in moved if one.relative is not None]
            most = max(known, key=lambda one: one.relative or 0.0, default=moved[0])
            found.append(
                f"Weights: {len(moved)} of {len(self.blocks)} blocks and outer tensors changed, most {most.name} "
                f"({most.relative or 0.0:.3g} of its length)"
                + (f"; it looks {self.relation}: {self.relation_words}." if self.relation else ".")
            )
        elif not self.weights_changed:
            found.append("Weights: equal.")
        if self.not_finite:
            found.append(
                f"Not finite: {len(self.not_finite)} tensors hold NaN or infinite values now ({some(self.not_finite)})."
            )
        if self.related is False:
            found.append(f"The two do not descend from one another (independence test: p = {self.p_value:.2g}).")
        if any(self.heads):
            found.append(f"Heads: added {some(self.heads[0])}; removed {some(self.heads[1])}.")
        if self.labels[0] != self.labels[1]:
            found.append(f"Labels: {_labels(self.labels[0])} became {_labels(self.labels[1])}.")
        if self.vocabulary is not None and (self.vocabulary.added or self.vocabulary.removed or self.vocabulary.moved):
            one = self.vocabulary
            found.append(
                f"Vocabulary: {one.sizes[0]:,} became {one.sizes[1]:,} tokens; {len(one.added):,} added "
                f"({some(one.added)}), {len(one.removed):,} removed ({some(one.removed)}), {len(one.moved):,} moved."
            )
        elif self.tokenizer and None in self.tokenizer_ids:
            found.append(f"Tokenizer: {tokenizer_words(self.tokenizer_ids)}.")
        elif self.tokenizer:
            found.append("Tokenizer: text is cut in another way, with the same tokens.")
        for key, (before, after) in self.config.items():
            found.append(f"Config: {key} was {_short(before)}, is {_short(after)}.")
        if self.dtypes[0] != self.dtypes[1]:
            found.append(f"Number format: {self.dtypes[0]} became {self.dtypes[1]}.")
        if self.licences[0] != self.licences[1]:
            found.append(f"Licence: {self.licences[0] or 'none stated'} became {self.licences[1] or 'none stated'}.")
        found += [f"Undocumented: {one}" for one in self.undocumented]
        found.append(f"Version: {self.bump} ({self.reason}).")
        return found


def diff(first: Checkpoint | str | os.PathLike[str], second: Checkpoint | str | os.PathLike[str]) -> Diff:
    """What changed from the first checkpoint to the second; all weights are read, a part at a time.

    Args:
        first: A folder, a reference to a checkpoint (`pip:...`, `builtin:minilm`), or an opened checkpoint; the older one.
        second: The newer one.

    Raises:
        BadReferenceError: A reference cannot be read or found.
        CheckpointError: A file is missing, damaged, or of a kind that cannot be computed here.
    """
    try:
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is said in words
            return _diff(_opened(first), _opened(second))
    finally:
        let_go()


@dataclass(frozen=True)
class _One:
    model: Model
    record: Record
    config: Mapping[str, Any]
    encoder_folder: Path


def _opened(checkpoint: Checkpoint | str | os.PathLike[str]) -> _One:
    if isinstance(checkpoint, Checkpoint):
        folder, encoder, config, tensors = (
            checkpoint.folder, checkpoint.encoder_folder, checkpoint.config, checkpoint.tensors,
        )  # fmt: skip
        key = checkpoint.name
    else:
        text = os.fspath(checkpoint)
        opened = open_weights(str(Path(text).expanduser()) if exists(text) else text)
        folder, encoder, config, tensors = (
            opened.folder,
            opened.encoder_folder,
            dict(opened.config),
            dict(opened.tensors),
        )
        key = folder.name
    record = read_record(folder)
    names = frozenset({key, record.name, str(folder), str(folder.resolve()), folder.name})
    stated = tuple(parent.name for parent in record.parents)
    return _One(model_of(key, names, dict(tensors), stated), record, config, encoder)


def _diff(first: _One, second: _One) -> Diff:
    one, other = first.model, second.model
    layers = layer_map(one, other)
    straight = {layer: layer for layer in other.layers if layer in one.layers}
    mapped = straight if layers is None else layers
    tested = ancestry(_cut(one, set(mapped.values()), {}), _cut(other, set(mapped), mapped)) if mapped else None
    blocks = tuple(block_changes(one, other, mapped if layers else straight))
    pairs = [
        (f"{layer}.{role}", one.tensors[mapped[layer], role], info)
        for (layer, role), info in other.tensors.items()
        if layer in mapped and (mapped[layer], role) in one.tensors
        and one.tensors[mapped[layer], role].shape == info.shape
    ]  # fmt: skip
    finite = all(block.finite for block in blocks)
    kind = kind_of(pairs) if any(block.changed for block in blocks) and pairs and layers and finite else None
    vocabulary = compare_vocabularies(vocabulary_of(first.encoder_folder), vocabulary_of(second.encoder_folder))
    ids = (first.record.tokenizer_id, second.record.tokenizer_id)
    config = config_changes(first.config, second.config)
    made = Diff(
        first=one.key,
        second=other.key,
        related=None if tested is None else tested.related,
        p_value=None if tested is None else tested.p_value,
        layers=tuple(_layer_words(one, other, layers)),
        blocks=blocks,
        relation=None if kind is None else kind.relation,
        relation_words="" if kind is None else kind.words,
        vocabulary=vocabulary,
        tokenizer=None if ids == (None, None) else ids[0] != ids[1],
        tokenizer_ids=ids,
        config={key: pair for key, pair in config.items() if key not in _LABELS},
        dtypes=(_dtypes(one), _dtypes(other)),
        labels=(first.record.labels, second.record.labels),
        heads=(
            tuple(sorted(other.heads.keys() - one.heads.keys())),
            tuple(sorted(one.heads.keys() - other.heads.keys())),
        ),
        licences=(first.record.licence.stated, second.record.licence.stated),
        bump="none",
        reason="",
        undocumented=(),
    )
    bump, reason = bump_of(made)
    silent = undocumented(made, (first.model, first.record.name), (second.model, second.record.name))
    return Diff(**{**vars(made), "bump": bump, "reason": reason, "undocumented": silent})


def _cut(model: Model, kept: set[int], renamed: Mapping[int, int]) -> dict[str, Any]:
    """Tensors of some layers under names that agree."""
    return {
        role.replace("*", str(renamed.get(layer, layer))): info
        for (layer, role), info in model.tensors.items()
        if layer in kept
    }


def _layer_words(first: Model, second: Model, layers: Mapping[int, int] | None) -> list[str]:
    if layers is None:
        if first.signature == second.signature:
            return []
        return ["Layers: their matrices have other names or shapes; nothing of them can be compared."]
    found = []
    lost = [layer for layer in first.layers if layer not in layers.values()]
    new = [layer for layer in second.layers if layer not in layers]
    order = [layers[layer] for layer in second.layers if layer in layers]
    twice = sorted({layer for layer in order if order.count(layer) > 1})
    if lost and not (new and len(first.layers) == len(second.layers)):
        found.append(f"Layers: {len(first.layers)} became {len(second.layers)}; cut: {_numbers(lost)}.")
    elif lost:
        found.append(f"Layers: {_numbers(new)} have nothing in common with {_numbers(lost)} of the first.")
    if new and not lost:
        found.append(f"Layers: {len(first.layers)} became {len(second.layers)}; added: {_numbers(new)}.")
    if twice:
        found.append(f"Layers: repeated: {_numbers(twice)}.")
    if [one for one in order if one not in twice] != sorted(one for one in order if one not in twice):
        found.append(f"Layers: reordered: {_numbers(order)}.")
    return found


def _dtypes(model: Model) -> str:
    return ", ".join(sorted({info.dtype for info in model.tensors.values()}))


def _labels(labels: tuple[str, ...] | None) -> str:
    return "none" if labels is None else f"{len(labels)} ({some(labels)})"


def _numbers(layers: list[int]) -> str:
    return ", ".join(map(str, layers))


def _short(value: Any) -> str:
    text = "not there" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
