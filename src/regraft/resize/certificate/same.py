"""Whether a resized checkpoint computes what its original does, masked where units were cut: both in their stock classes.

    the original, in float64, numbers rounded to 16 bits where the result's are
        widths   hooks set what sums over the cut units to zero (`regraft.anatomy.masks`)
        layers   a cut block hands on what enters it
    the result, in float64
    one random example for both; tokens by their own numbers

Nothing of scales or configs is shared with what wrote the result, but where numbers were computed and stored in 16 bits: those
are computed once more, compared before they are rounded, and the stored ones held to them (`planned`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from regraft.anatomy import Opened, Plan
from regraft.anatomy.bind import Binding, bind
from regraft.anatomy.grammar import Name
from regraft.anatomy.masks import masked
from regraft.anatomy.tiny import BASE_OUTPUTS, class_of, inputs, outputs
from regraft.checkpoint.quiet import quiet
from regraft.checkpoint.rounding import to_float, to_stored
from regraft.errors import CheckpointError
from regraft.resize.certificate.planned import computes, planned, tolerance
from regraft.resize.certificate.steps import Asked
from regraft.resize.cuts.minitron import Lookup
from regraft.resize.formats.half import FORMATS
from regraft.resize.growth.check import EXACT, Difference, apart, check_rounded, exact_weights, narrowest
from regraft.resize.importance.places import is_layers
from regraft.resize.stock import stock_model

_IDS = ("input_ids", "decoder_input_ids")
Found = dict[str, np.ndarray]


def difference(parent: Opened, result: Opened, asked: Asked, seed: int = 0) -> Difference:
    """The largest difference of outputs. One model at a time is in memory, in float64, and the numbers that one is made of where
    they are computed once more.

    Logits are compared whole, those of tokens by what each token is; a base model's states in the units that both have.

    Raises:
        ResizeError: A stored number is not the rounded one that was computed; names its tensor.
        CheckpointError: Weights that the class needs are missing.
        AnatomyError: There is no module that could be masked.
    """
    model, _ = load(result)
    given = inputs(model, seed)
    stored = _outputs(model, given)
    del model
    plan, dtype = planned(parent, asked), narrowest(result.tensors)
    allowed = tolerance(computes(parent, plan), result)
    exact = stored if allowed is not None else _exact(parent, plan, result, given)
    half = asked.half if allowed is not None else None
    before, rounded = _original(parent, asked, half, given)
    largest, scale = _apart(parent.binding, before if rounded is None else rounded, exact, asked)
    if allowed is None:
        return Difference(largest, scale, EXACT, dtype, apart(exact, stored)[0])
    moved = None if rounded is None else _apart(parent.binding, before, rounded, asked, mapped=True)[0]
    return Difference(largest, scale, allowed, dtype, moved, beside=moved is not None)


def _outputs(model: Any, given: Mapping[str, torch.Tensor]) -> Found:
    return {key: np.asarray(value) for key, value in outputs(model, given=given).items()}


def _exact(parent: Opened, plan: Plan, result: Opened, given: Mapping[str, torch.Tensor]) -> Found:
    """Outputs of what is computed of the parent, before rounding; the stored numbers have to be the rounded ones."""
    state = exact_weights(parent, plan)
    check_rounded(state, result.tensors)
    return _outputs(stock_model(plan.settings, state, torch.float64)[0], given)


def _original(
    parent: Opened, asked: Asked, half: str | None, given: Mapping[str, torch.Tensor]
) -> tuple[Found, Found | None]:
    """Outputs of the original with the cut units masked; and of its numbers rounded, where they are to be."""
    if asked.tokens is not None:
        old = torch.from_numpy(asked.tokens)
        given = {key: old[value] if key in _IDS else value for key, value in given.items()}
    model, missing = load(parent)
    layers = {axis: places for axis, places in asked.kept.items() if is_layers(parent.binding, axis)}
    widths = {axis: Lookup(places) for axis, places in asked.kept.items() if axis not in layers}
    mask = masked(model, parent.binding, widths) if widths else nullcontext()
    rounded = None
    with mask, without(model, parent.binding, {axis: places[()] for axis, places in layers.items()}):
        found = _outputs(model, given)
        if half is not None:
            _round(model, FORMATS[half])
            rounded = _outputs(model, given)
    for one in (found, rounded or {}) if missing else ():  # a pooler that nobody trained is drawn anew by each load
        one.pop("pooler_output", None)
    return found, rounded


def _apart(binding: Binding, before: Found, after: Found, asked: Asked, mapped: bool = False) -> tuple[float, float]:
    """(The largest difference of outputs, the largest output before).

    Args:
        mapped: Both are the original's.

    Raises:
        CheckpointError: They have other shapes.
    """
    largest = scale = 0.0
    for key, values in before.items():
        old = values if mapped else _comparable(binding, key, values, after[key], asked)
        new = after[key][..., : old.shape[-1]] if key in BASE_OUTPUTS else after[key]
        if new.shape != old.shape:
            raise CheckpointError(
                f"The outputs {key} have the shapes {old.shape} and {new.shape}.", "They cannot be compared."
            )
        one = float(np.abs(old - new).max())
        largest = one if not one <= largest else largest  # NaN stays
        scale = max(scale, float(np.abs(old).max()))
    return largest, scale


def _comparable(binding: Binding, key: str, values: np.ndarray, other: np.ndarray, asked: Asked) -> np.ndarray:
    """The original's outputs in the units that the result has."""
    axis = binding.axis(BASE_OUTPUTS[key]) if key in BASE_OUTPUTS else ""
    if axis in asked.kept:
        return values[..., asked.kept[axis][()]]
    tokens = asked.tokens
    if not axis and tokens is not None and values.shape[-1] == binding.sizes["vocab"] != other.shape[-1]:
        return values[..., tokens]
    return values


def load(opened: Opened, dtype: object = torch.float64) -> tuple[Any, list[str]]:
    """A checkpoint in its stock class, in eval mode, and the keys that it lacks: a pooler's at most.

    Raises:
        CheckpointError: More is missing, or of another shape.
    """
    with quiet():
        model, report = class_of(opened.binding.settings).from_pretrained(
            str(opened.folder), dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    missing = sorted(map(str, report["missing_keys"]))
    bad = [name for name in missing if "pooler." not in name] + sorted(map(str, report["mismatched_keys"]))
    if bad:
        raise CheckpointError(
            f"{opened.folder} does not fit {type(model).__name__}: {', '.join(bad[:3])}.", "Use an intact copy."
        )
    return (model.to(dtype) if isinstance(dtype, torch.dtype) else model).eval(), missing


def _round(model: Any, dtype: str) -> None:
    """Round all numbers that are saved, in place."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                rounded = to_float(to_stored(value.numpy(), dtype, name), dtype)
                value.copy_(torch.from_numpy(rounded).reshape(value.shape))


@contextmanager
def without(model: Any, binding: Binding, kept: Mapping[str, np.ndarray]) -> Iterator[None]:
    """The stock model with the blocks that are not kept handing on what enters them."""
    shapes = {name: tuple(one.shape) for name, one in model.state_dict().items()}
    here = bind(binding.anatomy, binding.settings, shapes) if kept else binding
    gone = set()
    for one in here.tensors.values() if kept else ():
        for axis, unit in one.units.items():
            if axis in kept and unit not in kept[axis]:
                before = Name(one.line.name.template.split(f"{{{axis}}}")[0])
                gone.add(f"{one.prefix}{before.filled(dict(one.units))}{unit}")
    hooks = [model.get_submodule(name).register_forward_hook(_hand_on, with_kwargs=True) for name in sorted(gone)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hand_on(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
    hidden = args[0] if args else kwargs["hidden_states"]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
