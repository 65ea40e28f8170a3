"""Which files a checkpoint's folder holds, by directory listings and stat calls alone.

Links within the folder count as files of it, and so do the Hub cache's links into the `blobs/` of the same repository. Links
that lead anywhere else are named and never followed. Pipes, sockets and devices are passed over: to open one may wait forever.
"""

# Paths are text here: with pathlib the listing of a small folder takes three times as long.
# ruff: noqa: PTH116, PTH118, PTH119, PTH120

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from regraft.checkpoint.safety import MOST_ENTRIES
from regraft.zoo.record.record import FileFact

# What version control and downloads keep for themselves; no file of the model is in there.
NOT_OURS = frozenset({".git", ".cache", "__pycache__"})


@dataclass
class Listing:
    """A folder's content.

    Args:
        files: Regular files, by name below the folder.
        links_out: Links that leave the folder.
        dangling: Links to nothing, or to themselves.
        special: Pipes, sockets and devices.
        fault: Why the folder, or a folder below it, could not be listed; None when all went well.
        denied: The folder that `fault` is about; "" is the checkpoint's own.
    """

    files: dict[str, FileFact] = field(default_factory=dict)
    links_out: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    fault: str | None = None
    denied: str = ""

    @property
    def file_id(self) -> str:
        """sha256 over names, sizes and times of change of the files, and over the names of what is not followed."""
        digest = hashlib.sha256()
        for name in sorted(self.files):
            fact = self.files[name]
            digest.update(f"{name}\0{fact.bytes}\0{fact.mtime_ns}\n".encode())
        for kind in (self.links_out, self.dangling, self.special):
            digest.update("\0".join(["", *sorted(kind), "\n"]).encode())
        digest.update((self.fault or "").encode())
        return digest.hexdigest()


def file_id_of(folder: Path) -> str:
    """The `file_id` of a folder: changes whenever a file is added, removed, resized or touched; no file is opened.

    Never for equality of what is in the files. A folder that cannot be listed has one, too.
    """
    return list_folder(folder).file_id


def list_folder(folder: Path) -> Listing:
    """See the head of this file. Never raises; what went wrong is in `fault`."""
    found = Listing()
    try:
        _walk(os.path.realpath(folder), found)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        found.fault = getattr(error, "strerror", None) or str(error)
        found.denied = ""
    return found


def printable(name: str) -> str:
    """A file's name as text that can be stored anywhere: bytes that are no UTF-8 and control characters are written out."""
    if name.isascii() and name.isprintable():
        return name
    try:
        raw = os.fsencode(name)
    except UnicodeEncodeError:  # of a name that was read in a file: no file system can hold it
        raw = name.encode("utf-8", "backslashreplace")
    text = raw.decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _walk(root: str, found: Listing) -> None:
    allowed = [root]
    above = os.path.dirname(root)
    if os.path.basename(above) == "snapshots":
        allowed.append(os.path.join(os.path.dirname(above), "blobs"))
    waiting, seen = [""], 0
    while waiting:
        below = waiting.pop()
        try:
            entries = os.scandir(os.path.join(root, below) if below else root)
        except OSError as error:
            if not below:
                raise
            found.fault, found.denied = error.strerror, printable(below)
            continue
        with entries:
            for entry in entries:
                seen += 1
                if seen > MOST_ENTRIES:
                    found.fault = f"it holds more than {MOST_ENTRIES:,} files and folders"
                    return
                relative = f"{below}/{entry.name}" if below else entry.name
                if _note(entry, relative, allowed, found) and entry.name not in NOT_OURS:
                    waiting.append(relative)


def _note(entry: os.DirEntry[str], relative: str, allowed: list[str], found: Listing) -> bool:
    """Put an entry where it belongs; True for a folder to look into."""
    name = printable(relative)
    try:
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if not any(target == place or target.startswith(place + os.sep) for place in allowed):
                found.links_out.append(name)
                return False
            status = os.stat(entry.path)
            if stat.S_ISDIR(status.st_mode):
                return False  # it leads to a folder that is seen anyway
        elif entry.is_dir(follow_symlinks=False):
            return True
        else:
            status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        if entry.is_symlink():
            found.dangling.append(name)
        return False  # gone since it was listed
    except OSError:
        found.dangling.append(name)
        return False
    if stat.S_ISREG(status.st_mode):
        found.files[name] = FileFact(name, status.st_size, status.st_mtime_ns)
    else:
        found.special.append(name)
    return False
