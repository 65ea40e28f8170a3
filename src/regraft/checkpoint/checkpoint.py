"""A checkpoint, its sizes and its identity; `opening` finds it usable, tensors are read when asked for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from regraft.checkpoint import blocks, identity, lengths, safety
from regraft.checkpoint.adapter import Adapter, open_adapter
from regraft.checkpoint.architecture import defaults_of, stock_config
from regraft.checkpoint.files import TOKENIZER_LIMIT, optional_json_object, read_bytes, read_json_object
from regraft.checkpoint.headers import TensorInfo


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


def _module_config(folder: Path, where: str) -> dict[str, Any]:
    return optional_json_object(folder / "config.json") if where else {}
