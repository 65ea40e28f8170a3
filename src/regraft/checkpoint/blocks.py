"""The repeated blocks of an encoder: which tensors belong to which layer, and how a config counts them.

Names of layer 3: `bert.encoder.layer.3.attention...`, `h.3.attn...`, `layers.3.mlp...`, `encoder.block.3...`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

_BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.([0-9]+)\.")
# ALBERT runs one group of layers again and again: its parameters are repeated, its tensors are not.
_SHARED = re.compile(r"(?:^|\.)albert_layer_groups\.[0-9]+\.")
# Masks and tables that old files store among the weights; no one trains them.
_BUFFERS = re.compile(r"(?:^|\.)(?:attn\.bias|attn\.masked_bias|attention\.masked_bias|inv_freq|position_ids)$")

# What the last module of a table of embeddings is called.
_TABLE = re.compile(
    r"wte|wpe|shared|embed_in|embed_tokens\w*|embed_positions|tokens_embed|positions_embed|relative_attention_bias"
    r"|\w*embeddings?"
)


def block_of(name: str) -> int | None:
    """The layer that a tensor belongs to; None for embeddings, final norms, poolers and heads."""
    match = _BLOCK.search(name)
    return int(match[1]) if match else None


def in_blocks(name: str) -> bool:
    """Whether a tensor is inside the repeated blocks, shared ones included."""
    return block_of(name) is not None or _SHARED.search(name) is not None


def is_buffer(name: str) -> bool:
    """Whether a tensor is a mask or a table, and no parameter."""
    return _BUFFERS.search(name) is not None


def is_embedding(name: str) -> bool:
    """Whether a tensor is a table of rows to look up, not a linear map, by its name; a header does not tell."""
    module = name.removesuffix(".weight").rpartition(".")[2]
    return name.endswith(".weight") and _TABLE.fullmatch(module) is not None


def count_blocks(names: Iterable[str]) -> int:
    """The number of layers that the tensors' names show; 0 when layers have no numbers of their own."""
    return max((block + 1 for name in names if (block := block_of(name)) is not None), default=0)


def truncated_config(config: Mapping[str, Any], layers: int, of: int) -> dict[str, Any]:
    """The config with `layers` of its `of` layers: the count, and every list that says something of each layer."""
    changed = dict(config)
    for key, value in config.items():
        if key in LAYER_KEYS:
            changed[key] = layers
        elif isinstance(value, list) and len(value) == of and ("layer" in key or "pattern" in key):
            changed[key] = value[:layers]
    if not any(key in config for key in LAYER_KEYS):  # left at the class's default; every class maps this name
        changed["num_hidden_layers"] = layers
    return changed
