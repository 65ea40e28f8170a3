"""Find the folders that are checkpoints, by listing alone: what `discover` calls one, without opening or asking each file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from regraft.zoo import discover

DEPTH = 8
MARKS = frozenset((*discover._MARKS, discover._ADAPTER, "model.safetensors.index.json", "pytorch_model.bin.index.json"))
# Weights that lie in a folder of their own. With folders below it, it may as well be where somebody keeps models.
WEIGHTS = (".safetensors", ".gguf", ".onnx")
# What trainers leave inside of the folder that they write the model to.
_SAVED = re.compile(r"checkpoint-[0-9]+")


@dataclass(frozen=True)
class Unreadable:
    """A folder that could not be read, and why."""

    path: str
    problem: str


def walk(roots: Sequence[Path], troubles: list[Unreadable], depth: int = DEPTH) -> Iterator[str]:
    """Folders at or below the roots that look like checkpoints, each root's in order of their paths.

    Links are followed, but no folder is entered twice, so loops end. Inside a checkpoint only `checkpoint-500` and its like are
    looked for; hidden folders are passed over. What cannot be listed is added to `troubles`; what vanishes meanwhile is not
    there.
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
            if left:
                waiting += [(name, left - 1) for name in sorted(below, reverse=True)]


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
