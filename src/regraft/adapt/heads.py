"""Probe heads: a linear classifier on frozen features, and the start of every other adaptation's head.

Starting a fine-tune from a fitted linear probe instead of a random head keeps the encoder's features from being
distorted in the first steps (LP-FT; Kumar et al. 2022, arXiv 2202.10054).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from zipfile import BadZipFile

import numpy as np

from regraft.budget import Deadline
from regraft.checkpoint.classifier import TextClassifier
from regraft.errors import StoreError
from regraft.methods import Source, method
from regraft.store import whole_folder
from regraft.train.logistic import ITERATIONS, fit_logistic

View = Literal["last", "mean", "both"]
VIEWS: tuple[View, ...] = ("last", "both", "mean")


class Views(Protocol):
    """Features of N texts, fp32: mean over tokens of the last layer [N, D], the same averaged over layers [N, D], and first
    token beside mean of the last layer [N, 2 D]."""

    @property
    def last(self) -> np.ndarray: ...

    @property
    def mean(self) -> np.ndarray: ...

    @property
    def both(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Head:
    """A linear head: `weight` fp32 [C, D], `bias` fp32 [C], on the view of the features that it was fitted on.

    `l2` and `iterations` are what the solver chose and made: with them the same fit is made again.
    """

    view: View
    weight: np.ndarray
    bias: np.ndarray
    l2: float = 0.0
    iterations: int = 0

    def logits(self, features: Views) -> np.ndarray:
        """fp32 [N, C]."""
        given = view_of(features, self.view)
        return np.asarray(given @ self.weight.T + self.bias, dtype=np.float32)

    @property
    def hidden(self) -> int:
        """Hidden units of the encoder that it reads."""
        return int(self.weight.shape[1]) // (2 if self.view == "both" else 1)

    def layer_weights(self, layers: int) -> list[float] | None:
        """The weights of the L+1 hidden states that this head's view stands for; None for the last alone."""
        return [1.0] * (layers + 1) if self.view == "mean" else None


def view_of(features: Views, view: View) -> np.ndarray:
    """The features of a view."""
    if view == "both":
        return features.both
    return features.last if view == "last" else features.mean


@method(
    "adapt",
    "probe",
    source=Source(
        "Alain & Bengio", 2016, "1610.01644", "Understanding intermediate layers using linear classifier probes"
    ),
    claim="a linear classifier on frozen features tells what they hold, at the cost of one forward pass",
    needs=("features", "labels"),
)
def probe(
    features: Views, labels: np.ndarray, n_classes: int, *, view: View = "last", seed: int = 0,
    deadline: Deadline | None = None, l2: float | None = None, iterations: int | None = None,
) -> Head:  # fmt: skip
    """Fit a linear head by multinomial logistic regression with L2, the strength chosen on a held-out part.

    Args:
        features: Views of the training texts.
        labels: int64 [N].
        view: Which features: the last layer's mean, first token beside it, or the mean over all layers.
        l2, iterations: Of a fit that is to be made again; chosen when None.
    """
    given = view_of(features, view)
    most = ITERATIONS if iterations is None else iterations
    fitted = fit_logistic(given, labels, n_classes, l2=l2, max_iter=most, seed=seed, deadline=deadline)
    return Head(view, fitted.weight, fitted.bias, fitted.l2, fitted.iterations)


def head_of(classifier: TextClassifier) -> Head:
    """The head of a classifier as it is now, trained or not."""
    view: View = "both" if classifier.first_token else "last" if classifier.layer_weights is None else "mean"
    weight, bias = (
        value.detach().float().cpu().numpy().copy() for value in (classifier.head.weight, classifier.head.bias)
    )
    return Head(view, weight, bias)


def save_head(head: Head, folder: Path) -> None:
    """Keep a head in a folder of its own."""
    with whole_folder(folder) as aside:
        np.savez(aside / "head.npz", weight=head.weight, bias=head.bias, view=np.array(head.view),
                 l2=np.float64(head.l2), iterations=np.int64(head.iterations))  # fmt: skip


def load_head(folder: Path) -> Head:
    """Read a head that `save_head` wrote.

    Raises:
        StoreError: It is missing or damaged.
    """
    path = folder / "head.npz"
    try:
        # Opened here: numpy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            view: Any = str(arrays["view"])
            return Head(view, arrays["weight"], arrays["bias"], float(arrays["l2"]), int(arrays["iterations"]))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as fault:
        raise StoreError(f"{path} cannot be read: {fault}.", "Remove the folder; it is made again.") from fault
