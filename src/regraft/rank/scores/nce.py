"""NCE: the negative conditional entropy of the labels given the class that the source head predicts."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from regraft.methods import Source, method
from regraft.rank.scores.outputs import checked_outputs
from regraft.rank.scores.prepared import one_hot


@method(
    "rank",
    "nce",
    source=Source(
        "Tran, Nguyen & Hassner", 2019, "1908.08142", "Transferability and hardness of supervised classification tasks"
    ),
    claim="the less uncertain the target label is given the source label, the better a model transfers",
    needs=("source outputs", "labels"),
    invariances=("zero columns", "column permutation", "label permutation", "row permutation"),
)
def nce(outputs: ArrayLike, labels: ArrayLike, *, seed: int = 0) -> float:
    """-H(Y | Z) = sum_{y, z} P(y, z) log(P(y, z) / P(z)), with Z the most probable source class; in nats, at most 0.

    Cells that are empty add nothing (copies take 0 log 0, or add 1e-5 to every cell). Source classes that are equally probable
    share the example, so that their order does not decide.

    Args:
        outputs: Probabilities of the source head [N, Z].
        labels: [N].
        seed: Not used; the score is deterministic.
    """
    given, classes = checked_outputs(outputs, labels)
    predicted = (given == given.max(axis=1, keepdims=True)).astype(np.float64)
    predicted /= predicted.sum(axis=1, keepdims=True)
    joint = one_hot(classes).T @ predicted / len(given)
    marginal = np.broadcast_to(joint.sum(axis=0), joint.shape)
    full = joint > 0
    return float((joint[full] * np.log(joint[full] / marginal[full])).sum())
