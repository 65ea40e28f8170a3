"""transformer-ranker, as a competent user runs it: its default score (H-score) on the mean over layers.

    python transformer_ranker_peer.py --task FOLDER --models FOLDER... [--estimator hscore]

It runs in a virtual environment of its own and prints one JSON object: scores by model, and the package's version. Its messages
and bars go to standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset
from transformer_ranker import TransformerRanker

BATCH = 32
THREADS = 2


def main() -> None:
    """Rank, and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", type=Path, required=True, help="folder with train.csv (text,label)")
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--estimator", default="hscore", choices=("hscore", "logme", "knn"))
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    with redirect_stdout(sys.stderr):
        data = Dataset.from_csv(str(given.task / "train.csv")).class_encode_column("label")  # it takes whole numbers
        ranker = TransformerRanker(data, text_column="text", label_column="label")
        found = ranker.run(
            [str(one) for one in given.models], estimator=given.estimator, batch_size=BATCH, device="cpu"
        )
    scores = {Path(name).name: float(value) for name, value in found.scores.items()}
    print(json.dumps({"scores": scores, "version": version("transformer-ranker")}))


if __name__ == "__main__":
    main()
