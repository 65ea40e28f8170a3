"""Write a safetensors file as a delta of its parent's tensors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regraft.checkpoint.headers import TensorInfo, read_header
from regraft.delta.chunks import Block, encode, squeeze
from regraft.delta.files import Files, Target, in_order
from regraft.delta.layout import BLOCK_BYTES, CHECKS, START, Entry, as_json, head_entry, preamble, table_bytes
from regraft.delta.parents import Parents
from regraft.delta.plans import KINDS, PLANS, to_planes
from regraft.delta.scratch import Buffers, scratch
from regraft.progress import SILENT, Progress

# Pieces of a tensor, in words, that its plan is chosen by.
PIECES = 4
PIECE = 2048
# An order pays where the compressor has room to adapt: it begins with new codes every 128 KiB, at the latest.
ORDERED_LEAST = 2**15
ORDER_SAVES = 0.1  # bits a word: more than chance makes of a sample of this size


@dataclass(frozen=True)
class Coded:
    """What became of a file.

    Args:
        bytes: Before.
        packed_bytes: After.
        sha256: Of the file as it was read.
        plans: How many bytes of tensors were coded by each plan, before.
    """

    bytes: int
    packed_bytes: int
    sha256: str
    plans: Mapping[str, int]


@dataclass(frozen=True)
class _Part:
    """A block to be coded: where its words lie."""

    entry: int
    row: int
    start: int  # byte in the original file
    words: int
    of_parent: int  # byte in the parent's file


def encode_file(
    source: Path, out: Path, parents: Parents | None, file: str = "", *, workers: int = 1,
    block_bytes: int = BLOCK_BYTES, progress: Progress = SILENT,
) -> Coded:  # fmt: skip
    """Write the delta of a safetensors file; it is the same, byte for byte, for any number of workers.

    Args:
        source: The file.
        out: The delta, overwritten.
        parents: Of the parent; None to code every tensor by itself.
        file: The path of the file below its checkpoint's folder, by which counterparts are found.
        workers: Threads.
        block_bytes: What is coded at a time.
        progress: Told of bytes.

    Raises:
        CheckpointError: The file is no safetensors file that can be read, or changes meanwhile.
        OSError: The delta cannot be written.
    """
    tensors = list(read_header(source).values())
    size = source.stat().st_size
    found = [parents.find(file, tensor) if parents is not None else None for tensor in tensors]
    with Files() as files:
        for path in {source, *(one[1].file for one in found if one is not None)}:
            files.add(path)

        def chosen(number: int) -> Entry:
            return _choose(files, tensors[number], found[number], block_bytes)

        head = head_entry(tensors[0].start if tensors else size)
        entries = [head, *in_order(chosen, range(len(tensors)), workers)]
        origins = [None, *(None if one is None else one[1] for one in found)]
        tables = [np.zeros((one.blocks(block_bytes), CHECKS + one.kind.width), "<u4") for one in entries]
        text = as_json(size, "0" * 64, block_bytes, entries)
        buffers = Buffers(block_bytes)

        def coded(part: _Part) -> tuple[_Part, np.ndarray, Block]:
            entry = entries[part.entry]
            raw = files.read(source, part.start, buffers.take(part.words * entry.kind.width))
            origin = origins[part.entry] if entry.parent is not None else None
            parent = None
            if origin is not None:
                parent = files.read(origin.file, part.of_parent, scratch("parent", len(raw)))
            words = None if parent is None else parent.view(entry.kind.word)
            return part, raw, encode(entry.plan, entry.kind, raw.view(entry.kind.word), words)

        with Target(None) as original, Target(out, hashed=False) as packed:
            packed.write(bytes(START + len(text) + table_bytes(entries, block_bytes)))
            for part, raw, block in in_order(coded, _parts(entries, origins, block_bytes), workers):
                original.write(raw)
                buffers.give(raw)
                tables[part.entry][part.row] = (block.check, block.of_parent, *(len(chunk) for chunk in block.chunks))
                for chunk in block.chunks:
                    packed.write(chunk)
                progress.advance(len(raw))
            text = as_json(size, original.sha256, block_bytes, entries)
            packed.overwrite(preamble(text, b"".join(table.tobytes() for table in tables)))
    plans: Counter[str] = Counter()
    for entry in entries[1:]:
        plans[entry.plan] += entry.nbytes
    return Coded(size, packed.written, original.sha256, plans)


def _parts(entries: list[Entry], origins: list[TensorInfo | None], block_bytes: int) -> Iterator[_Part]:
    """Every block, in the order of the file."""
    start = 0
    for number, entry in enumerate(entries):
        origin, step = origins[number], entry.words_in(block_bytes)
        for row in range(entry.blocks(block_bytes)):
            at = row * step
            of_parent = 0 if origin is None else origin.start + at * entry.kind.width
            yield _Part(number, row, start + at * entry.kind.width, min(step, entry.words - at), of_parent)
        start += entry.nbytes


def _choose(
    files: Files, tensor: TensorInfo, found: tuple[tuple[str, str], TensorInfo] | None, block_bytes: int
) -> Entry:
    """The plan that makes the least of a sample of the tensor: first the kind of difference, then whether to order it.

    The kind by trying; the order by what the exponents tell, which shows in a sample that is too short to gain by it.
    """
    kind = KINDS[tensor.dtype]
    words = tensor.nbytes // kind.width
    if found is None or not words:
        return Entry(tensor.name, tensor.dtype, words, PLANS[0])
    place, parent = found
    piece = min(words, PIECE)
    starts = sorted({(words - piece) * number // (PIECES - 1) for number in range(PIECES)})
    sizes = dict.fromkeys(PLANS[:3], 0)
    planes: dict[str, list[np.ndarray]] = {plan: [] for plan in sizes}
    theirs: list[np.ndarray] = []
    for at in starts:
        mine, old = (
            files.read(info.file, info.start + at * kind.width, scratch(memory, piece * kind.width)).view(kind.word)
            for info, memory in ((tensor, "child"), (parent, "parent"))
        )
        theirs.append(old.copy())
        for plan in sizes:
            planes[plan].append(to_planes(plan, kind, mine, old).copy())
            sizes[plan] += sum(len(squeeze(plane)) for plane in planes[plan][-1])
    best = min(sizes, key=lambda plan: sizes[plan])  # of two that are level, the first
    ordered = f"{best}/exponent"
    if ordered in kind.plans and words >= ORDERED_LEAST:
        exponents = (np.concatenate(theirs) >> kind.word.type(kind.mantissa)).astype(np.int64) & (
            1 << kind.exponent
        ) - 1
        if _told(np.concatenate(planes[best], axis=1), exponents) > ORDER_SAVES:
            best = ordered
    return Entry(tensor.name, tensor.dtype, words, best, None if best == PLANS[0] else place)


def _told(planes: np.ndarray, groups: np.ndarray) -> float:
    """Bits that knowing the group of a word saves of its bytes: their mutual information, less what chance makes of it.

    H(byte) + H(group) - H(byte, group) for each plane, each entropy corrected by (cells - 1) / (2 words) nats (Miller 1955).
    """
    numbers = np.unique(groups, return_inverse=True)[1]
    saved = 0.0
    for plane in planes:
        joint = np.bincount(numbers * 256 + plane).reshape(-1)
        saved += _entropy(np.bincount(plane)) + _entropy(np.bincount(numbers)) - _entropy(joint)
    return saved / math.log(2)


def _entropy(counts: np.ndarray) -> float:
    """In nats, corrected."""
    found = counts[counts > 0].astype(np.float64)
    total = found.sum()
    return float(np.log(total) - (found * np.log(found)).sum() / total + (len(found) - 1) / (2 * total))
