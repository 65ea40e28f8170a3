"""Which tensors of a base a LoRA can change, by stock peft's rules; known from headers alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from regraft.checkpoint.blocks import is_embedding
from regraft.checkpoint.headers import TensorInfo

_HEADED = re.compile(r"CausalLM|LMHead|MaskedLM|PreTraining|ConditionalGeneration|WithLM")
_HEADS = re.compile(
    r"(?:^|\.)(?:lm_head|decoder|embed_out|vocab_projector|generator_lm_head|output_projection)\.weight$"
)


def cannot_hold(base: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> dict[str, str]:
    """The base's tensors that no LoRA in stock peft can change, and why; known from headers alone."""
    found = {}
    shared = _shared_embeddings(base, config)
    for name, info in base.items():
        if len(info.shape) != 2:
            found[name] = "no matrix"
        elif not name.endswith(".weight"):
            found[name] = "no weight of a module"
        elif name in shared:
            found[name] = "shared with the head, which peft would change or leave apart from it"
        elif 0 in info.shape:
            found[name] = "empty"
    return found


def _shared_embeddings(base: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> set[str]:
    """Embeddings of tokens that are used a second time: as a tied head, or by encoder and decoder."""
    architectures = " ".join(map(str, config.get("architectures") or ()))
    headed = not architectures or _HEADED.search(architectures) is not None
    tied = headed and config.get("tie_word_embeddings", True) and not any(_HEADS.search(name) for name in base)
    if not tied and not config.get("is_encoder_decoder"):
        return set()
    tokens = config.get("vocab_size")
    return {name for name, info in base.items() if is_embedding(name) and info.shape[:1] == (tokens,)}
