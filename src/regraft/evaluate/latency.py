"""How fast is a model on this machine? Medians of wall-clock time, within a bounded time of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from regraft.errors import TaskError

Predict = Callable[[list[str]], Any]
Clock = Callable[[], float]


def measure_latency(
    predict: Predict,
    texts: Sequence[str],
    *,
    warmup: int = 3,
    repeats: int = 50,
    deadline_s: float = 1.5,
    clock: Clock = time.perf_counter,
) -> float:
    """Median milliseconds that `predict` takes for one example.

    The examples are taken in turn, so that their lengths are those of the task. At least one example is timed; after
    that nothing new is started once `deadline_s` seconds have passed, warm-up included.

    Raises:
        TaskError: There are no texts.
    """
    _check(texts)
    start = clock()
    for number in range(warmup):
        if number > 0 and clock() - start > deadline_s / 2:
            break
        predict([texts[number % len(texts)]])
    seconds: list[float] = []
    for number in range(max(repeats, 1)):
        before = clock()
        if seconds and before - start > deadline_s:
            break
        predict([texts[number % len(texts)]])
        seconds.append(clock() - before)
    return 1000.0 * median(seconds)


def measure_throughput(
    predict: Predict,
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    repeats: int = 8,
    deadline_s: float = 1.5,
    clock: Clock = time.perf_counter,
) -> float:
    """Examples per second that `predict` does in batches of `batch_size`: the median over batches.

    The examples repeat when there are fewer than a batch. One batch warms up; at least one is timed; nothing new is started
    once `deadline_s` seconds have passed.

    Raises:
        TaskError: There are no texts.
    """
    _check(texts)
    start = clock()
    rates: list[float] = []
    for number in range(-1, max(repeats, 1)):
        before = clock()
        if rates and before - start > deadline_s:
            break
        first = max(number, 0) * batch_size
        predict([texts[(first + offset) % len(texts)] for offset in range(batch_size)])
        if number >= 0:
            rates.append(batch_size / max(clock() - before, 1e-9))
    return median(rates)


def batch_within(deadline_s: float, text_s: float, most: int = 32) -> int:
    """How many examples a batch has, where one alone takes `text_s` seconds: `most`, or fewer when these would take longer than
    `deadline_s` one by one; then one batch to warm up and one to time take about that."""
    if most * text_s <= deadline_s:
        return most
    return max(1, int(deadline_s / (2 * text_s)))


def _check(texts: Sequence[str]) -> None:
    if not texts:
        raise TaskError("Cannot time a model without a text.", "Pass a few texts of the task.")
