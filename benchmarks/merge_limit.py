"""The physical limit of a merge: read all inputs, write an output of the size of one, nothing in between.

    python merge_limit.py OUT INPUT [INPUT ...]       prints the best seconds, and those of every way that was tried

Each of one or two threads takes a part of the files: blocks of every input are read at the same place into one buffer that is
used again and again, and the last of them is written. The output is a new file each time, as a merge's is; nobody waits
for the disk, as nobody does after a merge.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCKS = (2**18, 2**20, 2**22)
THREADS = (1, 2)


def copy(inputs: Sequence[Path], out: Path, block: int, threads: int) -> float:
    """Seconds to read all inputs and write one."""
    out.unlink(missing_ok=True)
    os.sync()  # what was written before must not be flushed at this one's expense
    started = time.perf_counter()
    files = [os.open(path, os.O_RDONLY) for path in inputs]
    target = os.open(out, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    size = os.fstat(files[0]).st_size
    part = -(-size // threads // block) * block

    def lane(number: int) -> None:
        buffer = memoryview(bytearray(block))
        for start in range(number * part, min(size, (number + 1) * part), block):
            wanted = min(block, size - start)
            for file in files:
                if os.preadv(file, [buffer[:wanted]], start) != wanted:
                    raise SystemExit("An input is shorter than the first, or was read in part.")
            os.pwrite(target, buffer[:wanted], start)

    if threads == 1:
        lane(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lane, range(threads)))
    for file in (*files, target):
        os.close(file)
    return time.perf_counter() - started


def main() -> None:
    """Try every way once and print."""
    out, *inputs = map(Path, sys.argv[1:])
    ways = {
        f"{threads} x {block >> 10} KiB": copy(inputs, out, block, threads) for threads in THREADS for block in BLOCKS
    }
    out.unlink()
    print(json.dumps({"seconds": min(ways.values()), "ways": ways}))


if __name__ == "__main__":
    main()
