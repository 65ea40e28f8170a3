"""Merging: checkpoints in, one checkpoint out.

    regraft.merge.ties(["./a", "./b", "./c"], base="./base", density=0.2, out="./merged")

Every registered method is a function of this package; `merge(spec, out)` runs a recipe, `preflight(spec)` looks at it first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regraft.merge.checks.preflight import Preflight
    from regraft.merge.recipe.file import read_merge
    from regraft.merge.recipe.spec import Input, Output, Spec, spec_of
    from regraft.merge.run import MergeResult, merge

__all__ = ["Input", "MergeResult", "Output", "Preflight", "Spec", "merge", "preflight", "read_merge", "spec_of"]

_HOMES = {
    "Input": "recipe.spec", "Output": "recipe.spec", "Spec": "recipe.spec", "spec_of": "recipe.spec",
    "read_merge": "recipe.file", "Preflight": "checks.preflight", "MergeResult": "run", "merge": "run",
}  # fmt: skip


def preflight(
    spec: Spec, *, out: str | os.PathLike[str] | None = None, max_memory: int | None = None, workers: int | None = None,
    allow: Sequence[str] = (), check_values: bool = False,
) -> Preflight:  # fmt: skip
    """Everything that can be known of a merge before a byte is written (see `regraft.merge.checks.preflight`)."""
    from regraft.merge.checks.preflight import preflight_of
    from regraft.merge.inputs import open_inputs
    from regraft.merge.run import MAX_MEMORY

    ordered, opened = open_inputs(spec)
    target, limit = None if out is None else Path(out), MAX_MEMORY if max_memory is None else max_memory
    return preflight_of(
        ordered, opened, out=target, max_memory=limit, workers=workers, allow=allow, check_values=check_values
    )


def _merge_with(
    method: str,
    inputs: Sequence[str | os.PathLike[str]],
    base: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    output: Output | None = None,
    seed: int = 0,
    max_memory: int | None = None,
    workers: int | None = None,
    allow: Sequence[str] = (),
    check_values: bool = False,
    **options: Any,
) -> MergeResult:
    """Merge checkpoints with one method; the options are the method's own (`regraft methods merge`), and `weight`.

    Args:
        method: Its name.
        inputs: Checkpoints.
        base: Their base.
        out: The folder that is made; `merged/<method>-<hash of the recipe>` when None.
        output: Number format, tokenizer, checkpoint or LoRA.
        seed: Of everything random.
        max_memory, workers, allow, check_values: See `regraft.merge.run.merge`.
    """
    from regraft.merge.recipe.spec import spec_of
    from regraft.merge.run import MAX_MEMORY, merge
    from regraft.store import key_of

    spec = spec_of(method, inputs, base, output=output, seed=seed, **options)
    target = Path(out) if out is not None else Path("merged") / f"{method}-{key_of('merge', **spec.as_dict())[:8]}"
    limit = MAX_MEMORY if max_memory is None else max_memory
    return merge(spec, target, max_memory=limit, workers=workers, allow=allow, check_values=check_values)


def __getattr__(name: str) -> Any:
    """Import what is asked for, and nothing else: numba and the methods are not needed to look at a recipe."""
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if not name.startswith("_"):
        from regraft import methods

        known = {one.name: one for one in methods.methods("merge")}
        if name in known:
            function: Callable[..., MergeResult] = partial(_merge_with, name)
            function.__doc__ = known[name].function.__doc__
            return function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
