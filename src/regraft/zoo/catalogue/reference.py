"""`zoo:NAME` and `zoo:FILTER`: checkpoints of the catalogue, wherever a reference is taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from regraft.errors import BadReferenceError
from regraft.zoo.catalogue import grammar
from regraft.zoo.catalogue.catalogue import open_catalogue
from regraft.zoo.catalogue.entries import Entry
from regraft.zoo.catalogue.text import path_of

_WHERE: ContextVar[str | None] = ContextVar("where references look", default=None)


@contextmanager
def references_to(where: str | None) -> Iterator[None]:
    """Inside the block `zoo:` references mean this catalogue (None: the usual one)."""
    token = _WHERE.set(where)
    try:
        yield
    finally:
        _WHERE.reset(token)


def folder_of(name: str) -> Path:
    """The folder of the one checkpoint that a name, or a filter, means.

    Raises:
        BadReferenceError: Several, or a folder that is gone.
        CatalogueError: None, or no catalogue.
    """
    found = entries_of(name)
    if len(found) != 1:
        raise BadReferenceError(f"zoo:{name} means {len(found)} checkpoints, expected one.", "Give the name of one.")
    folder = path_of(found[0].record.path)
    if not folder.is_dir():
        raise BadReferenceError(f"zoo:{name} is {folder}, which is no longer there.", "Run `regraft zoo add` again.")
    return folder


def entries_of(text: str) -> list[Entry]:
    """The checkpoints that a filter means, or the one with a name.

    Raises:
        CatalogueError: No catalogue, an unknown name, or a filter that cannot be read.
    """
    with open_catalogue(_WHERE.get(), create=False) as catalogue:
        if not text.strip() or grammar.is_filter(text):
            return list(catalogue.every(text))
        return [catalogue.get(text)]
