"""The result of a merge as a LoRA of the base: the method tensor by tensor in memory, the difference cut to a rank."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.weights import raw_values
from regraft.merge.algebra import one_thread_each
from regraft.merge.align import Aligned
from regraft.merge.inputs import Opened
from regraft.merge.lora.base import base_of
from regraft.merge.lora.extract import Extraction, LoraWriter
from regraft.merge.recipe.spec import RANK, Spec
from regraft.merge.tensors import Prepared, merged_tensor, settings_of, stack_of
from regraft.merge.turns import in_turn
from regraft.progress import SILENT, Progress


def write_lora(
    folder: Path, spec: Spec, aligned: Aligned, *, allow_lost: bool = False, workers: int = 1,
    prepared: Prepared | None = None, progress: Progress = SILENT,
) -> Extraction:  # fmt: skip
    """Write a peft folder that holds merged - base; returns what it holds and what it lacks.

    Concatenating adapters (`lora_cat`) is exact and keeps its own rank unless one is given, but for tensors in which an
    adapter lies over other values than the base's. A tied head that is stored beside its embeddings is one with them, as it is
    in the model that the adapter will be put over.

    Args:
        folder: It exists.
        spec: The merge.
        aligned: Its checkpoints.
        allow_lost: Whether changes that no LoRA can hold may be dropped.
        workers: Tensors that are worked on at a time.
        prepared: What the method has to know of all tensors; None: it is found out here.
        progress: Of the tensors.

    Raises:
        CheckpointError: Tensors changed that no LoRA can hold, and that was not allowed; names them.
    """
    opened, rank = aligned.opened, spec.output.rank
    template, (base_name, revision) = opened.template, base_of(opened.template)
    writer = LoraWriter(
        opened.own_tensors, template.config, rank or RANK, dtype=spec.output.dtype or "float32", allow_lost=allow_lost,
        base_name=base_name, revision=revision,
    )  # fmt: skip
    exact = spec.method == "lora_cat" and rank is None and all(one.adapter is not None for one in opened.inputs)
    changes = [opened.changes[one.reference] for one in opened.inputs] if exact else []

    def add(name: str) -> None:
        if any(name in one.factors for one in changes) and _only_adapted(opened, name):
            weights = settings_of(spec, opened, name)[0]
            writer.add_sum(name, [one.factors.get(name) for one in changes], list(weights))
            return
        stack = stack_of(spec, opened, name)
        merged = merged_tensor(spec, opened, stack, known)
        assert merged is not None  # there is no sink
        writer.add(name, stack.base(), merged)

    names = [name for name in aligned.merged if name not in opened.copies]
    with progress.bar(f"merging with {spec.method}", len(names)):
        known = (prepared or Prepared(spec, opened, aligned.merged, workers)).value
        with one_thread_each(spec):
            for _ in in_turn(add, names, workers):
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
