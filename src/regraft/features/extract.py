"""Features: what every layer of a checkpoint says about every text, computed in one pass and kept in the store.

See `views` for what is kept of a pass.

Checkpoints that are the first layers of one encoder share its pass (`passes`): their features are the leading layers of the whole
(checked on a few texts before it is relied on, because an encoder with a final norm is not the sum of its truncations).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regraft import faults
from regraft.checkpoint import Checkpoint, load_encoder, load_tokenizer, max_length
from regraft.checkpoint.batches import Tokens, sorted_batches, tokenize
from regraft.checkpoint.classifier import first_of, mean_pool, model_calls
from regraft.errors import CheckpointError, MethodError, NonFiniteError
from regraft.features.passes import shared_passes
from regraft.features.views import Features
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


def extract(
    checkpoint: Checkpoint,
    texts: Sequence[str],
    *,
    store: Store | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress = SILENT,
    opened: Opened | None = None,
) -> Features:
    """Features of one checkpoint; from the store when they are there.

    Args:
        opened: Keeps what is read of the checkpoint for the next call.

    Raises:
        StoreError: The disk is full, or the store cannot be written.
        NonFiniteError: The model computes NaN or infinite values; nothing is kept then.
        CheckpointError: The checkpoint cannot be loaded.
    """
    store = store or Store()
    with _reading(checkpoint):
        length, identity = max_length(checkpoint), checkpoint.checkpoint_id
    # The composition of batches and the threads change the last bits, so both are part of what the features are.
    key = key_of(
        "features", checkpoint=identity, texts=texts, length=length, dtype=str(dtype),
        device=device.split(":")[0], threads=torch.get_num_threads(), torch=version("torch"),
        transformers=version("transformers"), layout=1,
    )  # fmt: skip
    found = store.find("features", key)
    if found is not None:
        return Features.open(found, 0.0)
    started = time.monotonic()
    with _reading(checkpoint):
        tokenizer, encoder = (opened or Opened()).read(checkpoint, device, dtype)
    with model_calls(checkpoint.reference):
        tokens = tokenize(tokenizer, texts, length)
        folder = store.make(
            "features", key, lambda aside: _write(encoder, tokens, aside, checkpoint, device, progress),
            about={"checkpoint": checkpoint.name, "reference": checkpoint.reference, "texts": len(texts)},
        )  # fmt: skip
    faults.point("features written")
    return Features.open(folder, time.monotonic() - started)


class Opened:
    """The tokenizer and the encoder of the checkpoint that was read last, so that the blocks of a pass read it once."""

    def __init__(self) -> None:
        self._kept: tuple[str, tuple[Any, Any]] | None = None

    def read(self, checkpoint: Checkpoint, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
        """Tokenizer and encoder."""
        if self._kept is None or self._kept[0] != checkpoint.name:
            self._kept = None  # one at a time is in memory
            found = load_tokenizer(checkpoint), load_encoder(checkpoint, device=device, dtype=dtype)
            self._kept = (checkpoint.name, found)
        return self._kept[1]


@contextmanager
def _reading(checkpoint: Checkpoint) -> Iterator[None]:
    """What reading a checkpoint's files raises is the checkpoint's fault; what writing to the store raises is not."""
    try:
        with model_calls(checkpoint.reference):
            yield
    except OSError as fault:
        raise CheckpointError(
            f"{fault.filename or checkpoint.folder} cannot be read ({fault.strerror or fault}).", "Check the folder."
        ) from fault


def extract_all(
    checkpoints: Sequence[Checkpoint],
    texts: Sequence[str],
    *,
    failed: dict[str, CheckpointError] | None = None,
    **options: Any,
) -> dict[str, Features]:
    """Features of many checkpoints by name; truncations of one encoder share its pass.

    A checkpoint that cannot be computed is put into `failed` (and raised when that is None). A store that cannot be written
    is nobody's fault but the disk's: it is raised.
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
            except CheckpointError as fault:
                if failed is None:
                    raise
                failed[checkpoint.name] = fault
    return {checkpoint.name: found[checkpoint.name] for checkpoint in checkpoints if checkpoint.name in found}


def _shares(checkpoint: Checkpoint, whole: Checkpoint, texts: Sequence[str], options: Mapping[str, Any]) -> bool:
    """Whether a truncation computes the leading layers of the whole, on up to four texts; found out once."""
    device, dtype = options.get("device", "cpu"), options.get("dtype", torch.float32)
    key = key_of(
        "shared pass", short=checkpoint.checkpoint_id, whole=whole.checkpoint_id, dtype=str(dtype),
        device=device.split(":")[0], torch=version("torch"), transformers=version("transformers"),
    )  # fmt: skip

    store = options.get("store") or Store()
    kept = store.find("shared", key)
    if kept is None:
        with _reading(checkpoint):  # outside of the store: a file that cannot be read is no fault of the disk's
            text = json.dumps(_gap(checkpoint, whole, texts, device, dtype))
        about = {"checkpoint": checkpoint.name}
        kept = store.make("shared", key, lambda folder: _write_text(folder / "gap.json", text), about=about)
    gap = float(json.loads((kept / "gap.json").read_text()))
    return gap <= (SHARED_TOLERANCE if dtype == torch.float32 else 0.1)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)


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
