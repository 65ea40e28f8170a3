"""What transformers makes of a config: only stock text models with one stack of layers get past here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regraft.checkpoint.quiet import quiet
from regraft.errors import CheckpointError

# Far above what exists, and low enough that a config alone cannot exhaust time or memory.
_SIZES = {"vocab_size": 2**26, "hidden_size": 2**18, "num_hidden_layers": 1000}

# Jobs by what the models take, as transformers names its lists of them.
_TEXTS = ("SEQUENCE_CLASSIFICATION", "CAUSAL_LM", "MASKED_LM")
_OTHERS = {
    "images": ("IMAGE", "IMAGE_CLASSIFICATION", "MASKED_IMAGE_MODELING", "OBJECT_DETECTION", "SEMANTIC_SEGMENTATION",
               "DEPTH_ESTIMATION"),
    "videos": ("VIDEO_CLASSIFICATION",),
    "sound": ("AUDIO_CLASSIFICATION", "CTC", "AUDIO_XVECTOR", "AUDIO_FRAME_CLASSIFICATION"),
    "series of numbers": ("TIME_SERIES_PREDICTION", "TIME_SERIES_CLASSIFICATION"),
}  # fmt: skip


def stock_config(path: Path, config: Mapping[str, Any]) -> Any:
    """The `PreTrainedConfig` of a config.json's content.

    Raises:
        CheckpointError: No or an unknown model_type, values that the class refuses, or no text model of one stack.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise CheckpointError(
            f"{path} names no model_type.", 'Add the architecture that transformers knows it by, such as "bert".'
        )
    if kind not in CONFIG_MAPPING_NAMES or kind not in MODEL_MAPPING_NAMES:
        raise CheckpointError(
            f"{path} names the model_type {kind[:80]!a}, which the installed transformers does not know.",
            "Update transformers, or use a model of a stock architecture.",
        )
    try:
        with quiet():
            made = CONFIG_MAPPING[kind].from_dict(dict(config))
    except Exception as error:  # config classes raise whatever their own code meets first
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path} holds values that {kind} refuses ({reason}).", "Correct the config.") from error
    if getattr(made, "is_encoder_decoder", False):
        raise CheckpointError(
            f"{path}: {kind} is an encoder-decoder, which is not supported for this job.",
            "Use an encoder (such as bert) or a decoder (such as gpt2).",
        )
    if (what := _takes(kind)) is not None:
        raise CheckpointError(
            f"{path}: {kind} takes {what}, a task here has texts: it is no text encoder.",
            "Use a text model with one stack of layers.",
        )
    for key, limit in _SIZES.items():
        value = getattr(made, key, None)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
            raise CheckpointError(
                f"{path}: {kind} has the {key} {str(value)[:40]}, expected 1 to {limit}: it is no text encoder.",
                "Use a text model with one stack of layers.",
            )
    return made


def _takes(kind: str) -> str | None:
    """What models of a type take instead of texts, by the jobs that transformers has classes for; None for those of texts."""
    from transformers.models.auto import modeling_auto

    def is_for(job: str) -> bool:
        return kind in getattr(modeling_auto, f"MODEL_FOR_{job}_MAPPING_NAMES", ())

    if any(map(is_for, _TEXTS)):
        return None
    return next((what for what, jobs in _OTHERS.items() if any(map(is_for, jobs))), None)


def defaults_of(made: Any) -> dict[str, Any]:
    """The entries of a config's class with nothing set; empty when the class cannot be made so."""
    try:
        with quiet():
            return dict(type(made)().to_dict())
    except Exception:  # some classes insist on arguments: then every entry counts
        return {}


def labels_of(path: Path, made: Any) -> tuple[str, ...] | None:
    """The labels of a single-label sequence classifier in the order of its logits; None for everything else.

    Raises:
        CheckpointError: id2label does not number the labels from 0 on.
    """
    architectures = made.architectures or []
    if not architectures or not str(architectures[0]).endswith("ForSequenceClassification"):
        return None
    if made.problem_type in ("regression", "multi_label_classification"):
        return None
    labels = made.id2label
    if sorted(labels) != list(range(len(labels))):
        raise CheckpointError(
            f"{path}: id2label has the numbers {sorted(labels)[:8]}, expected 0 to {len(labels) - 1}.",
            "Number the labels from 0 on.",
        )
    return tuple(str(labels[number]) for number in range(len(labels))) if len(labels) > 1 else None
