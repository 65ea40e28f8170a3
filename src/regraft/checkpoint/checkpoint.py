"""Checkpoints: opened by their headers and small files, with an identity; tensors are read when asked for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from regraft.budget import Deadline
from regraft.checkpoint import blocks, card, identity, lengths, reference, safety
from regraft.checkpoint.adapter import Adapter, open_adapter
from regraft.checkpoint.architecture import defaults_of, labels_of, stock_config
from regraft.checkpoint.files import TOKENIZER_LIMIT, optional_json_object, read_bytes, read_json_object
from regraft.checkpoint.headers import SINGLE, TensorInfo, read_header, read_tensors
from regraft.errors import BadReferenceError, CheckpointError


@dataclass(frozen=True)
class Checkpoint:
    """A model that was found usable by its headers and small files. Made by `open_checkpoint`.

    Args:
        reference: What the user wrote; `open_checkpoint(reference)` gives this checkpoint again.
        name: A short name for tables.
        folder: The folder in Hugging Face layout.
        encoder_folder: Where config.json and the encoder's weights lie; below `folder` for some sentence-transformers.
        config: The content of config.json, truncated like the model.
        tensors: By name, of the layers that are kept; a sentence-transformers module's are named `<folder>.<tensor>`.
            Empty under random initialisation.
        layers: The first k layers only, or None for all of them.
        random: The seed of a random initialisation, or None for the stored weights.
        adapter: The folder of the peft adapter that is merged into the weights, or None.
        labels: The head's labels in the order of its logits, or None without a head that can be used as it is.
        licence: As the card says, or None.
        parents: The base models that the card names.
        modules: (class name, folder below `folder`) of every sentence-transformers module.
    """

    reference: str
    name: str
    folder: Path
    encoder_folder: Path
    config: dict[str, Any] = field(repr=False)
    tensors: dict[str, TensorInfo] = field(repr=False)
    layers: int | None = None
    random: int | None = None
    adapter: Path | None = None
    labels: tuple[str, ...] | None = None
    licence: str | None = None
    parents: tuple[str, ...] = ()
    modules: tuple[tuple[str, str], ...] = ()

    @cached_property
    def stock_config(self) -> Any:
        """The `PreTrainedConfig`, truncated like the model."""
        return stock_config(self.encoder_folder / "config.json", self.config)

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])

    @property
    def architectures(self) -> tuple[str, ...]:
        return tuple(map(str, self.config.get("architectures") or ()))

    @property
    def hidden_size(self) -> int:
        return int(self.stock_config.hidden_size)

    @property
    def num_layers(self) -> int:
        """Layers after truncation."""
        return int(self.stock_config.num_hidden_layers)

    @property
    def max_length(self) -> int:
        """Usable tokens of a text, special tokens included."""
        return lengths.usable_tokens(self.folder, self.encoder_folder, self.stock_config)

    @cached_property
    def _parameters(self) -> dict[str, int]:
        """Elements by name of everything that training could change."""
        if self.random is not None:
            from regraft.checkpoint.load import parameter_counts

            return parameter_counts(self)
        return {
            name: tensor.elements
            for name, tensor in self.tensors.items()
            if tensor.dtype in ("F64", "F32", "F16", "BF16") and not blocks.is_buffer(name)
        }

    @property
    def parameters(self) -> int:
        """All parameters, heads included where they are stored."""
        return sum(self._parameters.values())

    @property
    def encoder_parameters(self) -> int:
        """Parameters inside the repeated blocks."""
        return sum(count for name, count in self._parameters.items() if blocks.in_blocks(name))

    @property
    def bytes(self) -> int:
        """Bytes of the tensors as stored; in float32 under random initialisation."""
        if self.random is not None:
            return 4 * self.parameters
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def member_bytes(self) -> int:
        """Bytes of a model made from it, without a head: parameters in float32, in which models are written whatever the
        checkpoint is stored in, and the tokenizer's files as they are stored."""
        whole = self.encoder_folder / "tokenizer.json"
        files = (
            [whole]
            if whole.exists()
            else [self.encoder_folder / name for name in (*safety.TOKENIZER_FILES, "merges.txt")]
        )
        return 4 * self.parameters + sum(file.stat().st_size for file in files if file.exists())

    @cached_property
    def _adapter(self) -> Adapter | None:
        return None if self.adapter is None else open_adapter(self.adapter)

    @cached_property
    def _function(self) -> str:
        """The part of the config that changes the function, as canonical JSON."""
        made = self.stock_config
        kept = identity.function_of_config(made.to_dict(), defaults_of(made))
        return identity.canonical(kept | {"model_type": self.model_type})

    @cached_property
    def weights_id(self) -> str:
        """sha256 over names, dtypes, shapes and bytes (see `identity`). Reads the weights once.

        Random weights have none yet: theirs is a hash of the seed and of what is drawn. An adapter's is added.
        """
        if self.random is not None:
            return identity.sha256("random", str(self.random), self._function)
        own = identity.weights_id(self.tensors)
        return own if self._adapter is None else identity.sha256("merged", own, self._adapter.adapter_id())

    @cached_property
    def checkpoint_id(self) -> str:
        """sha256 over weights_id and what else changes the function: config, tokenizer, length, pooling, labels."""
        return identity.sha256(
            "checkpoint",
            self.weights_id,
            self._function,
            self.tokenizer_id,
            str(self.max_length),
            identity.canonical([[kind, _module_config(self.folder / where, where)] for kind, where in self.modules]),
            identity.canonical(self.labels),
        )

    @property
    def file_id(self) -> str:
        """What is known without reading weights; never used for equality."""
        files = {tensor.file for tensor in self.tensors.values()} | {self.encoder_folder / "config.json"}
        if self._adapter is not None:
            files |= {tensor.file for tensor in self._adapter.tensors.values()}
        return identity.sha256(identity.file_id(files), str(self.layers), str(self.random))

    def check_finite(self) -> None:
        """Read every tensor and refuse NaN and infinite values.

        Raises:
            NonFiniteError: Names the first such tensor and its file.
        """
        identity.check_finite(self.tensors.values())
        if self._adapter is not None:
            identity.check_finite(self._adapter.tensors.values())

    def renamed(self, name: str) -> Checkpoint:
        """The same checkpoint under another name."""
        return dataclasses.replace(self, name=name)

    @cached_property
    def tokenizer_id(self) -> str:
        """sha256 over what decides the tokens."""
        folder = self.encoder_folder
        settings = optional_json_object(folder / "special_tokens_map.json")
        settings |= optional_json_object(folder / "tokenizer_config.json")
        parts = [identity.canonical(identity.function_of_tokenizer_config(settings))]
        if (folder / "tokenizer.json").exists():
            content = read_json_object(folder / "tokenizer.json", TOKENIZER_LIMIT)
            # Whoever tokenises sets these two; a file keeps what was set last.
            parts.append(identity.canonical({**content, "truncation": None, "padding": None}))
        else:
            for name in (*safety.TOKENIZER_FILES, "merges.txt"):
                if (folder / name).exists():
                    parts += [name, read_bytes(folder / name, TOKENIZER_LIMIT).hex()]
        return identity.sha256(*parts)


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


def _module_config(folder: Path, where: str) -> dict[str, Any]:
    return optional_json_object(folder / "config.json") if where else {}
