"""A process and what it costs: wall time, processor time and peak anonymous memory, sampled while it runs (Linux)."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common

SAMPLE_S = 0.02
# Looking for child processes means reading a file for every thread, so it is done less often.
TREE_EVERY = 10


@dataclass(frozen=True)
class Watched:
    """How a process went; `code` is None when it was killed at the limit."""

    code: int | None
    output: str
    errors: str
    wall_s: float
    cpu_s: float
    anonymous_mib: float


def tree(pid: int) -> list[int]:
    """A process and its descendants; those that are gone are left out."""
    found, waiting = [], [pid]
    while waiting:
        at = waiting.pop()
        found.append(at)
        try:
            lists = [path.read_text() for path in Path(f"/proc/{at}/task").glob("*/children")]
        except OSError:
            continue
        waiting += [int(child) for text in lists for child in text.split()]
    return found


def anonymous_kib(pids: Sequence[int]) -> int:
    """The anonymous resident memory (RssAnon) of processes together, KiB; mapped files do not count."""
    total = 0
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        total += next((int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0)
    return total


class _Sampler(threading.Thread):
    """Samples until told to stop; `peak` is in KiB."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.over = pid, 0, threading.Event()

    def run(self) -> None:
        number, pids = 0, [self.pid]
        while not self.over.wait(SAMPLE_S):
            if number % TREE_EVERY == 0:
                pids = tree(self.pid)
            self.peak = max(self.peak, anonymous_kib(pids))
            number += 1


def watch(command: Sequence[str], limit_s: float, **more: str) -> Watched:
    """Run a command with two threads and no network; it is killed at the limit.

    Processor time is the process's own and that of the children that it waited for.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        started = time.monotonic()
        process = subprocess.Popen(command, env=common.environment(**more), stdout=output, stderr=errors)
        sampler = _Sampler(process.pid)
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(limit_s, stop)
        sampler.start()
        timer.start()
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - started
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait for it again
        sampler.over.set()
        sampler.join()
        output.seek(0)
        errors.seek(0)
        return Watched(
            None if late.is_set() else process.returncode, output.read().decode(errors="replace"),
            errors.read().decode(errors="replace"), wall_s, used.ru_utime + used.ru_stime, sampler.peak / 1024,
        )  # fmt: skip


def imports_mib(python: str, statement: str) -> float:
    """Peak anonymous memory of a process that only imports, MiB."""
    done = watch([python, "-c", f"{statement}; import time; time.sleep(0.5)"], 300)
    if done.code != 0:
        raise SystemExit(f"{python} cannot run {statement!r}:\n{done.errors[-2000:]}")
    return done.anonymous_mib


def figures(runs: Sequence[Watched], imports: float) -> dict[str, Any]:
    """Every run, and minimum and median of the times; memory is the largest peak."""
    walls, cpus = [round(run.wall_s, 3) for run in runs], [round(run.cpu_s, 3) for run in runs]
    peak = max(run.anonymous_mib for run in runs)
    return {
        "wall_s": walls, "wall_s_min": min(walls), "wall_s_median": statistics.median(walls), "cpu_s": cpus,
        "cpu_s_median": statistics.median(cpus), "anonymous_mib": round(peak, 1),
        "above_imports_mib": round(peak - imports, 1),
    }  # fmt: skip
