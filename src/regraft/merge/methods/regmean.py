"""RegMean: every linear layer is the least squares fit to what all inputs' layers give on their own tasks.

         x W_1        for x of task 1, in as many words as there are
x W  ~=  x W_2        for x of task 2            W = (G_1 + G_2)^-1 (G_1 W_1 + G_2 W_2),  G_i = X_i^T X_i
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from regraft.merge import flops
from regraft.merge.methods.linear import linear
from regraft.merge.methods.matrices import Floats, active, inverse_root
from regraft.merge.register import Range, Traits, merge_method
from regraft.merge.stack import Stack
from regraft.methods import Source

if TYPE_CHECKING:
    from regraft.statistics.parts import Statistics

# A matrix of a longer shape is a table of embeddings, or a head that an encoder does not run: averaged in blocks.
_LONG = 16
# Eigenvalues below this part of the largest are the rounding of float32 sums, not directions that the data has.
_CUT = 1e-6


def _working(shape: tuple[int, ...], inputs: int) -> int:
    """Sums of square matrices of the width, and the solver's; the inputs, their mean, a difference, both sides."""
    if len(shape) != 2 or max(shape) > _LONG * min(shape):
        return 0
    return 48 * max(shape) ** 2 + (4 * inputs + 56) * shape[0] * shape[1]


def _flops(_name: str, shape: tuple[int, ...], inputs: int, *, alpha: float = 0.9, **_: object) -> float:
    """Every Gram matrix times its input's change, and one system; with `alpha` 1 the inverse by eigenvectors instead.

    Gram matrices are taken to be of the second axis, as torch's linear layers have it; over a transformer that stores its
    layers the other way round (GPT-2) it comes to the same. What its models compute of the examples is not counted.
    """
    if not inputs or len(shape) != 2 or max(shape) > _LONG * min(shape):
        return 0.0
    rows, width = shape
    found = inputs * flops.product(width, width, rows)
    if 1.0 - alpha > _CUT:
        return found + flops.solve(width, rows)
    return found + flops.eigh(width) + flops.product(width, width, width) + flops.product(width, width, rows)


def _traits(kind: str) -> Traits:
    return Traits(
        base="optional",
        per_input=("data",),
        working=_working,
        flops=_flops,
        wants=("statistics", kind),
        options={
            "weight": Range(0.0, inf, high_open=True), "alpha": Range(0.0, 1.0), "rows": Range(1, 1_000_000),
        },
    )  # fmt: skip


@merge_method(
    "regmean",
    source=Source("Jin et al.", 2022, "2212.09849", "Dataless knowledge fusion by merging weights of language models"),
    claim="better than the plain and the Fisher-weighted average, on the tasks of its inputs and out of their domains",
    traits=_traits("grams"),
    invariances=("identity", "zero weight", "permutation", "base"),
)
def regmean(
    stack: Stack,
    *,
    data: Sequence[str] | str | None = None,
    rows: int = 256,
    alpha: float = 0.9,
    statistics: Statistics | None = None,
) -> np.ndarray | None:
    """W = (sum_i w_i G_i')^-1 sum_i w_i G_i' W_i with G_i' = alpha G_i + (1 - alpha) diag(G_i), for weights of linear layers.

    G_i = X_i^T X_i / tokens [d, d] is of what enters the layer of input i over its own task's examples. With alpha 1 this
    is the W that minimises sum_i w_i |X_i W - X_i W_i|^2 / tokens_i; smaller ones keep W nearer to the average, of which
    alpha 0 is one weighted by feature. It is computed as a change of the weighted average M:

        W = M + (sum_i w_i G_i')^+ sum_i w_i G_i' (W_i - M)

    so that equal inputs come back as they are, and directions that no example has (of features brought to one length) keep
    the average. All other tensors (biases, norms, embeddings, layers that the encoder does not run) are averaged, as in the
    paper. The base is not used.

    Args:
        data: The task of each input; read by the engine. Texts are enough, labels are not looked at.
        rows: Examples of each task.
        alpha: What is left of the off-diagonal elements; 0.9 in most of the paper's experiments.
        statistics: G_i; None: nothing is known, which gives the weighted average.

    Raises:
        MethodError: All weights are zero.
    """
    return _merged(stack, alpha, statistics)


@merge_method(
    "regmean_plus",
    source=Source(
        "Nguyen et al.", 2025, "2508.03121",
        "RegMean++: enhancing effectiveness and generalization of regression mean for model merging",
    ),
    claim="more accurate than RegMean, within the inputs' domains and out of them",
    traits=_traits("merged grams"),
    invariances=("identity", "zero weight", "permutation", "base"),
)  # fmt: skip
def regmean_plus(
    stack: Stack,
    *,
    data: Sequence[str] | str | None = None,
    rows: int = 256,
    alpha: float = 0.9,
    statistics: Statistics | None = None,
) -> np.ndarray | None:
    """RegMean++: as `regmean`, with G_i of what enters the layers behind the merged ones.

    The examples of task i pass through the embeddings and the layers below l as they are merged, and then through layer l of
    input i, where G_i is taken. Only linear layers within the repeated layers are fitted; all other tensors are averaged.
    """
    return _merged(stack, alpha, statistics)


def _merged(stack: Stack, alpha: float, statistics: Statistics | None) -> np.ndarray | None:
    if statistics is None or len(stack.shape) != 2 or not stack.weights.any():
        return linear(stack)
    used, found = active(stack), statistics.of(np.flatnonzero(stack.weights).tolist())
    grams = [array for array in found.arrays if array is not None]
    if len(grams) < used.n:
        return linear(used)
    inputs = used.inputs()
    mean = _mean(inputs, used.weights)
    left = np.zeros(grams[0].shape)
    right = np.zeros((grams[0].shape[0], mean.size // grams[0].shape[0]))
    for values, gram, weight in zip(inputs, grams, used.weights, strict=True):
        change = values - mean
        scaled = _scaled(gram, alpha, weight)
        left += scaled
        right += scaled @ (change if found.transposed else change.T)
    solved = solve(left, right, 1.0 - alpha)
    mean += solved if found.transposed else solved.T
    return mean.astype(np.float32)


def solve(left: Floats, right: Floats, least: float = 0.0) -> Floats:
    """left^+ right for a sum of Gram matrices: zero along what `left` has nothing of.

    Args:
        least: The smallest eigenvalue that is left once rows and columns are brought to a unit diagonal: 1 - alpha, because
            the diagonal was not scaled with the rest. Where it is above rounding, nothing is singular.
    """
    root = np.sqrt(np.diag(left))
    kept = root > 0.0
    scale = 1.0 / root[kept]
    even = left[np.ix_(kept, kept)] * scale * scale[:, None]
    scaled = right[kept] * scale[:, None]
    found = np.zeros_like(right)
    found[kept] = np.linalg.solve(even, scaled) if least > _CUT else inverse_root(even, -1.0, _CUT) @ scaled
    found[kept] *= scale[:, None]
    return found


def _scaled(gram: np.ndarray, alpha: float, weight: float) -> Floats:
    """weight * (alpha G + (1 - alpha) diag(G))."""
    scaled = gram.astype(np.float64)
    scaled *= alpha * weight
    np.fill_diagonal(scaled, np.diag(gram) * np.float64(weight))
    return scaled


def _mean(inputs: np.ndarray, weights: Floats) -> Floats:
    """The weighted average, as a change of the first input: of equal inputs it is exactly that."""
    shares = weights / weights.sum()
    mean: Floats = inputs[0].astype(np.float64)
    for values, share in zip(inputs[1:], shares[1:], strict=True):
        mean += share * (values - inputs[0].astype(np.float64))
    return mean
