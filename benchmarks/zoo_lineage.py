"""Lineage from weights: is every edge of a zoo of MiniLM's descendants found, with what it is, and none besides?

At least 40 descendants of the embedded all-MiniLM-L6-v2, made by plain torch and peft (not by what is measured): real short
fine-tunes on banking77, hwu64 and snips, second and third generations, LoRA-merged, averaged and added up, TIES-like, pruned, put
on int8 grids, rounded to bf16, cut, cut and then trained; and controls that are unrelated: MiniLM's shape from scratch, some of
them trained. How each was made is the truth. No model has a card.

    python zoo_lineage.py --data FOLDER [--work FOLDER] [--quick]

Precision and recall of (child, parent) pairs and of relations, and seconds, go to results/zoo_lineage.json.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import common
import torch
from safetensors.torch import load_file, save_file

from regraft.checkpoint.quiet import quiet
from regraft.zoo.lineage import find_edges

Tensors = dict[str, torch.Tensor]
BATCH, LENGTH, STEPS = 16, 24, 24


class Foundry:
    """Makes descendants below a folder and remembers how: child -> (parents, relation)."""

    def __init__(self, data: Path, root: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.data, self.root = data, root
        self.truth: dict[str, tuple[frozenset[str], str]] = {}
        with quiet():
            AutoModel.from_pretrained(common.minilm()).save_pretrained(root / "base")
        self.tokenizer = AutoTokenizer.from_pretrained(common.minilm())

    def _note(self, name: str, parents: list[str], relation: str) -> str:
        if relation:
            self.truth[name] = (frozenset(parents), relation)
        return name

    def tuned(
        self, parent: str, name: str, task: str, seed: int, rate: float = 1e-4, relation: str = "finetuned"
    ) -> str:
        """A short fine-tune on part of a task's rows: every seed takes other rows, so that no two are like trainings."""
        from transformers import AutoModel

        rows = common.read(self.data / task / "train.csv")
        names = sorted(set(rows.labels))
        draw = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        with quiet():
            model = AutoModel.from_pretrained(self.root / parent).train()
        head = torch.nn.Linear(384, len(names))
        order = torch.randperm(len(rows.texts), generator=draw)[: STEPS * BATCH].tolist()
        groups = [{"params": model.parameters(), "lr": rate}, {"params": head.parameters(), "lr": 1e-2}]
        optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
        for step in range(STEPS):
            part = order[step * BATCH : (step + 1) * BATCH]
            tokens = self.tokenizer(
                [rows.texts[row] for row in part], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
            )
            mask = tokens["attention_mask"].unsqueeze(-1)
            states = model(**tokens).last_hidden_state
            logits = head((states * mask).sum(1) / mask.sum(1))
            loss = torch.nn.functional.cross_entropy(
                logits, torch.tensor([names.index(rows.labels[row]) for row in part])
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with quiet():
            model.save_pretrained(self.root / name)
        return self._note(name, [parent], relation)

    def written(
        self, parent: str, name: str, change: Callable[[Tensors], Tensors], relation: str,
        parents: list[str] | None = None, **config: object,
    ) -> str:  # fmt: skip
        """A copy with other tensors."""
        folder = Path(shutil.copytree(self.root / parent, self.root / name))
        tensors = {key: value.contiguous() for key, value in change(load_file(folder / "model.safetensors")).items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        content = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(content))
        return self._note(name, parents or [parent], relation)

    def tensors(self, name: str) -> Tensors:
        """The tensors of a model that was made."""
        return load_file(self.root / name / "model.safetensors")

    def pruned(self, parent: str, name: str, share: float) -> str:
        """The smallest weights of each matrix set to zero."""

        def one(value: torch.Tensor) -> torch.Tensor:
            limit = value.abs().flatten().kthvalue(int(share * value.numel())).values
            return torch.where(value.abs() <= limit, 0.0, value)

        return self.written(parent, name, lambda tensors: _each(tensors, one), "pruned")

    def grid(self, parent: str, name: str, by_row: bool = True) -> str:
        """int8 values, of each row or of each matrix, kept as float32."""

        def one(value: torch.Tensor) -> torch.Tensor:
            step = (value.abs().amax(1, keepdim=True) if by_row else value.abs().max()) / 127
            return torch.round(value / step) * step

        return self.written(parent, name, lambda tensors: _each(tensors, one), "quantised")

    def rounded(self, parent: str, name: str, kept: bool) -> str:
        """Rounded to bf16, and stored so (`kept`) or as float32 again."""
        return self.written(
            parent, name,
            lambda tensors: {k: v.bfloat16() if kept else v.bfloat16().float() for k, v in tensors.items()}, "quantised",
        )  # fmt: skip

    def cut(self, parent: str, name: str, layers: list[int], relation: str = "truncated") -> str:
        """Some of the layers, numbered anew."""

        def change(tensors: Tensors) -> Tensors:
            found = {}
            for key, value in tensors.items():
                parts = key.split(".")
                if "layer" in parts:
                    number = int(parts[parts.index("layer") + 1])
                    if number not in layers:
                        continue
                    parts[parts.index("layer") + 1] = str(layers.index(number))
                found[".".join(parts)] = value
            return found

        return self.written(parent, name, change, relation, num_hidden_layers=len(layers))

    def lora(self, parent: str, name: str, targets: list[str], rank: int, seed: int) -> str:
        """A LoRA with random factors, merged by peft."""
        import peft
        from transformers import AutoModel

        torch.manual_seed(seed)
        with quiet():
            model = peft.get_peft_model(
                AutoModel.from_pretrained(self.root / parent), peft.LoraConfig(r=rank, target_modules=targets)
            )
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    if "lora_" in key:
                        parameter.copy_(0.02 * torch.randn(parameter.shape))
            model.merge_and_unload().save_pretrained(self.root / name)
        return self._note(name, [parent], "lora-merged")

    def summed(self, name: str, weights: dict[str, float], base: str | None) -> str:
        """base + sum of w (x - base), or the weighted sum where there is no base."""
        found = {one: self.tensors(one) for one in weights}

        def change(tensors: Tensors) -> Tensors:
            if base is None:
                return {key: sum(w * found[one][key] for one, w in weights.items()) for key in tensors}  # type: ignore[misc]
            return {
                key: value + sum(w * (found[one][key] - value) for one, w in weights.items())
                for key, value in tensors.items()
            }

        first = base or next(iter(weights))
        return self.written(first, name, change, "merged", [*weights, *([base] if base else [])])

    def elected(self, name: str, base: str, sources: list[str], density: float) -> str:
        """TIES as its paper defines it (trim, elect signs, mean of those that agree), each matrix by itself."""
        found = [self.tensors(one) for one in sources]

        def change(tensors: Tensors) -> Tensors:
            made = {}
            for key, value in tensors.items():
                stack = torch.stack([one[key] - value for one in found])
                size = stack.abs().flatten(1)
                limit = size.kthvalue(max(1, int((1 - density) * size.shape[1])), dim=1).values
                stack = torch.where(size.view_as(stack) > limit.view(-1, *[1] * value.dim()), stack, 0.0)
                agree = (torch.sign(stack) == torch.sign(stack.sum(0))) & (stack != 0)
                made[key] = value + (stack * agree).sum(0) / agree.sum(0).clamp(min=1)
            return made

        return self.written(base, name, change, "merged", [base, *sources])

    def stranger(self, name: str, seed: int, layers: int = 6) -> str:
        """MiniLM's architecture from scratch."""
        from transformers import AutoConfig, AutoModel

        torch.manual_seed(seed)
        with quiet():
            config = AutoConfig.from_pretrained(common.minilm())
            config.num_hidden_layers = layers
            AutoModel.from_config(config).save_pretrained(self.root / name)
        return name


def _each(tensors: Tensors, change: Callable[[torch.Tensor], torch.Tensor]) -> Tensors:
    return {k: change(v) if ".layer." in k and v.dim() == 2 else v for k, v in tensors.items()}


def make_quick(f: Foundry) -> None:
    """Eight descendants and two controls."""
    f.tuned("base", "a", "snips", 1)
    f.tuned("base", "b", "banking77", 2)
    f.pruned("base", "base-pruned", 0.5)
    f.grid("a", "a-int8")
    f.cut("base", "base-cut", [0, 1, 2])
    f.lora("b", "b-lora", ["query", "value"], 8, 1)
    f.summed("average", {"a": 0.5, "b": 0.5}, None)
    f.rounded("base", "base-bf16", kept=True)
    f.stranger("stranger-0", 0)
    f.stranger("stranger-1", 1)


def make_all(f: Foundry) -> None:
    """Forty-five descendants and six controls."""
    tasks = ("snips", "banking77", "hwu64")
    for number in range(9):
        f.tuned("base", f"ft-{number}", tasks[number % 3], number, (5e-5, 1e-4, 2e-4)[number // 3])
    for number, parent in enumerate(("ft-3", "ft-4", "ft-5", "ft-6")):
        f.tuned(parent, f"second-{number}", tasks[(number + 1) % 3], 20 + number)
    f.tuned("second-0", "third-0", "hwu64", 30)
    f.tuned("second-1", "third-1", "snips", 31)
    for number, (parent, share) in enumerate((("base", 0.3), ("base", 0.6), ("ft-0", 0.5), ("second-0", 0.2))):
        f.pruned(parent, f"pruned-{number}", share)
    for number, (parent, by_row) in enumerate((("base", True), ("ft-1", True), ("ft-2", False), ("third-0", True))):
        f.grid(parent, f"int8-{number}", by_row)
    for number, (parent, kept) in enumerate((("base", True), ("ft-3", True), ("ft-4", False))):
        f.rounded(parent, f"bf16-{number}", kept)
    for number, (parent, layers) in enumerate(
        (("base", [0, 1, 2]), ("base", [0, 1, 2, 3, 4]), ("ft-0", [0, 1, 2, 3]), ("ft-6", [0, 2, 4]), ("base", [0, 5]))
    ):
        f.cut(parent, f"cut-{number}", layers)
    f.tuned("cut-0", "cut-tuned-0", "snips", 40)
    f.tuned("cut-1", "cut-tuned-1", "banking77", 41)
    f.cut("ft-5", "gone", [1, 3, 5], "")
    f.tuned("gone", "cut-tuned-2", "hwu64", 42, relation="")
    shutil.rmtree(f.root / "gone")
    f.truth["cut-tuned-2"] = (frozenset({"ft-5"}), "truncated+finetuned")
    everything = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
    for number, (parent, targets, rank) in enumerate(
        (
            ("base", ["query", "value"], 8),
            ("base", everything, 16),
            ("ft-7", ["query", "value"], 4),
            ("second-1", everything, 8),
        )
    ):
        f.lora(parent, f"lora-{number}", targets, rank, number)
    f.summed("merge-average", {"ft-3": 0.5, "ft-4": 0.5}, None)
    f.summed("merge-weighted", {"ft-5": 0.2, "ft-6": 0.5, "ft-7": 0.3}, None)
    f.summed("merge-arithmetic", {"ft-6": 0.4, "ft-7": 0.4, "ft-8": 0.4}, "base")
    f.elected("merge-ties", "base", ["ft-7", "ft-8"], 0.4)
    shutil.copytree(f.root / "ft-8", f.root / "zz-copy")
    f.truth["zz-copy"] = (frozenset({"ft-8"}), "identical")
    f.tuned("merge-average", "merge-tuned", "hwu64", 50, 2e-4)
    for seed in range(4):
        f.stranger(f"stranger-{seed}", seed)
    f.stranger("stranger-short", 9, 3)
    f.tuned("stranger-0", "gone-too", "snips", 60, relation="")
    shutil.rmtree(f.root / "stranger-0")


def score(
    truth: dict[str, tuple[frozenset[str], str]], found: dict[str, tuple[frozenset[str], str]]
) -> dict[str, object]:
    """Precision and recall of pairs and of relations, and what was wrong."""
    right = {(child, parent) for child, (parents, _) in truth.items() for parent in parents}
    given = {(child, parent) for child, (parents, _) in found.items() for parent in parents}
    relations = sum(found.get(child, (None, ""))[1] == relation for child, (_, relation) in truth.items())
    wrong = {
        child: {
            "made": [sorted(truth[child][0]), truth[child][1]] if child in truth else None,
            "found": [sorted(found[child][0]), found[child][1]] if child in found else None,
        }
        for child in sorted(truth.keys() | found.keys())
        if truth.get(child) != found.get(child)
    }
    return {
        "pairs": len(right), "pairs_found": len(given), "precision": len(right & given) / max(1, len(given)),
        "recall": len(right & given) / len(right), "relations_right": relations, "relations": len(truth),
        "wrong": wrong,
    }  # fmt: skip


def main() -> None:
    """Make the zoo, find its edges, and write down how well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with banking77/, hwu64/ and snips/")
    parser.add_argument("--work", type=Path, help="where the zoo is made (about 4 GB); a temporary folder by default")
    parser.add_argument("--quick", action="store_true", help="eight descendants, written to no results file")
    options = parser.parse_args()
    torch.set_num_threads(common.THREADS)
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        foundry = Foundry(options.data, Path(name))
        started = time.monotonic()
        (make_quick if options.quick else make_all)(foundry)
        made = time.monotonic() - started
        folders = sorted(path for path in Path(name).iterdir() if path.is_dir())
        random.Random(0).shuffle(folders)
        started = time.monotonic()
        edges = find_edges(folders)
        seconds = time.monotonic() - started
    found = {
        Path(edge.child).name: (frozenset(Path(one).name for one in edge.parents), edge.relation) for edge in edges
    }
    cell = {
        **score(foundry.truth, found), "checkpoints": len(folders), "descendants": len(foundry.truth),
        "seconds": round(seconds, 2), "seconds_to_make": round(made, 1),
    }  # fmt: skip
    print(json.dumps(cell, indent=1))
    if not options.quick:
        common.Results("zoo_lineage").put("minilm", cell)


if __name__ == "__main__":
    main()
