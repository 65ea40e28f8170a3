"""Concatenating LoRA adapters: the weighted sum of their changes, exactly, as one adapter.

B A = [B_1 ... B_n] [w_1 s_1 A_1; ...; w_n s_n A_n] = sum_i w_i s_i B_i A_i        rank r_1 + ... + r_n
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regraft.merge.methods.task_arithmetic import add_deltas
from regraft.merge.register import Traits, merge_method
from regraft.merge.stack import Stack
from regraft.methods import Source


@merge_method(
    "lora_cat",
    source=Source("Mangrulkar et al.", 2022, "", "PEFT: state-of-the-art parameter-efficient fine-tuning methods"),
    claim="one adapter that computes exactly the weighted sum of several, at the sum of their ranks",
    traits=Traits(base="required"),
    invariances=("zero weight", "permutation", "base"),
)
def lora_cat(stack: Stack) -> np.ndarray | None:
    """base + sum_i w_i (x_i - base); for full checkpoints that is task arithmetic of scale 1.

    Adding up the A's and the B's apart, as a plain average of adapters does, gives cross terms B_i A_j instead. Not an
    identity: two equal inputs of weight 1 give the base plus twice their delta; weights 1/2 give it back.
    """
    return stack.map(add_deltas, stack.weights)


def concatenated(
    factors: Sequence[tuple[np.ndarray, np.ndarray, float]], weights: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """The factors of the weighted sum: A [sum r, in] and B [out, sum r], float64. Inputs of weight 0 take no rank.

    Args:
        factors: A [r_i, in], B [out, r_i] and scale of every input.
        weights: One an input.
    """
    used = [(part, weight) for part, weight in zip(factors, weights, strict=True) if weight != 0.0]
    if not used:
        (down, up, _), *_ = factors
        return np.zeros((0, down.shape[1])), np.zeros((up.shape[0], 0))
    downs = [np.asarray(down, np.float64) * (weight * scale) for (down, _, scale), weight in used]
    ups = [np.asarray(up, np.float64) for (_, up, _), _ in used]
    return np.concatenate(downs), np.concatenate(ups, axis=1)
