"""Checkpoints as lineage sees them: tensors under names that do not depend on the class they were saved from.

`bert.encoder.layer.3.output.dense.weight` of a classifier and `encoder.layer.3.output.dense.weight` of an encoder are one
tensor: what leads the names of blocks and embeddings alike is dropped, and the layer's number is kept apart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from regraft.checkpoint.blocks import block_of, in_blocks
from regraft.checkpoint.checkpoint import Checkpoint
from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.weights import FLOATS, open_weights
from regraft.errors import RegraftError
from regraft.progress import Progress
from regraft.zoo.record.read import read_record

OUTER = -1  # the "layer" of what is outside the repeated blocks

_NUMBER = re.compile(r"((?:^|\.)(?:layers?|h|blocks?)\.)[0-9]+\.")
_EMBEDDING = re.compile(r"embed|(?:^|\.)wte\.|(?:^|\.)wpe\.")
_BUFFER = re.compile(r"(?:^|\.)(?:attn\.bias|attn\.masked_bias|attention\.masked_bias|inv_freq|position_ids)$")
_HEAD = re.compile(
    r"(?:^|\.)(?:pooler|classifier|pre_classifier|score|cls|lm_head|qa_outputs|predictions|vocab_\w+|[0-9]+_[A-Z]\w*)(?:\.|$)"
)
Place = tuple[int, str]  # layer or OUTER, and the name without the layer's number


@dataclass(frozen=True)
class Model:
    """A checkpoint's floating-point tensors by place; heads (and poolers) apart, for a new task replaces them.

    Args:
        key: What the caller knows it by.
        names: What a card may call it.
        tensors: Of blocks, embeddings and final norms.
        heads: The others, by their own names.
        stated: Parents that the card names.
    """

    key: str
    names: frozenset[str]
    tensors: Mapping[Place, TensorInfo]
    heads: Mapping[str, TensorInfo]
    stated: tuple[str, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """The numbers of the repeated blocks; (0,) for blocks that have none (ALBERT)."""
        return tuple(sorted({layer for layer, _ in self.tensors if layer != OUTER}))

    @property
    def signature(self) -> frozenset[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the blocks' matrices: equal for descendants, cut or not."""
        return frozenset(
            (role, info.shape)
            for (layer, role), info in self.tensors.items()
            if layer != OUTER and len(info.shape) == 2
        )


def open_models(
    checkpoints: Sequence[Checkpoint | str | os.PathLike[str]],
    stated: Mapping[str, Sequence[str]] | None,
    progress: Progress,
) -> list[Model]:
    """The checkpoints that have weights of their own, sorted by key; headers and cards only.

    Adapters over a base and random initialisations have none and are left out, and so is what cannot be opened: it is said.
    """
    found: dict[str, Model] = {}
    for checkpoint in checkpoints:
        key = checkpoint.reference if isinstance(checkpoint, Checkpoint) else os.fspath(checkpoint)
        try:
            model = _open(checkpoint, key, None if stated is None else tuple(stated.get(key, ())))
        except (RegraftError, OSError) as error:
            progress.say(f"lineage leaves out {key}: {error}")
            continue
        if model is None or not model.signature:
            progress.say(f"lineage leaves out {key}: no matrices of its own inside repeated blocks.")
            continue
        found[key] = model
    return [found[key] for key in sorted(found)]


def _open(checkpoint: Checkpoint | str | os.PathLike[str], key: str, stated: tuple[str, ...] | None) -> Model | None:
    if isinstance(checkpoint, Checkpoint):
        if checkpoint.random is not None or checkpoint.adapter is not None:
            return None
        names = {key, checkpoint.name, str(checkpoint.folder), checkpoint.folder.name}
        parents = checkpoint.parents if stated is None else stated
        return model_of(key, frozenset(names), checkpoint.tensors, parents)
    folder = Path(checkpoint).expanduser()
    opened = open_weights(str(folder))
    record = read_record(folder)
    names = {key, str(folder.resolve()), folder.name, record.name}
    if stated is None:
        stated = tuple(parent.name for parent in record.parents)
    return model_of(key, frozenset(names), opened.tensors, stated)


def model_of(key: str, names: frozenset[str], tensors: Mapping[str, TensorInfo], stated: tuple[str, ...]) -> Model:
    """Sort tensors into places and heads."""
    prefix = prefix_of(tensors)
    body: dict[Place, TensorInfo] = {}
    heads: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        if info.dtype not in FLOATS or not info.elements or _BUFFER.search(name):
            continue
        inside = in_blocks(name)
        if not inside and (_HEAD.search(name) or not name.startswith(prefix)):
            heads[name.removeprefix(prefix)] = info
            continue
        layer = (block_of(name) or 0) if inside else OUTER
        body[layer, _NUMBER.sub(r"\1*.", name.removeprefix(prefix), count=1)] = info
    return Model(key, names, body, heads, stated)


def prefix_of(names: Mapping[str, TensorInfo]) -> str:
    """What leads the names of all blocks and all embeddings alike: "bert.", "model.", or nothing."""
    core = [name for name in names if in_blocks(name) or (_EMBEDDING.search(name) and not _HEAD.search(name))]
    if not any(not in_blocks(name) for name in core):
        return ""
    prefix = ""
    while core:
        leading = {name.removeprefix(prefix).partition(".")[0] for name in core}
        if len(leading) != 1 or not all("." in name.removeprefix(prefix) for name in core):
            break
        prefix += f"{leading.pop()}."
    return prefix


def names_parent(child: Model, parent: Model) -> bool:
    """Whether the child's card names the parent: by path, by name, or by the last part of a name."""
    for stated in child.stated:
        last = stated.replace("\\", "/").rstrip("/").split("/")[-1]
        if stated in parent.names or last in parent.names:
            return True
    return False
