"""Keep a fine-tune as a lossless delta of its parent, and get it back byte for byte.

    report = pack("tuned", "base", "tuned.pack")           the original stays
    report = pack("tuned", "base", "tuned.pack", replace=True)   it goes, when the pack was read back and found right
    restore("tuned.pack", "again")                          every byte and permission as it was

safetensors files become deltas (`regraft.delta`), every other file one zstd frame. Content, permission bits and empty folders
come back; owners, times and extended attributes do not, and a link comes back as the file that it led to.

Order of events, each of which is on the disk before the next begins: the pack is written aside, read back and unpacked with
every hash compared, renamed into place; only then, and only with `replace`, is the original renamed aside and removed. A
process that is killed anywhere leaves the original, or the verified pack, or both; called again it goes on from there.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from regraft import faults
from regraft.checkpoint.headers import TensorInfo, read_header
from regraft.checkpoint.identity import weights_id
from regraft.delta import manifest as listing
from regraft.delta.decode import decode_file
from regraft.delta.encode import encode_file
from regraft.delta.folders import Found, files_of, fresh_folder, remove, sweep, sync, sync_folders
from regraft.delta.layout import BLOCK_BYTES
from regraft.delta.manifest import Manifest, Packed, read_manifest
from regraft.delta.parents import Parents
from regraft.delta.whole import squeeze_file, unsqueeze_file
from regraft.errors import BudgetError, CheckpointError, StoreError, UnsafeCheckpointError
from regraft.progress import SILENT, Progress
from regraft.store import write_whole

MEMORY = 512 * 2**20
# Blocks that one worker holds at the most: both models' bytes, words, planes, what is stored, what waits to be written.
HELD = 12


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
    threads = _threads(workers, max_memory)
    sweep(folder, out)
    _check_places(folder, parent, out, replace)
    files, folders = files_of(folder)
    parents = None if parent is None else Parents(parent)
    total = sum(file.size for file in files)
    with progress.bar("packing", 2 * total):
        if out.exists():
            report = _already(folder, out, files, folders, parents, threads, progress)
        else:
            report = _write(folder, out, files, folders, parents, threads, progress)
    if not replace:
        return report
    if files_of(folder) != (files, folders):
        raise CheckpointError(
            f"{folder} has changed while it was packed, and was not removed.", f"Remove {out}, and pack it again."
        )
    remove(folder)
    return PackReport(**{**vars(report), "replaced": True})


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
        StoreError: `out` exists, or the disk is full or cannot be written.
    """
    packed, out, started = Path(packed).absolute(), Path(out).absolute(), time.monotonic()
    threads = _threads(workers, max_memory)
    about = read_manifest(packed)
    if out.exists() or out.is_symlink():
        raise StoreError(f"{out} exists.", "Give a folder that does not.")
    if out.resolve().is_relative_to(packed.resolve()):
        raise StoreError(f"{out} is inside the pack.", "Give a folder outside of it.")
    parents = _parents_of(packed, about, None if parent is None else Path(parent).absolute())
    with fresh_folder(out, "restore") as aside, progress.bar("restoring", about.bytes):
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
            _unpack(packed, file, target, parents, threads, progress)
            target.chmod(file.mode)
            faults.point("restored file written")
        sync_folders(aside)
        faults.point("restore verified")
    return RestoreReport(packed, out, len(about.files), about.bytes, time.monotonic() - started)


def verify(packed: Path, parent: Path | None = None, *, workers: int | None = None, max_memory: int = MEMORY) -> None:
    """Unpack every file of a pack in memory, block by block, and compare the hashes.

    Raises:
        CheckpointError: As of `restore`.
    """
    packed = Path(packed).absolute()
    about = read_manifest(packed)
    parents = _parents_of(packed, about, None if parent is None else Path(parent).absolute())
    for file in about.files:
        _unpack(packed, file, None, parents, _threads(workers, max_memory), SILENT)


def _write(
    folder: Path, out: Path, files: list[Found], folders: list[str], parents: Parents | None, threads: int,
    progress: Progress,
) -> PackReport:  # fmt: skip
    """Write the pack aside, read it back, rename it."""
    started = time.monotonic()
    seconds: dict[str, float] = {}
    plans: Counter[str] = Counter()
    with fresh_folder(out, "pack") as aside:
        identity = None if parents is None else _identity(parents, out)
        # A folder of the original may be called as the packed form of a file beside it.
        taken = {listing.NAME} | {above.as_posix() for file in files for above in PurePosixPath(file.name).parents}
        entries = []
        for file in files:
            entries.append(_pack_file(file, aside, taken, parents, threads, plans, progress))
            faults.point("packed file written")
        about = Manifest(identity, tuple(entries), tuple(folders))
        write_whole(aside / listing.NAME, listing.as_text(about))
        sync_folders(aside)
        seconds["pack"] = time.monotonic() - started
        faults.point("pack written")
        for entry in read_manifest(aside).files:
            _unpack(aside, entry, None, parents, threads, progress)
        seconds["read back"] = time.monotonic() - started - seconds["pack"]
        if files_of(folder) != (files, folders):
            raise CheckpointError(f"{folder} has changed while it was packed.", "Pack it again when it is whole.")
        faults.point("pack verified")
    sync(out.parent)
    faults.point("pack in place")
    parent_id = None if identity is None else identity.weights_id
    return _report(folder, out, about, plans, parent_id, seconds)


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
        plans.update(coded.plans)
        return Packed(file.name, packed, form, coded.bytes, coded.packed_bytes, coded.sha256, file.mode)
    size, packed_size, digest = squeeze_file(file.path, target)
    progress.advance(size)
    return Packed(file.name, packed, form, size, packed_size, digest, file.mode)


def _is_readable(file: Found, progress: Progress) -> bool:
    try:
        read_header(file.path)
    except CheckpointError as fault:  # quantised, or damaged: nobody is to lose a file because we cannot read it
        progress.say(f"{file.name} is compressed as it is: {fault.problem}")
        return False
    return True


def _unpack(
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


def _already(
    folder: Path, out: Path, files: list[Found], folders: list[str], parents: Parents | None, threads: int,
    progress: Progress,
) -> PackReport:  # fmt: skip
    """`out` is there: go on if it is the pack of these very files, which is read back and compared with them."""
    taken = StoreError(f"{out} exists, and is not the pack of {folder}.", "Give a folder that does not exist.")
    if not listing.is_pack(out):
        raise taken
    about, started = read_manifest(out), time.monotonic()
    same = [(one.path, one.bytes, one.mode) for one in about.files] == [(one.name, one.size, one.mode) for one in files]
    if not same or list(about.folders) != folders or (about.parent is not None and parents is None):
        raise taken
    for entry, file in zip(about.files, files, strict=True):
        if _digest(file.path, progress) != entry.sha256:
            raise taken
        _unpack(out, entry, None, parents, threads, progress)
    parent_id = None if about.parent is None else about.parent.weights_id
    seconds = {"read back": time.monotonic() - started}
    return PackReport(**{**vars(_report(folder, out, about, {}, parent_id, seconds)), "already": True})


def _report(
    folder: Path, out: Path, about: Manifest, plans: Mapping[str, int], parent_id: str | None, seconds: dict[str, float]
) -> PackReport:
    packed = sum(one.packed_bytes for one in about.files) + (out / listing.NAME).stat().st_size
    return PackReport(folder, out, len(about.files), about.bytes, packed, dict(plans), parent_id, False, False, seconds)


def _digest(path: Path, progress: Progress) -> str:
    from hashlib import file_digest

    with path.open("rb") as file:
        found = file_digest(file, "sha256").hexdigest()
    progress.advance(path.stat().st_size)
    return found


def _check_places(folder: Path, parent: Path | None, out: Path, replace: bool) -> None:
    """Refuse places that lie in one another, and what cannot be removed."""
    if not folder.is_dir():
        done = f" It may be packed already: {out} is a pack." if listing.is_pack(out) else ""
        raise CheckpointError(f"{folder} is no folder.{done}", "Give the folder of a checkpoint.")
    if listing.is_pack(folder):
        raise CheckpointError(f"{folder} is a pack.", "Give a checkpoint; `zoo restore` unpacks.")
    if parent is not None and listing.is_pack(parent):
        raise CheckpointError(f"The parent {parent} is a pack.", "Restore it first; a parent has to be readable.")
    real, real_out = folder.resolve(), out.resolve()
    real_parent = None if parent is None else parent.resolve()
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


def _identity(parents: Parents, out: Path) -> listing.Parent:
    """The parent's weights_id, over all its files, names with their folder in front; and where it lies."""
    named: dict[str, TensorInfo] = {}
    for (file, name), info in parents.tensors.items():
        where = Path(file).parent.as_posix()
        named.setdefault(name if where == "." else f"{where}.{name}", info)
    relative = os.path.relpath(parents.folder, out)
    return listing.Parent(weights_id(named), str(parents.folder), relative)


def _parents_of(packed: Path, about: Manifest, given: Path | None) -> Parents | None:
    if about.parent is None:
        return None
    if given is not None:
        return Parents(given)
    places = [Path(os.path.normpath(packed / about.parent.relative)), Path(about.parent.path)]
    for place in places:
        if place.is_dir():
            return Parents(place)
    raise CheckpointError(
        f"{packed} is a delta, and its parent is missing: it lay at {places[1]} (weights_id {about.parent.weights_id}).",
        "Give the folder of the parent.",
    )


def _threads(workers: int | None, max_memory: int) -> int:
    one = HELD * BLOCK_BYTES
    if max_memory < one:
        raise BudgetError(
            f"{max_memory} bytes of memory are too few: one thread takes {one}.", f"Give at least {one // 2**20} MiB."
        )
    return max(1, min(workers or os.cpu_count() or 1, max_memory // one))
