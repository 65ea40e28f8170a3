"""Where a pack and its original may lie, and what killed processes left of originals."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from hashlib import file_digest
from pathlib import Path

from regraft.delta.folders import content_of, moved_aside
from regraft.delta.manifest import is_pack, read_manifest
from regraft.delta.parents import Parents
from regraft.errors import CheckpointError, StoreError, UnsafeCheckpointError
from regraft.paths import resolved
from regraft.progress import SILENT, Progress
from regraft.zoo.unpack import unpack_file


def sweep(folder: Path, out: Path, parent: Path | None, threads: int, progress: Progress) -> list[Path]:
    """Remove what killed processes had moved aside of the original, if `out` is read back and holds all of it; what is left."""
    left = []
    for aside in moved_aside(folder):
        try:
            held = _holds(out, aside, None if parent is None else Parents(parent), threads)
        except CheckpointError:
            held = False
        if held:
            shutil.rmtree(aside, ignore_errors=True)
        if aside.exists():
            progress.say(
                f"{aside} is an original that was moved aside, and {out} was not found to hold all of it: it stays."
            )
            left.append(aside)
    return left


def _holds(out: Path, aside: Path, parents: Parents | None, threads: int) -> bool:
    """Whether a pack gives back every file that is left of an original."""
    if not is_pack(out):
        return False
    entries = {entry.path: entry for entry in read_manifest(out).files}
    for file in content_of(aside).files:
        entry = entries.get(file.name)
        if entry is None or entry.bytes != file.size or entry.sha256 != digest_of(file.path, SILENT):
            return False
        unpack_file(out, entry, None, parents, threads, SILENT)
    return True


def check_places(folder: Path, parent: Path | None, out: Path, replace: bool, left: Sequence[Path]) -> None:
    """Refuse places that lie in one another, and what cannot be removed."""
    if not folder.is_dir():
        done = f" It may be packed already: {out} is a pack." if is_pack(out) else ""
        if left:
            raise CheckpointError(
                f"{folder} was moved aside to {left[0]} when it was packed, and {out} was not found to hold all of it.",
                f"Give pack and parent as they were then, or rename {left[0]} back to {folder.name}.",
            )
        raise CheckpointError(f"{folder} is no folder.{done}", "Give the folder of a checkpoint.")
    if is_pack(folder):
        raise CheckpointError(f"{folder} is a pack.", "Give a checkpoint; `zoo restore` unpacks.")
    if parent is not None and is_pack(parent):
        raise CheckpointError(f"The parent {parent} is a pack.", "Restore it first; a parent has to be readable.")
    real, real_out = resolved(folder), resolved(out, StoreError)
    real_parent = None if parent is None else resolved(parent)
    if real_out.is_relative_to(real) or real.is_relative_to(real_out):
        raise StoreError(f"{out} and {folder} lie in one another.", "Give a folder beside it.")
    if real_parent is not None and (real_parent.is_relative_to(real) or real.is_relative_to(real_parent)):
        raise CheckpointError(f"The parent {parent} and {folder} lie in one another.", "Give another parent.")
    if real_parent is not None and real_out.is_relative_to(real_parent):
        raise StoreError(f"{out} is inside the parent.", "Give a folder outside of it.")
    if replace and (folder.is_symlink() or any(path.is_symlink() for path in folder.rglob("*"))):
        raise UnsafeCheckpointError(
            f"{folder} is or holds links; removing it would not free what they lead to.", "Pack it, and leave it."
        )


def digest_of(path: Path, progress: Progress) -> str:
    with path.open("rb") as file:
        found = file_digest(file, "sha256").hexdigest()
    progress.advance(path.stat().st_size)
    return found
