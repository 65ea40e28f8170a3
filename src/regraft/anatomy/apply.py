"""Change a checkpoint's folder: tensors as a stream in blocks of rows, config and small files beside them.

Memory: one block (a quarter of a million elements, or one row where that is larger) and the index arrays; pages of the input's
files are the system's. The folder appears when it is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from regraft.anatomy.anatomy import Anatomy
from regraft.anatomy.bind import Binding, bind
from regraft.anatomy.maps import Choice
from regraft.anatomy.plan import Output, Plan, plan_change
from regraft.anatomy.read import load
from regraft.anatomy.rewrite import remapped
from regraft.anatomy.settings import Settings
from regraft.checkpoint.headers import INDEX, TensorInfo, read_tensors
from regraft.checkpoint.safety import PICKLES, TOKENIZER_FILES, read_modules
from regraft.checkpoint.weights import FLOATS, NUMPY, Weights, let_go, open_weights, raw_values
from regraft.checkpoint.writer import Slot, Writer
from regraft.errors import AnatomyError
from regraft.store import whole_folder

BLOCK = 2**18  # elements: what is computed with stays in the cache
# Files that say what tokens are which numbers: they are of the old vocabulary.
_OF_TOKENS = frozenset(
    {*TOKENIZER_FILES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
)
# What is written anew, or is true of the old weights alone.
_NOT_COPIED = frozenset({"config.json", INDEX, "generation_config.json", "certificate.json", "regraft.json"})
_OF_MODULES = frozenset({"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"})
_SMALL = 256 * 2**20  # bytes


@dataclass(frozen=True)
class Opened:
    """A checkpoint's folder, opened and bound."""

    weights: Weights
    tensors: Mapping[str, TensorInfo]
    binding: Binding

    @property
    def folder(self) -> Path:
        """Where config.json lies."""
        return self.weights.encoder_folder

    @property
    def modules(self) -> tuple[str, ...]:
        """Folders of the sentence-transformers modules after the encoder, where they lie beside its files."""
        if self.folder != self.weights.folder:
            return ()
        return tuple(where for _, where in read_modules(self.folder) if where)


def open_bound(text: str, anatomy: Anatomy | None = None) -> Opened:
    """Open a checkpoint by a reference and bind it to its anatomy (or to the one given): headers and small files only.

    Raises:
        BadReferenceError: The reference cannot be read or found.
        CheckpointError: A file is missing or damaged; names it.
        AnatomyError: There is no anatomy of its model_type, or it does not fit.
    """
    weights = open_weights(text)
    if weights.adapter is not None:
        raise AnatomyError(
            f"{text} has an adapter over it.", "Merge the adapter first, and give the merged checkpoint."
        )
    tensors = read_tensors(weights.encoder_folder)
    where = str(weights.encoder_folder / "config.json")
    chosen = anatomy or load(str(weights.config.get("model_type")))
    binding = bind(chosen, Settings(weights.config, where), {name: one.shape for name, one in tensors.items()})
    return Opened(weights, tensors, binding)


def change(opened: Opened, choices: Mapping[str, Choice], target: Path) -> Plan:
    """Write the checkpoint with index maps on its axes as a stock folder; an older one is replaced.

    Raises:
        AnatomyError: A map that an axis does not allow, or a size that the class cannot say; nothing is written.
        StoreError: The disk is full or cannot be written; nothing half-written stays.
    """
    plan = plan_change(opened.binding, choices)
    write(opened, plan, target)
    return plan


def write(opened: Opened, plan: Plan, target: Path) -> None:
    """Write a plan's outputs. See `change`."""
    if target.resolve() == opened.weights.folder.resolve():
        raise AnatomyError(f"{target} is the checkpoint itself.", "Give another folder.")
    with whole_folder(target) as aside:
        write_tensors(opened.tensors, plan.outputs, aside)
        (aside / "config.json").write_text(
            json.dumps(plan.settings.raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        _copy_small(opened, plan, aside)
    let_go()


def write_tensors(tensors: Mapping[str, TensorInfo], outputs: tuple[Output, ...], folder: Path) -> None:
    """The safetensors files, sharded as the input is, and their index."""
    pairs = [(one, tensors[one.source]) for one in outputs]
    slots = [Slot(PurePosixPath(tensor.file.name), one.name, tensor.dtype, one.shape) for one, tensor in pairs]
    # The order of the data is the order of the header: widest types first keeps every tensor aligned.
    slots.sort(key=lambda slot: -np.dtype(NUMPY[slot.dtype]).itemsize)
    by_name = {one.name: one for one in outputs}
    with Writer(folder, slots) as writer:
        for slot in slots:
            one = by_name[slot.name]
            for start, block in stored_blocks(one, tensors[one.source]):
                writer.write(slot.name, block, start)
    (folder / ".finished").unlink(missing_ok=True)
    files = sorted({str(slot.file) for slot in slots})
    if len(files) > 1 or files != ["model.safetensors"]:
        index = {
            "metadata": {"total_size": sum(slot.nbytes for slot in slots)},
            "weight_map": {slot.name: str(slot.file) for slot in slots},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def stored_blocks(output: Output, tensor: TensorInfo) -> Iterator[tuple[int, np.ndarray]]:
    """(first element, elements) of an output in its stored form, block after block."""
    raw = raw_values(tensor).reshape(tensor.shape)
    if not output.shape:
        yield 0, _scaled(raw.reshape(1), tensor, [np.float64(output.factor)] if output.scaled else [])
        return
    row = prod(output.shape[1:])
    step = max(1, BLOCK // max(row, 1))
    first = output.dims[0]
    for start in range(0, output.shape[0], step):
        stop = min(start + step, output.shape[0])
        block = raw[start:stop] if first is None else raw[first.index[start:stop]]
        for number, one in enumerate(output.dims[1:], start=1):
            if one is not None:
                block = np.take(block, one.index, axis=number)
        yield start * row, _scaled(block, tensor, list(_scales(output, start, stop)) if output.scaled else [])


def _scales(output: Output, start: int, stop: int) -> Iterator[Any]:
    """What a block of rows is multiplied by, shaped to be multiplied."""
    yield np.float64(output.factor)
    for number, one in enumerate(output.dims):
        if one is not None and one.scale is not None:
            scale = one.scale[start:stop] if number == 0 else one.scale
            yield scale.reshape([-1 if at == number else 1 for at in range(len(output.dims))])


def _scaled(block: np.ndarray, tensor: TensorInfo, scales: list[Any]) -> np.ndarray:
    """Stored numbers times scales, rounded to the stored type; computed in float32 for 16-bit types, else in float64."""
    if not scales:
        return block
    if tensor.dtype not in FLOATS:
        raise AnatomyError(
            f"The tensor {tensor.name!r} is of {tensor.dtype}, and would have to be scaled.", "Choose other axes."
        )
    if tensor.dtype == "BF16":
        values = (block.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        values = block.astype(np.float32 if tensor.dtype == "F16" else np.float64)
    for scale in scales:
        values *= scale.astype(values.dtype)
    return _bfloat16(values) if tensor.dtype == "BF16" else values.astype(block.dtype)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of bfloat16, rounded to the nearest, ties to even; `values` (float32, products of bfloat16) are used up.

    A NaN of bfloat16 has zeros below its upper half, so what is added for rounding does not carry out of it.
    """
    bits = values.view(np.uint32)
    odd = bits >> np.uint32(16)
    odd &= np.uint32(1)
    odd += np.uint32(0x7FFF)
    bits += odd
    bits >>= np.uint32(16)
    return bits.astype(np.uint16)


def _copy_small(opened: Opened, plan: Plan, aside: Path) -> None:
    """Tokenizer, preprocessor and other small files; those of tokens only while the tokens keep their numbers."""
    # Pooling and what follows it fit as long as the encoder's outputs are the same.
    modules = opened.modules if "hidden" not in plan.whole else ()
    for path in sorted(opened.folder.iterdir()):
        if path.name in _OF_MODULES and not modules:
            continue
        weights = path.name.endswith((*PICKLES, ".safetensors", ".index.json", ".h5", ".msgpack"))
        if not path.is_file() or path.name.startswith(".") or weights or path.name in _NOT_COPIED:
            continue
        if path.stat().st_size <= _SMALL and not (plan.renumbers_tokens and path.name in _OF_TOKENS):
            shutil.copyfile(path, aside / path.name)
    for where in modules:
        shutil.copytree(opened.folder / where, aside / where, dirs_exist_ok=True)
    generation = opened.folder / "generation_config.json"
    if generation.exists():
        content = json.loads(generation.read_text(encoding="utf-8"))
        for name, indices in plan.whole.items():
            for key in plan.binding.anatomy.axes[name].keys:
                if content.get(key) is not None:
                    content[key] = remapped(content[key], indices)
        content = {key: value for key, value in content.items() if value is not None}
        (aside / "generation_config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
