"""How long the catalogue takes to index small checkpoints in several layouts: first, and again when nothing changed.

    python benchmarks/zoo_index.py --scratch FOLDER                10,000 checkpoints, the target: 60 s, then 5 s, on 2 cores
    python benchmarks/zoo_index.py --scratch FOLDER --count 1000

Each measured run is a process of its own (`regraft zoo add`), timed from its start to its exit.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import common

CARD = """---
license: {licence}
base_model: org{owner}/model-{parent}
tags: [tag-{tag}, generated]
datasets: [data-{tag}]
model-index:
- name: m
  results:
  - task: {{type: text-classification}}
    dataset: {{name: d, type: data-{tag}}}
    metrics: [{{type: accuracy, value: {accuracy}}}]
---
# Model {number}

## Intended uses
Generated, to be indexed.
"""
TOKENIZER = {
    "version": "1.0",
    "model": {"type": "WordPiece", "vocab": {"[PAD]": 0, "[UNK]": 1, "a": 2}, "unk_token": "[UNK]"},
}


def make(root: Path, count: int) -> None:
    """Checkpoints of a few KB: plain, sharded, of a Hub cache, adapters, sentence-transformers; with cards and tokenizers."""
    for number in range(count):
        kind = number % 5
        name = f"org{number % 50}/model-{number}"
        folder = root / f"part-{number // 1000}" / name
        if kind == 1:
            folder = root / "cache" / f"models--{name.replace('/', '--')}" / "snapshots" / f"{number:040x}"
        folder.mkdir(parents=True)
        weights = {f"encoder.layer.{layer}.w": (8, 8) for layer in range(number % 12 + 1)}
        config = {"model_type": ("bert", "gpt2", "llama")[number % 3], "architectures": ["BertModel"],
                  "hidden_size": 8, "num_hidden_layers": number % 12 + 1, "num_attention_heads": 2,
                  "vocab_size": 3, "intermediate_size": 16}  # fmt: skip
        if kind == 2:
            (folder / "adapter_config.json").write_text(
                json.dumps(
                    {"peft_type": "LORA", "base_model_name_or_path": f"org{number % 50}/model-{number // 2}", "r": 4}
                )
            )
            safetensors(folder / "adapter_model.safetensors", weights)
        else:
            (folder / "config.json").write_text(json.dumps(config))
            (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
            (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
        if kind == 3:
            names = list(weights)
            halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
            for file, part in halves.items():
                safetensors(folder / file, {one: weights[one] for one in part})
            index = {"metadata": {}, "weight_map": {one: file for file, part in halves.items() for one in part}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        elif kind != 2:
            safetensors(folder / "model.safetensors", weights)
        if kind == 4:
            (folder / "modules.json").write_text(
                json.dumps([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}])
            )
        (folder / "README.md").write_text(
            CARD.format(licence=("mit", "apache-2.0", "gpl-3.0")[number % 3], owner=number // 2 % 50, parent=number // 2,
                        tag=number % 40, accuracy=number % 100, number=number)
        )  # fmt: skip


def safetensors(path: Path, shapes: dict[str, tuple[int, int]]) -> None:
    """A file of zeros."""
    header, at = {}, 0
    for name, (rows, columns) in shapes.items():
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [at, at := at + 4 * rows * columns]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))


def add(root: Path, catalogue: str) -> dict[str, Any]:
    """One run of `regraft zoo add`, and what it said."""
    done = common.run(common.regraft("zoo", "add", str(root), "--catalogue", catalogue, "--json"), 600)
    if done.code != 0:
        raise SystemExit(f"regraft zoo add ended with {done.code}:\n{done.errors[-4000:]}")
    said = common.last_object("\n" + done.output)
    kept = {name: said[name] for name in ("added", "changed", "unchanged", "gone")} | {
        "unreadable": len(said["unreadable"])
    }
    return {"wall_s": round(done.wall_s, 2), **kept, "index_s": round(said["seconds"], 2)}


def main() -> None:
    """Make the zoo where it is not there, index it twice, and once more after one checkpoint in a hundred changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="a folder for the checkpoints (10,000 take 0.4 GB)")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--catalogue", help="a URL of PostgreSQL; a SQLite file in the scratch folder by default")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the results file")
    given = parser.parse_args()
    root = given.scratch.resolve() / f"zoo-{given.count}"
    if not (root / ".done").exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        make(root, given.count)
        (root / ".done").touch()
    for old in given.scratch.glob("catalogue.sqlite*"):
        old.unlink()
    catalogue = given.catalogue or str(given.scratch.resolve() / "catalogue.sqlite")
    cell: dict[str, Any] = {"count": given.count, "first": add(root, catalogue), "again": add(root, catalogue)}
    changed = sorted(root.glob("part-*/*/*/README.md"))[::100]
    for card in changed:
        card.write_text(card.read_text() + "More.\n")
    cell["some_changed"] = add(root, catalogue)
    if cell["first"]["added"] != given.count or cell["again"]["unchanged"] != given.count:
        print("The counts are not what was made (was the catalogue empty?)", file=sys.stderr)
    database = "postgresql" if given.catalogue else "sqlite"
    common.Results("zoo_index", given.results).put(f"{database}/{given.count}", cell)
    print(json.dumps(cell, indent=1))


if __name__ == "__main__":
    main()
