"""From a checkpoint to a stock transformers model and tokenizer; nothing of the weights is left to chance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from regraft.checkpoint import blocks
from regraft.checkpoint.adapter import WEIGHTS, Adapter, open_adapter
from regraft.checkpoint.checkpoint import Checkpoint
from regraft.checkpoint.device import check_device
from regraft.checkpoint.quiet import quiet
from regraft.checkpoint.random_weights import draw_weights
from regraft.errors import CheckpointError, RegraftError

AGAIN = "Use an intact copy of the checkpoint."


def load_encoder(ckpt: Checkpoint, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """The encoder as a stock `AutoModel` in eval mode: truncated, random or with its adapter merged, as referenced.

    A pooler that the file does not hold is drawn from seed 0, so that loading twice gives the same weights.

    Raises:
        CheckpointError: Weights are missing, misshapen or not used by the installed transformers.
        RegraftError: The device is not there.
    """
    from transformers import AutoModel

    check_device(device)
    if ckpt.random is not None:
        return _of_texts(ckpt, _random_model(ckpt, ckpt.random, dtype)).to(device).eval()
    model = _of_texts(ckpt, _load(AutoModel, ckpt, dtype, may_miss=("pooler.",)))
    if ckpt.adapter is not None:
        model = _merge_adapter(model, ckpt, open_adapter(ckpt.adapter))
    return model.to(device).eval()


def _of_texts(ckpt: Checkpoint, model: Any) -> Any:
    """The model, if it takes the numbers of tokens; what `stock_config` does not know by the type's name ends here."""
    if model.main_input_name != "input_ids":
        raise CheckpointError(
            f"{ckpt.reference} takes {model.main_input_name}, a task here has texts.", "Use a text model."
        )
    return model


def load_sequence_classifier(ckpt: Checkpoint, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """The checkpoint with its own head as a stock `AutoModelForSequenceClassification` in eval mode.

    Raises:
        CheckpointError: It has no such head, or weights are missing or misshapen.
        RegraftError: The device is not there.
    """
    from transformers import AutoModelForSequenceClassification

    check_device(device)
    if ckpt.labels is None or ckpt.modules:
        raise CheckpointError(
            f"{ckpt.reference} has no sequence classification head that can be used as it is.",
            "Adapt it to the task first.",
        )
    model = _load(AutoModelForSequenceClassification, ckpt, dtype, may_miss=())
    if model.config.pad_token_id is None:  # decoders find the last real token of a padded text by it
        model.config.pad_token_id = load_tokenizer(ckpt).pad_token_id
    return model.to(device).eval()


def load_tokenizer(ckpt: Checkpoint) -> Any:
    """The tokenizer, with a padding token (the end-of-text token where it has none of its own).

    Raises:
        CheckpointError: Its files are missing or damaged.
    """
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                str(ckpt.encoder_folder), trust_remote_code=False, local_files_only=True, config=ckpt.stock_config
            )
    except Exception as error:  # tokenizers raise plain Exception from Rust, and whatever a damaged file leads to
        raise CheckpointError(
            f"The tokenizer in {ckpt.encoder_folder} cannot be loaded ({_words(error)}).",
            "Save it again as tokenizer.json: AutoTokenizer.from_pretrained(...).save_pretrained(folder).",
        ) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise CheckpointError(
                f"The tokenizer in {ckpt.encoder_folder} has neither a padding nor an end-of-text token.",
                "Set pad_token in tokenizer_config.json.",
            )
        tokenizer.pad_token = tokenizer.eos_token
    vocabulary = int(ckpt.stock_config.vocab_size)
    if len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"The tokenizer in {ckpt.encoder_folder} has {len(tokenizer)} tokens, the model {vocabulary}.",
            "Use the tokenizer that the model was trained with.",
        )
    return tokenizer


def max_length(ckpt: Checkpoint) -> int:
    """Usable tokens of a text, special tokens included."""
    return ckpt.max_length


def parameter_counts(ckpt: Checkpoint) -> dict[str, int]:
    """Elements of every parameter that the architecture has, by name; no weight is allocated."""
    from transformers import AutoModel

    with quiet(), torch.device("meta"):
        model = AutoModel.from_config(ckpt.stock_config)
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def _random_model(ckpt: Checkpoint, seed: int, dtype: torch.dtype) -> Any:
    from transformers import AutoModel

    try:
        with quiet():
            model = AutoModel.from_config(ckpt.stock_config)
    except Exception as error:
        raise CheckpointError(
            f"{ckpt.encoder_folder / 'config.json'} cannot be made into a model ({_words(error)}).",
            "Correct the config.",
        ) from error
    draw_weights(model, seed, _std(ckpt))
    return model.to(dtype)


def _std(ckpt: Checkpoint) -> float:
    return float(getattr(ckpt.stock_config, "initializer_range", None) or 0.02)


def _load(auto: Any, ckpt: Checkpoint, dtype: torch.dtype, may_miss: tuple[str, ...]) -> Any:
    """`auto.from_pretrained` with its report of what was loaded held to account."""
    folder = ckpt.encoder_folder
    try:
        with quiet():
            model, report = auto.from_pretrained(
                str(folder),
                config=ckpt.stock_config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except Exception as error:  # an entry of the config that no class knows, files that vanished, memory
        raise CheckpointError(f"The weights in {folder} cannot be loaded ({_words(error)}).", AGAIN) from error
    if report["mismatched_keys"]:
        names = sorted(str(entry[0]) for entry in report["mismatched_keys"])
        raise CheckpointError(
            f"In {folder} the shapes of {_some(names)} do not fit config.json.",
            "Use the config.json that belongs to the weights.",
        )
    missing = sorted(map(str, report["missing_keys"]))
    needed = [name for name in missing if not any(part in name for part in may_miss)]
    if needed:
        raise CheckpointError(
            f"The weights in {folder} lack {_some(needed)}, which {type(model).__name__} needs.", AGAIN
        )
    unused = [
        name
        for name in sorted(map(str, report["unexpected_keys"]))
        if blocks.in_blocks(name) and name in ckpt.tensors and _is_weight(ckpt, name)
    ]
    if unused:
        raise CheckpointError(
            f"The weights in {folder} hold {_some(unused)}, which the installed transformers' "
            f"{type(model).__name__} does not use: it would compute something else.",
            "Use a model of a stock architecture, or the transformers version that it was saved with.",
        )
    draw_weights(model, 0, _std(ckpt), only=set(missing))
    return model


def _is_weight(ckpt: Checkpoint, name: str) -> bool:
    """A matrix of floats, as against masks and tables that old files store."""
    tensor = ckpt.tensors[name]
    return len(tensor.shape) == 2 and tensor.dtype in ("F64", "F32", "F16", "BF16")


def _merge_adapter(model: Any, ckpt: Checkpoint, adapter: Adapter) -> Any:
    """Add the adapter's change into the weights: W <- W + B A alpha / rank for LoRA."""
    import peft
    from safetensors.torch import load_file

    prefix = f"{model.base_model_prefix}."
    state = {}
    for name, tensor in load_file(str(adapter.folder / WEIGHTS)).items():
        inner = name.removeprefix("base_model.model.")
        # An adapter of a model with a head names the encoder's modules below the encoder's own name.
        state["base_model.model." + inner.removeprefix(prefix)] = tensor
    try:
        with quiet():
            settings = peft.PeftConfig.from_pretrained(str(adapter.folder))
            settings.inference_mode = True
            settings.modules_to_save = None  # heads: the encoder has none
            settings.task_type = None
            wrapped = peft.PeftModel(model, settings)
            report = peft.set_peft_model_state_dict(wrapped, state)
            lacking = [name for name in report.missing_keys if any(part in name for part in _PARTS)]
            if not lacking:
                merged = wrapped.merge_and_unload(safe_merge=True)
    except RegraftError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"The adapter in {adapter.folder} does not fit {ckpt.folder} ({_words(error)}).",
            f"Use it over its own base ({adapter.base or 'not named'}).",
        ) from error
    if lacking:
        raise CheckpointError(
            f"The adapter in {adapter.folder} lacks {_some(lacking)}, which {ckpt.folder} needs.",
            f"Use it over its own base ({adapter.base or 'not named'}).",
        )
    return merged


_PARTS = ("lora_", "hada_", "lokr_", "ia3_")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _words(error: BaseException) -> str:
    """What a library says of a file, in a line; a bare name or number says nothing without what it is an error of."""
    said = " ".join(str(error).split())[:300]
    return said if len(said.split()) > 2 else f"{type(error).__name__}: {said}".rstrip(": ")
