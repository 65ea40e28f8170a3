"""What `regraft zoo check` lists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from regraft.cli.zoo_names import existing, is_elsewhere

if TYPE_CHECKING:
    from regraft.zoo.catalogue import Catalogue
    from regraft.zoo.record.record import Risk


@dataclass(frozen=True)
class Checked:
    """(path, risk) of what was looked at, how many these were, and the paths of those that are gone: of them nothing is new."""

    risks: tuple[tuple[str, Risk], ...]
    looked_at: int
    gone: tuple[str, ...]


def check_all(names: list[str], catalogue: str | None, deep: bool) -> Checked:
    """Risks of checkpoints of the catalogue, by default all of them, or of folders that are read now.

    With `deep` weights are read now, also those that were read before: times of files do not show all changes.
    """
    from regraft.checkpoint.reference import locate
    from regraft.zoo.catalogue import open_catalogue

    if not names:
        with open_catalogue(catalogue, create=False) as opened:
            return _of_catalogue(opened, opened.paths(), deep, every=True)
    known: list[str] = []
    others: list[str] = []
    found: list[tuple[str, Risk]] = []
    opened_or_none = existing(catalogue)
    try:
        for name in names:
            if opened_or_none is not None and not is_elsewhere(name) and opened_or_none.has(name):
                known.append(opened_or_none.get(name).record.path)
            else:
                others.append(name)
        for name in others:
            found += _read_now(locate(name), deep)
        if opened_or_none is None or not known:
            return Checked(tuple(found), len(others), ())
        kept = _of_catalogue(opened_or_none, list(dict.fromkeys(known)), deep)
        return Checked((*kept.risks, *found), kept.looked_at + len(others), kept.gone)
    finally:
        if opened_or_none is not None:
            opened_or_none.close()


def _of_catalogue(opened: Catalogue, paths: list[str], deep: bool, *, every: bool = False) -> Checked:
    """Of checkpoints that the catalogue knows by these paths; of all that are gone, too, when `every` one is asked for."""
    from regraft.zoo.catalogue.text import path_of

    there = {path: None for path in paths if path_of(path).is_dir()}
    gone = dict.fromkeys(path for path in paths if path not in there)
    if every:
        gone |= dict.fromkeys(opened.paths(gone=True))
    recorded: list[tuple[str, Risk]] = []
    if deep and not opened.writable:
        for path in there:
            recorded += _beside_what_is_kept(opened, path)
        return Checked(tuple(recorded), len(there), tuple(gone))
    if deep and paths:
        read_weights(opened, paths)
    if every:
        recorded += opened.risks()
    else:
        for path in paths:
            recorded += opened.risks(name=path)
    return Checked(tuple(recorded), len(there), tuple(gone))


def _read_now(folder: Path, deep: bool) -> list[tuple[str, Risk]]:
    from regraft.zoo.record import read_record
    from regraft.zoo.record.deep import deep_risks

    record = read_record(folder)
    more = deep_risks(folder) if deep and record.kind != "unreadable" else ()
    return [(record.path, risk) for risk in dict.fromkeys((*record.risks, *more))]


def _beside_what_is_kept(opened: Catalogue, path: str) -> list[tuple[str, Risk]]:
    """Risks of a checkpoint as it is now, and what the licences of its parents forbid; the catalogue can only be read."""
    from regraft.zoo.catalogue.licences import CODE
    from regraft.zoo.catalogue.text import path_of
    from regraft.zoo.record.protected import protected

    folder = path_of(path)
    found = _read_now(folder, deep=True)
    found += [(path, risk) for parent in opened.parents(path) for risk in protected(folder, path_of(parent))]
    found += [one for one in opened.risks(name=path) if one[1].code == CODE]
    return list(dict.fromkeys(found))


def read_weights(opened: Catalogue, paths: list[str]) -> None:
    """Read the weights of checkpoints again, and record what they show, by themselves and beside those of their parents."""
    from regraft.cli import show
    from regraft.zoo.catalogue import index
    from regraft.zoo.catalogue.text import path_of
    from regraft.zoo.record.protected import CODE, protected

    progress = show.Terminal()
    index(opened, paths, progress=progress, deep=True, reread=True)
    with progress.bar("comparing with parents", len(paths)):
        for path in paths:
            if path_of(path).is_dir():
                shown = [risk for one in opened.parents(path) for risk in protected(path_of(path), path_of(one))]
                opened.keep_risks(path, {CODE}, dict.fromkeys(shown))
            progress.advance()
