"""Read safetensors headers, and believe nothing in them that the file does not bear out.

A safetensors file is an 8-byte little-endian length N, N bytes of JSON that map each name to a dtype, a shape and a
byte range, and the data. The ranges must tile the data: no overlap, no hole, nothing past the end.

Source: the safetensors format, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from regraft.checkpoint.files import read_json_object
from regraft.errors import CheckpointError, UnreadableFileError, UnsafeCheckpointError
from regraft.paths import open_regular

HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors library itself
NAME_LIMIT = 512  # characters
RANK_LIMIT = 64
SIZE_LIMIT = 2**63 - 1  # elements and bytes must fit what files and tensor libraries can address
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip
# Formats of quantised weights: legal in a file, but meaningless without the scales and code of their quantiser.
QUANTISED_DTYPES = frozenset({
    "F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0",
})  # fmt: skip

AGAIN = "Download or save the checkpoint again."


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor; `start` and `end` are byte positions in `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.end - self.start


def read_tensors(folder: Path) -> dict[str, TensorInfo]:
    """The tensors of a folder with `model.safetensors` or with shards and an index; empty when it has neither.

    Raises:
        CheckpointError: A header or the index is wrong; the text names the file and the fault.
        UnsafeCheckpointError: The index names a shard outside the folder.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.exists():
        return read_header(single)
    if index.exists():
        return _read_shards(folder, index)
    return {}


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, in the order of their data.

    Raises:
        CheckpointError: Truncated, no safetensors file, or a header that lies; the text names the file and the fault.
        UnreadableFileError: The file cannot be read, or is no regular file.
    """
    header, data_start, size = _load_header(path)
    tensors = [_entry(path, name, entry, data_start) for name, entry in header.items() if name != "__metadata__"]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end, tensor.name))
    _check_tiling(path, tensors, data_start, size)
    return {tensor.name: tensor for tensor in tensors}


def _load_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header's JSON object, where the data starts, and the size of the file."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(8)
            length = int.from_bytes(first, "little")
            if len(first) < 8:
                raise CheckpointError(f"{path} is truncated: {size} bytes, too short for a safetensors header.", AGAIN)
            if length > HEADER_LIMIT:
                raise CheckpointError(
                    f"{path} is no safetensors file: it claims a header of {length} bytes, "
                    f"the limit is {HEADER_LIMIT}.",
                    AGAIN,
                )
            if length + 8 > size:
                raise CheckpointError(
                    f"{path} is truncated: its header claims {length} bytes, the file has {size}.", AGAIN
                )
            raw = file.read(length)
    except OSError as error:
        raise UnreadableFileError(
            f"{path} cannot be read ({error.strerror}).", "Check the file and its permissions."
        ) from error
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except _DuplicateKey as error:
        raise CheckpointError(f"{path}: its header names {error.args[0]!r} twice.", AGAIN) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is not JSON.", AGAIN) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is a JSON {type(header).__name__}, expected an object.", AGAIN)
    return header, 8 + length, size


class _DuplicateKey(Exception):
    """A key that occurs twice in one JSON object (readers disagree on which one counts)."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _DuplicateKey(key[:80])
        found[key] = value
    return found


def _entry(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    """One header entry, checked by itself."""
    check_name(path, name)
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"{path}: tensor {name!r} lacks dtype, shape or data_offsets.", AGAIN)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if isinstance(dtype, str) and dtype in QUANTISED_DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name!r} is stored as {dtype}, a quantised format that cannot be computed here.",
            "Use the checkpoint in float32, float16 or bfloat16.",
        )
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise CheckpointError(
            f"{path}: tensor {name!r} has the unknown dtype {str(dtype)[:40]!a}, "
            f"expected one of {', '.join(DTYPE_BYTES)}.",
            AGAIN,
        )
    if not isinstance(shape, list) or len(shape) > RANK_LIMIT or not all(_is_size(size) for size in shape):
        raise CheckpointError(
            f"{path}: tensor {name!r} has the shape {str(shape)[:80]}, expected a list of sizes of 0 or more.", AGAIN
        )
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset) for offset in offsets):
        raise CheckpointError(
            f"{path}: tensor {name!r} has the offsets {str(offsets)[:80]}, expected [start, end].", AGAIN
        )
    expected = prod(shape) * DTYPE_BYTES[dtype]
    if expected > SIZE_LIMIT:
        raise CheckpointError(f"{path}: tensor {name!r} has the absurd shape {str(shape)[:80]}.", AGAIN)
    if offsets[1] - offsets[0] != expected:
        raise CheckpointError(
            f"{path}: tensor {name!r} claims the bytes {offsets[0]} to {offsets[1]}, "
            f"but {dtype} of shape {shape} takes {expected} bytes.",
            AGAIN,
        )
    return TensorInfo(name, dtype, tuple(shape), path, data_start + offsets[0], data_start + offsets[1])


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= SIZE_LIMIT


def check_name(path: Path, name: str) -> None:
    """Refuse names that no model has and that could do harm in a terminal, a file name or a report.

    Raises:
        CheckpointError: Empty, too long, not printable, or shaped like a path.
    """
    if not name or len(name) > NAME_LIMIT:
        fault = "an empty tensor name" if not name else f"a tensor name of {len(name)} characters"
        raise CheckpointError(f"{path}: its header holds {fault}, expected 1 to {NAME_LIMIT}.", AGAIN)
    if not name.isprintable() or "/.." in name or name.startswith(("..", "/")) or "\\" in name:
        raise CheckpointError(
            f"{path}: its header holds the absurd tensor name {name[:80]!a}, expected words joined by dots.", AGAIN
        )


def _check_tiling(path: Path, tensors: list[TensorInfo], data_start: int, size: int) -> None:
    """The byte ranges, in order, must cover the data from its start to the end of the file."""
    position = data_start
    for tensor in tensors:
        if tensor.end > size:
            raise CheckpointError(
                f"{path} is truncated, or its header lies: tensor {tensor.name!r} ends at byte {tensor.end}, "
                f"the file has {size}.",
                AGAIN,
            )
        if tensor.start != position:
            fault = "overlaps the tensor before it" if tensor.start < position else "leaves a hole before it"
            raise CheckpointError(f"{path}: tensor {tensor.name!r} {fault} (byte {tensor.start - data_start}).", AGAIN)
        position = tensor.end
    if position != size:
        raise CheckpointError(f"{path}: {size - position} bytes after the last tensor belong to none.", AGAIN)


def _read_shards(folder: Path, index: Path) -> dict[str, TensorInfo]:
    """The tensors of all shards that the index names, checked against the index."""
    weight_map = read_json_object(index, HEADER_LIMIT).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index}: its weight_map is missing or does not map names to files.", AGAIN)
    tensors: dict[str, TensorInfo] = {}
    shards = sorted(set(weight_map.values()))
    # All of them before any is looked for: what leaves the folder is not to hide behind what is missing.
    for shard in shards:
        _check_shard(index, shard)
    for shard in shards:
        path = folder / shard
        if not path.exists():
            raise CheckpointError(f"{index} names the shard {shard}, which is missing.", "Download all shards.")
        for name, tensor in read_header(path).items():
            if name in tensors:
                raise CheckpointError(f"{path}: tensor {name!r} is also in {tensors[name].file.name}.", AGAIN)
            tensors[name] = tensor
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].file.name != shard:
            raise CheckpointError(f"{index}: tensor {name[:80]!a} is not in {shard}, where the index says.", AGAIN)
    return tensors


def is_shard(name: str) -> bool:
    """Whether what an index names is a safetensors file of its own folder, by its name."""
    return PurePosixPath(name).name == name and "\\" not in name and name.endswith(".safetensors")


def _check_shard(index: Path, shard: str) -> None:
    if not is_shard(shard):
        raise UnsafeCheckpointError(
            f"{index} names the shard {shard[:80]!a}, which is not a .safetensors file of this folder.",
            "Keep all shards beside the index; do not use this copy.",
        )
