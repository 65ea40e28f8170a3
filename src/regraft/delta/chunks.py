"""Blocks of a tensor to stored bytes and back: every plane compressed by itself, or raw, or nothing where it is all zeros."""

from __future__ import annotations

import threading
import zlib
from dataclasses import dataclass

import numpy as np
import zstandard

from regraft.delta.plans import Kind, from_planes, to_planes
from regraft.errors import CheckpointError

# Nearly entropy coding alone: weights hardly repeat, so a table of 64 places finds the runs of zeros, and a larger one costs
# time and gains nothing (docs/zoo_pack.md).
PARAMETERS = {
    "strategy": zstandard.STRATEGY_FAST, "window_log": 20, "hash_log": 6, "chain_log": 6, "search_log": 1, "min_match": 7,
    "target_length": 0,
}  # fmt: skip

_local = threading.local()


@dataclass(frozen=True)
class Block:
    """A coded block.

    Args:
        chunks: The stored bytes of every plane: none (all zeros), as many as the plane has (raw), or a zstd frame.
        check: CRC-32 of the stored bytes, one plane after the other.
        of_parent: CRC-32 of the parent's bytes; 0 without one.
    """

    chunks: tuple[bytes, ...]
    check: int
    of_parent: int


def encode(plan: str, kind: Kind, child: np.ndarray, parent: np.ndarray | None) -> Block:
    """Code a block; `child` and `parent` are its words, flat."""
    chunks = tuple(squeeze(plane) for plane in to_planes(plan, kind, child, parent))
    check = 0
    for chunk in chunks:
        check = zlib.crc32(chunk, check)
    return Block(chunks, check, 0 if parent is None else zlib.crc32(parent.view(np.uint8).data))


def decode(
    out: np.ndarray, plan: str, kind: Kind, stored: memoryview, sizes: list[int], parent: np.ndarray | None
) -> None:
    """The words of a block, into `out`, from its stored bytes, whose CRC-32 has been checked.

    Args:
        out: Words.
        plan: See `plans`.
        kind: See `plans`.
        stored: The chunks, one after the other.
        sizes: Bytes of each chunk.
        parent: The parent's words.

    Raises:
        CheckpointError: A chunk does not unpack to exactly one plane.
    """
    planes, at = [], 0
    for size in sizes:
        planes.append(unsqueeze(stored[at : at + size], out.size))
        at += size
    from_planes(out, plan, kind, planes, parent)


def squeeze(plane: np.ndarray) -> bytes:
    """The stored form of a plane (uint8, flat): see `Block`."""
    if not plane.any():
        return b""
    found: bytes = _compressor().compress(plane.data)
    return found if len(found) < plane.size else plane.tobytes()


def unsqueeze(stored: memoryview, size: int) -> np.ndarray:
    """A plane of `size` bytes from its stored form.

    Raises:
        CheckpointError: The frame is damaged, or claims or holds another number of bytes.
    """
    if not len(stored):
        return np.zeros(size, np.uint8)
    if len(stored) == size:
        return np.frombuffer(stored, np.uint8)
    try:
        # The library allocates what the frame claims, whatever limit it is given.
        claimed = zstandard.frame_content_size(stored)
        if claimed != size:
            raise CheckpointError(f"A block claims {claimed} bytes where {size} belong.")
        return np.frombuffer(_decompressor().decompress(stored, allow_extra_data=False), np.uint8)
    except zstandard.ZstdError as fault:
        raise CheckpointError(f"A block does not unpack ({fault}).") from fault


def _compressor() -> zstandard.ZstdCompressor:
    """One for each thread: they may not be shared, and making one costs more than a small block."""
    if not hasattr(_local, "compressor"):
        parameters = zstandard.ZstdCompressionParameters(**PARAMETERS)
        _local.compressor = zstandard.ZstdCompressor(compression_params=parameters)
    found: zstandard.ZstdCompressor = _local.compressor
    return found


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    found: zstandard.ZstdDecompressor = _local.decompressor
    return found
