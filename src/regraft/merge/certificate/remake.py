"""Make tensors of a merge again from the parents, and compare them with what is stored."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from regraft.checkpoint import lora
from regraft.checkpoint.adapter import open_adapter
from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.sampled import decoded
from regraft.checkpoint.weights import raw_values
from regraft.checkpoint.writer import Writer
from regraft.merge.align import Aligned
from regraft.merge.recipe.spec import Spec
from regraft.merge.register import traits_of
from regraft.merge.sources import FileSink
from regraft.merge.tensors import merged_tensor, prepared_for, stack_of
from regraft.randomness import seed_of

SAMPLED = 4  # tensors
_SMALL = 2**20  # elements: larger ones are made again only if there are no others
# Decompositions give other last bits on other processors: a unit of the format, and a thousandth of the usual weight.
_UNITS = {"BF16": 2.0**-7, "F16": 2.0**-10, "F32": 1e-4, "F64": 1e-4}
_SHARE = 1e-3


@dataclass
class _Kept:
    """Stands in for a file: keeps what a sink writes."""

    parts: list[np.ndarray] = field(default_factory=list)

    def write(self, _name: str, raw: np.ndarray, _start: int) -> None:
        """See `Writer.write`."""
        self.parts.append(np.array(raw))


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


def same_as_stored(spec: Spec, aligned: Aligned, stored: Mapping[str, TensorInfo], names: Sequence[str]) -> str | None:
    """Make tensors again, on one thread, and compare them with the stored ones.

    Elementwise methods must give the same bytes; decompositions the same values but for rounding.

    Returns:
        What differs, in words; None when nothing does.
    """
    prepared = prepared_for(spec, aligned.opened, aligned.merged)
    for name in names:
        info = stored[name]
        values = merged_tensor(spec, aligned.opened, stack_of(spec, aligned.opened, name), prepared)
        kept = _Kept()
        FileSink(cast(Writer, kept), name, info.dtype).write(np.ascontiguousarray(values, np.float32).reshape(-1), 0)
        mine, theirs = np.concatenate(kept.parts), raw_values(info)
        if mine.tobytes() == theirs.tobytes():
            continue
        if traits_of(spec.method).working is None:
            count = int((mine != theirs).sum())
            return f"{count:,} of {info.elements:,} weights of {name!r} are others when it is made again"
        one, two = decoded(mine, info.dtype), decoded(theirs, info.dtype)
        room = _UNITS[info.dtype] * np.maximum(np.abs(one), np.abs(two)) + _SHARE * np.sqrt(np.square(two).mean())
        if (np.abs(one - two) > room).any():
            return f"{name!r} differs by up to {np.abs(one - two).max():.2g} when it is made again"
    return None


def lora_errors(spec: Spec, aligned: Aligned, folder: Path, names: Sequence[str]) -> dict[str, float]:
    """What a LoRA lacks of the change of matrices that are made again: relative, in the Frobenius norm."""
    opened, adapter = aligned.opened, open_adapter(folder)
    factors = lora.factors(adapter, opened.template.tensors)
    prepared = prepared_for(spec, opened, aligned.merged)
    found = {}
    for name in names:
        stack = stack_of(spec, opened, name)
        change = np.asarray(merged_tensor(spec, opened, stack, prepared), np.float64) - stack.base()
        held = lora.delta_rows(factors[name], 0, change.shape[0])
        norm = float(np.linalg.norm(change))
        found[name] = float(np.linalg.norm(change - held)) / norm if norm else 0.0
    return found
