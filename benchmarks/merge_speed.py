"""`regraft merge` against mergekit, and against the physical limit: wall time, memory, processor time.

    python benchmarks/merge_speed.py --mergekit VENV/bin/mergekit-yaml --scratch FOLDER
        [--sizes 70M,287M,1100M] [--inputs 1,2,4,6,8] [--methods ties,dare_ties,task_arithmetic,linear] [--repeat 3]

A cell is a size, a number of fine-tunes (a base comes on top) and a method. 287M with three fine-tunes is the figure that
counts; the others are curves: over the inputs at 287M, and over the sizes at three fine-tunes. In a cell the two programs
take turns, both as whole processes with the same YAML, two threads and a warm page cache (all inputs are read first; what
the last run wrote is flushed and removed), and the limit (merge_limit.py) is measured in every turn, too. Memory is the peak of
anonymous memory over the process tree, sampled every 20 ms; "above imports" subtracts what a process that only imports
the program takes. Ours reports the seconds of its phases itself.

TIES is one compiled loop up to six fine-tunes (`regraft.merge.methods.ties.AT_ONCE`); more go through blocks of float32, and the
curve over the inputs shows what that costs: it cannot be flat beyond six.

Numba compiles ours once per installation: a run before the turns is not counted; where it counts, it starts with an empty
cache and is reported as `cold_wall_s`.
Nothing is asserted; the table shows the figures beside the targets. Cells that are in the results are not measured again
(`--again` does). The checkpoints of a size are removed when it is done (`--keep` does not).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import common
import merge_models
import merge_tables
import numpy as np
from merge_limit import BLOCKS
from peers import mergekit_peer
from watch import Watched, figures, imports_mib, watch

HEAD = ("287M", 3)
LIMIT_S = 3600.0
IMPORTS = "import regraft.cli.app, regraft.merge.run"
# An attention matrix of the middle of the model: both programs must have done the same work.
COMPARED = "model.layers.{}.self_attn.q_proj.weight"


@dataclass(frozen=True)
class Cell:
    """One figure."""

    size: str
    inputs: int
    method: str

    @property
    def key(self) -> str:
        """Where it lies in the results."""
        return f"{self.size}/{self.inputs}/{self.method}"


def wanted(sizes: Sequence[str], inputs: Sequence[int], methods: Sequence[str]) -> Iterator[Cell]:
    """The figure that counts first; then the curve over inputs; then the other sizes."""
    pairs = [HEAD, *((HEAD[0], count) for count in inputs), *((size, HEAD[1]) for size in sizes)]
    if HEAD[0] not in sizes:  # a trial: its first size takes the place of the one that counts
        pairs = [(sizes[0], count) for count in inputs] + [(size, HEAD[1]) for size in sizes]
    for size, count in dict.fromkeys(pairs):
        for method in methods:
            yield Cell(size, count, method)


def warm(paths: Sequence[Path]) -> int:
    """Read files into the page cache; their bytes."""
    buffer, total = bytearray(BLOCKS[-1]), 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total


class Bench:
    """What the cells share: the programs, a scratch folder, the memory of imports."""

    def __init__(self, mergekit: Path, scratch: Path) -> None:
        self.mergekit, self.scratch = mergekit, scratch
        self.cache = scratch / "numba"
        self.ours_mib = imports_mib(sys.executable, IMPORTS)
        self.theirs_mib = imports_mib(mergekit_peer.python(mergekit), mergekit_peer.IMPORTS)
        self.versions = {**mergekit_peer.versions(mergekit), "our numba": _version("numba")}

    def measure(self, cell: Cell, repeat: int) -> dict[str, Any]:
        """Make the checkpoints, let both take turns."""
        base, tuned = merge_models.make(cell.size, cell.inputs, self.scratch / "checkpoints")
        files = [folder / "model.safetensors" for folder in (base, *tuned)]
        yaml = self.scratch / "recipe.yaml"
        recipe = mergekit_peer.recipe(cell.method, base, tuned)
        yaml.write_text(recipe, encoding="utf-8")
        bytes_read = warm(files)
        counts = (cell.size, cell.inputs) == HEAD
        runs: dict[str, list[Watched]] = {"regraft": [], "mergekit": []}
        limits: list[dict[str, Any]] = []
        first = self._ours(yaml, fresh=counts)  # fills the compiler's cache
        for _turn in range(repeat):
            for name, run in (("regraft", self._ours), ("mergekit", self._theirs)):
                warm(files)  # each time: what a program writes may have pushed inputs out
                runs[name].append(run(yaml))
            warm(files)
            limits.append(self._limit(files))
        same = self._same(cell)
        self._clear()
        return {
            "bytes_read": bytes_read, "bytes_written": files[0].stat().st_size, "recipe": recipe.replace(f"{base.parent}/", ""),
            "parameters": merge_models.SHAPES[cell.size].parameters, "versions": self.versions,
            "regraft": figures(runs["regraft"], self.ours_mib) | self._inner(runs["regraft"])
            | {"cold_wall_s" if counts else "first_wall_s": round(first.wall_s, 3), "imports_mib": round(self.ours_mib, 1)},
            "mergekit": figures(runs["mergekit"], self.theirs_mib) | {"imports_mib": round(self.theirs_mib, 1)},
            "limit": {
                "seconds": min(limit["seconds"] for limit in limits),
                "seconds_median": statistics.median(limit["seconds"] for limit in limits), "turns": limits,
            },
            "same_bits": same,
        }  # fmt: skip

    def _ours(self, yaml: Path, fresh: bool = False) -> Watched:
        self._clear("ours")
        if fresh:
            shutil.rmtree(self.cache, ignore_errors=True)
        command = common.regraft("merge", str(yaml), "-o", str(self.scratch / "ours"), "--workers", "2", "--json")
        return _checked(watch(command, LIMIT_S, NUMBA_CACHE_DIR=str(self.cache)))

    def _theirs(self, yaml: Path) -> Watched:
        self._clear("theirs")
        return _checked(watch(mergekit_peer.command(self.mergekit, yaml, self.scratch / "theirs"), LIMIT_S))

    def _limit(self, files: Sequence[Path]) -> dict[str, Any]:
        script = str(common.HERE / "merge_limit.py")
        done = _checked(watch([sys.executable, script, str(self.scratch / "limit"), *map(str, files)], LIMIT_S))
        return common.last_object("\n" + done.output)

    def _inner(self, runs: Sequence[Watched]) -> dict[str, Any]:
        """The seconds of the phases that ours reports: the best and the median of each."""
        told = [common.last_object("\n" + run.output)["seconds"] for run in runs]
        return {
            "phases_s": {phase: [round(float(one[phase]), 4) for one in told] for phase in told[0]},
            "phases_s_min": {phase: round(min(float(one[phase]) for one in told), 4) for phase in told[0]},
            "phases_s_median": {phase: round(statistics.median(float(one[phase]) for one in told), 4) for phase in told[0]},
        }  # fmt: skip

    def _same(self, cell: Cell) -> float:
        """The share of equal values in one matrix (of DARE few: it is random)."""
        name = COMPARED.format(merge_models.SHAPES[cell.size].layers // 2)
        ours, theirs = (merge_models.tensor_bits(self.scratch / at, name) for at in ("ours", "theirs"))
        return round(float(np.mean(ours == theirs)), 5)

    def _clear(self, *names: str) -> None:
        """Remove what a run wrote, and have the rest on disk: a run must not pay for the one before."""
        for name in names or ("ours", "theirs"):
            shutil.rmtree(self.scratch / name, ignore_errors=True)
        os.sync()


def _checked(done: Watched) -> Watched:
    if done.code != 0:
        raise SystemExit(f"A measured process ended with {done.code}:\n{done.output[-2000:]}\n{done.errors[-4000:]}")
    return done


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def main() -> None:
    """Measure what is asked for and not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", type=Path, required=True, help="mergekit-yaml in its own virtual environment")
    parser.add_argument("--scratch", type=Path, required=True, help="a folder with 25 GB free")
    parser.add_argument("--sizes", default="70M,287M,1100M")
    parser.add_argument("--inputs", default="1,2,4,6,8", help="fine-tunes of the curve over inputs")
    parser.add_argument("--methods", default=",".join(mergekit_peer.METHODS))
    parser.add_argument("--repeat", type=int, default=3, help="turns of the figure that counts")
    parser.add_argument("--curve-repeat", type=int, default=2, help="turns of a cell of a curve")
    parser.add_argument("--again", action="store_true", help="measure cells again that are in the results")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the results file")
    given = parser.parse_args()
    sizes, methods = given.sizes.split(","), given.methods.split(",")
    if unknown := [size for size in sizes if size not in merge_models.SHAPES]:
        parser.error(f"unknown size {unknown[0]}, known: {', '.join(merge_models.SHAPES)}")
    scratch = given.scratch.resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    results = common.Results("merge_speed", given.results)
    cells = list(wanted(sizes, [int(count) for count in given.inputs.split(",")], methods))
    todo = [cell for cell in cells if given.again or cell.key not in results.cells]
    bench = Bench(given.mergekit.absolute(), scratch) if todo else None
    for number, cell in enumerate(todo):
        assert bench is not None
        found = bench.measure(cell, given.repeat if (cell.size, cell.inputs) == HEAD else given.curve_repeat)
        results.put(cell.key, found)
        print(merge_tables.speed_line(cell.key, found), flush=True)
        if not given.keep and all(other.size != cell.size for other in todo[number + 1 :]):
            shutil.rmtree(scratch / "checkpoints" / cell.size, ignore_errors=True)
    shutil.rmtree(scratch / "numba", ignore_errors=True)
    print("\n" + merge_tables.speed(results.content))


if __name__ == "__main__":
    main()
