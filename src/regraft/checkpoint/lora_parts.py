"""What a LoRA adapter's folder says: its factors by module, its scales, and which names of the base it means."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from regraft.checkpoint.adapter import CONFIG, Adapter
from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.weights import FLOATS
from regraft.errors import CheckpointError

PREFIX = "base_model.model."

# Config entries that make the change something else than base + B A.
_VARIANTS = {
    "use_dora": "DoRA, which also rescales the rows of the base",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "arrow routing between adapters",
    "alora_invocation_tokens": "activated LoRA, which only acts after certain tokens",
    "kasa_config": "KaSA, which truncates the base",
    "monteclora_config": "MonteCLoRA, which samples its change",
    "use_qalora": "QA-LoRA, which pools the inputs",
    "layer_replication": "replicated layers",
    "target_parameters": "LoRA of bare parameters (experts)",
    "trainable_token_indices": "single retrained token embeddings",
    "megatron_config": "layers of Megatron",
}
# Initialisations that subtract B A from the base before training: the factors belong to that other base.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_PART = re.compile(r"(.+)\.lora_(A\.weight|B\.weight|B\.bias|embedding_A|embedding_B)")
_CONVERT = "Merge it into its base with peft, save that model, and use the result as a checkpoint."


def check_plain(adapter: Adapter) -> None:
    config, path = adapter.config, adapter.folder / CONFIG
    kind = str(config.get("peft_type", "none")).upper()
    if kind != "LORA":
        raise CheckpointError(f"{path}: an adapter of the kind {kind[:40]} is no LoRA.", _CONVERT)
    for key, words in _VARIANTS.items():
        if config.get(key):
            raise CheckpointError(f"{path}: {key} is set: {words}, which is not base + B A.", _CONVERT)
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{path}: init_lora_weights is {start[:40]}, which changed the base before training.",
            "Save it again with peft's path_initial_model_for_weight_conversion.",
        )


def sorted_tensors(adapter: Adapter) -> tuple[dict[str, dict[str, TensorInfo]], dict[str, TensorInfo]]:
    """The factors by module and part, and the whole tensors by name."""
    modules: dict[str, dict[str, TensorInfo]] = {}
    whole: dict[str, TensorInfo] = {}
    for key in sorted(adapter.tensors):
        tensor, name = adapter.tensors[key], key.removeprefix(PREFIX)
        part = _PART.fullmatch(name)
        if tensor.dtype not in FLOATS:
            raise CheckpointError(
                f"{tensor.file}: {key!r} is {tensor.dtype}, expected one of {', '.join(FLOATS)}.",
                "Save the adapter in float32, float16 or bfloat16.",
            )
        if part:
            modules.setdefault(part[1], {})[part[2]] = tensor
        elif ".lora_" in name or ".token_adapter." in name:
            raise CheckpointError(f"{tensor.file}: {key!r} belongs to no plain LoRA.", _CONVERT)
        else:
            whole[name.replace(".base_layer.", ".")] = tensor
    if not modules and not whole:
        raise CheckpointError(f"{adapter.folder} holds no tensor.", "Save the adapter again.")
    return modules, whole


def pair(adapter: Adapter, module: str, parts: Mapping[str, TensorInfo]) -> tuple[TensorInfo, TensorInfo]:
    """A and B of a module, of one rank."""
    down = parts.get("A.weight") or parts.get("embedding_A")
    up = parts.get("embedding_B") if "embedding_A" in parts else parts.get("B.weight")
    if down is None or up is None:
        raise CheckpointError(
            f"{adapter.folder} holds only {some(sorted(parts))} of {module}, expected A and B.", "Save it again."
        )
    if len(down.shape) != 2 or len(up.shape) != 2:
        raise CheckpointError(
            f"{adapter.folder}: the factors of {module} are {shown(down.shape)} and {shown(up.shape)}, expected matrices "
            "(convolutions are not merged here).",
            _CONVERT,
        )
    if down.shape[0] != up.shape[1] or down.shape[0] == 0:
        raise CheckpointError(
            f"{adapter.folder}: the factors of {module} are {shown(down.shape)} and {shown(up.shape)}, expected [r, in] "
            "and [out, r].",
            "Save the adapter again.",
        )
    return down, up


def scale_of(adapter: Adapter, module: str, rank: int) -> float:
    """alpha / r with the patterns of the config; the rank must be the config's, by which peft would scale."""
    config = adapter.config
    expected = _by_pattern(adapter, "rank_pattern", module, config.get("r", 8))
    alpha = _by_pattern(adapter, "alpha_pattern", module, config.get("lora_alpha", 8))
    if expected != rank:
        raise CheckpointError(
            f"{adapter.folder / CONFIG} says rank {expected:g} for {module}, its factors have {rank}.",
            "Use the config that belongs to the weights.",
        )
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _by_pattern(adapter: Adapter, key: str, module: str, default: Any) -> float:
    """The value of the first pattern that the end of a module's name matches, as peft reads them."""
    patterns = adapter.config.get(key) or {}
    fault = f"{adapter.folder / CONFIG}: {key}"
    if not isinstance(patterns, Mapping):
        raise CheckpointError(f"{fault} is no object.", "Save the adapter again.")
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                default = value
                break
        except re.error as error:
            raise CheckpointError(f"{fault} has {pattern[:80]!a}: {error}.", "Save the adapter again.") from error
    if isinstance(default, bool) or not isinstance(default, (int, float)) or not math.isfinite(default):
        raise CheckpointError(f"{fault}, or r and lora_alpha, give {str(default)[:40]!a} for {module}.", "Correct it.")
    return float(default)


@dataclass(frozen=True)
class Prefix:
    """How names of the adapter become names of the base."""

    drop: str = ""
    add: str = ""

    def rename(self, name: str) -> str:
        return self.add + name.removeprefix(self.drop)

    @staticmethod
    def between(adapter: Adapter, modules: Iterable[str], base: Mapping[str, TensorInfo]) -> Prefix:
        """The prefix to drop or to add under which most modules are found; none where that is enough."""
        known = {name.rpartition(".")[0] for name in base}
        wanted = sorted(set(modules))
        drops = {Prefix(drop=".".join(name.split(".")[:depth]) + ".") for name in wanted for depth in (1, 2)}
        adds = {Prefix(add=name.split(".")[0] + ".") for name in known if "." in name}
        found = {rule: sum(rule.rename(name) in known for name in wanted) for rule in {Prefix()} | drops | adds}
        most = max(found.values())
        if found[Prefix()] == most:
            return Prefix()
        best = sorted((rule for rule in found if found[rule] == most), key=lambda rule: (rule.drop, rule.add))
        if len({tuple(map(rule.rename, wanted)) for rule in best}) > 1:
            raise other_base(adapter, f"fits more than one part of the base ({some(r.drop or r.add for r in best)})")
        return best[0]


def other_base(adapter: Adapter, fault: str) -> CheckpointError:
    return CheckpointError(
        f"The adapter in {adapter.folder} {fault}.", f"Use it over its own base ({adapter.base or 'not named'})."
    )


def shown(shape: tuple[int, ...]) -> str:
    """A shape as headers write it."""
    return str(list(shape))


def some(names: Iterable[str], joint: str = ", ") -> str:
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return joint.join(names[:3]) + more
