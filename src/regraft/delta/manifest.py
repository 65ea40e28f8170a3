"""The list of a packed folder: every file, its form, its hash; and what is believed of it.

pack.json:
    {"format": "regraft pack", "version": 1, "parent": {"weights_id", "path", "relative"} or null,
     "files": [{"path", "packed", "form", "bytes", "packed_bytes", "sha256", "mode"}], "folders": [...],
     "modes": {folder: mode}, "check": SHA-256 of the rest as canonical JSON}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from regraft.checkpoint.files import read_json_object
from regraft.checkpoint.identity import canonical, sha256
from regraft.checkpoint.safety import MOST_ENTRIES, check_links
from regraft.delta.layout import AGAIN, SIZE_LIMIT, is_inside, read_layout
from regraft.errors import CheckpointError, UnsafeCheckpointError

NAME = "pack.json"
FORMAT = "regraft pack"
VERSION = 1
FORMS = {"delta": ".delta", "zstd": ".zst"}
LIMIT = 64 * 2**20


@dataclass(frozen=True)
class Packed:
    """A file of a packed folder.

    Args:
        path: Below the original folder.
        packed: Below the pack.
        form: `delta` (see `layout`) or `zstd` (a single frame).
        bytes: Of the original.
        packed_bytes: Of the packed file.
        sha256: Of the original.
        mode: Its permissions, at most 0o777.
    """

    path: str
    packed: str
    form: str
    bytes: int
    packed_bytes: int
    sha256: str
    mode: int


@dataclass(frozen=True)
class Parent:
    """Whose tensors the deltas need.

    Args:
        weights_id: Of all its safetensors files, named with their folder.
        path: Where it lay.
        relative: Where it lay, seen from the pack.
    """

    weights_id: str
    path: str
    relative: str


@dataclass(frozen=True)
class Manifest:
    """A packed folder.

    Args:
        parent: What its deltas need; None where they need nothing.
        files: Every file.
        folders: Those that a path of a file does not show, because nothing is in them.
        modes: Permissions of folders, "." of the whole; packs of an older Regraft have none.
    """

    parent: Parent | None
    files: tuple[Packed, ...]
    folders: tuple[str, ...]
    modes: Mapping[str, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Of all original files."""
        return sum(file.bytes for file in self.files)


def is_pack(folder: Path) -> bool:
    """Whether a folder is a pack, or claims to be one."""
    try:
        found: bool = read_json_object(folder / NAME, LIMIT).get("format") == FORMAT
    except CheckpointError:
        return False
    return found


def as_text(manifest: Manifest) -> str:
    """The content of pack.json."""
    about = {
        "format": FORMAT,
        "version": VERSION,
        "parent": None if manifest.parent is None else asdict(manifest.parent),
        "files": [asdict(file) for file in manifest.files],
        "folders": list(manifest.folders),
        "modes": dict(manifest.modes),
    }
    return json.dumps({**about, "check": sha256(canonical(about))}, indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read pack.json and check all that it claims.

    Raises:
        CheckpointError: Missing, of a newer version, damaged, or files are missing or have other sizes.
        UnsafeCheckpointError: A path or a link leaves the folder, or two files would take one place.
    """
    path = folder / NAME
    if not path.exists():
        raise CheckpointError(f"{folder} is no pack: it holds no {NAME}.", "Give the folder that `zoo pack` made.")
    about = read_json_object(path, LIMIT)
    if about.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not the list of a pack.", "Give the folder that `zoo pack` made.")
    if about.get("version") != VERSION:
        raise CheckpointError(
            f"{folder} is of format version {str(about.get('version'))[:20]}; this Regraft reads version {VERSION}.",
            "Use the version of Regraft that wrote it, or a newer one.",
        )
    check = about.pop("check", None)
    if check != sha256(canonical(about)):
        raise CheckpointError(f"{path} is damaged: it is not what was written.", AGAIN)
    try:
        parent = None if about["parent"] is None else Parent(**about["parent"])
        files = tuple(Packed(**file) for file in about["files"])
        manifest = Manifest(parent, files, tuple(about["folders"]), dict(about.get("modes", {})))
        _check(path, manifest)
    except (KeyError, TypeError, ValueError) as fault:
        raise CheckpointError(f"{path} does not say what it must ({str(fault)[:200]}).", AGAIN) from fault
    check_links(folder)
    _check_files(folder, manifest)
    return manifest


def _check(path: Path, manifest: Manifest) -> None:
    """Every value by itself, and no two files in one place."""
    if len(manifest.files) + len(manifest.folders) > MOST_ENTRIES:
        raise ValueError(f"more than {MOST_ENTRIES} files")
    below = [*manifest.folders, *(name for name in manifest.modes if name != ".")]
    for named in [*below, *(name for file in manifest.files for name in (file.path, file.packed))]:
        if not is_inside(named):
            raise UnsafeCheckpointError(
                f"{path} names {str(named)[:80]!a}, a path that leaves the folder.", "Do not use this pack."
            )
    paths, packed = [file.path for file in manifest.files], [file.packed for file in manifest.files]
    for names, folders in ((paths, set(manifest.folders)), ([*packed, NAME], set())):
        above = {parent.as_posix() for name in [*names, *folders] for parent in PurePosixPath(name).parents} | folders
        if len(set(names)) < len(names) or set(names) & above:
            raise UnsafeCheckpointError(f"{path} puts two files in one place.", "Do not use this pack.")
    for file in manifest.files:
        if not all(_is_number(value) for value in (file.bytes, file.packed_bytes, file.mode)):
            raise ValueError(f"sizes of {file.path!a}")
        if not (0 <= file.bytes <= SIZE_LIMIT and file.packed_bytes >= 0 and 0 <= file.mode <= 0o777):
            raise ValueError(f"sizes of {file.path!a}")
        if file.form not in FORMS or not isinstance(file.sha256, str):
            raise ValueError(f"form of {file.path!a}")
    if not all(_is_number(mode) and 0 <= mode <= 0o777 for mode in manifest.modes.values()):
        raise ValueError("modes of folders")
    values = [] if manifest.parent is None else list(asdict(manifest.parent).values())
    if not all(isinstance(value, str) and "\0" not in value for value in values):
        raise ValueError("parent")


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_files(folder: Path, manifest: Manifest) -> None:
    for file in manifest.files:
        packed = folder / file.packed
        if not packed.is_file():
            raise CheckpointError(f"{packed} is missing, so {file.path} cannot be restored.", AGAIN)
        size = packed.stat().st_size
        if size != file.packed_bytes:
            if size < file.packed_bytes and file.form == "delta":
                read_layout(packed)  # names the tensor that is not whole
            raise CheckpointError(f"{packed} is damaged: {size} bytes, expected {file.packed_bytes}.", AGAIN)
        if file.form == "delta" and (claimed := read_layout(packed).bytes) != file.bytes:
            raise CheckpointError(
                f"{packed} claims to unpack to {claimed} bytes, {NAME} says {file.bytes} of {file.path}.", AGAIN
            )
