"""Tiny classifiers to search among, and the search that most tests make."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regraft.checkpoint import load_encoder, load_tokenizer, open_checkpoint
from regraft.checkpoint.classifier import TextClassifier
from regraft.checkpoint.export import write_classifier
from regraft.merge.recipe.spec import Spec, spec_of
from regraft.merge.search.search import SearchResult, search
from regraft.task import Task, load_task
from regraft.train.logistic import fit_logistic

FEW = ("task_arithmetic", "ties", "model_stock", "linear")


@pytest.fixture(scope="session")
def topics(toy_task_files: Path) -> str:
    return str(toy_task_files)


@pytest.fixture(scope="session")
def starts(toy_task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same texts, told apart by their first letter."""
    folder = tmp_path_factory.mktemp("starts")
    for split in ("train", "validation", "test"):
        with (toy_task_files / f"{split}.csv").open() as file:
            rows = list(csv.DictReader(file))
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([row["text"], "early" if row["text"][0] < "n" else "late"] for row in rows)
    return str(folder)


def tune(base: Path, task: Task, folder: Path, seed: int, noise: float = 0.02) -> Path:
    """A classifier over the base plus noise, its head fitted on the task."""
    opened = open_checkpoint(str(base))
    encoder, generator = load_encoder(opened), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    classifier = TextClassifier(encoder, load_tokenizer(opened), task.label_names, 64)
    features = features_of(classifier, task.train.texts)
    fitted = fit_logistic(features, task.train.labels, len(task.label_names), l2=1e-3)
    with torch.no_grad():
        classifier.head.weight.copy_(torch.from_numpy(fitted.weight))
        classifier.head.bias.copy_(torch.from_numpy(fitted.bias))
    folder.mkdir()
    write_classifier(classifier, folder, {})
    return folder


def features_of(classifier: TextClassifier, texts: list[str]) -> np.ndarray:
    batch = classifier.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return classifier.pooled(batch["input_ids"], batch["attention_mask"]).numpy()


@pytest.fixture(scope="session")
def experts(tiny_bert: Path, topics: str, starts: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A fine-tune for each of the two tasks."""
    folder = tmp_path_factory.mktemp("experts")
    return [
        str(tune(tiny_bert, load_task(task), folder / f"on-{name}", seed))
        for seed, (name, task) in enumerate((("topics", topics), ("starts", starts)))
    ]


@pytest.fixture(scope="session")
def runs(tiny_bert: Path, topics: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three fine-tunes for one task, the last of which is bad."""
    folder = tmp_path_factory.mktemp("runs")
    task = load_task(topics)
    return [
        str(tune(tiny_bert, task, folder / f"seed-{seed}", 10 + seed, noise))
        for seed, noise in enumerate((0.02, 0.02, 0.2))
    ]


@pytest.fixture
def recipe(tiny_bert: Path, experts: list[str]) -> Spec:
    return spec_of("ties", experts, tiny_bert, density=0.5)


@pytest.fixture
def find(topics: str, starts: str, tmp_path: Path) -> Callable[..., SearchResult]:
    """A search over the two experts with few methods and trials."""

    def run(recipe: Spec, out: str = "out", **options: Any) -> SearchResult:
        tasks = options.pop("tasks", [topics, starts])
        budget = options.pop("budget", "6trials")
        return search(recipe, tmp_path / out, tasks, budget, **({"methods": FEW} | options))

    return run
