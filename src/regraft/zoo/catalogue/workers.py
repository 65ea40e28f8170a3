"""Reading folders, in this process or in others: what one of them does, and what becomes of a folder whose reader died."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import PicklingError
from queue import SimpleQueue
from threading import Lock

from regraft.zoo.catalogue.text import plain
from regraft.zoo.catalogue.worker import Worker
from regraft.zoo.record.deep import weight_files
from regraft.zoo.record.record import FileFact, Record, Risk

AT_ONCE = 64  # folders that a worker is given together
AT_HOME = 64  # so few are read in this process: starting others takes as long

Read = Callable[[Path], Record]
Risks = Callable[[Path], Sequence[Risk]]


@dataclass(frozen=True)
class Order:
    """A folder that is to be read.

    Args:
        folder: Its path.
        deep: Its weights as well.
        weights: Its files of weights when they were last read, or None; where they are the same now, they are not read again.
        reread: Read them again all the same.
    """

    folder: str
    deep: bool = False
    weights: tuple[FileFact, ...] | None = None
    reread: bool = False


@dataclass(frozen=True)
class Reading:
    """What was read: the record, whether its files of weights are those of the order (`same`), and were read now (`deep`)."""

    record: Record
    same: bool = False
    deep: bool = False


@dataclass(frozen=True)
class Job:
    """What a worker does with a folder."""

    read: Read
    inspect: Risks

    def __call__(self, order: Order) -> Reading:
        folder = Path(order.folder)
        try:
            record = replace(self.read(folder), path=plain(order.folder))
            if not order.deep or record.kind == "unreadable":
                return Reading(record)
            same = order.weights is not None and order.weights == weight_files(record.files)
            if same and not order.reread:
                return Reading(record, same=True)
            risks = dict.fromkeys((*record.risks, *self.inspect(folder)))  # a wrong header is found by both
            return Reading(replace(record, risks=tuple(risks)), same=same, deep=True)
        except Exception as fault:  # one folder of thousands must not end the rest
            problem = f"could not be read: {type(fault).__name__}: {fault}"
            return nothing(order, Risk("unreadable", "warning", order.folder, problem))


def readings(job: Job, orders: Sequence[Order], workers: int | None) -> Iterator[Reading]:
    """What is read, in the order of the orders.

    Args:
        workers: Processes; None for one a core, at most eight, or none at all for a few folders. Where none can be started, or
            the job's functions are those of a script, all is read by this process.
    """
    count = min(os.cpu_count() or 1, 8) if workers is None else workers
    if count <= 1 or (workers is None and len(orders) <= AT_HOME) or not orders:
        yield from map(job, orders)
        return
    parts = [orders[start : start + AT_ONCE] for start in range(0, len(orders), AT_ONCE)]
    crew = _crew(job, min(count, len(parts)))
    if not crew:
        yield from map(job, orders)
        return
    idle: SimpleQueue[_Reader] = SimpleQueue()
    for reader in crew:
        idle.put(reader)

    def read(part: Sequence[Order]) -> list[Reading]:
        reader = idle.get()
        try:
            return reader.read(part)
        finally:
            idle.put(reader)

    waiting: deque[Future[list[Reading]]] = deque()
    threads = ThreadPoolExecutor(len(crew))  # each waits for a process
    try:
        for part in parts:
            waiting.append(threads.submit(read, part))
            if len(waiting) >= 3 * len(crew):  # few are under way at once, so that little waits in memory
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        for reader in crew:
            reader.stop()
        threads.shutdown()


def nothing(order: Order, *risks: Risk) -> Reading:
    """A folder of which nothing is known but its risks."""
    name = plain(Path(order.folder).name)
    return Reading(Record(path=plain(order.folder), name=name, kind="unreadable", file_id="", risks=risks))


class _Reader:
    """A worker, and another in its place when it dies: over memory perhaps, or over a file that a library cannot take."""

    def __init__(self, job: Job, worker: Worker) -> None:
        self._job = job
        self._worker = worker
        self._stopped = False
        self._lock = Lock()

    def read(self, part: Sequence[Order]) -> list[Reading]:
        """What a part's folders are. When the worker dies they are read one by one, so that only the one at fault is lost."""
        try:
            return self._worker.ask(part)
        except (EOFError, OSError):
            found = []
            alive = False
            for order in part:
                try:
                    alive = alive or self._again()
                    found += self._worker.ask([order])
                except (EOFError, OSError):
                    alive = False
                    problem = "reading it ended the process that read it (out of memory, perhaps)"
                    found.append(nothing(order, Risk("reader-died", "danger", order.folder, problem)))
            if not alive:
                with suppress(EOFError, OSError):
                    self._again()
            return found

    def _again(self) -> bool:
        with self._lock:
            if self._stopped:
                raise EOFError
            self._worker.stop()
            self._worker = Worker(self._job)
        if not self._worker.is_ready():
            raise EOFError
        return True

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            self._worker.stop()


def _crew(job: Job, count: int) -> list[_Reader]:
    """So many workers that are ready; none where one of them does not come up."""
    started: list[Worker] = []
    try:
        if getattr(sys, "frozen", False):  # no interpreter that could be started
            return []
        for _ in range(count):  # all start while the first is waited for
            started.append(Worker(job))
        if all(worker.is_ready() for worker in started):
            return [_Reader(job, worker) for worker in started]
    except (OSError, AttributeError, PicklingError):  # no process, or a function that only this one has
        pass
    for worker in started:
        worker.stop()
    return []
