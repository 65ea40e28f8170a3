"""Model Stock: how far to trust the average of a few fine-tunes, from the angle between them."""

from __future__ import annotations

import numpy as np

from regraft.merge.register import Range, Traits, merge_method
from regraft.merge.stack import Stack
from regraft.methods import Source

# One minus the cosine of deltas that are the same up to the rounding of their inner products.
_ROUNDING = 1e-12


@merge_method(
    "model_stock",
    source=Source("Jang et al.", 2024, "2403.19522", "Model Stock: all we need is just a few fine-tuned models"),
    claim="two fine-tunes of one base with other seeds, merged by their angle, match a soup of many",
    traits=Traits(base="required", inputs=(2, None), options={"weight": Range(1.0, 1.0)}),
    invariances=("identity", "permutation", "base"),
)
def model_stock(stack: Stack) -> np.ndarray | None:
    """t * mean of the inputs + (1 - t) * base, t = k c / (1 + (k - 1) c), where c is the cosine between k deltas.

    Each tensor has its own t. The paper takes one angle between all pairs; of more than two inputs, c is the mean of the
    pairs' cosines (as in mergekit), 0 for a pair of which one is no change at all. Where c is negative, the inputs have
    nothing in common and t is 0: the base (mergekit goes on to negative t). The inputs' weights are not used, each counts
    alike: a weight of 0 does not take one out.
    """
    ratio = interpolation_ratio(stack.gram())
    return stack.combine(np.full(stack.n, ratio / stack.n), base=1.0 - ratio)


def interpolation_ratio(gram: np.ndarray) -> float:
    """t, in [0, 1], from the inner products of the deltas, float64 [k, k]."""
    count = len(gram)
    norms = np.sqrt(np.diag(gram))
    safe = np.where(norms > 0.0, norms, 1.0)
    cosine = float((gram / safe / safe[:, None])[np.triu_indices(count, 1)].mean())
    if cosine > 1.0 - _ROUNDING:  # equal inputs come back as they are, also where they are 0 and the base is not
        return 1.0
    return count * cosine / (1.0 + (count - 1) * cosine) if cosine > 0.0 else 0.0
