"""What is kept of a pass, and the views of it that heads and rankings are fitted on.

mean.npy, first.npy    fp32 [L+1, N, D]: per layer (0: embeddings) the mean over tokens, and the first token
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Features:
    """Features of one checkpoint for N texts.

    Attributes:
        by_layer: Mean over tokens of each layer, fp32 [L+1, N, D]; memory-mapped, read when used.
        first: First token of each layer, likewise.
        seconds: What computing them took (0 when they came from the store).
    """

    by_layer: np.ndarray
    first: np.ndarray
    seconds: float

    @classmethod
    def open(cls, folder: Path, seconds: float) -> Features:
        """Map the arrays of an entry of the store; they can be read even when the entry is evicted afterwards."""
        mean, first = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("mean", "first"))
        return cls(mean, first, seconds)

    def leading(self, layers: int) -> Features:
        """The features of the truncation to the first `layers` layers, which shares this pass."""
        return Features(self.by_layer[: layers + 1], self.first[: layers + 1], 0.0)

    @property
    def last(self) -> np.ndarray:
        """Mean over tokens of the last layer, fp32 [N, D]."""
        return np.asarray(self.by_layer[-1])

    @property
    def mean(self) -> np.ndarray:
        """Mean over all layers, fp32 [N, D]."""
        total = np.zeros(self.by_layer.shape[1:], dtype=np.float32)
        for layer in self.by_layer:
            total += layer
        return total / np.float32(len(self.by_layer))

    @property
    def both(self) -> np.ndarray:
        """First token and mean of the last layer side by side, fp32 [N, 2 D]."""
        return np.concatenate([self.first[-1], self.by_layer[-1]], axis=1)

    @property
    def all(self) -> np.ndarray:
        """All layers side by side, fp32 [N, (L+1) * D]."""
        return np.concatenate(list(self.by_layer), axis=1)

    def rows(self, chosen: np.ndarray) -> FeatureRows:
        """The features of some of the texts."""
        return FeatureRows(self, chosen)


@dataclass(frozen=True)
class FeatureRows:
    """Features of a choice of rows, with the same views as `Features`."""

    whole: Features
    chosen: np.ndarray

    @property
    def by_layer(self) -> np.ndarray:
        """fp32 [L+1, n, D], read anew each time: kept, all layers of all checkpoints would be in memory."""
        return np.stack([np.asarray(layer[self.chosen]) for layer in self.whole.by_layer])

    @property
    def last(self) -> np.ndarray:
        """fp32 [n, D]."""
        return np.asarray(self.whole.by_layer[-1][self.chosen])

    @property
    def both(self) -> np.ndarray:
        """fp32 [n, 2 D]."""
        return np.concatenate([self.whole.first[-1][self.chosen], self.last], axis=1)

    @property
    def mean(self) -> np.ndarray:
        """fp32 [n, D]."""
        return np.asarray(self.by_layer.mean(axis=0))

    @property
    def all(self) -> np.ndarray:
        """fp32 [n, (L+1) * D]."""
        return np.concatenate(list(self.by_layer), axis=1)


class Joined:
    """Views over the rows of several features, end to end."""

    def __init__(self, *parts: Any) -> None:
        self._parts = parts

    @property
    def last(self) -> np.ndarray:
        """fp32 [N, D]."""
        return np.concatenate([part.last for part in self._parts])

    @property
    def mean(self) -> np.ndarray:
        """fp32 [N, D]."""
        return np.concatenate([part.mean for part in self._parts])

    @property
    def both(self) -> np.ndarray:
        """fp32 [N, 2 D]."""
        return np.concatenate([part.both for part in self._parts])
