"""Lossless deltas of fine-tunes: how small, how fast, beside plain zstd, XOR with zstd, and ZipNN.

    python benchmarks/zoo_pack.py --data FOLDER --scratch FOLDER [--zipnn VENV/bin/python] [--only KIND]
        [--limit-s 50] [--again]

FOLDER of the data holds banking77/train.csv. Two kinds of pairs:

real        all-MiniLM-L6-v2 and its fine-tunes on banking77 (AdamW, weight decay 0.01, batches of 8, a linear head on the
            mean, which is not saved) after 10 to 300 steps, saved in the number format of their base: fp32 from the
            published weights, bf16 from the same rounded. The curve: more steps, or a larger rate, is a larger change.
synthetic   287M parameters in bf16 (merge_models.py): normal weights (std 0.02) and normal changes (std 5e-4), for speed.

`ratio` is bytes after over bytes before of the safetensors file; MB/s are 10^6 bytes of the original a second, with one
thread and two, the fastest of the repeats, page cache warm. Packing is measured with everything that it does: SHA-256 of the
original and of the parent, writing, fsync, and reading every byte back; `code_mb_s` is packing alone. The others code the
bytes in memory with one thread, write nothing and verify nothing.

    zstd -3         the file
    xor+zstd -3     XOR with the parent, no planes
    bitx            XOR, exponents apart from sign and mantissa, zstd -3 (as ZipLLM, arXiv 2505.06252, describes BitX)
    zipnn           ZipNN of the tensors' bytes (arXiv 2411.05239), from PyPI, in its own environment
    zipnn of xor    ZipNN of the XOR with the parent's

Training goes on where it was when `--limit-s` ended it: run the command again. Cells that are there are not measured again
(`--again` does).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import merge_models
import numpy as np
import zstandard
from watch import imports_mib, watch

from regraft.checkpoint.headers import read_header
from regraft.checkpoint.identity import _tensor_digests
from regraft.checkpoint.weights import raw_values
from regraft.delta.plans import KINDS, to_planes
from regraft.zoo.pack import pack, restore

RATES = {"fp32": {2e-5: (10, 30, 100, 300)}, "bf16": {2e-5: (10, 30, 100, 300), 1e-4: (100,)}}
BATCH, WORDS = 8, 32
REPEAT = 3
SLICE = 2**26  # bytes of the synthetic pair that the others are measured on
MEMORY = "from regraft.zoo.pack import pack; from pathlib import Path; import sys; pack(*map(Path, sys.argv[1:4]), workers=2)"
ZIPNN = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
from importlib.metadata import version
import zipnn
kind, *files = sys.argv[1:]
found = {"version": version("zipnn")}
for file in files:
    data = open(file, "rb").read()
    best = [1e9, 1e9]
    for _ in range(3):
        coder = zipnn.ZipNN(method="HUFFMAN", bytearray_dtype=kind, input_format="byte", threads=1)
        started = time.perf_counter()
        packed = coder.compress(bytearray(data))
        best[0] = min(best[0], time.perf_counter() - started)
        started = time.perf_counter()
        again = coder.decompress(packed)
        best[1] = min(best[1], time.perf_counter() - started)
    assert bytes(again) == data
    found[file.rsplit("/", 1)[1]] = {"ratio": len(packed) / len(data), "mb_s": len(data) / 1e6 / best[0],
                                     "back_mb_s": len(data) / 1e6 / best[1]}
print()
print(json.dumps(found))
"""


class Late(Exception):
    """No time is left in this run."""


def tune(kind: str, rate: float, data: Path, scratch: Path, until: float) -> None:
    """Make the fine-tunes of one rate, from where an earlier run stopped."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoTokenizer

    steps, folder = RATES[kind][rate], scratch / "tunes" / kind
    wanted = [folder / f"{rate:g}-{step}" for step in steps]
    if all((one / "model.safetensors").exists() for one in [folder / "base", *wanted]):
        return
    torch.set_num_threads(common.THREADS)
    torch.manual_seed(0)
    tokenizer, model = AutoTokenizer.from_pretrained(common.minilm()), AutoModel.from_pretrained(common.minilm())
    if kind == "bf16":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.bfloat16())

    def save(target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        dtype = torch.bfloat16 if kind == "bf16" else torch.float32
        state = {
            name: value.to(dtype) if value.is_floating_point() else value for name, value in model.state_dict().items()
        }
        save_file({name: value.contiguous() for name, value in state.items()}, target / "aside", {"format": "pt"})
        (target / "aside").replace(target / "model.safetensors")
        shutil.copy(common.minilm() / "config.json", target)

    rows = common.read(data / "banking77" / "train.csv")
    labels = {label: number for number, label in enumerate(sorted(set(rows.labels)))}
    save(folder / "base")
    head = torch.nn.Linear(model.config.hidden_size, len(labels))
    optimiser = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=rate, weight_decay=0.01)
    state, done = folder / f"{rate:g}.pt", 0
    if state.exists():
        held = torch.load(state)
        done = held["done"]
        for part, name in ((model, "model"), (head, "head"), (optimiser, "optimiser")):
            part.load_state_dict(held[name])
    model.train()
    for step in range(done + 1, max(steps) + 1):
        drawn = np.random.default_rng([0, step]).integers(len(rows.texts), size=BATCH)
        inputs = tokenizer(
            [rows.texts[at] for at in drawn], padding=True, truncation=True, max_length=WORDS, return_tensors="pt"
        )
        hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
        target = torch.tensor([labels[rows.labels[at]] for at in drawn])
        torch.nn.functional.cross_entropy(head((hidden * mask).sum(1) / mask.sum(1)), target).backward()
        optimiser.step()
        optimiser.zero_grad()
        if step in steps:
            save(folder / f"{rate:g}-{step}")
        if time.monotonic() > until and step < max(steps):
            held = {"done": step, "model": model.state_dict(), "head": head.state_dict()}
            torch.save(held | {"optimiser": optimiser.state_dict()}, state)
            raise Late(f"{kind} at rate {rate:g}: {step} of {max(steps)} steps; run the command again to go on.")
    state.unlink(missing_ok=True)


def best(work: Callable[[], Any], repeat: int = REPEAT) -> tuple[float, Any]:
    """The seconds of the fastest of several runs, and what it returned."""
    seconds, found = float("inf"), None
    for _ in range(repeat):
        started = time.perf_counter()
        found = work()
        seconds = min(seconds, time.perf_counter() - started)
    return seconds, found


def ours(base: Path, tuned: Path, scratch: Path, repeat: int = REPEAT) -> dict[str, Any]:
    """Pack and restore the folder with one thread and with two."""
    size = (tuned / "model.safetensors").stat().st_size
    for file in (base, tuned):
        (file / "model.safetensors").read_bytes()
    packed, again, cell = scratch / "packed", scratch / "again", {}
    for workers in (1, 2):

        def packing(workers: int = workers) -> Any:
            shutil.rmtree(packed, ignore_errors=True)
            _tensor_digests.cache_clear()  # the parent's hash is a part of the work
            return pack(tuned, base, packed, workers=workers)

        if workers == 1:
            packing()  # compiles
        seconds, report = best(packing, repeat)
        cell[f"pack_{workers}"] = {
            "mb_s": size / 1e6 / seconds, "code_mb_s": size / 1e6 / report.seconds["pack"],
            "back_mb_s": size / 1e6 / report.seconds["read back"],
        }  # fmt: skip

        def restoring(workers: int = workers) -> Any:
            shutil.rmtree(again, ignore_errors=True)
            return restore(packed, again, workers=workers)

        seconds, _ = best(restoring, repeat)
        cell[f"restore_{workers}"] = {"mb_s": size / 1e6 / seconds}
    delta = (packed / "model.safetensors.delta").stat().st_size
    equal = (again / "model.safetensors").read_bytes() == (tuned / "model.safetensors").read_bytes()
    if not equal:
        raise SystemExit("The restored file is not the original.")
    shutil.rmtree(packed)
    shutil.rmtree(again)
    plans = {plan: round(share / size, 4) for plan, share in report.plans.items()}
    return {"bytes": size, "ratio": delta / size, "plans": plans, "byte_identical": equal, **cell}


def change(base: Path, tuned: Path) -> dict[str, float]:
    """How far the fine-tune went: the relative norm, and the share of words that are not the parent's."""
    moved = length = differ = count = 0.0
    theirs = read_header(base / "model.safetensors")
    for name, info in read_header(tuned / "model.safetensors").items():
        if info.dtype not in ("F32", "BF16"):
            continue
        raw, old = raw_values(info), raw_values(theirs[name])
        wide = [(one.astype(np.uint32) << 16).view(np.float32) if info.dtype == "BF16" else one for one in (raw, old)]
        difference = wide[0].astype(np.float64) - wide[1]
        moved, length = (
            moved + float(difference @ difference),
            length + float(np.square(wide[1].astype(np.float64)).sum()),
        )
        differ, count = differ + float(np.count_nonzero(raw != old)), count + raw.size
    return {"relative_norm": (moved / length) ** 0.5, "words_changed": differ / count}


def others(base: Path, tuned: Path, zipnn: Path | None, scratch: Path, limit: int | None = None) -> dict[str, Any]:
    """The same tensors with what else there is, by one thread in memory."""
    theirs, found = read_header(base / "model.safetensors"), read_header(tuned / "model.safetensors")
    main = "BF16" if any(info.dtype == "BF16" for info in found.values()) else "F32"
    kind = KINDS[main]
    names = [name for name, info in found.items() if info.dtype == main]
    mine, old = (np.concatenate([raw_values(one[name]).view(kind.word) for name in names]) for one in (found, theirs))
    mine, old = (one[: limit // kind.width] if limit else one for one in (mine, old))
    xor, cell = mine ^ old, {}
    compressor, back = zstandard.ZstdCompressor(level=3), zstandard.ZstdDecompressor()

    def timed(work: Callable[[], list[bytes]]) -> dict[str, float]:
        seconds, frames = best(work)
        unpacking, _ = best(lambda: [back.decompress(frame) for frame in frames])
        total = mine.nbytes / 1e6
        return {"ratio": sum(map(len, frames)) / mine.nbytes, "mb_s": total / seconds, "back_mb_s": total / unpacking}

    def bitx() -> list[bytes]:
        step = 2**20 // kind.width
        frames = []
        for at in range(0, mine.size, step):
            planes = to_planes("xor", kind, mine[at : at + step].copy(), old[at : at + step].copy())
            frames += [compressor.compress(plane.data) for plane in planes]
        return frames

    cell["zstd -3"] = timed(lambda: [compressor.compress(mine.view(np.uint8).data)])
    cell["xor+zstd -3"] = timed(lambda: [compressor.compress((mine ^ old).view(np.uint8).data)])
    cell["bitx"] = timed(bitx)
    if zipnn is not None:
        files = [scratch / "zipnn", scratch / "zipnn of xor"]
        for file, words in zip(files, (mine, xor), strict=True):
            file.write_bytes(words.tobytes())
        command = [str(zipnn), "-c", ZIPNN, {"BF16": "bfloat16", "F32": "float32"}[main], *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, env=common.environment(), check=False)
        told = common.last_object("\n" + done.stdout.strip()) if done.returncode == 0 else {"zipnn": done.stderr[-300:]}
        cell |= told
        for file in files:
            file.unlink()
    return cell


def memory(base: Path, tuned: Path, scratch: Path) -> float:
    """Peak anonymous memory of packing with two threads above what the imports take, in MiB."""
    imports = imports_mib(sys.executable, "import regraft.zoo.pack")
    shutil.rmtree(scratch / "packed", ignore_errors=True)
    done = watch([sys.executable, "-c", MEMORY, str(tuned), str(base), str(scratch / "packed")], 600)
    shutil.rmtree(scratch / "packed", ignore_errors=True)
    if done.code != 0:
        raise SystemExit(done.errors)
    return float(done.anonymous_mib - imports)


def line(key: str, cell: dict[str, Any]) -> str:
    """One cell."""
    beside = "  ".join(f"{name} {one['ratio']:.3f}" for name, one in cell["others"].items() if isinstance(one, dict))
    speeds = "  ".join(f"{name} {cell[name]['mb_s']:.0f}" for name in ("pack_1", "pack_2", "restore_1", "restore_2"))
    return f"{key:20} ratio {cell['ratio']:.4f}  | {beside} | MB/s {speeds}, coding {cell['pack_1']['code_mb_s']:.0f}"


def main() -> None:
    """Measure what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with banking77/train.csv")
    parser.add_argument(
        "--scratch", type=Path, required=True, help="a folder with 5 GB free; fine-tunes are kept there"
    )
    parser.add_argument("--zipnn", type=Path, help="the Python of an environment with zipnn")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="start no more work after so many seconds")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the results file")
    parser.add_argument("--size", default="287M", choices=merge_models.SHAPES, help="of the synthetic pair")
    parser.add_argument("--only", default="", choices=["", "fp32", "bf16", "synthetic"], help="one kind of pair")
    parser.add_argument("--again", action="store_true", help="measure cells again that are in the results")
    given = parser.parse_args()
    until, scratch = time.monotonic() + given.limit_s, given.scratch.resolve()
    os.environ["HF_HUB_OFFLINE"] = "1"
    results = common.Results("zoo_pack", given.results)
    try:
        for kind, rates in RATES.items():
            for rate, steps in rates.items():
                if not kind.startswith(given.only):
                    continue
                tune(kind, rate, given.data, scratch, until)
                for step in steps:
                    key = f"{kind}/{rate:g}/{step}"
                    if key in results.cells and not given.again:
                        continue
                    if time.monotonic() > until:
                        raise Late("Run the command again to go on.")
                    base, tuned = (scratch / "tunes" / kind / name for name in ("base", f"{rate:g}-{step}"))
                    cell = ours(base, tuned, scratch) | {"change": change(base, tuned)}
                    results.put(key, cell | {"others": others(base, tuned, given.zipnn, scratch)})
                    print(line(key, results.cells[key]), flush=True)
        key = f"synthetic/{given.size}"
        if key.startswith(given.only) and (key not in results.cells or given.again):
            if time.monotonic() > until - 40:
                raise Late("Run the command again to go on.")
            base, (tuned,) = merge_models.make(given.size, 1, scratch)
            cell = ours(base, tuned, scratch, 2) | {"memory_mib": memory(base, tuned, scratch)}
            results.put(key, cell | {"others": others(base, tuned, given.zipnn, scratch, SLICE)})
            print(line(key, results.cells[key]), flush=True)
    except Late as late:
        print(late)
        raise SystemExit(3) from None
    print(json.dumps({"cells": len(results.cells), "results": str(results.path)}))


if __name__ == "__main__":
    main()
