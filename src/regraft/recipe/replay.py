"""Replay a recipe: compute its steps from the same checkpoints and data, and compare the weights with those recorded."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regraft.adapt import Adaptation, Head, Kept, Plan, classifier_from, combine, head_of, keep_weights, probe
from regraft.checkpoint import Checkpoint, load_tokenizer, max_length, open_checkpoint
from regraft.checkpoint.batches import tokenize
from regraft.checkpoint.classifier import Classifier, TextClassifier, logits_of, probabilities
from regraft.checkpoint.export import load_classifier
from regraft.errors import MethodError, RecipeError
from regraft.evaluate import score
from regraft.evaluate.card import Made
from regraft.evaluate.certify import write_certified
from regraft.features import DTYPES, Joined, extract, extract_blocks
from regraft.progress import SILENT, Progress
from regraft.recipe.order import Step
from regraft.recipe.read import read_recipe
from regraft.store import Store, whole_folder
from regraft.task import Task, load_task
from regraft.task.rows import spread_rows
from regraft.train.loop import Data, Leg


class _Replay:
    def __init__(self, task: Task, folder: Path, device: str, dtype: str, store: Store, progress: Progress) -> None:
        self.task, self.folder, self.device, self.store, self.progress = task, folder, device, store, progress
        self.dtype = DTYPES[dtype]
        self.steps: dict[str, Step] = {}
        self.models: dict[str, Classifier] = {}
        self.heads: dict[str, Head] = {}
        self.kept: dict[str, Kept] = {}
        self.cuts: dict[str, dict[str, Any]] = {}
        self.scores: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, int] = {}
        self.found: list[dict[str, Any]] = []
        self.measured: list[dict[str, Any]] = []

    @property
    def _options(self) -> dict[str, Any]:
        return {"store": self.store, "device": self.device, "dtype": self.dtype, "progress": self.progress}

    def run(self, step: Step) -> None:
        self.steps[step.name] = step
        self.progress.say(f"{step.op} {step.name}")
        work = {"features": self._features, "adapt": self._adapt, "merge": self._merge, "resize": self._resize,
                "evaluate": self._evaluate, "export": self._export}  # fmt: skip
        work[step.op](step)

    def release(self, later: Sequence[Step]) -> None:
        """Free the models that no later step uses; those that one merges wait on disk. One in memory at a time is enough."""
        merged = {name for step in later for name in step.values.get("models", [])}
        for name in merged & set(self.models) - set(self.kept):
            self.kept[name] = keep_weights(self.models[name], self.folder / f".{name}.weights")
        for name in set(self.models) - {step.values.get("model") for step in later}:
            del self.models[name]
        for name in set(self.kept) - merged:
            shutil.rmtree(self.kept.pop(name).path.parent, ignore_errors=True)

    def _checkpoint(self, step: Step) -> Checkpoint:
        checkpoint = open_checkpoint(str(step.values["checkpoint"]))
        expected = step.values.get("checkpoint_id")
        if expected is not None and checkpoint.checkpoint_id != expected:
            raise RecipeError(
                f"Step {step.name!r} (line {step.line}) was made from {checkpoint.reference} with the identity "
                f"{expected[:12]}; it is {checkpoint.checkpoint_id[:12]} now.",
                "Restore that checkpoint, or remove checkpoint_id to use this one.",
            )
        checkpoint.check_finite()
        return checkpoint

    def _features(self, step: Step) -> None:
        # Extracted by the step that uses them, which knows the rows; opening it here checks the identity early.
        self._checkpoint(step)

    def _head(self, step: Step, checkpoint: Checkpoint) -> Head:
        given = dict(step.values.get("head") or {})
        labels = self.task.train.labels
        ranked = spread_rows(labels, int(given.get("rank_rows", len(labels))))
        rest = np.setdiff1d(np.arange(len(labels)), ranked)
        more = rest[spread_rows(labels[rest], int(given.get("rest_rows", 0)))] if len(rest) else rest
        more = more[: int(given.get("rest_made", len(more)))]
        texts, validation = self.task.train.texts, self.task.validation
        beside = spread_rows(validation.labels, int(given.get("validation_rows", len(validation))))
        # In the blocks that `reuse` computed them in: which texts share a batch changes the last bits of features.
        first = extract(
            checkpoint, [texts[row] for row in ranked] + [validation.texts[row] for row in beside], **self._options
        )
        views: list[Any] = [first.rows(np.arange(len(ranked)))]
        rows = ranked
        if len(more):
            computed = extract_blocks([checkpoint], [texts[row] for row in more], **self._options)
            views.append(computed.views[checkpoint.name])
            rows = np.concatenate([ranked, more])
        return probe(
            Joined(*views), labels[rows], len(self.task.label_names), view=given.get("view", "last"),
            seed=int(step.values.get("seed", 0)), l2=given.get("l2"), iterations=given.get("iterations"),
        )  # fmt: skip

    def _adapt(self, step: Step) -> None:
        checkpoint, method = self._checkpoint(step), str(step.values["method"])
        if method == "as-is":
            self.models[step.name] = load_classifier(checkpoint, self.device)
            return
        head = self.heads[step.name] = self._head(step, checkpoint)
        if method == "probe":
            self.models[step.name] = classifier_from(checkpoint, self.task.label_names, head, device=self.device)
            return
        adaptation = Adaptation(
            checkpoint, self.task.label_names, head, _plan(step), self.folder / f".{step.name}", device=self.device
        )
        self._train(step, checkpoint, adaptation)

    def _train(
        self, step: Step, checkpoint: Checkpoint, adaptation: Adaptation, teacher: np.ndarray | None = None
    ) -> None:
        tokens = tokenize(load_tokenizer(checkpoint), self.task.train.texts, max_length(checkpoint))
        data = Data(tokens, self.task.train.labels, teacher)
        for number, (steps, decay) in enumerate(step.values.get("legs") or []):
            with self.progress.bar(f"training {step.name}", steps):
                adaptation.train(data, Leg(int(steps), int(decay)), progress=self.progress)
            adaptation.forget_before(number + 1)
        self.models[step.name] = adaptation.finished()
        shutil.rmtree(adaptation.folder, ignore_errors=True)

    def _merge(self, step: Step) -> None:
        from regraft.merge.methods.linear import mean  # compiled loops, which most recipes do not need

        names = step.values["models"]
        classifier = classifier_from(
            self._checkpoint(self.steps[names[0]]), self.task.label_names, self.heads[names[0]], device=self.device
        )
        combine(classifier, [self.kept[name] for name in names], mean)
        self.models[step.name] = classifier

    def _resize(self, step: Step) -> None:
        from regraft.resize.classifier import TEXTS, cut_encoder

        name, place = str(step.values["model"]), self.folder / f".{step.name}"
        whole, train = self.models[name], self.task.train
        if not isinstance(whole, TextClassifier) or whole.layer_weights is not None:
            raise RecipeError(
                f"Step {step.name!r} (line {step.line}) cuts {name!r}, whose head does not read its last layer alone.",
                "Name an adaptation with a head on the last layer.",
            )
        texts = [train.texts[row] for row in spread_rows(train.labels, int(step.values.get("texts", TEXTS)))]
        try:
            self.cuts[step.name] = cut_encoder(
                whole, step.values["sizes"], place / "encoder", texts=texts, seed=int(step.values.get("seed", 0))
            )
            checkpoint = open_checkpoint(str(place / "encoder"))
            adaptation = Adaptation(
                checkpoint, self.task.label_names, head_of(whole), _plan(step), place / "states", device=self.device
            )
            teacher = logits_of(whole, train.texts) if adaptation.settings.distill else None
            self._train(step, checkpoint, adaptation, teacher)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _source(self, step: Step) -> Step:
        """The adaptation, of those that a model was made from the first."""
        while step.op != "adapt":
            step = self.steps[step.values["model"] if step.op == "resize" else step.values["models"][0]]
        return step

    def _evaluate(self, step: Step) -> None:
        where, name = str(step.values.get("split", "test")), str(step.values["model"])
        split, model = self.task.splits()[where], self.models[name]
        rows = min(int(step.values.get("rows") or len(split)), len(split))
        missing = sorted(set(self.task.label_names) - set(model.labels))
        if missing:
            raise RecipeError(
                f"Step {step.name!r} (line {step.line}): the model {name!r} does not know the task's {', '.join(missing[:5])}.",
                "Adapt it to the task: method probe, full or lora.",
            )
        found = probabilities(model, split.texts[:rows])
        order = [model.labels.index(label) for label in self.task.label_names]
        seen = dict(score(split.labels[:rows], found[:, order]))
        self.measured.append({"name": step.name, "model": name, "split": where, "rows": rows, "score": seen})
        if where == "test":  # what an export certifies
            self.scores[name], self.rows[name] = seen, rows

    def _export(self, step: Step) -> None:
        name = str(step.values["model"])
        made = self.steps[name]
        if name not in self.scores:
            self._evaluate(Step(f"{step.name}.evaluate", "evaluate", {"model": name}, step.line))
        how = Made(str(made.values.get("method", "full")), dict(made.values.get("settings") or {}),
                   [(int(a), int(b)) for a, b in made.values.get("legs") or []], int(made.values.get("seed", 0)))  # fmt: skip
        if made.op == "merge":
            how = Made("soup", {"models": made.values["models"]})
        if made.op == "resize":
            settings = {**how.settings, "from": {"name": made.values["model"]}, "cut": self.cuts[name]}
            how = replace(how, method="cut", settings=settings)
        figures = {"test": self.scores[name], "test_rows": self.rows[name], "latency_ms": None}
        with whole_folder(self.folder / step.name) as aside:
            facts = write_certified(
                self.models[name], aside, step.name, self._checkpoint(self._source(made)), self.task, how, figures
            )
        expected = step.values.get("weights_id")
        same = None if expected is None else facts["weights_id"] == expected
        self.found.append({"name": step.name, "path": str(self.folder / step.name), "same_weights": same,
                           "test": self.scores[name], **facts})  # fmt: skip


def _plan(step: Step) -> Plan:
    values = step.values
    return Plan(str(values.get("method", "full")), dict(values.get("settings") or {}), dict(values.get("options") or {}),
                int(values.get("seed", 0)))  # fmt: skip


def _check_method(path: Path, step: Step) -> None:
    if step.op not in ("adapt", "resize") or (step.op == "adapt" and step.values["method"] in ("as-is", "probe")):
        return
    try:
        _plan(step).tuning()
    except MethodError as fault:
        raise RecipeError(f"{path}, line {step.line}, step {step.name!r}: {fault.problem}", fault.remedy) from fault


def replay(
    path: Path, out: Path, *, device: str = "cpu", store: Store | None = None, progress: Progress = SILENT
) -> dict[str, Any]:
    """Compute a recipe into a new folder.

    The weights come out the same for the same versions, processor type and number of threads (the recipe records the
    number and it is set); `same_weights` says for each model whether they did.

    Returns:
        `models`: a list of `name`, `path`, `same_weights`, `test`, `format`, `parameters`, `bytes`, `weights_id`, ...
        `scores`: a list of `name` (of the step), `model`, `split`, `rows`, `score`

    Raises:
        RecipeError: The recipe cannot be read, the data or a checkpoint have changed, or `out` is not empty.
    """
    recipe = read_recipe(path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecipeError(f"{out} is not an empty folder.", "Give --out a new folder.")
    for step in recipe.steps:
        _check_method(path, step)
    given = dict(recipe.task)
    expected = given.pop("task_id", None)
    task = load_task(str(given.pop("reference")), **{key: value for key, value in given.items() if value is not None})
    if expected is not None and task.task_id != expected:
        raise RecipeError(
            f"{path} was made on task {expected[:12]}; {task.reference} is {task.task_id[:12]} now: the data have changed.",
            "Restore the data, or remove task_id to use these.",
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.threads or threads)
    try:
        work = _Replay(task, out, device, recipe.dtype, store or Store(), progress)
        for number, step in enumerate(recipe.steps):
            work.run(step)
            work.release(recipe.steps[number + 1 :])
    finally:
        torch.set_num_threads(threads)
    return {"models": work.found, "scores": work.measured}
