"""peft adapters: a small folder with a config and low-rank (or scaling) weights that change a base model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.checkpoint import safety
from regraft.checkpoint.files import read_json_object
from regraft.checkpoint.headers import TensorInfo, read_header
from regraft.checkpoint.identity import canonical, sha256, weights_id
from regraft.errors import CheckpointError, UnsafeCheckpointError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# The kinds whose change can be added into the weights; prompts and prefixes cannot.
MERGEABLE = ("LORA", "LOHA", "LOKR", "IA3")
_NOT_FUNCTION = frozenset({
    "base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "task_type",
    "init_lora_weights", "init_weights", "init_ia3_weights", "lora_dropout", "rank_dropout", "module_dropout",
})  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """An adapter that was opened: its config and its tensors' headers."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]

    @property
    def base(self) -> str:
        """The base model's name or path as the adapter names it; empty when it does not."""
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def function(self) -> str:
        """The part of the config that changes the function (ranks, alphas, targets), as canonical text."""
        kept = {key: value for key, value in self.config.items() if key not in _NOT_FUNCTION and value is not None}
        if isinstance(kept.get("target_modules"), list):  # peft writes a set: its order means nothing
            kept["target_modules"] = sorted(map(str, kept["target_modules"]))
        return canonical(kept)

    def adapter_id(self) -> str:
        """sha256 over weights and the part of the config that changes the function."""
        return sha256("adapter", weights_id(self.tensors), self.function)


def open_adapter(folder: Path) -> Adapter:
    """Open an adapter's folder by its config and headers.

    Raises:
        CheckpointError: A file is missing or wrong, or a kind that cannot be merged into the base.
        UnsafeCheckpointError: Only a pickle, a link out of the folder, or a config that asks for code.
    """
    path = folder / CONFIG
    if not path.exists():
        raise CheckpointError(f"{folder} holds no {CONFIG}.", "Give a folder that peft's save_pretrained wrote.")
    safety.check_links(folder)
    config = read_json_object(path)
    safety.check_no_code(path, config)
    if config.get("megatron_config"):
        raise UnsafeCheckpointError(
            f"{path} names a module to import (megatron_core).", "Code is never run: use a stock adapter."
        )
    kind = str(config.get("peft_type", "none")).upper()
    if kind not in MERGEABLE:
        raise CheckpointError(
            f"{path}: an adapter of the kind {kind[:40]} cannot be merged into its base.",
            f"Use one of the kinds {', '.join(MERGEABLE)}.",
        )
    if not (folder / WEIGHTS).exists():
        raise safety.no_weights(folder)
    return Adapter(folder, config, read_header(folder / WEIGHTS))
