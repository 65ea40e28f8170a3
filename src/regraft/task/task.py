"""What a task is: three splits of labelled texts, a metric, and the notes on how the data was prepared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

METRICS = ("accuracy", "macro_f1")

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Texts and their labels.

    Attributes:
        texts: One string an example.
        labels: int64, shape (examples,): indices into `Task.label_names`.
    """

    texts: list[str]
    labels: Labels

    def __post_init__(self) -> None:
        if self.labels.shape != (len(self.texts),):
            raise ValueError(f"{len(self.texts)} texts with labels of shape {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Task:
    """A text classification task, ready to be used.

    Attributes:
        reference: What the user gave.
        name: Short name for tables and folders.
        label_names: Sorted: as numbers when all are integers, else as strings. Every one occurs in `train`.
        metric: "accuracy" or "macro_f1".
        train, validation, test: Examples in an order that depends on their content only.
        notes: What was done to the data, in words.
        task_id: SHA-256 (hex) of label names, metric and the content of each split, whatever the order of rows.
    """

    reference: str
    name: str
    label_names: tuple[str, ...]
    metric: str
    train: Split
    validation: Split
    test: Split
    notes: tuple[str, ...]
    task_id: str

    def splits(self) -> dict[str, Split]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def summary(self) -> dict[str, Any]:
        """What `regraft task show` prints; plain types only.

        Classes map to their counts in train, validation and test; `words` are quantiles of the number of
        whitespace-separated words in a text, over all splits.
        """
        counts = {name: np.bincount(s.labels, minlength=len(self.label_names)) for name, s in self.splits().items()}
        words = np.array([len(text.split()) for split in self.splits().values() for text in split.texts])
        quantiles = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
        return {
            "name": self.name,
            "reference": self.reference,
            "task_id": self.task_id,
            "metric": self.metric,
            "splits": {name: len(split) for name, split in self.splits().items()},
            "classes": {
                label: {name: int(count[i]) for name, count in counts.items()}
                for i, label in enumerate(self.label_names)
            },
            "words": {name: int(np.quantile(words, q, method="nearest")) for name, q in quantiles.items()},
            "notes": list(self.notes),
        }


def row_digest(text: str, label: str) -> bytes:
    """SHA-256 of one labelled text; the label's length comes first so that no two rows share an encoding."""
    name = label.encode()
    return hashlib.sha256(len(name).to_bytes(8, "little") + name + text.encode()).digest()


def content_id(label_names: Iterable[str], metric: str, splits: Iterable[list[bytes]]) -> str:
    """SHA-256 (hex) over label names, metric and the sorted row digests of each split."""
    digest = hashlib.sha256()
    for part in (*label_names, "\0metric", metric):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    for rows in splits:
        digest.update(len(rows).to_bytes(8, "little"))
        for row in sorted(rows):
            digest.update(row)
    return digest.hexdigest()
