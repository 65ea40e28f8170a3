"""Reading folders, in this process or in others: what one of them does, and what becomes of a folder whose reader died."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from regraft.zoo.catalogue.text import plain
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
    """

    folder: str
    deep: bool = False
    weights: tuple[FileFact, ...] | None = None


@dataclass(frozen=True)
class Reading:
    """What was read: the record, and whether its weights are those of the order (`same`) or were read now (`deep`)."""

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
            if order.weights is not None and order.weights == weight_files(record.files):
                return Reading(record, same=True)
            risks = dict.fromkeys((*record.risks, *self.inspect(folder)))  # a wrong header is found by both
            return Reading(replace(record, risks=tuple(risks)), deep=True)
        except Exception as fault:  # one folder of thousands must not end the rest
            problem = f"could not be read: {type(fault).__name__}: {fault}"
            return nothing(order, Risk("unreadable", "warning", order.folder, problem))


def readings(job: Job, orders: Sequence[Order], workers: int | None) -> Iterator[Reading]:
    """What is read, in the order of the orders.

    Args:
        workers: Processes; None for one a core, at most eight, or none at all for a few folders.
    """
    count = min(os.cpu_count() or 1, 8) if workers is None else workers
    if count <= 1 or (workers is None and len(orders) <= AT_HOME):
        yield from map(job, orders)
        return
    parts = [orders[start : start + AT_ONCE] for start in range(0, len(orders), AT_ONCE)]
    done = 0
    while done < len(parts):
        try:
            for found in _in_pool(job, parts[done:], count):
                done += 1
                yield from found
        except BrokenProcessPool:  # a worker died, over memory perhaps: which folder was it?
            yield from _one_by_one(job, parts[done])
            done += 1


def nothing(order: Order, *risks: Risk) -> Reading:
    """A folder of which nothing is known but its risks."""
    name = plain(Path(order.folder).name)
    return Reading(Record(path=plain(order.folder), name=name, kind="unreadable", file_id="", risks=risks))


def _in_pool(
    job: Callable[[Order], Reading], parts: Sequence[Sequence[Order]], workers: int, ahead: int | None = None
) -> Iterator[list[Reading]]:
    """Each part's readings, in order; few parts (`ahead`) are under way at once, so that little waits in memory."""
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet)
    waiting: deque[Future[list[Reading]]] = deque()
    try:
        for part in parts:
            waiting.append(pool.submit(_all, job, part))
            if len(waiting) >= (ahead or 3 * workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _all(job: Callable[[Order], Reading], orders: Sequence[Order]) -> list[Reading]:
    return [job(order) for order in orders]


def _one_by_one(job: Job, orders: Sequence[Order]) -> Iterator[Reading]:
    """A part during which a worker died: one folder under way at a time, so that only the one at fault is lost.

    Where no process can be started at all (a program without `if __name__ == "__main__"`), they are read here.
    """
    try:
        list(_in_pool(nothing, [orders[:1]], 1))
    except BrokenProcessPool:
        yield from map(job, orders)
        return
    left = list(orders)
    while left:
        try:
            for found in _in_pool(job, [[order] for order in left], 1, ahead=1):
                del left[0]
                yield from found
        except BrokenProcessPool:
            order = left.pop(0)
            problem = "reading it ended the process that read it (out of memory, perhaps)"
            yield nothing(order, Risk("reader-died", "danger", order.folder, problem))


def _quiet() -> None:
    """An interrupt is for the process that started the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
