"""Cut the encoder of a classifier that is in memory: what stays is a checkpoint that can be trained on under the old head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from regraft.anatomy import Opened, open_bound
from regraft.checkpoint.classifier import TextClassifier
from regraft.checkpoint.export import write_encoder
from regraft.resize.certificate.steps import cut_step
from regraft.resize.cuts import cut
from regraft.store import whole_folder

# Texts that importance is measured on.
TEXTS = 256


@contextmanager
def opened_encoder(classifier: TextClassifier, beside: Path) -> Iterator[Opened]:
    """The encoder of a classifier as a checkpoint, bound to its anatomy, in a hidden folder that vanishes when the block ends.

    Args:
        beside: The folder that this one lies in. What a killed process leaves of it ends in `.partial`.

    Raises:
        AnatomyError: There is no anatomy of its model_type.
        StoreError: The disk is full.
    """
    beside.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".whole-", suffix=".partial", dir=beside) as place:
        with whole_folder(Path(place) / "whole") as aside:
            write_encoder(classifier, aside)
        yield open_bound(str(Path(place) / "whole"))


def cut_encoder(
    classifier: TextClassifier, sizes: Mapping[str, int], target: Path, *, texts: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Write the encoder of a classifier, cut to sizes, as a stock folder without a head.

    Units stay by activation, layers by the similarity of what enters and leaves them, over the texts (see `cut`).

    Returns:
        The record of the cut (`certificate.cut_step`).

    Raises:
        ResizeError, AnatomyError, CheckpointError, StoreError: As of `cut`.
    """
    with opened_encoder(classifier, target.parent) as opened:
        done = cut(opened, sizes, target, texts=texts, seed=seed)
        by = {axis: one.criterion for axis, one in done.scores.items()}
        return cut_step(opened, done.kept, done.plan, by, len(texts))
