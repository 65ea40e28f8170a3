"""The file of a delta: what it says, where the blocks lie, and what is believed of it.

    8 bytes     b"RgDelta\\n"
    4 bytes     version, little-endian as every number here
    4 bytes     J, the length of the JSON
    32 bytes    SHA-256 of the JSON and the table
    J bytes     JSON: {"file": {"bytes", "sha256"}, "head_bytes", "block_bytes", "tensors": [...]}; see `Delta`, `Entry`
    table       for every block: CRC-32 of its stored bytes, CRC-32 of the parent's bytes (0 without a parent), then the
                stored size of each plane; all of 4 bytes
    data        the stored bytes of every block, without gaps, to the end of the file

The first blocks hold the head of the original file (its length, its header and the padding) as bytes, as if it were a
tensor of U8; the tensors follow in the order of their data. A block holds `block_bytes // width` words, the last of a
tensor what is left; a tensor without elements has none. docs/zoo_pack.md says the same for those who write a reader.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from regraft.checkpoint.headers import HEADER_LIMIT, NAME_LIMIT
from regraft.delta.plans import KINDS, Kind, check_plan
from regraft.errors import CheckpointError

MAGIC = b"RgDelta\n"
VERSION = 1
START = 48
BLOCK_BYTES = 2**20
BLOCK_LIMIT = 16 * 2**20  # of one block: what a reader has to hold for each of its workers
SIZE_LIMIT = 2**60
CHECKS = 2  # the table's columns before the sizes

AGAIN = "Use an intact copy of the pack."


@dataclass(frozen=True)
class Entry:
    """A tensor in a delta.

    Args:
        name: Of the tensor; empty for the head of the file.
        dtype: As safetensors writes it.
        words: How many; see `plans`.
        plan: How they were coded.
        parent: File (below the parent's folder) and name of the parent's tensor, or None.
    """

    name: str
    dtype: str
    words: int
    plan: str
    parent: tuple[str, str] | None = None

    @property
    def kind(self) -> Kind:
        """Its words."""
        return KINDS[self.dtype]

    @property
    def nbytes(self) -> int:
        """Unpacked."""
        return self.words * self.kind.width

    @property
    def label(self) -> str:
        """For messages."""
        return f"tensor {self.name!r}" if self.name else "the header"

    def words_in(self, block_bytes: int) -> int:
        """Words of a whole block."""
        return block_bytes // self.kind.width

    def blocks(self, block_bytes: int) -> int:
        """How many blocks it takes."""
        return -(-self.words // self.words_in(block_bytes))


@dataclass(frozen=True)
class Delta:
    """What a delta file says.

    Args:
        bytes: Of the original file.
        sha256: Of the original file.
        head_bytes: Of its head.
        block_bytes: Of a whole block, unpacked.
        entries: The head and the tensors, in their order.
        tables: For each entry, uint32 [blocks, 2 + width]: the checks and the stored sizes.
        data_start: Where the first block lies in the delta file.
    """

    bytes: int
    sha256: str
    head_bytes: int
    block_bytes: int
    entries: tuple[Entry, ...]
    tables: tuple[np.ndarray, ...]
    data_start: int


def head_entry(head_bytes: int) -> Entry:
    """The head of the file, as the first entry."""
    return Entry("", "U8", head_bytes, "plain")


def table_bytes(entries: Iterable[Entry], block_bytes: int) -> int:
    """Of the whole table."""
    return sum(entry.blocks(block_bytes) * 4 * (CHECKS + entry.kind.width) for entry in entries)


def as_json(size: int, sha256: str, block_bytes: int, entries: Iterable[Entry]) -> bytes:
    """The JSON of a delta; its length does not depend on the digits of `sha256`."""
    head, *tensors = entries
    listed = [
        {"name": entry.name, "dtype": entry.dtype, "words": entry.words, "plan": entry.plan}
        | ({} if entry.parent is None else {"parent": list(entry.parent)})
        for entry in tensors
    ]
    about = {
        "file": {"bytes": size, "sha256": sha256},
        "head_bytes": head.words,
        "block_bytes": block_bytes,
        "tensors": listed,
    }
    return json.dumps(about, separators=(",", ":")).encode()


def preamble(text: bytes, table: bytes) -> bytes:
    """What stands before the data."""
    digest = hashlib.sha256(text)
    digest.update(table)
    return MAGIC + VERSION.to_bytes(4, "little") + len(text).to_bytes(4, "little") + digest.digest() + text + table


def read_layout(path: Path) -> Delta:
    """Read what stands before the data, and check that the file can hold what it claims.

    Raises:
        CheckpointError: No delta, of a newer version, truncated or damaged; names the tensor where it can.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(START)
            if len(first) < START or first[:8] != MAGIC:
                raise CheckpointError(f"{path} is no delta, or only the beginning of one.", AGAIN)
            version, length = (int.from_bytes(first[at : at + 4], "little") for at in (8, 12))
            if version != VERSION:
                raise CheckpointError(
                    f"{path} is of format version {version}; this Regraft reads version {VERSION}.",
                    "Use the version of Regraft that wrote it, or a newer one.",
                )
            if length > HEADER_LIMIT or START + length > size:
                raise CheckpointError(f"{path} is truncated or damaged: it claims {length} bytes of JSON.", AGAIN)
            text = file.read(length)
            about = _parsed(path, text)
            listed = table_bytes(about.entries, about.block_bytes)
            if START + length + listed > size:
                raise CheckpointError(
                    f"{path} is truncated or damaged: {size} bytes cannot hold the table of its blocks.", AGAIN
                )
            table = file.read(listed)
    except OSError as fault:
        raise CheckpointError(f"{path} cannot be read ({fault.strerror}).", "Check the file and the disk.") from fault
    if preamble(text, table)[16:START] != first[16:]:
        raise CheckpointError(f"{path} is damaged: its JSON and table are not what was written.", AGAIN)
    return _with_tables(path, about, table, START + length + listed, size)


def _parsed(path: Path, text: bytes) -> Delta:
    """The JSON, every value checked by itself; no tables yet."""
    try:
        about = json.loads(text.decode())
        size, digest = about["file"]["bytes"], about["file"]["sha256"]
        head_bytes, block_bytes = about["head_bytes"], about["block_bytes"]
        sizes = (size, head_bytes, block_bytes)
        if not all(_is_count(value) for value in sizes) or not isinstance(digest, str) or len(digest) != 64:
            raise ValueError("sizes or hash")
        if not 8 <= block_bytes <= BLOCK_LIMIT or not 8 <= head_bytes <= HEADER_LIMIT + 8:
            raise ValueError("sizes")
        entries = (head_entry(head_bytes), *(_entry(value) for value in about["tensors"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
        raise CheckpointError(f"{path} is damaged: its JSON does not say what it must ({fault!r}).", AGAIN) from fault
    total = sum(entry.nbytes for entry in entries)
    if total != size:
        raise CheckpointError(f"{path} claims a file of {size} bytes, but tensors of {total}.", AGAIN)
    return Delta(size, digest, head_bytes, block_bytes, entries, (), 0)


def _entry(value: dict[str, Any]) -> Entry:
    name, dtype, words, plan = value["name"], value["dtype"], value["words"], value["plan"]
    parent = value.get("parent")
    if not isinstance(name, str) or not 0 < len(name) <= NAME_LIMIT or dtype not in KINDS or not _is_count(words):
        raise ValueError(f"tensor {str(name)[:80]!a}")
    if parent is not None:
        file, of = parent
        if not isinstance(of, str) or not is_inside(file):
            raise ValueError(f"parent of {name[:80]!a}")
        parent = (file, of)
    try:
        check_plan(plan, dtype, parent is not None)
    except CheckpointError as fault:
        raise ValueError(fault.problem) from None
    return Entry(name, dtype, words, plan, parent)


def is_inside(path: object) -> bool:
    """Whether a path from a pack is relative and stays below its folder, spelled in the one way that we write."""
    if not isinstance(path, str) or not path or "\\" in path or "\0" in path or len(path) > 4096:
        return False
    parts = PurePosixPath(path)
    return not parts.is_absolute() and ".." not in parts.parts and parts.as_posix() == path and path != "."


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= SIZE_LIMIT


def _with_tables(path: Path, about: Delta, table: bytes, data_start: int, size: int) -> Delta:
    """The delta with its tables; the stored sizes must fit the blocks, and add up to the size of the file."""
    tables, at, end = [], 0, data_start
    for entry in about.entries:
        columns, blocks = CHECKS + entry.kind.width, entry.blocks(about.block_bytes)
        rows = np.frombuffer(table, "<u4", blocks * columns, at).reshape(blocks, columns)
        at += rows.nbytes
        tables.append(rows)
        if not blocks:
            continue
        words = np.full(blocks, entry.words_in(about.block_bytes))
        words[-1] = entry.words - (blocks - 1) * words[0]
        if (rows[:, CHECKS:] > words[:, None]).any():
            raise CheckpointError(f"{path} is damaged: {entry.label} has a block larger than what it holds.", AGAIN)
        end += int(rows[:, CHECKS:].sum(dtype=np.int64))
        if end > size:
            raise CheckpointError(f"{path} is truncated: {entry.label} is not whole.", AGAIN)
    if end != size:
        raise CheckpointError(f"{path} is damaged: {size - end} bytes after its last block belong to none.", AGAIN)
    return Delta(
        about.bytes, about.sha256, about.head_bytes, about.block_bytes, about.entries, tuple(tables), data_start
    )
