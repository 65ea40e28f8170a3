"""Read a delta back: the original file, byte for byte, or words that say why not."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regraft.checkpoint.headers import TensorInfo, read_header
from regraft.delta.chunks import decode
from regraft.delta.files import Files, Target, in_order
from regraft.delta.layout import AGAIN, CHECKS, Delta, Entry, read_layout
from regraft.delta.parents import Parents
from regraft.delta.scratch import Buffers, scratch
from regraft.errors import CheckpointError
from regraft.progress import SILENT, Progress


@dataclass(frozen=True)
class _Part:
    """A stored block."""

    entry: int
    row: int
    at: int  # byte in the delta
    of_parent: int  # byte in the parent's file


def decode_file(
    path: Path, out: Path | None, parents: Parents | None, *, workers: int = 1, progress: Progress = SILENT
) -> str:
    """Write the original file of a delta to `out`, for its owner alone; None only to check that it is whole. Its SHA-256.

    Raises:
        CheckpointError: No delta, of a newer version, truncated or damaged; the parent is missing, or another one, or
            changed. Names the tensor where it can.
        OSError: `out` cannot be written.
    """
    layout = read_layout(path)
    origins = [_origin(path, entry, parents) for entry in layout.entries]
    buffers = Buffers(layout.block_bytes)
    with Files() as files, Target(out) as target:
        for one in {path, *(origin.file for origin in origins if origin is not None)}:
            files.add(one)

        def words(part: _Part) -> np.ndarray:
            return _block(files, buffers, path, layout, part, origins[part.entry])

        for found in in_order(words, _parts(layout, origins), workers):
            target.write(found)
            buffers.give(found)
            progress.advance(found.nbytes)
    if target.sha256 != layout.sha256 or target.written != layout.bytes:
        raise CheckpointError(
            f"{path} unpacks to another file than was packed, although every block is whole.",
            "Give the parent as it was when the pack was made.",
        )
    if out is not None:
        _check_header(path, out, layout)
    return target.sha256


def _origin(path: Path, entry: Entry, parents: Parents | None) -> TensorInfo | None:
    if entry.parent is None:
        return None
    if parents is None:
        raise CheckpointError(f"{path} is a delta, and its parent is missing.", "Give the folder of the parent.")
    found = parents.at(entry.parent)
    if found is None or (found.dtype, found.nbytes) != (entry.dtype, entry.nbytes):
        raise CheckpointError(
            f"{parents.folder} is not the parent of {path}: {entry.label} was packed against its tensor "
            f"{entry.parent[1][:80]!a} of {entry.nbytes} bytes in {entry.dtype}, which it does not hold.",
            "Give the folder of the parent as it was when the pack was made.",
        )
    return found


def _parts(layout: Delta, origins: list[TensorInfo | None]) -> Iterator[_Part]:
    at = layout.data_start
    for number, (entry, table) in enumerate(zip(layout.entries, layout.tables, strict=True)):
        origin, step = origins[number], entry.words_in(layout.block_bytes) * entry.kind.width
        for row in range(len(table)):
            yield _Part(number, row, at, 0 if origin is None else origin.start + row * step)
            at += int(table[row, CHECKS:].sum(dtype=np.int64))


def _block(
    files: Files, buffers: Buffers, path: Path, layout: Delta, part: _Part, origin: TensorInfo | None
) -> np.ndarray:
    """The words of a block; every error names its tensor."""
    entry, row = layout.entries[part.entry], layout.tables[part.entry][part.row]
    step = entry.words_in(layout.block_bytes)
    count = min(step, entry.words - part.row * step)
    sizes = [int(size) for size in row[CHECKS:]]
    stored = files.read(path, part.at, scratch("stored", sum(sizes)))
    if zlib.crc32(stored.data) != row[0]:
        raise CheckpointError(f"{path} is damaged: {entry.label} (block {part.row}) is not what was written.", AGAIN)
    parent = None
    if origin is not None:
        raw = files.read(origin.file, part.of_parent, scratch("parent", count * entry.kind.width))
        if zlib.crc32(raw.data) != row[1]:
            raise CheckpointError(
                f"{origin.file} is not the parent of {path}, or has changed: its tensor {origin.name!r} "
                f"(block {part.row}) is not the one that {entry.label} was packed against.",
                "Give the parent as it was when the pack was made.",
            )
        parent = raw.view(entry.kind.word)
    found = buffers.take(count * entry.kind.width)
    try:
        decode(found.view(entry.kind.word), entry.plan, entry.kind, stored.data, sizes, parent)
    except CheckpointError as fault:
        raise CheckpointError(
            f"{path} is damaged in {entry.label} (block {part.row}): {fault.problem}", AGAIN
        ) from fault
    return found


def _check_header(path: Path, out: Path, layout: Delta) -> None:
    """The unpacked file is a safetensors file with the tensors that were named: no overlaps, no holes, nothing else."""
    try:
        found = [(info.name, info.dtype, info.nbytes) for info in read_header(out).values()]
    except CheckpointError as fault:
        raise CheckpointError(f"{path} unpacks to no safetensors file: {fault.problem}", AGAIN) from fault
    if found != [(entry.name, entry.dtype, entry.nbytes) for entry in layout.entries[1:]]:
        raise CheckpointError(f"{path} unpacks to other tensors than it names.", AGAIN)
