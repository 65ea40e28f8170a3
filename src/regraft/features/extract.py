"""Features: what every layer of a checkpoint says about every text, computed in one pass and kept in the store.

    mean.npy, first.npy    fp32 [L+1, N, D]: per layer (0: embeddings) the mean over tokens, and the first token

Checkpoints that are the first layers of one encoder share its pass: their features are the leading layers of the whole
(checked on a few texts before it is relied on, because an encoder with a final norm is not the sum of its truncations).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regraft import faults
from regraft.checkpoint import Checkpoint, load_encoder, load_tokenizer, max_length
from regraft.checkpoint.batches import Tokens, sorted_batches, tokenize
from regraft.checkpoint.classifier import first_of, mean_pool, model_calls
from regraft.errors import MethodError, NonFiniteError
from regraft.progress import SILENT, Progress
from regraft.store import Store, key_of

# Agreement of a truncation with the leading layers of the whole: same arithmetic, other kernels; absolute, in fp32.
SHARED_TOLERANCE = 1e-4


# The number formats of a pass, by the name that users give.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def number_format(name: str) -> torch.dtype:
    """The number format of that name.

    Raises:
        MethodError: There is none.
    """
    if name not in DTYPES:
        raise MethodError(f"Unknown number format {name!r}.", f"Choose one of {', '.join(DTYPES)}.")
    return DTYPES[name]


@dataclass(frozen=True)
class Features:
    """Features of one checkpoint for N texts.

    Attributes:
        by_layer: Mean over tokens of each layer, fp32 [L+1, N, D]; memory-mapped, read when used.
        first: First token of each layer, likewise.
        seconds: What computing them took (0 when they came from the store).
    """

    by_layer: np.ndarray
    first: np.ndarray
    seconds: float

    @classmethod
    def open(cls, folder: Path, seconds: float) -> Features:
        """Map the arrays of an entry of the store; they can be read even when the entry is evicted afterwards."""
        mean, first = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("mean", "first"))
        return cls(mean, first, seconds)

    def leading(self, layers: int) -> Features:
        """The features of the truncation to the first `layers` layers, which shares this pass."""
        return Features(self.by_layer[: layers + 1], self.first[: layers + 1], 0.0)

    @property
    def last(self) -> np.ndarray:
        """Mean over tokens of the last layer, fp32 [N, D]."""
        return np.asarray(self.by_layer[-1])

    @property
    def mean(self) -> np.ndarray:
        """Mean over all layers, fp32 [N, D]."""
        total = np.zeros(self.by_layer.shape[1:], dtype=np.float32)
        for layer in self.by_layer:
            total += layer
        return total / np.float32(len(self.by_layer))

    @property
    def both(self) -> np.ndarray:
        """First token and mean of the last layer side by side, fp32 [N, 2 D]."""
        return np.concatenate([self.first[-1], self.by_layer[-1]], axis=1)

    @property
    def all(self) -> np.ndarray:
        """All layers side by side, fp32 [N, (L+1) * D]."""
        return np.concatenate(list(self.by_layer), axis=1)

    def rows(self, chosen: np.ndarray) -> FeatureRows:
        """The features of some of the texts."""
        return FeatureRows(self, chosen)


@dataclass(frozen=True)
class FeatureRows:
    """Features of a choice of rows, with the same views as `Features`."""

    whole: Features
    chosen: np.ndarray

    @cached_property
    def by_layer(self) -> np.ndarray:
        """fp32 [L+1, n, D], in memory."""
        return np.stack([np.asarray(layer[self.chosen]) for layer in self.whole.by_layer])

    @property
    def last(self) -> np.ndarray:
        """fp32 [n, D]."""
        return np.asarray(self.whole.by_layer[-1][self.chosen])

    @property
    def both(self) -> np.ndarray:
        """fp32 [n, 2 D]."""
        return np.concatenate([self.whole.first[-1][self.chosen], self.last], axis=1)

    @property
    def mean(self) -> np.ndarray:
        """fp32 [n, D]."""
        return np.asarray(self.by_layer.mean(axis=0))

    @property
    def all(self) -> np.ndarray:
        """fp32 [n, (L+1) * D]."""
        return np.concatenate(list(self.by_layer), axis=1)


class Joined:
    """Views over the rows of several features, end to end."""

    def __init__(self, *parts: Any) -> None:
        self._parts = parts

    @property
    def last(self) -> np.ndarray:
        """fp32 [N, D]."""
        return np.concatenate([part.last for part in self._parts])

    @property
    def mean(self) -> np.ndarray:
        """fp32 [N, D]."""
        return np.concatenate([part.mean for part in self._parts])

    @property
    def both(self) -> np.ndarray:
        """fp32 [N, 2 D]."""
        return np.concatenate([part.both for part in self._parts])


def extract(
    checkpoint: Checkpoint,
    texts: Sequence[str],
    *,
    store: Store | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress = SILENT,
) -> Features:
    """Features of one checkpoint; from the store when they are there.

    Raises:
        NonFiniteError: The model computes NaN or infinite values; nothing is kept then.
        CheckpointError: The checkpoint cannot be loaded.
    """
    store = store or Store()
    length = max_length(checkpoint)
    # The composition of batches and the threads change the last bits, so both are part of what the features are.
    key = key_of(
        "features", checkpoint=checkpoint.checkpoint_id, texts=texts, length=length, dtype=str(dtype),
        device=device.split(":")[0], threads=torch.get_num_threads(), torch=version("torch"),
        transformers=version("transformers"), layout=1,
    )  # fmt: skip
    found = store.find("features", key)
    if found is not None:
        return Features.open(found, 0.0)
    started = time.monotonic()
    with model_calls(checkpoint.reference):
        tokens = tokenize(load_tokenizer(checkpoint), texts, length)
        encoder = load_encoder(checkpoint, device=device, dtype=dtype)
        folder = store.make(
            "features", key, lambda aside: _write(encoder, tokens, aside, checkpoint, device, progress),
            about={"checkpoint": checkpoint.name, "reference": checkpoint.reference, "texts": len(texts)},
        )  # fmt: skip
    faults.point("features written")
    return Features.open(folder, time.monotonic() - started)


def extract_all(
    checkpoints: Sequence[Checkpoint],
    texts: Sequence[str],
    *,
    failed: dict[str, Exception] | None = None,
    **options: Any,
) -> dict[str, Features]:
    """Features of many checkpoints by name; truncations of one encoder share its pass.

    A checkpoint that cannot be computed is put into `failed` (and raised when that is None).
    """
    found: dict[str, Features] = {}
    for group in shared_passes(checkpoints).values():
        whole = group[0]
        for checkpoint in group:
            try:
                if checkpoint is not whole and whole.name in found and _shares(checkpoint, whole, texts, options):
                    found[checkpoint.name] = found[whole.name].leading(checkpoint.num_layers)
                else:
                    found[checkpoint.name] = extract(checkpoint, texts, **options)
            except Exception as fault:
                if failed is None:
                    raise
                failed[checkpoint.name] = fault
    return {checkpoint.name: found[checkpoint.name] for checkpoint in checkpoints if checkpoint.name in found}


def shared_passes(checkpoints: Sequence[Checkpoint]) -> Mapping[tuple[object, ...], list[Checkpoint]]:
    """Checkpoints grouped by the encoder they are the first layers of, the deepest of a group first."""
    groups: dict[tuple[object, ...], list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        alone = checkpoint.random is not None or checkpoint.adapter is not None
        base = checkpoint.name if alone else str(checkpoint.folder.resolve())
        groups.setdefault((base, alone), []).append(checkpoint)
    for group in groups.values():
        group.sort(key=lambda checkpoint: -checkpoint.num_layers)
    return groups


def _shares(checkpoint: Checkpoint, whole: Checkpoint, texts: Sequence[str], options: Mapping[str, Any]) -> bool:
    """Whether a truncation computes the leading layers of the whole, on up to four texts; found out once."""
    device, dtype = options.get("device", "cpu"), options.get("dtype", torch.float32)
    key = key_of(
        "shared pass", short=checkpoint.checkpoint_id, whole=whole.checkpoint_id, dtype=str(dtype),
        device=device.split(":")[0], torch=version("torch"), transformers=version("transformers"),
    )  # fmt: skip

    def write(folder: Path) -> None:
        (folder / "gap.json").write_text(json.dumps(_gap(checkpoint, whole, texts, device, dtype)))

    kept = (options.get("store") or Store()).make("shared", key, write, about={"checkpoint": checkpoint.name})
    gap = float(json.loads((kept / "gap.json").read_text()))
    return gap <= (SHARED_TOLERANCE if dtype == torch.float32 else 0.1)


def _gap(checkpoint: Checkpoint, whole: Checkpoint, texts: Sequence[str], device: str, dtype: torch.dtype) -> float:
    tokens = tokenize(load_tokenizer(whole), texts[:4], max_length(whole))
    batch = tokens.batch(range(len(tokens)), device)
    with torch.inference_mode():
        short = load_encoder(checkpoint, device=device, dtype=dtype)(**batch, output_hidden_states=True)
        deep = load_encoder(whole, device=device, dtype=dtype)(**batch, output_hidden_states=True)
    return float((short.last_hidden_state - deep.hidden_states[checkpoint.num_layers]).abs().max())


def _new_array(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    if hasattr(os, "posix_fallocate"):
        # A mapped file gets its blocks when it is written to, and a full disk then kills the process: ask for them now.
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _write(encoder: Any, tokens: Tokens, folder: Path, checkpoint: Checkpoint, device: str, progress: Progress) -> None:
    shape = (checkpoint.num_layers + 1, len(tokens), checkpoint.hidden_size)
    mean, first = _new_array(folder / "mean.npy", shape), _new_array(folder / "first.npy", shape)
    with progress.bar(f"features of {checkpoint.name}", len(tokens)), torch.inference_mode():
        for rows in sorted_batches(tokens.lengths):
            batch = tokens.batch(rows, device)
            states = encoder(**batch, output_hidden_states=True).hidden_states
            mask = batch["attention_mask"]
            for layer, state in enumerate(states):
                mean[layer, rows] = mean_pool(state, mask).float().cpu().numpy()
                first[layer, rows] = first_of(state, mask).float().cpu().numpy()
            if not (np.isfinite(mean[:, rows]).all() and np.isfinite(first[:, rows]).all()):
                raise NonFiniteError(
                    f"{checkpoint.reference} computes NaN or infinite features.",
                    "Its weights are damaged, or the number format is too narrow; leave it out or use --dtype float32.",
                )
            progress.advance(len(rows))
    mean.flush()
    first.flush()
