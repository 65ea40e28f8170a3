"""What differs between two checkpoints, part by part: layers, size of the change in each block, vocabulary, config."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regraft.checkpoint.files import TOKENIZER_LIMIT, read_bytes, read_json
from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.reading import read_raw
from regraft.checkpoint.sampled import decoded
from regraft.errors import CheckpointError
from regraft.zoo.lineage.family import fingerprint
from regraft.zoo.lineage.model import OUTER, Model
from regraft.zoo.lineage.sample import roles_of, sample_of
from regraft.zoo.lineage.thresholds import CHUNK, MATCH

# Of config.json: who wrote it with what; no property of the model.
NOTES = frozenset({"_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "use_cache"})


@dataclass(frozen=True)
class BlockChange:
    """The change of a block or of a tensor outside the blocks.

    Args:
        name: "layer 3" (of the second checkpoint; and which one of the first it was, if another), or the tensor's name.
        relative: Length of the change over the length of the first one's weights, over elements that are finite in both; None
            where either is not there.
        tensors, changed: How many were compared, and in how many some element differs: some byte of them, where both are of one
            number format.
        not_finite: Tensors of the second checkpoint that hold NaN or infinite values where the first one's do not.
        finite: Whether all values of both are.
    """

    name: str
    relative: float | None
    tensors: int
    changed: int
    not_finite: tuple[str, ...] = ()
    finite: bool = True


@dataclass(frozen=True)
class Vocabulary:
    """Tokens that were added and removed, and those with another number."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    moved: tuple[str, ...]
    sizes: tuple[int, int]


def layer_map(first: Model, second: Model) -> dict[int, int] | None:
    """Which layer of the first each layer of the second came from, by number; None where matrices differ in shape.

    Layers are matched by the correlation of their sampled matrices, those with no match are left out.
    """
    roles = sorted(set(roles_of(first)) & set(roles_of(second)))
    if first.signature != second.signature or not roles:
        return None
    deepest = max(len(first.layers), len(second.layers))
    one, other = sample_of(first, roles, deepest), sample_of(second, roles, deepest)
    if not (one.finite and other.finite and one.matrix.any()):
        return None
    mine, theirs = fingerprint(one), fingerprint(other)
    found = theirs @ mine.T
    level = max(MATCH, 6 / np.sqrt(mine.shape[1]))
    return {
        second.layers[row]: first.layers[int(found[row].argmax())]
        for row in range(len(found))
        if found[row].max() >= level
    }


def block_changes(first: Model, second: Model, layers: Mapping[int, int]) -> list[BlockChange]:
    """The change of every block and of every tensor outside the blocks; all elements are read, a part at a time."""
    found = []
    for layer in second.layers:
        origin = layers.get(layer)
        name = f"layer {layer}" if origin in (None, layer) else f"layer {layer} (was {origin})"
        pairs = [] if origin is None else _pairs(first, second, origin, layer)
        found.append(_change(name, pairs))
    outer = sorted(
        {role for layer, role in first.tensors if layer == OUTER} & {r for ly, r in second.tensors if ly == OUTER}
    )
    for role in outer:
        found.append(_change(role, [(first.tensors[OUTER, role], second.tensors[OUTER, role])]))
    for role in sorted(first.heads.keys() & second.heads.keys()):
        found.append(_change(role, [(first.heads[role], second.heads[role])]))
    return found


def _pairs(first: Model, second: Model, origin: int, layer: int) -> list[tuple[TensorInfo, TensorInfo]]:
    return [
        (first.tensors[origin, role], info)
        for (number, role), info in second.tensors.items()
        if number == layer and (origin, role) in first.tensors
    ]


def _change(name: str, pairs: list[tuple[TensorInfo, TensorInfo]]) -> BlockChange:
    pairs = [(one, other) for one, other in pairs if one.shape == other.shape]
    if not pairs:
        return BlockChange(name, None, 0, 0)
    found = [_compared(one, other) for one, other in pairs]
    change, length = (sum(getattr(one, part) for one in found) for part in ("change", "length"))
    return BlockChange(
        name, _relative(change, length), len(pairs),
        sum(one.differs for one in found),
        tuple(other.name for (_, other), one in zip(pairs, found, strict=True) if one.broken),
        all(one.finite for one in found),
    )  # fmt: skip


def _relative(change: float, length: float) -> float | None:
    if length == 0:
        return 0.0 if change == 0 else None
    found = (change / length) ** 0.5
    return found if math.isfinite(found) else None  # float64 values whose squares are too large


@dataclass(frozen=True)
class _Compared:
    """Two tensors: whether an element differs, whether the second lost finite values, whether all are finite; squared lengths."""

    differs: bool
    broken: bool
    finite: bool
    change: float
    length: float


def _compared(one: TensorInfo, other: TensorInfo) -> _Compared:
    """All elements, a part at a time, as float64: it holds every value of every format."""
    change = length = 0.0
    differs, broken, finite = False, False, True
    for start in range(0, one.elements, CHUNK):
        mine, theirs = (read_raw(info, start, start + CHUNK) for info in (one, other))
        a, b = decoded(mine, one.dtype), decoded(theirs, other.dtype)
        good = np.isfinite(a) & np.isfinite(b)
        broken = broken or bool((np.isfinite(a) & ~np.isfinite(b)).any())
        if one.dtype == other.dtype:  # 0.0 and -0.0 are two values, and so are two NaN of other bits
            differs = differs or mine.tobytes() != theirs.tobytes()
        else:
            differs = differs or not np.array_equal(a, b, equal_nan=True)
        if not good.all():
            finite = False
            a, b = a[good], b[good]
        change += float(np.square(b - a).sum())
        length += float(np.square(a).sum())
    return _Compared(differs, broken, finite, change, length)


def vocabulary_of(folder: Path) -> dict[str, int] | None:
    """Tokens and their numbers, of tokenizer.json, vocab.json or vocab.txt; None where there is none to read."""
    try:
        if (folder / "tokenizer.json").exists():
            return _of_tokenizer(read_json(folder / "tokenizer.json", TOKENIZER_LIMIT))
        if (folder / "vocab.json").exists():
            found = read_json(folder / "vocab.json", TOKENIZER_LIMIT)
            return {str(token): int(number) for token, number in found.items()}
        if (folder / "vocab.txt").exists():
            lines = read_bytes(folder / "vocab.txt", TOKENIZER_LIMIT).decode("utf-8", "replace").splitlines()
            return {token: number for number, token in enumerate(lines)}
    except (CheckpointError, AttributeError, TypeError, ValueError):
        return None
    return None


def _of_tokenizer(content: Any) -> dict[str, int] | None:
    model = content.get("model") or {}
    listed = model.get("vocab")
    if isinstance(listed, dict):
        found = {str(token): int(number) for token, number in listed.items()}
    elif isinstance(listed, list):  # Unigram: [token, score]
        found = {str(entry[0]): number for number, entry in enumerate(listed)}
    else:
        return None
    for token in content.get("added_tokens") or ():
        found[str(token["content"])] = int(token["id"])
    return found


def compare_vocabularies(first: dict[str, int] | None, second: dict[str, int] | None) -> Vocabulary | None:
    """What was added, removed and moved; None where either is not there."""
    if first is None or second is None:
        return None
    added = sorted(second.keys() - first.keys(), key=lambda token: (second[token], token))
    removed = sorted(first.keys() - second.keys(), key=lambda token: (first[token], token))
    moved = sorted(
        (token for token in first.keys() & second.keys() if first[token] != second[token]),
        key=lambda token: (first[token], token),
    )
    return Vocabulary(tuple(added), tuple(removed), tuple(moved), (len(first), len(second)))


def config_changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys of config.json with other values: (the first's, the second's), None where it is not there."""
    return {
        key: (first.get(key), second.get(key))
        for key in sorted(first.keys() | second.keys())
        if key not in NOTES and _plain(first.get(key)) != _plain(second.get(key))
    }


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
