"""Passes that can end early: features block after block, each an entry of the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regraft.checkpoint import Checkpoint
from regraft.errors import CheckpointError
from regraft.features.extract import Opened, extract_all
from regraft.features.views import Features, Joined

# Texts of a block. Sorted by length within so many, hardly more of the work is padding than within all.
BLOCK = 2048


@dataclass(frozen=True)
class Blocks:
    """Features that were computed block by block.

    Attributes:
        views: By checkpoint, over the texts that were made.
        texts: How many of the texts were made, from the first on.
        seconds: What the first checkpoint's pass took, and over how many texts (`timed`; the others came from the store).
    """

    views: Mapping[str, Joined]
    texts: int
    seconds: float
    timed: int


def extract_blocks(
    checkpoints: Sequence[Checkpoint],
    texts: Sequence[str],
    *,
    stop: Callable[[int], bool] | None = None,
    failed: dict[str, CheckpointError] | None = None,
    **options: Any,
) -> Blocks:
    """Features of checkpoints in blocks of `BLOCK` texts, each an entry of the store, so that a pass can end early and a killed
    one goes on.

    Args:
        stop: Asked before each block, with the number of texts that are made; when true the pass ends there.
        failed: As in `extract_all`; what fails in one block is not computed in the next.
    """
    opened, bad = Opened(), failed if failed is not None else {}
    parts: dict[str, list[Features]] = {checkpoint.name: [] for checkpoint in checkpoints}
    made, timed, seconds = 0, 0, 0.0
    while made < len(texts) and not (stop is not None and stop(made)):
        block = texts[made : made + BLOCK]
        sound = [checkpoint for checkpoint in checkpoints if checkpoint.name not in bad]
        found = extract_all(sound, block, failed=failed, opened=opened, **options)
        for name, features in found.items():
            parts[name].append(features)
        first = found.get(checkpoints[0].name)
        if first is not None and first.seconds:
            timed, seconds = timed + len(block), seconds + first.seconds
        made += len(block)
    views = {name: Joined(*found) for name, found in parts.items() if found and name not in bad}
    return Blocks(views, made, seconds, timed)
