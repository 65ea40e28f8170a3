"""Fine-tuning transfer: what fine-tuning did to the old base, done to the new one."""

from __future__ import annotations

import numpy as np

from regraft.merge.register import Range, Traits, merge_method
from regraft.merge.stack import Stack
from regraft.methods import Source


@merge_method(
    "transfer",
    source=Source("Lin et al.", 2025, "2503.20110", "Efficient model development through fine-tuning transfer"),
    claim="a fine-tune's changes, added to a newer base, often make it as good as fine-tuning that base again",
    traits=Traits(
        base="required", inputs=(2, 2), kin=False, options={"scale": Range(-100.0, 100.0), "weight": Range(1.0, 1.0)}
    ),
    invariances=("base",),
)
def transfer(stack: Stack, *, scale: float = 1.0) -> np.ndarray | None:
    """new + scale * (fine-tuned - old): the inputs are the fine-tuned checkpoint and the new base, the base is the old one.

    The authors add the difference as it is. It works where the two bases are linearly connected, one a continuation of the
    other, say. The inputs' weights are not used; their order says which is which: the other way round, the fine-tuned
    checkpoint is given what the new base has learned. No identity: two equal inputs x give x + scale * (x - old).
    """
    return stack.combine(np.array([scale, 1.0]), base=-scale)
