"""Find the folders that are checkpoints, by listing alone: nothing is opened, and no file is asked for its status.

The one walker of all that looks for checkpoints: `zoo add`, `--zoo FOLDER`, and the snapshots of a Hub cache.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

DEPTH = 8
ADAPTER = "adapter_config.json"
MARKS = frozenset((
    "config.json", "modules.json", "model_index.json", "model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json", ADAPTER,
))  # fmt: skip
# Weights that lie in a folder of their own. With folders below it, it may as well be where somebody keeps models.
WEIGHTS = (".safetensors", ".gguf", ".onnx")
# What trainers leave inside of the folder that they write the model to.
_SAVED = re.compile(r"checkpoint-[0-9]+")


@dataclass(frozen=True)
class Unreadable:
    """A folder that could not be read, and why."""

    path: str
    problem: str


def walk(roots: Sequence[Path], troubles: list[Unreadable], depth: int = DEPTH, *, saved: bool = True) -> Iterator[str]:
    """Folders at or below the roots that look like checkpoints, each root's in order of their paths.

    Links are followed, but no folder is entered twice, so loops end. Inside a checkpoint only `checkpoint-500` and its like are
    looked for, and not even these unless `saved`; hidden folders are passed over. What cannot be listed is added to `troubles`;
    what vanishes meanwhile is not there. A folder costs one stat call and one listing, whatever is in it.
    """
    seen: set[tuple[int, int]] = set()
    for root in roots:
        waiting = [(str(root), depth)]
        while waiting:
            folder, left = waiting.pop()
            try:
                status = os.stat(folder)  # noqa: PTH116 - a Path for each of 10,000 folders is slow
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                is_one, below = _listed(folder)
            except FileNotFoundError:
                continue
            except OSError as fault:
                troubles.append(Unreadable(folder, f"cannot be listed: {fault.strerror or fault}"))
                continue
            if is_one:
                yield folder
            if left and (saved or not is_one):
                waiting += [(name, left - 1) for name in sorted(below, reverse=True)]


def looks_like_checkpoint(folder: Path) -> bool:
    """Whether a folder holds the files of a checkpoint or of an adapter, usable or not; one that cannot be listed does not."""
    return any(walk([folder], [], 0))


def _listed(folder: str) -> tuple[bool, list[str]]:
    """Whether a folder is a checkpoint, and the folders in it that are to be looked into."""
    marked = weights = False
    below = []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.name in MARKS:
                    marked = marked or not entry.is_symlink() or os.path.exists(entry.path)  # noqa: PTH110
                elif entry.name.endswith(WEIGHTS) and not entry.is_dir():
                    weights = True
                elif not entry.name.startswith(".") and entry.is_dir():
                    below.append(entry.path)
            except OSError:  # a link that leads in circles is no folder
                continue
    if marked:
        return True, [path for path in below if _SAVED.fullmatch(os.path.basename(path))]  # noqa: PTH119
    return weights and not below, below
