"""Bring a catalogue up to date with folders: what is new or changed is read, what is as it was is not.

What is changed is told by `file_id` (names, sizes and times of change): no file is opened for that. Reading is done by worker
processes; this one writes what they found, a batch in a transaction. Killed at any point, the catalogue holds whole
checkpoints only, and the next run reads the rest.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from regraft import faults
from regraft.errors import CatalogueError
from regraft.progress import SILENT, Progress
from regraft.zoo.catalogue import lineage, writing
from regraft.zoo.catalogue.catalogue import Catalogue, Known
from regraft.zoo.catalogue.text import path_key, plain
from regraft.zoo.catalogue.walk import Unreadable, walk
from regraft.zoo.record.record import Record, Risk

BATCH = 64
AT_HOME = 64  # so few are read in this process: starting others takes as long

Read = Callable[[Path], Record]
Identify = Callable[[Path], str]
Risks = Callable[[Path], Sequence[Risk]]


@dataclass(frozen=True)
class Summary:
    """What became of the folders; `unreadable` names folders that could not be listed or read, and why."""

    added: int
    changed: int
    unchanged: int
    gone: int
    unreadable: tuple[Unreadable, ...]
    seconds: float


def index(
    catalogue: Catalogue,
    roots: Sequence[str | Path],
    *,
    workers: int | None = None,
    progress: Progress = SILENT,
    deep: bool = False,
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
        deep: Read the weights as well, for risks that only they show (NaN, dead layers).
        read, identify, inspect: What reads a folder, tells whether it changed, and looks at weights; `zoo.record`'s when
            None. To be found by worker processes they must be functions of a module.

    Raises:
        CatalogueError: A root that is no folder and that the catalogue does not know, or a catalogue that cannot be written.
    """
    begun = time.monotonic()
    if read is None or identify is None:
        from regraft.zoo.record import file_id_of, read_record

        read, identify = read or read_record, identify or file_id_of
    if deep and inspect is None:
        from regraft.zoo.record.deep import deep_risks

        inspect = deep_risks
    places = [Path(root).expanduser().resolve() for root in roots]
    known = catalogue.known(places)
    _check(places, known)
    troubles: list[Unreadable] = []
    todo, unchanged, seen = [], 0, set()
    for folder in walk(places, troubles):
        at = path_key(folder)
        if at in seen:
            continue
        seen.add(at)
        before = known.get(at)
        same = before is not None and not before.gone and before.deep >= deep
        if before is not None and same and _file_id(identify, folder) == before.file_id:
            unchanged += 1
        else:
            todo.append(folder)
    added = changed = 0
    job = _Job(read, inspect if deep else None)
    with progress.bar("reading checkpoints", len(todo)):
        for batch in _in_batches(_records(job, todo, workers), BATCH):
            there = [record for record in batch if not _vanished(record)]
            with catalogue.database.writing() as connection:
                writing.put(connection, [(record, deep) for record in there])
                faults.point("checkpoints written")
            faults.point("checkpoints recorded")
            seen -= {path_key(record.path) for record in batch} - {path_key(record.path) for record in there}
            new = sum(path_key(record.path) not in known for record in there)
            added, changed = added + new, changed + len(there) - new
            troubles += [_trouble(record) for record in there if record.kind == "unreadable"]
            progress.advance(len(batch))
    gone = _gone(catalogue, [at for at, one in known.items() if at not in seen and not one.gone], known, troubles)
    with catalogue.database.reading() as connection:
        asked = writing.relink_asked(connection)
    if asked:
        with catalogue.database.writing() as connection:
            lineage.relink(connection)
            faults.point("parents looked up")
    return Summary(added, changed, unchanged, gone, tuple(troubles), time.monotonic() - begun)


@dataclass(frozen=True)
class _Job:
    """What a worker does with a folder."""

    read: Read
    inspect: Risks | None

    def __call__(self, folder: str) -> Record:
        try:
            record = replace(self.read(Path(folder)), path=plain(folder))
            if self.inspect is not None and record.kind != "unreadable":
                record = replace(record, risks=(*record.risks, *self.inspect(Path(folder))))
        except Exception as fault:  # one folder of thousands must not end the rest
            problem = f"could not be read: {type(fault).__name__}: {fault}"
            record = _nothing(Path(folder), Risk("unreadable", "warning", folder, problem))
        return record

    def all(self, folders: Sequence[str]) -> list[Record]:
        return [self(folder) for folder in folders]


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


def _vanished(record: Record) -> bool:
    return record.kind == "unreadable" and not os.path.isdir(record.path)  # noqa: PTH112


def _trouble(record: Record) -> Unreadable:
    return Unreadable(record.path, " ".join(risk.problem for risk in record.risks) or "cannot be read")


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


def _in_batches(found: Iterator[Record], size: int) -> Iterator[list[Record]]:
    batch: list[Record] = []
    for record in found:
        batch.append(record)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _records(job: _Job, folders: Sequence[str], workers: int | None) -> Iterator[Record]:
    """The records of folders, in their order."""
    count = min(os.cpu_count() or 1, 8) if workers is None else workers
    if count <= 1 or (workers is None and len(folders) <= AT_HOME):
        yield from map(job, folders)
        return
    parts = [folders[start : start + BATCH] for start in range(0, len(folders), BATCH)]
    done = 0
    while done < len(parts):
        try:
            for found in _in_pool(job, parts[done:], count):
                done += 1
                yield from found
        except BrokenProcessPool:  # a worker died, over memory perhaps: which folder was it?
            yield from _one_by_one(job, parts[done])
            done += 1


def _in_pool(
    job: _Job, parts: Sequence[Sequence[str]], workers: int, ahead: int | None = None
) -> Iterator[list[Record]]:
    """Each part's records, in order; few parts (`ahead`) are under way at once, so that little waits in memory."""
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet)
    waiting: deque[Future[list[Record]]] = deque()
    try:
        for part in parts:
            waiting.append(pool.submit(job.all, part))
            if len(waiting) >= (ahead or 3 * workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one_by_one(job: _Job, folders: Sequence[str]) -> Iterator[Record]:
    """A part during which a worker died: one folder under way at a time, so that only the one at fault is lost.

    Where no process can be started at all (a program without `if __name__ == "__main__"`), they are read here.
    """
    try:
        list(_in_pool(_Job(_nothing, None), [folders[:1]], 1))
    except BrokenProcessPool:
        yield from map(job, folders)
        return
    left = list(folders)
    while left:
        try:
            for found in _in_pool(job, [[folder] for folder in left], 1, ahead=1):
                del left[0]
                yield from found
        except BrokenProcessPool:
            folder = left.pop(0)
            problem = "reading it ended the process that read it (out of memory, perhaps)"
            yield _nothing(Path(folder), Risk("reader-died", "danger", folder, problem))


def _nothing(folder: Path, *risks: Risk) -> Record:
    return Record(path=plain(str(folder)), name=plain(folder.name), kind="unreadable", file_id="", risks=risks)


def _quiet() -> None:
    """An interrupt is for the process that started the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
