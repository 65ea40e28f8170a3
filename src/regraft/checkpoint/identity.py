"""Identity: which weights these are, and which function.

weights_id      sha256 over (name, dtype, shape, sha256 of the bytes) of every tensor, sorted by name: the same
                whatever the files are called and however the tensors are spread over them
checkpoint_id   weights_id and what else changes the function: config, tokenizer, maximum length, pooling, adapter
file_id         what is known before bytes are read: the Hub's own hash, or path + size + mtime. Never for equality
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from regraft.checkpoint.headers import TensorInfo, read_header
from regraft.errors import CheckpointError, NonFiniteError

BLOCK_BYTES = 4 * 2**20

# Config entries that say where a model comes from or how it is run, but not what it computes.
NOT_FUNCTION = frozenset({
    "name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache", "return_dict",
    "gradient_checkpointing", "output_hidden_states", "output_attentions", "chunk_size_feed_forward",
    "finetuning_task", "task_specific_params", "num_labels",
    "id2label", "label2id", "problem_type",  # of a head's outputs; `checkpoint_id` takes the labels by themselves
})  # fmt: skip
TOKENIZER_NOT_FUNCTION = frozenset({
    "name_or_path", "_name_or_path", "transformers_version", "is_local", "local_files_only", "backend",
    "special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file", "full_tokenizer_file", "chat_template",
    "model_max_length", "max_length", "stride", "truncation_strategy", "pad_to_multiple_of", "padding",
})  # fmt: skip

# The bits of the exponent: all set means NaN or infinity.
_EXPONENTS = {
    "F64": ("<u8", 0x7FF0 << 48),
    "F32": ("<u4", 0x7F80 << 16),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def sha256(*parts: str) -> str:
    """sha256 over text parts, each preceded by its length so that no two lists of parts run into the same bytes."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def weights_id(tensors: Mapping[str, TensorInfo]) -> str:
    """See the head of this file. Every file is read once per process, block by block.

    Raises:
        CheckpointError: A file changed or became shorter while it was read.
    """
    digests = {file: _file_digests(file) for file in {tensor.file for tensor in tensors.values()}}
    parts = []
    for key in sorted(tensors):
        tensor = tensors[key]
        parts.append(canonical([key, tensor.dtype, tensor.shape, digests[tensor.file][tensor.name]]))
    return sha256(*parts)


def _file_digests(file: Path) -> Mapping[str, str]:
    status = file.stat()
    return _tensor_digests(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _tensor_digests(file: Path, size: int, mtime_ns: int) -> Mapping[str, str]:
    """sha256 of every tensor's bytes; `size` and `mtime_ns` key the cache."""
    buffer, digests = bytearray(BLOCK_BYTES), {}
    for tensor in read_header(file).values():
        digest = hashlib.sha256()
        for block in blocks(tensor, buffer):
            digest.update(block)
        digests[tensor.name] = digest.hexdigest()
    return digests


def blocks(tensor: TensorInfo, buffer: bytearray) -> Iterator[memoryview]:
    """The bytes of a tensor as views of one reused buffer.

    Raises:
        CheckpointError: The file ends before the tensor does.
    """
    view = memoryview(buffer)
    with tensor.file.open("rb", buffering=0) as file:
        file.seek(tensor.start)
        left = tensor.nbytes
        while left:
            read = file.readinto(view[: min(left, len(buffer))])
            if not read:
                raise CheckpointError(
                    f"{tensor.file} ended while tensor {tensor.name!r} was read.", "Download or save it again."
                )
            yield view[:read]
            left -= read


def check_finite(tensors: Iterable[TensorInfo]) -> None:
    """Refuse NaN and infinite weights; reads every floating-point tensor once, block by block.

    Raises:
        NonFiniteError: Names the tensor and the file.
    """
    buffer = bytearray(BLOCK_BYTES)
    for tensor in tensors:
        if tensor.dtype not in _EXPONENTS:
            continue
        kind, mask = _EXPONENTS[tensor.dtype]
        bits = np.dtype(kind).type(mask)
        for block in whole_items(blocks(tensor, buffer), np.dtype(kind).itemsize):
            values = np.frombuffer(block, dtype=kind)
            if ((values & bits) == bits).any():
                raise NonFiniteError(
                    f"{tensor.file}: tensor {tensor.name!r} holds NaN or infinite values.",
                    "Use an intact copy of the checkpoint.",
                )


def whole_items(parts: Iterable[memoryview], itemsize: int) -> Iterator[bytes | memoryview]:
    """The same bytes, cut at multiples of `itemsize` (a read may stop anywhere)."""
    rest = b""
    for part in parts:
        data = rest + bytes(part) if rest else part
        end = len(data) - len(data) % itemsize
        rest = bytes(data[end:])
        yield data[:end]


def function_of_config(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that changes the function, without what only repeats the class's defaults.

    Leaving defaults out makes old files, which spell fewer entries out, equal to new files that mean the same.
    """
    return {
        key: value
        for key, value in config.items()
        if key not in NOT_FUNCTION
        and not key.startswith("_")  # transformers' own notes: paths, commits, kernels
        and (key not in defaults or defaults[key] != value)
    }


def function_of_tokenizer_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of tokenizer_config.json that changes the tokens."""
    return {key: value for key, value in config.items() if key not in TOKENIZER_NOT_FUNCTION and value is not None}


def file_id(files: Iterable[Path]) -> str:
    """See the head of this file; in the Hub's cache a blob is named by the file's SHA-256."""
    parts = []
    for file in sorted(files):
        real = file.resolve()
        if real.parent.name == "blobs" and len(real.name) == 64:
            parts.append(real.name)
        else:
            status = real.stat()
            parts.append(canonical([str(real), status.st_size, status.st_mtime_ns]))
    return sha256(*parts)
