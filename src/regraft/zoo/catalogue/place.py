"""Where a catalogue is: a file or a server; how it is named without its password; whether the file can be written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from regraft.errors import CatalogueError
from regraft.paths import open_regular, resolved
from regraft.store import default_root

VARIABLE = "REGRAFT_CATALOGUE"
FILE = "catalogue.sqlite"
_SERVERS = {"postgresql", "postgres", "postgresql+psycopg"}
_SECRET = ("password", "sslpassword", "passfile", "oauth_client_secret")
_NETWORK = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "ceph",
    "glusterfs",
    "lustre",
    "fuse.sshfs",
    "fuse.glusterfs",
}
_MAGIC = b"SQLite format 3\0"


@dataclass(frozen=True)
class Place:
    """A catalogue's file, or the URL of its server; `shown` is what may be printed, `secrets` what may not."""

    shown: str
    path: Path | None = None
    url: URL | None = None
    secrets: tuple[str, ...] = ()


def place_of(where: str | Path | None) -> Place:
    """The place that a user names: nothing ($REGRAFT_CATALOGUE, else beside the store), a path, or a URL.

    Raises:
        CatalogueError: Empty text, or a URL that cannot be read, or of another database.
    """
    if where is not None and not str(where).strip():
        raise CatalogueError(f"{str(where)!r} is no place of a catalogue.", "Give a file, or leave it out.")
    text = os.environ.get(VARIABLE, "").strip() if where is None else str(where).strip()
    if not text:
        path = default_root() / FILE
        return Place(str(path), path)
    if "://" not in text:
        path = Path(text).expanduser()
        return Place(str(path), path)
    scheme = text.partition("://")[0]
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # their texts may quote the URL
        raise CatalogueError(
            f"The catalogue's URL ({scheme}://...) cannot be read.",
            "Write postgresql+psycopg://user:password@host:5432/database; %40 stands for @ inside a password.",
        ) from None
    if scheme == "sqlite" and url.database and not url.host and not url.query:
        return place_of(Path(url.database))
    if scheme not in _SERVERS:
        raise CatalogueError(
            f"A catalogue cannot be kept in {scheme}://.", "Give a path, or postgresql+psycopg://host/database."
        )
    hidden = {name: "***" for name in _SECRET if name in url.query}
    shown = url.update_query_dict(hidden).render_as_string(hide_password=True).replace("%2A%2A%2A", "***")
    values = [str(url.password or ""), *(str(value) for name, value in url.query.items() if name in _SECRET)]
    secrets = {form for value in values if value for form in (value, unquote(value))}
    return Place(shown, None, url.set(drivername="postgresql+psycopg"), tuple(sorted(secrets, key=len, reverse=True)))


def check_file(path: Path, *, create: bool) -> bool:
    """Whether the file can be written; its folder is made where it must be.

    Raises:
        CatalogueError: It is no file, is no SQLite database, is not there and may not or cannot be made, or cannot be read.
    """
    try:
        resolved(path, CatalogueError)
        if path.is_dir():
            raise CatalogueError(f"{path} is a folder, expected a catalogue's file.", f"Give {path / FILE}.")
        if not path.exists():
            if not create:
                raise NoCatalogueError(f"There is no catalogue {path}.", "Make one with `regraft zoo add FOLDER`.")
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(path.parent, os.W_OK):
                raise CatalogueError(f"{path} cannot be made: its folder cannot be written.", "Give a folder of yours.")
            return True
        with open_regular(path) as file:
            begun = file.read(len(_MAGIC))
    except OSError as fault:
        raise CatalogueError(
            f"The catalogue {path} cannot be opened: {fault.strerror or fault}.", "Give a file that may be read."
        ) from fault
    if begun and begun != _MAGIC:
        raise CatalogueError(
            f"{path} is no catalogue: the file is no SQLite database.", "Give another file; this one was not changed."
        )
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


class NoCatalogueError(CatalogueError):
    """There is no catalogue yet, and none is to be made."""


def on_network(path: Path, mounts: str | None = None) -> bool:
    """Whether a path is on a network file system, where SQLite's write-ahead log does not work.

    `mounts` is the text of /proc/self/mounts; where there is none (macOS) the answer is no.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
    real, best, kind = str(resolved(path, CatalogueError)), "", ""
    for line in mounts.splitlines():
        parts = line.split()
        if len(parts) < 3:
            continue
        point = parts[1].replace("\\040", " ")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, parts[2]
    return kind in _NETWORK
