"""Several tensors at a time, each on a thread of its own: for methods whose work on one cannot be shared out in blocks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from regraft.merge.stack import Stack

T = TypeVar("T")
U = TypeVar("U")


def in_turn(work: Callable[[T], U], items: Sequence[T], workers: int) -> Generator[U, None, None]:
    """`work` for every item, `workers` of them at a time, each in its own thread; the results in the order of the items.

    Not more are begun than are asked for: a result that waits for its turn takes the place of one that is worked on.
    """
    if workers == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(work, item) for item in items[:workers]]
        try:
            for number in range(len(items)):
                yield waiting.pop(0).result()
                waiting += [pool.submit(work, item) for item in items[number + workers : number + workers + 1]]
        finally:
            for one in waiting:
                one.cancel()


def each_alone(work: Callable[[Stack], U], stacks: Sequence[Stack]) -> Generator[U, None, None]:
    """`work` for every stack, as many at a time as they have threads, each of which works on one; in their order."""
    workers = stacks[0].workers if stacks and stacks[0].pool is not None else 1
    return in_turn(work, [replace(stack, pool=None, workers=1) for stack in stacks], workers)
