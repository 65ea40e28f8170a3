"""What `regraft zoo check` lists."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from regraft.cli.zoo_names import existing, is_elsewhere

if TYPE_CHECKING:
    from regraft.zoo.catalogue import Catalogue
    from regraft.zoo.record.record import Risk


def risks_of(names: list[str], catalogue: str | None, deep: bool) -> list[tuple[str, Risk]]:
    """(path, risk) of checkpoints of the catalogue, by default all of them, or of folders that are read now."""
    from regraft.checkpoint.reference import locate
    from regraft.zoo.catalogue import open_catalogue
    from regraft.zoo.record import read_record
    from regraft.zoo.record.deep import deep_risks

    if not names:
        with open_catalogue(catalogue, create=False) as opened:
            if deep:
                read_weights(opened, [entry.record.path for entry in opened.every()])
            return list(opened.risks())
    found: list[tuple[str, Risk]] = []
    opened_or_none = existing(catalogue)
    try:
        for name in names:
            if opened_or_none is not None and not is_elsewhere(name) and opened_or_none.has(name):
                path = opened_or_none.get(name).record.path
                if deep:
                    read_weights(opened_or_none, [path])
                found += opened_or_none.risks(name=path)
            else:
                record = read_record(locate(name))
                more = deep_risks(Path(record.path)) if deep and record.kind != "unreadable" else ()
                found += [(record.path, risk) for risk in dict.fromkeys((*record.risks, *more))]
    finally:
        if opened_or_none is not None:
            opened_or_none.close()
    return found


def read_weights(opened: Catalogue, paths: list[str]) -> None:
    """Record what the weights of checkpoints show, by themselves and beside those of their parents."""
    from regraft.cli import show
    from regraft.zoo.catalogue import index
    from regraft.zoo.record.protected import CODE, protected

    progress = show.Terminal()
    index(opened, paths, progress=progress, deep=True)
    with progress.bar("comparing with parents", len(paths)):
        for path in paths:
            parents = opened.parents(path)
            found = [risk for parent in parents for risk in protected(Path(path), Path(parent))]
            opened.keep_risks(path, {CODE}, dict.fromkeys(found))
            progress.advance()
