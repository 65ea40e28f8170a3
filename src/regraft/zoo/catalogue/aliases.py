"""One folder, one checkpoint: links may lead to a folder by several paths, in one run or in several.

A folder that is reached by a link alone is recorded by that path, whose name is what its owner calls it. Once it is reached by
its real path, that one counts, and what was recorded by the other moves to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from sqlalchemy import func, or_, select

from regraft.zoo.catalogue import writing
from regraft.zoo.catalogue.catalogue import Catalogue
from regraft.zoo.catalogue.entries import Known
from regraft.zoo.catalogue.schema import checkpoints, records
from regraft.zoo.catalogue.text import path_key, path_of


def recorded_as(
    catalogue: Catalogue, known: dict[str, Known], folders: Sequence[str], identify: Callable[[str], str | None]
) -> list[str]:
    """The paths by which folders are recorded; `known` is brought up to date with those that lie elsewhere or were moved.

    The same folder is the one with the same real path; it is looked for among checkpoints with the same `file_id`, and by its
    real path. Only folders that are new to the catalogue cost anything.
    """
    new = [folder for folder in folders if path_key(folder) not in known]
    with catalogue.database.reading() as connection:
        held = connection.execute(select(func.count()).select_from(checkpoints)).scalar_one()
    if not new or held == len(folders) - len(new):  # nothing is recorded that was not reached
        return list(folders)
    real = {folder: os.path.realpath(folder) for folder in new}
    by_real = {path: folder for folder, path in real.items()}
    taken: dict[str, str] = {}
    for path in _alike(catalogue, new, list(real.values()), identify):
        recorded = path_of(path)
        folder = by_real.get(os.path.realpath(recorded))
        if folder is None or folder == str(recorded):
            continue
        before = catalogue.known([recorded])[path_key(path)]
        if folder != real[folder]:
            taken[folder], known[path_key(path)] = str(recorded), before
            continue
        with catalogue.database.writing() as connection:
            writing.move(connection, before.id, folder)
        known.pop(path_key(path), None)
        known[path_key(folder)] = replace(before, file_id="")
    return [taken.get(folder, folder) for folder in folders]


def _alike(
    catalogue: Catalogue, folders: Sequence[str], real: Sequence[str], identify: Callable[[str], str | None]
) -> list[str]:
    """Recorded paths of checkpoints that may be one of the folders: the same files by name, size and time, or the same path."""
    asked = list(zip((identify(folder) for folder in folders), map(path_key, real), strict=True))
    found: dict[str, None] = {}
    statement = select(records.c.path).join(checkpoints, checkpoints.c.id == records.c.checkpoint_id)
    with catalogue.database.reading() as connection:
        for part in writing.parts(asked):
            ids = [one for one, _ in part if one is not None]
            wanted = or_(checkpoints.c.file_id.in_(ids), checkpoints.c.path_key.in_([path for _, path in part]))
            found |= dict.fromkeys(connection.execute(statement.where(wanted, checkpoints.c.gone.is_(False))).scalars())
    return list(found)
