"""Layer swapping: the outer layers of one checkpoint around the inner ones of another.

layer     0  1  2  3  4  5  6  7  8  9     bottom 3, top 2, transition 1
taken of  2  2  2  =  1  1  1  =  2  2     =  half and half
"""

from __future__ import annotations

import numpy as np

from regraft.checkpoint.blocks import block_of
from regraft.errors import MethodError
from regraft.merge.register import Range, Traits, merge_method
from regraft.merge.stack import Stack
from regraft.methods import Source

# The authors' numbers, of 32 layers.
LAYERS, BOTTOM, TOP = 32, 5, 2


@merge_method(
    "layer_swap",
    source=Source(
        "Bandarkar et al.", 2024, "2410.01335",
        "Layer swapping for zero-shot cross-lingual transfer in large language models",
    ),
    claim="a task expert with a language expert's outer layers does the task in that language better than either, or a soup",
    traits=Traits(
        base="none",
        inputs=(2, 2),
        wants=("num_layers",),
        options={name: Range(0.0, 1e4) for name in ("bottom", "top", "transition")},
        choices={"outside": ("first", "second", "average")},
    ),
    invariances=("identity",),
)  # fmt: skip
def layer_swap(
    stack: Stack,
    *,
    bottom: int | None = None,
    top: int | None = None,
    transition: int | None = None,
    outside: str = "second",
    num_layers: int | None = None,
) -> np.ndarray | None:
    """(1 - a) x_1 + a x_2: a is 1 in the `bottom` first and the `top` last layers, 0 in the middle, and falls in between.

    The first input is the task's expert, the second the language's. The `transition` layers on both sides of the middle have
    a = j / (transition + 1), the nearer to the outside the larger; one of them is half and half. Without numbers, the
    authors' 5 and 2 of 32 layers are taken in proportion, at least one each, and one of transition where there is room.
    Tensors outside the layers (embeddings, final norm, head) are of the input that `outside` says.

    The inputs' weights are not used, and their order says which is which.

    Raises:
        MethodError: More layers are asked for than there are, or a layer's number without `num_layers`.
    """
    block = block_of(stack.name)
    if block is None:
        share = {"first": 0.0, "second": 1.0, "average": 0.5}[outside]
    elif num_layers is None:
        raise MethodError(f"{stack.name!r} is in layer {block}, of how many is not given.", "Give num_layers.")
    else:
        share = second_share(block, num_layers, *_counts(num_layers, bottom, top, transition))
    return stack.combine(np.array([1.0 - share, share]))


def _counts(layers: int, bottom: int | None, top: int | None, transition: int | None) -> tuple[int, int, int]:
    """The layers at the bottom and the top, and of each transition.

    Raises:
        MethodError: They are more than the layers.
    """
    low = max(1, round(BOTTOM * layers / LAYERS)) if bottom is None else round(bottom)
    high = max(1, round(TOP * layers / LAYERS)) if top is None else round(top)
    between = int(layers >= low + high + 3) if transition is None else round(transition)
    if low + high + between * (bool(low) + bool(high)) > layers:
        raise MethodError(
            f"bottom {low}, top {high} and transitions of {between} are more than the {layers} layers.",
            "Give smaller numbers.",
        )
    return low, high, between


def second_share(block: int, layers: int, bottom: int, top: int, transition: int) -> float:
    """How much of the second input a layer takes: 1 outside, 0 in the middle."""
    inward = [block - bottom] if bottom else []
    inward += [layers - top - 1 - block] if top else []
    return max((min(1.0, max(0.0, 1.0 - (depth + 1) / (transition + 1))) for depth in inward), default=0.0)
