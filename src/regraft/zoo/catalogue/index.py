"""Bring a catalogue up to date with folders: what is new or changed is read, what is as it was is not.

What is changed is told by `file_id` (names, sizes and times of change): no file is opened for that. What could not be read is
tried again, and all is read again by a newer reader. A folder whose weights were once read (`deep`) stays so: they are read again
when their files change, and what is known of them is kept when only others do. Reading is done by worker processes; this one
writes what they found, a batch in a transaction. Killed at any point, the catalogue holds whole checkpoints only, and the next
run reads the rest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from regraft import faults
from regraft.errors import CatalogueError
from regraft.paths import resolved
from regraft.progress import SILENT, Progress
from regraft.zoo.catalogue import entries, lineage, writing
from regraft.zoo.catalogue.aliases import recorded_as
from regraft.zoo.catalogue.catalogue import Catalogue
from regraft.zoo.catalogue.entries import AGAIN, Entry, Known
from regraft.zoo.catalogue.text import path_key, path_of
from regraft.zoo.catalogue.workers import Job, Order, Read, Reading, Risks, readings
from regraft.zoo.record.deep import CODES, weight_files
from regraft.zoo.record.record import READER, FileFact, Record
from regraft.zoo.walk import Unreadable, walk

BATCH = 64

Identify = Callable[[Path], str]


@dataclass(frozen=True)
class Summary:
    """What became of the folders; `unreadable` names folders of which something could not be listed or read, and why.

    `weights_read` counts those whose weights were read just now.
    """

    added: int
    changed: int
    unchanged: int
    gone: int
    unreadable: tuple[Unreadable, ...]
    seconds: float
    weights_read: int = 0


def index(
    catalogue: Catalogue,
    roots: Sequence[str | Path],
    *,
    workers: int | None = None,
    progress: Progress = SILENT,
    deep: bool = False,
    reread: bool = False,
    read: Read | None = None,
    identify: Identify | None = None,
    inspect: Risks | None = None,
) -> Summary:
    """Record the checkpoints at or below folders.

    Args:
        catalogue: One that can be written.
        roots: Folders. One that is no longer there leaves what was recorded below it as gone.
        workers: Processes that read; None for one a core, at most eight.
        progress: Told how far it is.
        deep: Read the weights as well, for risks that only they show (NaN, dead layers). Of folders whose weights were read
            before they are read again when they have changed, whether this is set or not.
        reread: Read all again, with `deep` weights as well, though names, sizes and times of files say that nothing changed: a
            copy that keeps times, or a disk that forgets, leaves these as they were.
        read, identify, inspect: What reads a folder, tells whether it changed, and looks at weights; `zoo.record`'s when
            None. To be found by worker processes they must be functions of a module.

    Raises:
        CatalogueError: A root that is no folder and that the catalogue does not know, or a catalogue that cannot be written.
    """
    begun = time.monotonic()
    if read is None or identify is None:
        from regraft.zoo.record import file_id_of, read_record

        read, identify = read or read_record, identify or file_id_of
    if inspect is None:
        from regraft.zoo.record.deep import deep_risks

        inspect = deep_risks
    places = [_place(catalogue, path_of(os.path.expanduser(root))) for root in roots]  # noqa: PTH111 - no error for ~nobody
    known = catalogue.known(places)
    _check(places, known)
    troubles: list[Unreadable] = []
    todo, unchanged, seen = [], 0, set()
    for folder in recorded_as(catalogue, known, list(walk(places, troubles)), lambda one: _file_id(identify, one)):
        at = path_key(folder)
        if at in seen:
            continue
        seen.add(at)
        before = known.get(at)
        same = before is not None and not before.gone and not before.unread and before.reader == READER and not reread
        if before is not None and same and before.deep >= deep and _file_id(identify, folder) == before.file_id:
            unchanged += 1
        else:
            todo.append(folder)
    added = changed = weights_read = 0
    orders = _orders(catalogue, todo, known, deep, reread)
    with progress.bar("reading checkpoints", len(todo)):
        for batch in _in_batches(readings(Job(read, inspect), orders, workers), BATCH):
            there = [one for one in batch if not _vanished(one.record)]
            held = _held(catalogue, there, known)
            made = [_joined(one, held.get(path_key(one.record.path))) for one in there]
            new = [one for one in made if not _as_held(one, held, known)]
            moved = {
                at for one in there if _others(one) and (at := path_key(one.record.path)) in known and known[at].deep
            }
            if new:
                with catalogue.database.writing() as connection:
                    writing.put(connection, new, moved)
                    faults.point("checkpoints written")
                faults.point("checkpoints recorded")
            seen -= {path_key(one.record.path) for one in batch} - {path_key(one.record.path) for one in there}
            fresh = sum(path_key(record.path) not in known for record, _ in new)
            added, changed, unchanged = added + fresh, changed + len(new) - fresh, unchanged + len(there) - len(new)
            weights_read += sum(one.deep for one in there)
            troubles += [trouble for record, _ in made if (trouble := _trouble(record)) is not None]
            progress.advance(len(batch))
    gone = _gone(catalogue, [at for at, one in known.items() if at not in seen and not one.gone], known, troubles)
    with catalogue.database.reading() as connection:
        asked = writing.relink_asked(connection)
    if asked:
        with catalogue.database.writing() as connection:
            lineage.relink(connection)
            faults.point("parents looked up")
    return Summary(added, changed, unchanged, gone, tuple(troubles), time.monotonic() - begun, weights_read)


def _place(catalogue: Catalogue, root: Path) -> Path:
    """A root without links in its path; where the catalogue knows it by the path with them, that one."""
    given, real = root.absolute(), resolved(root, CatalogueError)
    return given if given != real and path_key(str(given)) in catalogue.known([given]) else real


def _check(places: Sequence[Path], known: Mapping[str, Known]) -> None:
    for place in places:
        if not place.is_dir() and not any(f"{at}/".startswith(f"{path_key(str(place))}/") for at in known):
            what = "is a file, expected a folder" if place.exists() else "is not there"
            raise CatalogueError(f"{place} {what}.", "Give a folder of checkpoints.")


def _file_id(identify: Identify, folder: str) -> str | None:
    try:
        return identify(Path(folder))
    except OSError:  # vanished or closed meanwhile: reading it says so
        return None


def _orders(
    catalogue: Catalogue, todo: Sequence[str], known: Mapping[str, Known], deep: bool, reread: bool
) -> list[Order]:
    """What is to be read of each folder; of those whose weights are known, with the files that held them."""
    numbers = {known[at].id: at for folder in todo if (at := path_key(folder)) in known and known[at].deep}
    weights: dict[str, tuple[FileFact, ...]] = {}
    for part in writing.parts(list(numbers)):
        weights |= {numbers[entry.id]: weight_files(entry.record.files) for entry in _entries(catalogue, part)}
    return [
        Order(folder, deep or path_key(folder) in weights, weights.get(path_key(folder)), reread) for folder in todo
    ]


def _held(catalogue: Catalogue, there: Sequence[Reading], known: Mapping[str, Known]) -> dict[str, Entry]:
    """What the catalogue holds of folders whose weights are as they were, and of those that are tried again."""
    asked = {}
    for one in there:
        before = known.get(path_key(one.record.path))
        if before is not None and (one.same or before.unread):
            asked[before.id] = path_key(one.record.path)
    return {asked[entry.id]: entry for entry in _entries(catalogue, list(asked))} if asked else {}


def _entries(catalogue: Catalogue, numbers: Sequence[int]) -> list[Entry]:
    with catalogue.database.reading() as connection:
        return entries.entries(connection, numbers)


def _joined(one: Reading, held: Entry | None) -> tuple[Record, bool]:
    """The record with what is known of weights that are as they were; and whether they are known."""
    if one.deep or not one.same or held is None:
        return one.record, one.deep
    kept = (risk for risk in held.record.risks if risk.code in CODES)
    return replace(one.record, risks=tuple(dict.fromkeys((*one.record.risks, *kept)))), True


def _others(one: Reading) -> bool:
    """Whether the weights that were read are in other files than those that were read before."""
    return one.deep and not one.same


def _as_held(made: tuple[Record, bool], held: Mapping[str, Entry], known: Mapping[str, Known]) -> bool:
    """Whether a folder that was tried again is as it was."""
    at = path_key(made[0].path)
    entry, before = held.get(at), known.get(at)
    if entry is None or before is None or before.gone or before.reader != READER:
        return False
    return (entry.record, entry.deep) == made


def _vanished(record: Record) -> bool:
    return record.kind == "unreadable" and not path_of(record.path).is_dir()


def _trouble(record: Record) -> Unreadable | None:
    told = [risk for risk in record.risks if record.kind == "unreadable" or risk.code in AGAIN]
    if not told and record.kind != "unreadable":
        return None
    return Unreadable(record.path, " ".join(risk.problem for risk in told) or "cannot be read")


def _gone(
    catalogue: Catalogue, missing: Sequence[str], known: Mapping[str, Known], troubles: Sequence[Unreadable]
) -> int:
    """Mark what is no longer there; what lies below a folder that could not be listed may still be."""
    closed = tuple(f"{path_key(one.path)}/" for one in troubles)
    numbers = [known[at].id for at in missing if not f"{at}/".startswith(closed)]
    if numbers:
        with catalogue.database.writing() as connection:
            writing.mark_gone(connection, numbers)
            faults.point("gone written")
    return len(numbers)


def _in_batches(found: Iterator[Reading], size: int) -> Iterator[list[Reading]]:
    batch: list[Reading] = []
    for one in found:
        batch.append(one)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
