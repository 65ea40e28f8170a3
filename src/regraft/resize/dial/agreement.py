"""How much of what a checkpoint computes is left in a smaller one: the score of the search where no task is given.

Linear centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414) of the last hidden states X [n, d], Y [n, e] of the same
tokens, columns centred:

    CKA(X, Y) = ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F)        between 0 and 1

It does not change under rotations and scaling, and the widths may differ. Memory: the states of both, in float32, and three Gram
matrices in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from regraft.anatomy import Opened, open_bound
from regraft.checkpoint.classifier import model_calls
from regraft.errors import ResizeError
from regraft.resize.importance.subject import batches_of, load_subject

# Rows of hidden states that are in float64 at once.
ROWS = 1024


class Agreement:
    """Scores checkpoint folders by the CKA of their last hidden states with those of one checkpoint, token by token.

    Args:
        opened: The checkpoint that they were made from.
        texts: What is run.
    """

    def __init__(self, opened: Opened, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self._whole = last_states(opened, self.texts)

    def __call__(self, folder: Path) -> float:
        """From 0 to 1."""
        return linear_cka(self._whole, last_states(open_bound(str(folder)), self.texts))


def last_states(opened: Opened, texts: Sequence[str]) -> np.ndarray:
    """The hidden states that leave the body, float32 [tokens, hidden]: those of the longest texts first."""
    import torch

    with model_calls(opened.weights.reference), torch.no_grad():
        subject = load_subject(opened)
        body = getattr(subject.model, "base_model", subject.model)
        found = [body(**batch.inputs).last_hidden_state for batch in batches_of(opened, subject, texts)]
    return np.concatenate([states.reshape(-1, states.shape[-1]).numpy() for states in found])


def linear_cka(one: np.ndarray, other: np.ndarray) -> float:
    """CKA of [n, d] and [n, e], computed in float64.

    Raises:
        ResizeError: Other numbers of rows, fewer than two, or rows that are all the same.
    """
    if len(one) != len(other) or len(one) < 2:
        raise ResizeError(
            f"Hidden states of {len(one)} and {len(other)} tokens cannot be compared.",
            "Give both models the same texts.",
        )
    means = [states.mean(axis=0, dtype=np.float64) for states in (one, other)]
    xx, yy, yx = (np.zeros((a.shape[1], b.shape[1])) for a, b in ((one, one), (other, other), (other, one)))
    for start in range(0, len(one), ROWS):
        x, y = (states[start : start + ROWS] - mean for states, mean in zip((one, other), means, strict=True))
        xx += x.T @ x
        yy += y.T @ y
        yx += y.T @ x
    norms = np.linalg.norm(xx) * np.linalg.norm(yy)
    if norms == 0.0:
        raise ResizeError("All tokens have the same hidden state.", "Give texts that differ.")
    return float(np.linalg.norm(yx) ** 2 / norms)
