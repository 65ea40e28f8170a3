"""Make tensors of a merge again from the parents, and compare them with what is stored."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from regraft.checkpoint import lora
from regraft.checkpoint.adapter import open_adapter
from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.sampled import decoded
from regraft.checkpoint.weights import raw_values
from regraft.checkpoint.writer import Writer
from regraft.merge.algebra import one_thread_each
from regraft.merge.align import Aligned
from regraft.merge.checks.room import threads_that_fit
from regraft.merge.recipe.spec import Spec
from regraft.merge.register import traits_of
from regraft.merge.sources import FileSink
from regraft.merge.stack import GRAIN
from regraft.merge.tensors import Prepared, merged_tensor, stack_of
from regraft.randomness import seed_of

SAMPLED = 4  # tensors
MEMORY = 512 * 2**20  # for what is made again
_SMALL = 2**20  # elements: larger ones are made again only if there are no others
# Decompositions give other last bits on other processors: a unit of the format, and a thousandth of the usual weight.
_UNITS = {"BF16": 2.0**-7, "F16": 2.0**-10, "F32": 1e-4, "F64": 1e-4}
_SHARE = 1e-3


@dataclass
class _Compared:
    """Stands in for a file: compares what a sink writes with what is stored, and keeps none of it.

    Args:
        stored: The tensor that is stored.
        unlike: Elements that are others.
        apart: The largest difference; and `beyond` the rounding of the format, which grows with the numbers.
    """

    stored: TensorInfo
    unlike: int = 0
    apart: float = 0.0
    beyond: float = 0.0

    def write(self, _name: str, raw: np.ndarray, start: int) -> None:
        """See `Writer.write`."""
        dtype, theirs = self.stored.dtype, raw_values(self.stored)[start : start + raw.size]
        raw = raw.view(theirs.dtype)  # the bits of a float16 may come as whole numbers
        bits = f"u{raw.dtype.itemsize}"  # minus zero is another zero
        unlike = int((raw.view(bits) != theirs.view(bits)).sum())
        if not unlike:
            return
        one, two = decoded(raw, dtype), decoded(theirs, dtype)
        apart = np.abs(one - two)
        room = _UNITS[dtype] * np.maximum(np.abs(one), np.abs(two))
        self.unlike += unlike
        self.apart = max(self.apart, float(apart.max()))
        self.beyond = max(self.beyond, float((apart - room).max()))


def _usual(stored: TensorInfo) -> float:
    """The root mean square of a stored tensor, a block at a time."""
    raw = raw_values(stored)
    blocks = (decoded(raw[start : start + GRAIN], stored.dtype) for start in range(0, raw.size, GRAIN))
    return float(np.sqrt(sum(float(np.square(block).sum()) for block in blocks) / max(1, raw.size)))


def chosen(aligned: Aligned, among: Collection[str] | None = None) -> list[str]:
    """Up to `SAMPLED` tensors, the same ones every time: matrices that are not too large where there are such.

    Args:
        among: Names to choose from; all that are merged by default.
    """
    tensors = aligned.opened.template.tensors
    names = sorted(aligned.merged if among is None else among, key=lambda name: seed_of(0, "certificate", name))
    matrices = [name for name in names if len(tensors[name].shape) > 1]
    small = [name for name in matrices if tensors[name].elements <= _SMALL]
    by_size = sorted(matrices or names, key=lambda name: (tensors[name].elements, name))
    return sorted((small if len(small) >= SAMPLED else by_size)[:SAMPLED])


def prepared_again(spec: Spec, aligned: Aligned) -> Prepared:
    """What the method has to know of all tensors, on as many threads as a merge with the usual memory would have."""
    return Prepared(
        spec, aligned.opened, aligned.merged, threads_that_fit(spec, aligned.opened, aligned.merged, MEMORY)
    )


def same_as_stored(
    spec: Spec, aligned: Aligned, stored: Mapping[str, TensorInfo], names: Sequence[str], prepared: Prepared | None = None
) -> str | None:  # fmt: skip
    """Make tensors again, on one thread, and compare them with the stored ones: in blocks where the method works in blocks.

    Elementwise methods must give the same bytes; decompositions the same values but for rounding.

    Args:
        spec: The merge.
        aligned: Its checkpoints.
        stored: The tensors that are there.
        names: Which of them to make again.
        prepared: Of the merge, where it is still known; else it is made again, too.

    Returns:
        What differs, in words; None when nothing does.
    """
    known = (prepared or prepared_again(spec, aligned)).value
    with one_thread_each(spec):
        return _first_unlike(spec, aligned, stored, names, known)


def _first_unlike(
    spec: Spec, aligned: Aligned, stored: Mapping[str, TensorInfo], names: Sequence[str], prepared: Any
) -> str | None:
    for name in names:
        info = stored[name]
        compared = _Compared(info)
        sink = FileSink(cast(Writer, compared), name, info.dtype)
        values = merged_tensor(spec, aligned.opened, stack_of(spec, aligned.opened, name, sink=sink), prepared)
        if values is not None:
            flat = np.asarray(values, np.float32).reshape(-1)
            for start in range(0, flat.size, GRAIN):
                sink.write(flat[start : start + GRAIN], start)
        if not compared.unlike:
            continue
        if traits_of(spec.method).working is None:
            return f"{compared.unlike:,} of {info.elements:,} weights of {name!r} are others when it is made again"
        if compared.beyond > _SHARE * _usual(info):
            return f"{name!r} differs by up to {compared.apart:.2g} when it is made again"
    return None


def lora_errors(
    spec: Spec, aligned: Aligned, folder: Path, names: Sequence[str], prepared: Prepared | None = None
) -> dict[str, float]:
    """What a LoRA lacks of the change of matrices that are made again: relative, in the Frobenius norm."""
    opened, adapter = aligned.opened, open_adapter(folder)
    factors = lora.factors(adapter, opened.template.tensors)
    known = (prepared or prepared_again(spec, aligned)).value

    def error(name: str) -> float:
        stack = stack_of(spec, opened, name)
        merged, base = np.asarray(merged_tensor(spec, opened, stack, known)), stack.base()
        held, step = lora.load(factors[name]), max(1, GRAIN // max(1, base.shape[1]))
        whole = missing = 0.0
        for row in range(0, len(base), step):
            change = merged[row : row + step].astype(np.float64) - base[row : row + step]
            whole += float(np.square(change).sum())
            missing += float(np.square(change - held.rows(row, row + len(change))).sum())
        return float(np.sqrt(missing / whole)) if whole else 0.0

    with one_thread_each(spec):
        return {name: error(name) for name in names}
