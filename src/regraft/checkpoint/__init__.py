"""Checkpoints: references to them, opening them safely, their identity, and loading them into stock models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regraft.checkpoint.checkpoint import Checkpoint
from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.opening import open_checkpoint

if TYPE_CHECKING:
    from regraft.checkpoint.load import load_encoder, load_sequence_classifier, load_tokenizer, max_length

__all__ = [
    "Checkpoint",
    "TensorInfo",
    "load_encoder",
    "load_sequence_classifier",
    "load_tokenizer",
    "max_length",
    "open_checkpoint",
]

_NEED_TORCH = {"load_encoder", "load_sequence_classifier", "load_tokenizer", "max_length"}


def __getattr__(name: str) -> Any:
    """Import torch only when something is loaded."""
    if name in _NEED_TORCH:
        from regraft.checkpoint import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
