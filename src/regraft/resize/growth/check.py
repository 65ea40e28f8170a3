"""Whether a grown model computes what the small one does: both in their stock class, in float64, on random inputs.

    before      the small checkpoint
    exact       the grown one before its numbers are rounded: held to `EXACT`
    stored      the grown one as it is written: every number has to be the exact one, rounded; what that does is reported

A bfloat16 model computes something else by a few percent once its weights are scaled and rounded; held to that, a fault of a few
percent would pass for rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regraft.anatomy import Opened, Plan, compute
from regraft.anatomy.tiny import BASE_OUTPUTS, TOKENS, outputs
from regraft.checkpoint.headers import TensorInfo, read_tensors
from regraft.checkpoint.rounding import to_float
from regraft.checkpoint.weights import FLOATS, raw_values
from regraft.errors import ResizeError
from regraft.resize.stock import stock_model

# Of the largest output, before numbers are rounded: what sums in another order differ by.
EXACT = 1e-10
# Number formats, the coarsest last.
_WIDTHS = ("F64", "F32", "F16", "BF16")
# One unit in the last place, of a number, and the smallest number: two roundings to the nearest at most.
_LAST = {"F64": 2.0**-50, "F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}
_LEAST = {"F64": 0.0, "F32": 2.0**-149, "F16": 2.0**-24, "BF16": 2.0**-133}
# Offsets of gains are computed in float32 for 16-bit types: of the largest number of a tensor.
_SLACK = {"F16": 1e-6, "BF16": 1e-6}


@dataclass(frozen=True)
class Difference:
    """The largest difference of outputs, beside the largest output, what is allowed of it, and the stored type.

    Args:
        rounding: What rounding to that type moves outputs by at most: of the result, whose numbers before it `largest` is of.
        beside: That is of the original, too: `largest` is of both rounded.
    """

    largest: float
    scale: float
    tolerance: float
    dtype: str
    rounding: float | None = None
    beside: bool = False

    @property
    def within(self) -> bool:
        """Whether it is rounding; not so for NaN."""
        return self.largest <= self.tolerance * max(self.scale, 1.0)

    def __str__(self) -> str:
        apart = (
            f"in float64 on a random input of {TOKENS} tokens (or an image) differ by at most {self.largest:.1e}, the largest "
            f"being {self.scale:.1e}; allowed {self.tolerance:.0e} of it"
        )
        if self.rounding is None:
            return f"outputs of both {apart}, for weights as they are stored, in {self.dtype}"
        if self.beside:
            return (
                f"outputs of both {apart}, the original rounded to {self.dtype} as well, which moves its outputs by "
                f"{self.rounding:.1e}"
            )
        return f"outputs of both {apart}, before numbers are rounded; rounded to {self.dtype} they differ by {self.rounding:.1e}"


def difference(opened: Opened, plan: Plan, grown: Path, seed: int = 0) -> Difference:
    """Compare a plan, and what was written of it, with the checkpoint. One model at a time is in memory, in float64, and once
    the numbers that one is made of.

    Logits are compared whole; a base model's states, in as many leading units as it had. A pooler that the checkpoint lacks is
    drawn at random by its class, and not compared.

    Raises:
        ResizeError: A stored number is not the rounded one of the plan; names its tensor.
        CheckpointError: A stock class misses keys, or knows some not.
    """
    before, missing = _outputs(opened, seed, opened.folder, strict=False)
    state = exact_weights(opened, plan)
    check_rounded(state, read_tensors(grown))
    exact, _ = _outputs(opened, seed, state, plan)
    state.clear()
    stored, _ = _outputs(opened, seed, grown, plan)
    for found in (before, exact, stored) if missing else ():
        found.pop("pooler_output", None)
    largest, scale = apart(before, exact)
    rounding, _ = apart(exact, stored)
    return Difference(largest, scale, EXACT, narrowest(opened.tensors), rounding)


def narrowest(tensors: Mapping[str, TensorInfo]) -> str:
    """The coarsest floating-point type among them, in the words of safetensors."""
    return max((one.dtype for one in tensors.values() if one.dtype in _WIDTHS), key=_WIDTHS.index, default="F64")


def exact_weights(opened: Opened, plan: Plan) -> dict[str, torch.Tensor]:
    """What a plan makes of a checkpoint's tensors, in float64 and not rounded."""
    found = {}
    for one in plan.outputs:
        source = opened.tensors[one.source]
        raw = raw_values(source).reshape(source.shape)
        values = compute(one, to_float(raw, source.dtype)) if source.dtype in FLOATS else raw
        found[one.name] = torch.from_numpy(np.array(values))
    return found


def check_rounded(state: Mapping[str, torch.Tensor], stored: Mapping[str, TensorInfo]) -> None:
    """Refuse stored numbers that are more than a unit in the last place away from what they should be.

    Raises:
        ResizeError: Names the tensor.
    """
    for name, wanted in state.items():
        info = stored.get(name)
        if info is None or info.dtype not in FLOATS:
            continue
        values = wanted.numpy().reshape(-1)
        size = np.abs(values)
        bound = _LAST[info.dtype] * size + _LEAST[info.dtype] + _SLACK.get(info.dtype, 0.0) * size.max(initial=0.0)
        if not (np.abs(to_float(raw_values(info), info.dtype) - values) <= bound).all():
            raise ResizeError(
                f"The tensor {name!r} was not stored as what was computed, rounded to {info.dtype}.",
                "Please report this with the name of the checkpoint.",
            )


def apart(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """(The largest difference of outputs, the largest output before); a base model's states in the leading units of both."""
    largest = scale = 0.0
    for key, old in before.items():
        new = after[key][..., : old.shape[-1]] if key in BASE_OUTPUTS else after[key]
        one = float(np.abs(old - new).max())
        largest = one if not one <= largest else largest  # NaN stays
        scale = max(scale, float(np.abs(old).max()))
    return largest, scale


def _outputs(
    opened: Opened, seed: int, weights: Path | Mapping[str, torch.Tensor], plan: Plan | None = None, strict: bool = True
) -> tuple[dict[str, Any], list[str]]:
    settings = opened.binding.settings if plan is None else plan.settings
    model, missing = stock_model(settings, weights, torch.float64, strict)
    return {key: np.asarray(value) for key, value in outputs(model, seed).items()}, missing
