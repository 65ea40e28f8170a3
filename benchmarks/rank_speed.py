"""`regraft rank` beside transformer-ranker: the same checkpoints and texts, whole processes, in turns.

    python benchmarks/rank_speed.py --data FOLDER --peer VENV/bin/python [--scratch FOLDER] [--rows 1000 3000] [--repeats 3]

    truncations   MiniLM's first 1 to 6 layers, a folder each
    unrelated     six encoders of MiniLM's shape whose weights have nothing in common: MiniLM, and five drawn at random

Each is ranked on 1,000 and 3,000 training texts of banking77. The peer computes one score (H-score on the mean over
layers); Regraft what `regraft rank` computes: three left-out probes, kNN and LogME, intervals, and baselines. Targets: 2.4 times
as fast on unrelated encoders, 6 times on truncations, 2 s when the features are in the store. Medians of the repeats count.

The peer has a virtual environment of its own: python -m venv tr && tr/bin/pip install transformer-ranker==0.2.0
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import torch
from transformers import AutoModel, AutoTokenizer

from regraft.randomness import permutation

HERE = Path(__file__).resolve().parent
LAYERS = range(1, 7)
RANDOM = range(1, 6)
LIMIT_S = 1800.0


def truncations(scratch: Path) -> list[Path]:
    """MiniLM's first layers, a stock folder each."""
    found = []
    for layers in LAYERS:
        folder = scratch / f"minilm-l{layers}"
        if not folder.is_dir():
            _save(AutoModel.from_pretrained(common.minilm(), num_hidden_layers=layers), folder)
        found.append(folder)
    return found


def unrelated(scratch: Path) -> list[Path]:
    """MiniLM, and encoders of its shape with random weights."""
    found = [scratch / f"minilm-l{LAYERS[-1]}"]
    for seed in RANDOM:
        folder = scratch / f"random-{seed}"
        if not folder.is_dir():
            torch.manual_seed(seed)
            whole = AutoModel.from_pretrained(common.minilm())
            _save(type(whole)(whole.config), folder)
        found.append(folder)
    return found


def _save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(common.minilm()).save_pretrained(folder)


def task(scratch: Path, data: Path, rows: int) -> Path:
    """So many training rows of banking77, drawn at random (the file goes by label); a short test split, which neither reads."""
    folder = scratch / f"banking77-{rows}"
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", rows), ("validation", 200), ("test", 200)):
        taken = common.read(data / "banking77" / ("test.csv" if split == "test" else "train.csv"))
        order = permutation(len(taken.texts), 0, "rank speed")
        chosen = order[5000 : 5000 + count] if split == "validation" else order[:count]
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows((taken.texts[row], taken.labels[row]) for row in chosen)
    return folder


def regraft_s(folder: Path, models: Sequence[Path], store: Path) -> tuple[float, dict[str, Any]]:
    """Wall seconds of `regraft rank`, and its ranking."""
    done = common.run(
        common.regraft("rank", str(folder), "--zoo", ",".join(map(str, models)), "--budget", "30m", "--json"),
        LIMIT_S, REGRAFT_STORE=str(store),
    )  # fmt: skip
    if done.code != 0:
        raise SystemExit(f"regraft: {done.errors[-2000:]}")
    return done.wall_s, common.last_object("\n" + done.output)


def peer_s(python: Path, folder: Path, models: Sequence[Path]) -> tuple[float, dict[str, Any]]:
    """Wall seconds of the peer's process, and its scores."""
    command = [str(python), str(HERE / "peers" / "transformer_ranker_peer.py"), "--task", str(folder), "--models"]
    done = common.run([*command, *map(str, models)], LIMIT_S)
    if done.code != 0:
        raise SystemExit(f"transformer-ranker: {done.errors[-2000:]}")
    return done.wall_s, common.last_object("\n" + done.output)


def main() -> None:
    """Measure both in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with banking77/")
    parser.add_argument("--peer", type=Path, required=True, help="the Python of the peer's virtual environment")
    parser.add_argument("--scratch", type=Path, help="kept between runs when given")
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 3000])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    results = common.Results("rank_speed")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = given.scratch or Path(temporary)
        for name, models in (("truncations", truncations(scratch)), ("unrelated", unrelated(scratch))):
            for rows in given.rows:
                folder = task(scratch, given.data, rows)
                ours, theirs, again = [], [], []
                for _ in range(given.repeats):
                    with tempfile.TemporaryDirectory() as store:
                        seconds, ranking = regraft_s(folder, models, Path(store))
                        ours.append(seconds)
                        again.append(regraft_s(folder, models, Path(store))[0])
                    seconds, scores = peer_s(given.peer, folder, models)
                    theirs.append(seconds)
                one, other = statistics.median(ours), statistics.median(theirs)
                figures = {
                    "rows": rows, "ranked_rows": ranking["rows"], "regraft_s": round(one, 2), "peer_s": round(other, 2),
                    "times": round(other / one, 2), "stored_s": round(statistics.median(again), 2), "all_regraft_s": ours,
                    "all_peer_s": theirs, "peer": scores["version"], "peer_scores": scores["scores"],
                    "ranking": {item["checkpoint"]: item["score"] for item in ranking["ranking"]},
                }  # fmt: skip
                results.put(f"{name}/{rows}", figures)
                print(f"{name:12} {rows:5} rows: {one:.1f} s, peer {other:.1f} s, {other / one:.2f} times; stored "
                      f"{statistics.median(again):.1f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
