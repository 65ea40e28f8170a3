"""What an argument of `regraft zoo` means: a name of the catalogue, a folder, or a reference to something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from regraft.errors import CatalogueError, StoreError

if TYPE_CHECKING:
    from regraft.zoo.catalogue import Catalogue

SCHEMES = ("builtin:", "hf:", "hf-cache:", "pip:", "zoo:")
# Of `add`, where nothing was found.
LOOKED_FOR = (
    "Looked for, down to eight levels: config.json, modules.json, model_index.json, adapter_config.json, weights or "
    "their index."
)


def is_zoo(text: str) -> bool:
    """Whether an argument of `ls` is a zoo and not a condition."""
    from regraft.checkpoint.reference import exists

    folder = any(exists(part.split("#")[0].strip()) for part in (text, *text.split(",")) if part.strip())
    return folder or text.startswith(SCHEMES) or text == "hf-cache" or text.endswith(".whl") or _is_list(text)


def _is_list(text: str) -> bool:
    """Folders with commas between them, or a path that is not there: no condition either way."""
    return not any(sign in text for sign in "=<>") and ("," in text or "/" in text)


def is_elsewhere(text: str) -> bool:
    """Whether a reference leads past the catalogue."""
    return text.startswith(SCHEMES) or "#" in text or "+" in text


def given_path(text: str) -> Path:
    """The path that an option or argument names; no text at all is none, though `Path` takes it for the working directory."""
    if not text.strip():
        raise StoreError(f"{text!r} is no folder.", "Give one; . is the one that you are in.")
    return Path(text)


def folder_of(place: str) -> Path:
    """The folder that an argument of `add` means."""
    from regraft.checkpoint.reference import exists, locate

    if not place.strip():
        raise CatalogueError(f"{place!r} is no folder.", "Give one; . is the one that you are in.")
    if exists(place):
        return Path(place)
    if place in ("hf-cache:", "hf-cache"):
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE)
    # A folder that is gone may still be in the catalogue: `index` says so where it is not.
    return locate(place) if place.startswith(SCHEMES) else Path(place)


def existing(catalogue: str | None) -> Catalogue | None:
    """The catalogue; None where there is none yet and none was named."""
    from regraft.zoo.catalogue import NoCatalogueError, open_catalogue

    try:
        return open_catalogue(catalogue, create=False)
    except NoCatalogueError:
        if catalogue is not None:
            raise
        return None


def place_of(opened: Catalogue | None, name: str) -> str:
    """The path of a name of the catalogue; another reference as it is."""
    if opened is None or is_elsewhere(name) or not opened.has(name):
        return name
    from regraft.zoo.catalogue.text import path_of

    return str(path_of(opened.get(name).record.path))


@contextmanager
def looking_in(catalogue: str | None) -> Iterator[None]:
    """Inside the block `zoo:` references mean the catalogue that was named."""
    if catalogue is None:
        yield
        return
    from regraft.zoo.catalogue.reference import references_to

    with references_to(catalogue):
        yield
