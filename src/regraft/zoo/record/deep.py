"""Risks that only the weights show: every tensor is read once, in blocks of whole rows.

nan               a value with all exponent bits set
dead-layer        a matrix all of whose values are equal, zero or not; of more than one row (some models have one type of
                  token and a table of zeros for it)
dead-rows         a matrix with rows that are all zero, one row (of a padding token) excepted
duplicate-layer   blocks whose tensors have the same names and equal bytes, as left by stacking a model's layers
duplicate-tensor  matrices of equal bytes under several names, neither in duplicated layers nor the two ends of tied embeddings

Vectors are not looked at for dead values: biases of zeros and norms of ones are what training starts from.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regraft.checkpoint.blocks import block_of, in_blocks, is_buffer
from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.identity import BLOCK_BYTES, blocks, whole_items
from regraft.errors import CheckpointError
from regraft.zoo.record.folder import Folder
from regraft.zoo.record.read import modules_of
from regraft.zoo.record.record import FileFact, Risk, Severity
from regraft.zoo.record.tensors import tensors_of

# The risks that weights alone show, of `protected` as well: they hold as long as the files of weights are the same.
CODES = frozenset({"nan", "dead-layer", "dead-rows", "duplicate-layer", "duplicate-tensor", "merge-protected"})
# (unsigned type of the width, bits of the exponent, all bits but the sign)
_BITS = {
    "F64": ("<u8", 0x7FF0 << 48, 2**63 - 1),
    "F32": ("<u4", 0x7F80 << 16, 2**31 - 1),
    "F16": ("<u2", 0x7C00, 2**15 - 1),
    "BF16": ("<u2", 0x7F80, 2**15 - 1),
}


@dataclass
class _Seen:
    """What one pass over a tensor found."""

    digest: str
    not_finite: int = 0
    constant: bool = False
    zero_rows: int = 0
    rows: int = 0


def weight_files(files: Iterable[FileFact]) -> tuple[FileFact, ...]:
    """Of a folder's files those that make its weights, in a fixed order: names, sizes and times tell whether they changed."""
    own = (".safetensors", ".safetensors.index.json", "modules.json")
    return tuple(sorted((one for one in files if one.name.endswith(own)), key=lambda one: one.name))


def deep_risks(folder: Path) -> tuple[Risk, ...]:
    """The risks of the weights of a checkpoint or adapter; empty where there are none that can be read.

    A file that cannot be read to its end, or a header that is wrong, is a risk like in `read_record`; nothing is raised.
    """
    opened = Folder(Path(folder).absolute())
    modules = modules_of(opened)
    opened.risks.clear()  # of the listing and small files: `read_record` reports them
    tensors = tensors_of(opened, modules[0][1] if modules else "", modules[1:])
    seen: dict[str, _Seen] = {}
    buffer = bytearray(BLOCK_BYTES)
    for name, tensor in tensors.items():
        try:
            seen[name] = _look(tensor, buffer)
        except (CheckpointError, OSError) as error:
            problem = error.problem if isinstance(error, CheckpointError) else str(error)
            opened.risk("unreadable-file", "danger", tensor.file.name, problem)
            break
    _values(opened, tensors, seen)
    _copies(opened, tensors, seen)
    return tuple(opened.risks)


def _look(tensor: TensorInfo, buffer: bytearray) -> _Seen:
    """One pass: a hash of the bytes, and for floating-point values the counts of `_Seen`."""
    digest = hashlib.sha256()
    if tensor.dtype not in _BITS or not tensor.elements:
        for raw in blocks(tensor, buffer):
            digest.update(raw)
        return _Seen(digest.hexdigest())
    kind, exponent, no_sign = _BITS[tensor.dtype]
    width = np.dtype(kind).itemsize
    columns = tensor.elements // tensor.shape[0] if len(tensor.shape) > 1 else 1
    by_rows = len(tensor.shape) > 1 and columns * width <= len(buffer)
    found = _Seen("", constant=True, rows=tensor.shape[0] if by_rows else 0)
    first = None
    mask, magnitude = np.dtype(kind).type(exponent), np.dtype(kind).type(no_sign)
    for part in whole_items(blocks(tensor, buffer), columns * width if by_rows else width):
        digest.update(part)
        values = np.frombuffer(part, kind)
        if not len(values):
            continue
        first = values[0] if first is None else first
        found.not_finite += int(((values & mask) == mask).sum())
        found.constant = found.constant and bool((values == first).all())
        if by_rows and not found.constant:
            found.zero_rows += int((~(values & magnitude).reshape(-1, columns).any(axis=1)).sum())
        elif by_rows and not first & magnitude:
            found.zero_rows += len(values) // columns
    found.digest = digest.hexdigest()
    return found


def _values(opened: Folder, tensors: dict[str, TensorInfo], seen: dict[str, _Seen]) -> None:
    matrices = [name for name in seen if len(tensors[name].shape) > 1 and not is_buffer(name)]
    broken = [name for name in seen if seen[name].not_finite and not is_buffer(name)]
    dead = [
        name for name in matrices if seen[name].constant and tensors[name].elements > 1 and not seen[name].not_finite
    ]
    rows = [name for name in matrices if seen[name].zero_rows > 1 and not seen[name].constant]
    _grouped(
        opened, "nan", broken, "danger", lambda name: f"{seen[name].not_finite:,} of {tensors[name].elements:,} values"
    )
    _grouped(opened, "dead-layer", dead, "warning", lambda name: f"all {tensors[name].elements:,} values are equal")
    _grouped(
        opened, "dead-rows", rows, "warning" if any(in_blocks(name) for name in rows) else "note",
        lambda name: f"{seen[name].zero_rows:,} of {seen[name].rows:,} rows are zero",
    )  # fmt: skip


def _copies(opened: Folder, tensors: dict[str, TensorInfo], seen: dict[str, _Seen]) -> None:
    layers: dict[tuple[str, int], list[tuple[str, str]]] = defaultdict(list)
    for name in seen:
        number = block_of(name)
        if number is not None and not is_buffer(name):
            stack, _, rest = name.partition(f".{number}.") if f".{number}." in name else ("", "", name)
            layers[stack, number].append((rest, seen[name].digest))
    same: dict[tuple[str, tuple[tuple[str, str], ...]], list[int]] = defaultdict(list)
    for (stack, number), content in layers.items():
        same[stack, tuple(sorted(content))].append(number)
    doubled: set[tuple[str, int]] = set()
    for (stack, _), numbers in same.items():
        if len(numbers) > 1:
            doubled |= {(stack, number) for number in numbers}
            which = ", ".join(map(str, sorted(numbers)))
            opened.risk("duplicate-layer", "warning", f"{stack}.{min(numbers)}", f"Layers {which} have equal weights.")
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for name in seen:
        number = block_of(name)
        in_double = number is not None and (name.partition(f".{number}.")[0], number) in doubled
        if len(tensors[name].shape) > 1 and not seen[name].constant and not in_double and not is_buffer(name):
            alike[seen[name].digest, tensors[name].shape].append(name)
    for names in alike.values():
        # Input and output embeddings may be one matrix that was stored twice.
        if len(names) > 1 and not all(block_of(name) is None for name in names):
            opened.risk("duplicate-tensor", "note", names[0], f"Its values are also those of {', '.join(names[1:6])}.")


def _grouped(opened: Folder, code: str, names: list[str], severity: Severity, words: Callable[[str], str]) -> None:
    """One risk for all tensors of a kind: the first by name, and how many more there are."""
    if names:
        more = f", and {len(names) - 1} more such tensors" if len(names) > 1 else ""
        opened.risk(code, severity, names[0], f"{words(names[0])}{more}.")
