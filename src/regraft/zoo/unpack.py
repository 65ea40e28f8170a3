"""Get a packed fine-tune back, byte for byte; see `pack`."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regraft import faults
from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.identity import weights_id
from regraft.delta.decode import decode_file
from regraft.delta.folders import fresh_folder, set_modes, sync_folders
from regraft.delta.layout import BLOCK_BYTES
from regraft.delta.manifest import Manifest, Packed, read_manifest
from regraft.delta.parents import Parents
from regraft.delta.whole import unsqueeze_file
from regraft.errors import BudgetError, CheckpointError, StoreError
from regraft.paths import resolved
from regraft.progress import SILENT, Progress

MEMORY = 512 * 2**20
# Blocks that one worker holds at the most: both models' bytes, words, planes, what is stored, what waits to be written.
HELD = 12


@dataclass(frozen=True)
class RestoreReport:
    """What was restored; every hash was compared."""

    packed: Path
    out: Path
    files: int
    bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"packed": str(self.packed), "out": str(self.out), "seconds": round(self.seconds, 3)}


def restore(
    packed: Path, out: Path, parent: Path | None = None, *, workers: int | None = None, max_memory: int = MEMORY,
    progress: Progress = SILENT,
) -> RestoreReport:  # fmt: skip
    """Write the original folder of a pack to `out`.

    Args:
        packed: The pack.
        out: Must not exist.
        parent: The folder of the parent; by default where it lay when the pack was made.
        workers: Threads; all cores by default.
        max_memory: As of `pack`.
        progress: Told of bytes.

    Raises:
        CheckpointError: The pack is damaged, truncated or of a newer version; the parent is missing, or another one, or has
            changed. Names the tensor where it can.
        UnsafeCheckpointError: A path of the pack leaves the folder.
        BudgetError: `max_memory` is too small for one thread.
        StoreError: `out` exists, lies in the pack or the parent, or the disk is full or cannot be written.
    """
    packed, out, started = Path(packed).absolute(), Path(out).absolute(), time.monotonic()
    threads = threads_in(workers, max_memory)
    about = read_manifest(packed)
    if out.exists() or out.is_symlink():
        raise StoreError(f"{out} exists.", "Give a folder that does not.")
    if resolved(out, StoreError).is_relative_to(resolved(packed)):
        raise StoreError(f"{out} is inside the pack.", "Give a folder outside of it.")
    parents = parents_of(packed, about, None if parent is None else Path(parent).absolute())
    if parents is not None and resolved(out, StoreError).is_relative_to(resolved(parents.folder)):
        raise StoreError(f"{out} is inside the parent, which has to stay as it is.", "Give a folder outside of it.")
    with fresh_folder(out, "restore", about.modes.get(".")) as aside, progress.bar("restoring", about.bytes):
        free = shutil.disk_usage(aside).free
        if about.bytes > free:
            raise StoreError(
                f"{packed} unpacks to {about.bytes} bytes, the disk of {out} has {free} free.", "Free some space."
            )
        for name in about.folders:
            (aside / name).mkdir(parents=True, exist_ok=True)
        for file in about.files:
            target = aside / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            unpack_file(packed, file, target, parents, threads, progress)
            target.chmod(file.mode)
            faults.point("restored file written")
        sync_folders(aside)
        set_modes(aside, about.modes)
        faults.point("restore verified")
    return RestoreReport(packed, out, len(about.files), about.bytes, time.monotonic() - started)


def verify(packed: Path, parent: Path | None = None, *, workers: int | None = None, max_memory: int = MEMORY) -> None:
    """Unpack every file of a pack in memory, block by block, and compare the hashes.

    Raises:
        CheckpointError: As of `restore`.
    """
    packed = Path(packed).absolute()
    about = read_manifest(packed)
    parents = parents_of(packed, about, None if parent is None else Path(parent).absolute())
    for file in about.files:
        unpack_file(packed, file, None, parents, threads_in(workers, max_memory), SILENT)


def unpack_file(
    packed: Path, file: Packed, target: Path | None, parents: Parents | None, threads: int, progress: Progress
) -> None:
    """Restore one file (None: only its hash), and compare."""
    source = packed / file.packed
    if file.form == "delta":
        digest = decode_file(source, target, parents, workers=threads, progress=progress)
    else:
        digest = unsqueeze_file(source, target, file.bytes)
        progress.advance(file.bytes)
    if digest != file.sha256:
        raise CheckpointError(
            f"{source} unpacks to another {file.path} than was packed.", "Use an intact copy of the pack."
        )


def parent_id(parents: Parents) -> str:
    """The parent's weights_id, over all its files, names with their folder in front."""
    named: dict[str, TensorInfo] = {}
    for (file, name), info in parents.tensors.items():
        where = Path(file).parent.as_posix()
        named.setdefault(name if where == "." else f"{where}.{name}", info)
    return weights_id(named)


def parents_of(packed: Path, about: Manifest, given: Path | None) -> Parents | None:
    """The parent's tensors: of the folder that is given, or of the one where it lay; of two such places the one that holds it.

    Raises:
        CheckpointError: There is none at either place, or none that can be read.
    """
    if about.parent is None:
        return None
    if given is not None:
        return Parents(given)
    places = [Path(os.path.normpath(packed / about.parent.relative)), Path(about.parent.path)]
    found: dict[Path, Parents] = {}
    faults_found: list[CheckpointError] = []
    for place in places:
        if place.is_dir() and resolved(place) not in found:
            try:
                found[resolved(place)] = Parents(place)
            except CheckpointError as fault:
                faults_found.append(fault)
    if len(found) > 1:  # the pack was moved, or the parent: both are read to tell
        right = [one for one in found.values() if parent_id(one) == about.parent.weights_id]
        return right[0] if right else next(iter(found.values()))
    if found:
        return next(iter(found.values()))
    if faults_found:
        raise faults_found[0]
    raise CheckpointError(
        f"{packed} is a delta, and its parent is missing: it lay at {places[1]} (weights_id {about.parent.weights_id}).",
        "Give the folder of the parent.",
    )


def threads_in(workers: int | None, max_memory: int) -> int:
    """How many threads there is memory for.

    Raises:
        BudgetError: Not even for one.
    """
    one = HELD * BLOCK_BYTES
    if max_memory < one:
        raise BudgetError(
            f"{max_memory} bytes of memory are too few: one thread takes {one}.", f"Give at least {one // 2**20} MiB."
        )
    return max(1, min(workers or os.cpu_count() or 1, max_memory // one))
