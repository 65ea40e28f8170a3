"""Which checkpoints are the first layers of another, so that one pass of the deepest serves them all.

Truncations of one folder are; and so are folders of their own whose tokenizer, config and tensors say so: all tensors of the
blocks and around them equal, byte for byte, the config but for the number of layers. Bytes are compared only where headers
and the smallest tensor of the first layer agree, and hashes are those that the identity of a checkpoint needs anyway.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress

from regraft.checkpoint import Checkpoint
from regraft.checkpoint.blocks import block_of, in_blocks, truncated_config
from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.identity import function_of_config, weights_id
from regraft.errors import CheckpointError

# What comes after the last layer: no feature depends on it.
_AFTER = re.compile(r"(?:^|\.)(?:pooler|classifier|score|cls|lm_head|qa_outputs|vocab_\w+|pre_classifier)\.|^[0-9]+_")

# By file identities: whether the first is the leading layers of the second.
_known: dict[tuple[str, str], bool] = {}


def shared_passes(checkpoints: Sequence[Checkpoint]) -> Mapping[tuple[object, ...], list[Checkpoint]]:
    """Checkpoints grouped by the encoder they are the first layers of, the deepest of a group first."""
    groups: dict[tuple[object, ...], list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        alone = _alone(checkpoint)
        base = checkpoint.name if alone else str(checkpoint.folder.resolve())
        groups.setdefault((base, alone), []).append(checkpoint)
    for group in groups.values():
        group.sort(key=lambda checkpoint: -checkpoint.num_layers)
    for key in sorted(groups, key=lambda key: groups[key][0].num_layers):
        whole = next((other for other in groups if other != key and is_leading(groups[key][0], groups[other][0])), None)
        if whole is not None:
            groups[whole] = sorted([*groups[whole], *groups.pop(key)], key=lambda checkpoint: -checkpoint.num_layers)
    return groups


def is_leading(short: Checkpoint, whole: Checkpoint) -> bool:
    """Whether a checkpoint of another folder is, by its files, the first layers of a deeper one.

    What the files do not tell (a norm after the last layer) is for a trial to find out.
    """
    if _alone(short) or _alone(whole) or short.model_type != whole.model_type or short.num_layers >= whole.num_layers:
        return False
    with suppress(
        OSError, CheckpointError
    ):  # what cannot be read is nobody's first layers; reading it says what is wrong
        key = (short.file_id, whole.file_id)
        if key not in _known:
            _known[key] = _same_function(short, whole) and _same_tensors(short, whole)
        return _known[key]
    return False


def _alone(checkpoint: Checkpoint) -> bool:
    return checkpoint.random is not None or checkpoint.adapter is not None


def _same_function(short: Checkpoint, whole: Checkpoint) -> bool:
    """Tokenizer, length, and the config but for the number of layers."""
    cut = truncated_config(whole.stock_config.to_dict(), short.num_layers, whole.num_layers)
    return (
        function_of_config(cut, {}) == function_of_config(short.stock_config.to_dict(), {})
        and short.max_length == whole.max_length
        and short.tokenizer_id == whole.tokenizer_id
    )


def _same_tensors(short: Checkpoint, whole: Checkpoint) -> bool:
    mine = _tensors(short, short.num_layers)
    theirs = _tensors(whole, short.num_layers)
    if {name: (one.dtype, one.shape) for name, one in mine.items()} != {
        name: (one.dtype, one.shape) for name, one in theirs.items()
    }:
        return False
    first = min((name for name in mine if in_blocks(name)), key=lambda name: (mine[name].nbytes, name), default=None)
    if first is None or _bytes(mine[first]) != _bytes(theirs[first]):
        return False
    return weights_id(mine) == weights_id(theirs)


def _tensors(checkpoint: Checkpoint, layers: int) -> dict[str, TensorInfo]:
    """Tensors of the first layers and around them, without what comes after the last."""
    return {
        name: one for name, one in checkpoint.tensors.items()
        if not _AFTER.search(name) and ((number := block_of(name)) is None or number < layers)
    }  # fmt: skip


def _bytes(tensor: TensorInfo) -> bytes:
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        return file.read(tensor.nbytes)
