"""Keep a fine-tune as a lossless delta of its parent, and get it back byte for byte.

    report = pack("tuned", "base", "tuned.pack")           the original stays
    report = pack("tuned", "base", "tuned.pack", replace=True)   it goes, when the pack was read back and found right
    restore("tuned.pack", "again")                          every byte and permission as it was (`unpack`)

safetensors files become deltas (`regraft.delta`), every other file one zstd frame. Content, permission bits and empty folders
come back; owners, times and extended attributes do not, and a link comes back as the file that it led to. Whoever may not read
a file of the original may not read it in the pack.

Order of events, each of which is on the disk before the next begins: the pack is written aside, read back and unpacked with
every hash compared, renamed into place; only then, and only with `replace`, is the original renamed aside,
looked at once more, and removed. A process that is killed anywhere leaves the original, or the verified pack, or both; called
again it goes on from there.
"""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from regraft import faults
from regraft.checkpoint.headers import read_header
from regraft.delta import manifest as listing
from regraft.delta.encode import encode_file
from regraft.delta.folders import (
    Content,
    Found,
    content_of,
    fresh_folder,
    remove,
    set_modes,
    sync,
    sync_folders,
)  # fmt: skip
from regraft.delta.manifest import Manifest, Packed, read_manifest
from regraft.delta.parents import Parents
from regraft.delta.whole import squeeze_file
from regraft.errors import CheckpointError, StoreError
from regraft.progress import SILENT, Progress
from regraft.store import write_whole
from regraft.zoo.places import check_places, digest_of, sweep
from regraft.zoo.unpack import MEMORY, RestoreReport, parent_id, restore, threads_in, unpack_file, verify

__all__ = ["PackReport", "RestoreReport", "pack", "restore", "verify"]


@dataclass(frozen=True)
class PackReport:
    """What was packed; every byte of it was read back and compared.

    Args:
        folder: The original.
        out: The pack.
        files: How many files.
        bytes: Of all files before.
        packed_bytes: Of all files after, pack.json included.
        plans: Bytes of tensors by the plan that they were coded with.
        parent_id: The parent's weights_id; None without a parent.
        replaced: Whether the original was removed.
        already: Whether the pack was there, made from the same files; it was read back again.
        seconds: By step.
    """

    folder: Path
    out: Path
    files: int
    bytes: int
    packed_bytes: int
    plans: Mapping[str, int]
    parent_id: str | None
    replaced: bool
    already: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Bytes after over bytes before."""
        return self.packed_bytes / self.bytes if self.bytes else 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = asdict(self) | {"folder": str(self.folder), "out": str(self.out), "ratio": round(self.ratio, 4)}
        return plain | {"seconds": {step: round(value, 3) for step, value in self.seconds.items()}}


def pack(
    folder: Path, parent: Path | None, out: Path, *, workers: int | None = None, max_memory: int = MEMORY,
    replace: bool = False, progress: Progress = SILENT,
) -> PackReport:  # fmt: skip
    """Pack a checkpoint's folder into the folder `out`, and read it back.

    Args:
        folder: The checkpoint.
        parent: The folder of the checkpoint that it came from, which has to stay as it is; None to code it by itself.
        out: The pack; must not exist, unless it is the pack of these very files.
        workers: Threads; all cores by default. The pack is the same for any number.
        max_memory: Bytes beyond what the program itself takes; limits the number of threads.
        replace: Remove the original at the very end.
        progress: Told of bytes.

    Raises:
        CheckpointError: A file cannot be read, changes meanwhile, or is not what the pack gives back.
        UnsafeCheckpointError: A link leaves the folder.
        BudgetError: `max_memory` is too small for one thread.
        StoreError: `out` is taken, or the disk is full or cannot be written.
        RunLockedError: Another process is writing `out`.
    """
    folder, out = Path(folder).absolute(), Path(out).absolute()
    parent = None if parent is None else Path(parent).absolute()
    threads = threads_in(workers, max_memory)
    left = sweep(folder, out, parent, threads, progress)
    check_places(folder, parent, out, replace, left)
    content = content_of(folder)
    parents = None if parent is None else Parents(parent)
    total = sum(file.size for file in content.files)
    with progress.bar("packing", 2 * total):
        if out.exists():
            report = _already(folder, out, content, parents, threads, progress)
        else:
            report = _write(folder, out, content, parents, threads, progress)
    if not replace:
        return report
    if content_of(folder) != content:
        raise CheckpointError(
            f"{folder} has changed while it was packed, and was not removed.", f"Remove {out}, and pack it again."
        )
    remove(folder, content)
    return PackReport(**{**vars(report), "replaced": True})


def _write(
    folder: Path, out: Path, content: Content, parents: Parents | None, threads: int,
    progress: Progress,
) -> PackReport:  # fmt: skip
    """Write the pack aside, read it back, rename it."""
    started = time.monotonic()
    seconds: dict[str, float] = {}
    plans: Counter[str] = Counter()
    with fresh_folder(out, "pack", content.modes["."] | 0o700) as aside:
        identity = None if parents is None else _identity(parents, out)
        # A folder of the original may be called as the packed form of a file beside it.
        taken = {listing.NAME} | {
            above.as_posix() for file in content.files for above in PurePosixPath(file.name).parents
        }
        entries = []
        for file in content.files:
            entries.append(_pack_file(file, aside, taken, parents, threads, plans, progress))
            faults.point("packed file written")
        about = Manifest(identity, tuple(entries), content.folders, content.modes)
        write_whole(aside / listing.NAME, listing.as_text(about))
        (aside / listing.NAME).chmod(_shared(content.files))
        set_modes(aside, content.modes, 0o700)
        sync_folders(aside)
        seconds["pack"] = time.monotonic() - started
        faults.point("pack written")
        for entry in read_manifest(aside).files:
            unpack_file(aside, entry, None, parents, threads, progress)
        seconds["read back"] = time.monotonic() - started - seconds["pack"]
        if content_of(folder) != content:
            raise CheckpointError(f"{folder} has changed while it was packed.", "Pack it again when it is whole.")
        faults.point("pack verified")
    sync(out.parent)
    faults.point("pack in place")
    return _report(folder, out, about, plans, seconds)


def _pack_file(
    file: Found, aside: Path, taken: set[str], parents: Parents | None, threads: int, plans: Counter[str],
    progress: Progress,
) -> Packed:  # fmt: skip
    """One file: a delta, or, where its header cannot be read, a frame like any other file."""
    form = "delta" if file.name.endswith(".safetensors") and _is_readable(file, progress) else "zstd"
    packed = file.name + listing.FORMS[form]
    while packed in taken:
        packed += "_"
    taken.add(packed)
    target = aside / packed
    target.parent.mkdir(parents=True, exist_ok=True)
    if form == "delta":
        coded = encode_file(file.path, target, parents, file.name, workers=threads, progress=progress)
        target.chmod(_packed_mode(file.mode))
        plans.update(coded.plans)
        return Packed(file.name, packed, form, coded.bytes, coded.packed_bytes, coded.sha256, file.mode)
    size, packed_size, digest = squeeze_file(file.path, target)
    target.chmod(_packed_mode(file.mode))
    progress.advance(size)
    return Packed(file.name, packed, form, size, packed_size, digest, file.mode)


def _is_readable(file: Found, progress: Progress) -> bool:
    try:
        read_header(file.path)
    except CheckpointError as fault:  # quantised, or damaged: nobody is to lose a file because we cannot read it
        progress.say(f"{file.name} is compressed as it is: {fault.problem}")
        return False
    return True


def _packed_mode(mode: int) -> int:
    """Readable by whom the original is; nothing in a pack is a program."""
    return stat.S_IRUSR | stat.S_IWUSR | (mode & 0o666)


def _shared(files: Sequence[Found]) -> int:
    """Of the list of all files: readable by whom all of them are."""
    mode = 0o666
    for file in files:
        mode &= file.mode
    return _packed_mode(mode)


def _already(
    folder: Path, out: Path, content: Content, parents: Parents | None, threads: int,
    progress: Progress,
) -> PackReport:  # fmt: skip
    """`out` is there: go on if it is the pack of these very files, which is read back and compared with them."""
    taken = StoreError(f"{out} exists, and is not the pack of {folder}.", "Give a folder that does not exist.")
    if not listing.is_pack(out):
        raise taken
    about, started = read_manifest(out), time.monotonic()
    held = [(one.path, one.bytes, one.mode) for one in about.files]
    same = held == [(one.name, one.size, one.mode) for one in content.files] and about.folders == content.folders
    same = same and about.modes in ({}, content.modes)  # a pack of an older Regraft has none
    if not same or (about.parent is not None and parents is None):
        raise taken
    for entry, file in zip(about.files, content.files, strict=True):
        if digest_of(file.path, progress) != entry.sha256:
            raise taken
        unpack_file(out, entry, None, parents, threads, progress)
    seconds = {"read back": time.monotonic() - started}
    return PackReport(**{**vars(_report(folder, out, about, {}, seconds)), "already": True})


def _report(
    folder: Path, out: Path, about: Manifest, plans: Mapping[str, int], seconds: dict[str, float]
) -> PackReport:
    origin = None if about.parent is None else about.parent.weights_id
    packed = sum(one.packed_bytes for one in about.files) + (out / listing.NAME).stat().st_size
    return PackReport(folder, out, len(about.files), about.bytes, packed, dict(plans), origin, False, False, seconds)


def _identity(parents: Parents, out: Path) -> listing.Parent:
    """The parent's weights_id, and where it lies."""
    relative = os.path.relpath(parents.folder, out)
    return listing.Parent(parent_id(parents), str(parents.folder), relative)
