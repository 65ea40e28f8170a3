"""The weighted sum of changes, cut to one rank by SVD."""

from __future__ import annotations

import numpy as np

from regraft.errors import MethodError
from regraft.merge import flops
from regraft.merge.low_rank import HALF_UNIT, energy, gram_bytes, leading, leading_flops
from regraft.merge.methods.matrices import active, deltas, merged
from regraft.merge.methods.task_arithmetic import add_deltas
from regraft.merge.register import Range, Traits, merge_method
from regraft.merge.stack import Stack
from regraft.methods import Source


def working(shape: tuple[int, ...], inputs: int) -> int:
    """Bytes for a tensor of a shape; other tensors than matrices work in blocks."""
    return gram_bytes(shape) + 32 * shape[0] * shape[1] if len(shape) == 2 else 0


def _flops(
    _name: str, shape: tuple[int, ...], inputs: int, *, low: int | None = None, rank: float = 16, **_: object
) -> float:
    """The leading directions, and the product of those."""
    if not inputs or len(shape) != 2 or rank >= min(shape):
        return 0.0
    return leading_flops(shape, int(rank), low) + flops.product(shape[0], int(rank), shape[1])


@merge_method(
    "lora_svd",
    source=Source("Mangrulkar et al.", 2022, "", "PEFT: state-of-the-art parameter-efficient fine-tuning methods"),
    claim="the best approximation of a weighted sum of adapters by one adapter of a given rank",
    traits=Traits(base="required", working=working, flops=_flops, options={"rank": Range(1, 65536)}),
    invariances=("zero weight", "permutation", "base"),
)
def lora_svd(stack: Stack, *, rank: int = 16) -> np.ndarray | None:
    """base + the first `rank` terms of the SVD of sum_i w_i (x_i - base), matrix by matrix (Eckart & Young 1936).

    No matrix of that rank is nearer to the sum in the Frobenius norm. Tensors that are no matrices get the whole sum. Not an
    identity: two equal inputs of weight 1 give twice their delta, and a delta of a higher rank is cut.

    Raises:
        MethodError: A rank that is no whole number.
    """
    if rank != int(rank):
        raise MethodError(f"lora_svd got the rank {rank}, expected a whole number.")
    if len(stack.shape) != 2 or rank >= min(stack.shape):
        return stack.map(add_deltas, stack.weights)
    used = active(stack)
    total = np.zeros(stack.shape)
    # What rounding the inputs to float32 can have added: |x_i| is at most |base| + |x_i - base|.
    noise = HALF_UNIT * float(np.abs(used.weights).sum()) * float(np.sqrt(energy(stack.base())))
    for delta in deltas(used):
        total += delta
        noise += HALF_UNIT * float(np.sqrt(energy(delta)))
    left, values, right = leading(total, int(rank), noise)
    return merged(stack, (left * values) @ right)
