"""The result of a merge as a LoRA of the base: the method tensor by tensor in memory, the difference cut to a rank."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.weights import raw_values
from regraft.merge.align import Aligned
from regraft.merge.inputs import Opened
from regraft.merge.lora.extract import Extraction, LoraWriter
from regraft.merge.recipe.spec import RANK, Spec
from regraft.merge.tensors import merged_tensor, prepared_for, settings_of, stack_of
from regraft.progress import SILENT, Progress


def write_lora(
    folder: Path, spec: Spec, aligned: Aligned, *, allow_lost: bool = False, progress: Progress = SILENT
) -> Extraction:
    """Write a peft folder that holds merged - base; returns what it holds and what it lacks.

    Concatenating adapters (`lora_cat`) is exact and keeps its own rank unless one is given, but for tensors in which an
    adapter lies over other values than the base's.

    Raises:
        CheckpointError: Tensors changed that no LoRA can hold, and that was not allowed; names them.
    """
    opened, rank = aligned.opened, spec.output.rank
    template = opened.template
    writer = LoraWriter(
        template.tensors, template.config, rank or RANK, dtype=spec.output.dtype or "float32", allow_lost=allow_lost,
        base_name=template.reference,
    )  # fmt: skip
    exact = spec.method == "lora_cat" and rank is None and all(one.adapter is not None for one in opened.inputs)
    prepared = prepared_for(spec, opened, aligned.merged)
    with progress.bar(f"merging with {spec.method}", len(aligned.merged)):
        for name in aligned.merged:
            changes = [opened.changes[one.reference] for one in opened.inputs] if exact else []
            if any(name in one.factors for one in changes) and _only_adapted(opened, name):
                writer.add_sum(
                    name, [one.factors.get(name) for one in changes], list(settings_of(spec, opened, name)[0])
                )
            else:
                stack = stack_of(spec, opened, name)
                merged = merged_tensor(spec, opened, stack, prepared)
                assert merged is not None  # there is no sink
                writer.add(name, stack.base(), merged)
            progress.advance()
    return writer.finish(folder)


def _only_adapted(opened: Opened, name: str) -> bool:
    """Whether no input has anything but its factors that the base has not."""
    base = opened.base
    return base is not None and base.adapter is None and all(
        name not in opened.changes[one.reference].replaced and _same(one.tensors[name], base.tensors[name])
        for one in opened.inputs
    )  # fmt: skip


def _same(one: TensorInfo, other: TensorInfo) -> bool:
    return one == other or (one.dtype == other.dtype and np.array_equal(raw_values(one), raw_values(other)))
