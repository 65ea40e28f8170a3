"""One tensor of a merge: its settings, its stack, and the method over it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from regraft import methods
from regraft.checkpoint.blocks import block_of
from regraft.merge.algebra import one_thread_each
from regraft.merge.inputs import Opened
from regraft.merge.recipe.spec import Spec
from regraft.merge.register import traits_of
from regraft.merge.sources import FileSink
from regraft.merge.stack import Stack


def stack_of(
    spec: Spec, opened: Opened, name: str, *, sink: FileSink | None = None, pool: ThreadPoolExecutor | None = None,
    workers: int = 1,
) -> Stack:  # fmt: skip
    """The stack of a tensor that is merged; of a copy, that of the tensor which it is a copy of."""
    name = opened.copies.get(name, name)
    return Stack(
        name,
        opened.template.tensors[name].shape,
        [opened.source(one, name) for one in opened.inputs],
        None if opened.base is None else opened.source(opened.base, name),
        settings_of(spec, opened, name)[0],
        spec.seed,
        sink,
        pool,
        workers,
    )


def settings_of(spec: Spec, opened: Opened, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The weights and the method's options for one tensor: filters and gradients over depth resolved."""
    name = opened.copies.get(name, name)
    block, layers = block_of(name), opened.template.num_layers
    weights, options = spec.options_at(name, block, layers, "before" if block is not None or _embeds(name) else "after")
    if "num_layers" in traits_of(spec.method).wants:
        options["num_layers"] = layers
    return weights, options


def _embeds(name: str) -> bool:
    """Whether a tensor outside the layers is used before them."""
    return "embed_out" not in name and ("embed" in name or name.endswith(("wte.weight", "wpe.weight", "shared.weight")))


def prepared_for(
    spec: Spec, opened: Opened, names: Sequence[str], pool: ThreadPoolExecutor | None = None, workers: int = 1
) -> Any:
    """What the method has to know of all tensors at once; None for most methods.

    Settings are those of the first tensor: what is prepared is of the whole model. Tensors come in the order of their names:
    how they are spread over files changes neither a sum nor which of equal values is the first. Copies of others are left out:
    they would count twice. For a method that asks for statistics of the inputs' tasks these are what is prepared.
    """
    if "statistics" in traits_of(spec.method).wants:
        return _statistics_for(spec, opened, names)
    prepare = traits_of(spec.method).prepare
    own = sorted(name for name in names if name not in opened.copies)
    if prepare is None or not own:
        return None
    stacks = [stack_of(spec, opened, name, pool=pool, workers=workers) for name in own]
    with one_thread_each(spec):
        return prepare(stacks, **settings_of(spec, opened, own[0])[1])


@dataclass
class Prepared:
    """What `prepared_for` gives, made when it is first asked for, and kept.

    Args:
        spec: The merge.
        opened: Its checkpoints.
        names: The tensors that are merged.
        workers: Threads.
    """

    spec: Spec
    opened: Opened
    names: Sequence[str]
    workers: int = 1

    @cached_property
    def value(self) -> Any:
        """It."""
        with ThreadPoolExecutor(self.workers) as pool:
            return prepared_for(self.spec, self.opened, self.names, pool, self.workers)


def _statistics_for(spec: Spec, opened: Opened, names: Sequence[str]) -> Any:
    from regraft.merge.statistics.statistics import collect  # reads tasks, which no other method needs

    def merge(stack: Stack, statistics: Any) -> np.ndarray:
        options = settings_of(spec, opened, stack.name)[1]
        with one_thread_each(spec):
            return np.asarray(methods.get("merge", spec.method)(stack, **options, statistics=statistics))

    return collect(spec, opened, names, lambda name: stack_of(spec, opened, name), merge)


def merged_tensor(spec: Spec, opened: Opened, stack: Stack, prepared: Any) -> np.ndarray | None:
    """The method over one stack."""
    _, options = settings_of(spec, opened, stack.name)
    if "statistics" in traits_of(spec.method).wants:
        options["statistics"] = prepared.at(stack.name)
    elif prepared is not None:
        options["prepared"] = prepared
    found: np.ndarray | None = methods.get("merge", spec.method)(stack, **options)
    return found
