"""Opening a checkpoint: by its headers and small files alone, with every fault said in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regraft.budget import Deadline
from regraft.checkpoint import blocks, card, reference, safety
from regraft.checkpoint.adapter import open_adapter
from regraft.checkpoint.architecture import labels_of, stock_config
from regraft.checkpoint.checkpoint import Checkpoint
from regraft.checkpoint.files import optional_json_object, read_json_object
from regraft.checkpoint.headers import SINGLE, TensorInfo, read_header, read_tensors
from regraft.errors import BadReferenceError, CheckpointError


def open_checkpoint(text: str, deadline: Deadline | None = None) -> Checkpoint:
    """Open a checkpoint by a reference (see `regraft.checkpoint.reference`): headers and small files only.

    Args:
        deadline: Of downloads; None lets them take as long as they need.

    Raises:
        BadReferenceError: The reference cannot be read or found, or asks for more layers than there are.
        HubError: The Hub says no or cannot be reached.
        BudgetError: Not downloaded before the deadline.
        CheckpointError: A file is missing, damaged or of a kind that cannot be computed here; names it.
        UnsafeCheckpointError: It would have to run code, read a pickle, or leave its folder.
    """
    parsed = reference.parse(text)
    folder = reference.locate(parsed.base, deadline)
    adapter = None if parsed.adapter is None else reference.locate(parsed.adapter, deadline)
    try:
        if adapter is not None:
            open_adapter(adapter)
        return _open_folder(parsed, folder, adapter)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or folder} cannot be read ({error.strerror}).", "Check the folder and its permissions."
        ) from error


def _open_folder(parsed: reference.Reference, folder: Path, adapter: Path | None) -> Checkpoint:
    safety.check_links(folder)
    modules = tuple(safety.read_modules(folder))
    encoder_folder = folder / modules[0][1] if modules else folder
    config = read_config(folder, encoder_folder)
    made = stock_config(encoder_folder / "config.json", config)
    safety.check_tokenizer(encoder_folder)
    tensors = {} if parsed.random is not None else read_all_tensors(folder, encoder_folder, modules)
    if tensors and not any(made.hidden_size in tensor.shape for tensor in tensors.values()):
        raise CheckpointError(
            f"{encoder_folder / 'config.json'} says hidden_size {made.hidden_size}, but no tensor has that size.",
            "Use the config.json that belongs to the weights.",
        )
    layers = _layers_to_keep(parsed, made, tensors)
    if layers is not None:
        config = blocks.truncated_config(config, layers, made.num_hidden_layers)
        tensors = {name: info for name, info in tensors.items() if (blocks.block_of(name) or 0) < layers}
    whole = parsed.random is None and adapter is None and layers is None
    about = card.read_card(folder)
    return Checkpoint(
        reference=parsed.text,
        name=reference.default_name(parsed, folder),
        folder=folder,
        encoder_folder=encoder_folder,
        config=config,
        tensors=tensors,
        layers=parsed.layers,
        random=parsed.random,
        adapter=adapter,
        labels=_labels(folder, encoder_folder, made, modules) if whole else None,
        licence=card.licence_of(about),
        parents=card.parents_of(about),
        modules=modules,
    )


def read_config(folder: Path, encoder_folder: Path) -> dict[str, Any]:
    """config.json, with every small file beside it checked for requests to run code."""
    path = encoder_folder / "config.json"
    if not path.exists() and (folder / "model_index.json").exists():
        raise CheckpointError(f"{folder} is a diffusers pipeline, not a text model.", "Use a text encoder.")
    if not path.exists() and (folder / "adapter_config.json").exists():
        raise CheckpointError(f"{folder} is an adapter without its base model.", "Write BASE+ADAPTER.")
    if (encoder_folder / "adapter_config.json").exists():
        # transformers would load the adapter, and the base that it names, without being asked
        raise CheckpointError(
            f"{encoder_folder} holds a model and an adapter (adapter_config.json).",
            "Put the adapter into a folder of its own and write BASE+ADAPTER.",
        )
    config = read_json_object(path)
    safety.check_no_code(path, config)
    for name in ("tokenizer_config.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        for place in {folder, encoder_folder}:
            safety.check_no_code(place / name, optional_json_object(place / name))
    safety.check_quantisation(path, config)
    return safety.without_kernels(path, config)


def read_all_tensors(folder: Path, encoder_folder: Path, modules: tuple[tuple[str, str], ...]) -> dict[str, TensorInfo]:
    """The encoder's tensors, and those of the sentence-transformers modules after it."""
    tensors = read_tensors(encoder_folder)
    if not tensors:
        raise safety.no_weights(encoder_folder)
    for tensor in tensors.values():
        if tensor.dtype in ("I8", "U8") and len(tensor.shape) == 2:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name!r} is a matrix of {tensor.dtype}, "
                "a quantised format that cannot be computed here.",
                "Use the checkpoint in float32, float16 or bfloat16.",
            )
    if not any(tensor.dtype in ("F64", "F32", "F16", "BF16") for tensor in tensors.values()):
        kinds = ", ".join(sorted({tensor.dtype for tensor in tensors.values()}))
        raise CheckpointError(
            f"The weights of {encoder_folder} are no floating-point numbers ({kinds}).",
            "Use the checkpoint in float32, float16 or bfloat16.",
        )
    for _, where in modules[1:]:
        path = folder / where / SINGLE
        if where and path.exists():
            tensors |= {f"{where}.{name}": tensor for name, tensor in read_header(path).items()}
    return tensors


def _layers_to_keep(parsed: reference.Reference, made: Any, tensors: dict[str, TensorInfo]) -> int | None:
    """How many layers a reference keeps; None for all of them."""
    total = int(made.num_hidden_layers)
    if parsed.layers is None or parsed.layers == total:
        return None
    if parsed.layers > total:
        raise BadReferenceError(
            f"{parsed.text!r} asks for {parsed.layers} layers, the model has {total}.",
            f"Write #layers={total} or less.",
        )
    shared = getattr(made, "num_hidden_groups", 0) == 1
    if tensors and blocks.count_blocks(tensors) != total and not shared:
        raise CheckpointError(
            f"{parsed.text!r}: the layers of {made.model_type} cannot be told apart by its tensors' names.",
            "Use the whole model: drop #layers.",
        )
    return parsed.layers


def _labels(
    folder: Path, encoder_folder: Path, made: Any, modules: tuple[tuple[str, str], ...]
) -> tuple[str, ...] | None:
    """The labels of a stock sequence classifier, or of a sentence-transformers folder that Regraft wrote."""
    if not modules:
        return labels_of(encoder_folder / "config.json", made)
    path = folder / "regraft.json"
    labels = optional_json_object(path).get("labels")
    if labels is None:
        return None
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise CheckpointError(f"{path}: labels is not a list of names.", "Restore the file.")
    return tuple(labels)
