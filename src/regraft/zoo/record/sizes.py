"""The sizes of a config.json under one name each, whatever its family calls them.

The tables follow `attribute_map` and the arguments of transformers' config classes (bert, roberta, distilbert, albert,
electra, deberta, mpnet, t5, bart, gpt2, gpt_neo, gpt_neox, gptj, bloom, falcon, mpt, opt, llama, mistral, qwen2, qwen3, gemma,
phi, vit and their like).
Of an encoder-decoder, layers and heads are the encoder's, as in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regraft.checkpoint.lengths import OFFSET_MODELS
from regraft.zoo.record.folder import Folder

# The first key that holds a whole number counts.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "num_encoder_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim", "n_embed", "embed_dim"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "ffn_size": ("intermediate_size", "ffn_hidden_size", "n_inner", "d_ff", "ffn_dim", "encoder_ffn_dim", "hidden_dim"),
    "vocabulary_size": ("vocab_size", "n_vocab"),
    "max_length": (
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "max_seq_len",
        "max_sequence_length",
        "seq_length",
    ),
}
# Where a config may leave the feed-forward size out: the class's own multiple of the hidden size.
FFN_TIMES_HIDDEN = {
    "gpt2": 4, "gpt_neo": 4, "gptj": 4, "codegen": 4, "bloom": 4, "gpt_bigcode": 4, "falcon": 4, "mpt": 4, "openai-gpt": 4,
}  # fmt: skip
# Positions are relative: numbers among these keys are of the training, and limit nothing.
RELATIVE = frozenset({"t5", "mt5", "umt5", "longt5", "bloom"})
# Of models with several towers: the config of the one for text, else of the one for images.
TOWERS = ("text_config", "llm_config", "language_config", "text_encoder", "vision_config")
LARGEST = {
    "layers": 10_000, "hidden_size": 2**20, "heads": 2**16, "kv_heads": 2**16, "ffn_size": 2**24, "vocabulary_size": 2**28,
    "max_length": 2**40,
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """See `Record`; None where the config says nothing."""

    layers: int | None = None
    hidden_size: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    ffn_size: int | None = None
    vocabulary_size: int | None = None
    max_length: int | None = None


def sizes_of(config: Mapping[str, Any], folder: Folder, where: str) -> Sizes:
    """The sizes that a config states; absurd ones are a risk and left out."""
    kind = str(config.get("model_type"))
    towers = [config, *(config[key] for key in TOWERS if isinstance(config.get(key), dict))]
    found: dict[str, int | None] = {}
    for name, keys in SYNONYMS.items():
        value = next((one for tower in towers if (one := _first(tower, keys)) is not None), None)
        if value is None and (odd := next((text for tower in towers if (text := _odd(tower, keys))), None)) is not None:
            folder.risk("absurd-size", "warning", where, f"It states {odd} for {name}, expected a whole number.")
        if value is not None and not 1 <= value <= LARGEST[name]:
            absurd = str(value) if abs(value) < 10**30 else "a number of more than 30 digits"
            folder.risk(
                "absurd-size", "warning", where, f"It states {absurd} for {name}, expected 1 to {LARGEST[name]}."
            )
            value = None
        found[name] = value
    if found["ffn_size"] is None and kind in FFN_TIMES_HIDDEN and found["hidden_size"] is not None:
        found["ffn_size"] = FFN_TIMES_HIDDEN[kind] * found["hidden_size"]
    length = found["max_length"]
    if kind in RELATIVE:
        found["max_length"] = None
    elif length is not None and kind in OFFSET_MODELS:
        pad = config.get("pad_token_id", 1)
        found["max_length"] = length - (pad if isinstance(pad, int) and 0 <= pad < length - 1 else 1) - 1 or None
    return Sizes(**found)


def _odd(config: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    """A value that can be no size, as text. Lists are passed over: some families state a size for each layer or stage."""
    values = (config.get(key) for key in keys)
    return next((ascii(value)[:40] for value in values if isinstance(value, bool | float | str | dict)), None)


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None
