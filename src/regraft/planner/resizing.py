"""`regraft resize`: the size dial with a task to score and recover by, or with texts alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from regraft.anatomy import open_bound
from regraft.budget import Budget, Deadline
from regraft.checkpoint import Checkpoint, load_tokenizer, max_length, open_checkpoint
from regraft.checkpoint.batches import tokenize
from regraft.checkpoint.classifier import Classifier, probabilities
from regraft.checkpoint.export import load_classifier, load_member
from regraft.errors import BudgetError, ResizeError
from regraft.evaluate.card import Made
from regraft.evaluate.certify import member_size
from regraft.outputs import overlaps, unfit
from regraft.planner.recovery import DISTILL, TEACH_SHARE, Recovery, teacher_of, trained_head
from regraft.planner.single import write_member
from regraft.planner.wishes import check_readable
from regraft.progress import SILENT, Progress
from regraft.resize.dial import Found, Limit, Search, Shapes, interleaved
from regraft.task import Task, load_task

# Of a budget, what is held back for the test passes and writing; of that, what the result's own may take.
END_SHARE, TEST_SHARE = 0.15, 0.6
# Comparing the latency with the original's.
COMPARE_S = 2.0
SAMPLED = 200
# About what the config files of a member hold.
CONFIG_BYTES = 16_384


def resize_one(
    checkpoint: str, to: str, task: str, out: Path, *, budget: str = "5m", vocabulary: bool = False,
    criterion: str | None = None, device: str = "cpu", seed: int = 0, progress: Progress = SILENT,
    started: float | None = None, **read: Any,
) -> dict[str, Any]:  # fmt: skip
    """The best model of a task that measures under a limit, made of one checkpoint: cut, recovered, written as a stock folder.

    Args:
        to: The limit: `params=10M`, `bytes=40MB`, `latency=5ms`.
        task: What it is scored, recovered and tested on. Choices are made on training and validation data.
        budget: Of the whole, in seconds, minutes or hours.
        vocabulary: Trim the vocabulary to the task's training texts first; tokens of other texts are made of single characters.
        criterion: Of importance; by default activations of widths and the similarity of layers' hidden states.

    Returns:
        What `regraft resize --json` prints.

    Raises:
        ResizeError: No shape keeps to the limit (names the smallest), or the result does not measure under it.
        AnatomyError: A tensor that the anatomy does not know, or whose shape is not what the config says; names tensor and axis.
        BudgetError: A budget that does not limit time.
    """
    limit, allowed = Limit.parse(to), Budget.parse(budget)
    if allowed.seconds is None:
        raise BudgetError(f"{budget!r} does not limit a resize.", "Give seconds or minutes: 5m.")
    deadline = Deadline(allowed.seconds, 0.0 if started is None else time.monotonic() - started)
    check_readable(open_bound(checkpoint), "a task has nothing else", "Leave the task out")
    opened = open_checkpoint(checkpoint)
    check_out(out, opened.folder)
    opened.check_finite()
    loaded = load_task(task, seed=seed, deadline=deadline.for_download(), **read)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as place:
        head = trained_head(opened, loaded.label_names)
        teacher = teacher_of(opened, loaded, TEACH_SHARE * deadline.left(), device)
        recovery = Recovery(loaded, Path(place), seed, device, progress, head, teacher)
        width = opened.hidden_size if head is None else head.weight.shape[1]
        original = _under_a_head(opened, loaded, device)

        def measure(folder: Path) -> float:
            parameters, size = member_size(folder)
            if limit.kind != "latency":
                return parameters if limit.kind == "params" else size
            return float(_compare(load_member(folder, device), original, loaded)["resized"]["median_ms"])

        search = Search(
            checkpoint, limit, recovery.score, recovery.recover, loaded.train.texts,
            loaded.train.texts if vocabulary else None, (width + 1) * len(loaded.label_names),
            bytes_each=4, tokens=median_tokens(opened, loaded.validation.texts), criterion=criterion,
            deadline=deadline.part(deadline.left() - END_SHARE * allowed.seconds), seed=seed, progress=progress,
            body=True, beside=_beside(opened, Path(place)), measure=measure,
            measures=("probe of training texts, on validation texts", f"validation {loaded.metric}"),
        )  # fmt: skip
        found = search.run(Path(place) / "found")
        classifier = load_member(found.folder, device)
        latency = _compare(classifier, original, loaded)
        legs = recovery.legs.get(found.trained, []) if found.trained is not None else []
        settings = {"limit": limit.text, "cut": dict(found.counts)} | ({} if teacher is None else {"distill": DISTILL})
        made = Made("resize", settings, legs, seed)
        rows = recovery.room(TEST_SHARE * deadline.left(), len(loaded.test))
        written = write_member(classifier, opened, loaded, out, made, rows=rows, progress=progress)
        before = _original(opened, loaded, device, recovery.room(deadline.left(), len(loaded.test)))
    return {
        **written,
        "limit": limit.text,
        "taught": teacher is not None,
        "original": before,
        "latency": latency,
        **_said(found),
    }


def shapes_of(checkpoint: str, to: str) -> dict[str, Any]:
    """The shapes under a limit of parameters or bytes, and what cannot be cut: headers only, nothing is tried or written.

    Raises:
        ResizeError: A limit of latency, which has to be timed; or no shape keeps to it.
    """
    limit = Limit.parse(to)
    if limit.kind == "latency":
        raise ResizeError("Latency has to be timed.", "Leave --dry-run out, or give a limit of params or bytes.")
    shapes = Shapes(open_bound(checkpoint))
    sizes = [shapes.size(one) for one in shapes.under(limit, lambda counts: shapes.size(counts).value(limit.kind))]
    return {
        "limit": limit.text, "not_applicable": shapes.not_applicable,
        "shapes": [{"counts": dict(one.counts), "parameters": one.parameters, "bytes": one.bytes} for one in sizes],
    }  # fmt: skip


def check_out(out: Path, folder: Path) -> None:
    """Refuse a place where nothing may be written.

    Args:
        folder: Of the checkpoint.

    Raises:
        ResizeError: It is home or the current folder, holds something, is a link, lies in the checkpoint's folder or holds it.
    """
    fault = unfit(out)
    if fault:
        raise ResizeError(f"The output {out} {fault}.", "Give --out a new folder.")
    if overlaps(out, [folder]):
        raise ResizeError(f"The output {out} lies in the folder of the checkpoint, or holds it.", "Give --out another.")
    if out.is_file() or (out.exists() and any(out.iterdir())):
        raise ResizeError(f"{out} is not an empty folder.", "Give --out a new folder.")


def median_tokens(checkpoint: Checkpoint, texts: Sequence[str]) -> int:
    """The median length of a text."""
    found = tokenize(load_tokenizer(checkpoint), texts[:SAMPLED], max_length(checkpoint))
    return int(np.median(found.lengths))


def _under_a_head(checkpoint: Checkpoint, task: Task, device: str) -> Classifier:
    """The original's encoder under a head of zeros: what its latency on the task is."""
    from regraft.adapt import classifier_from
    from regraft.adapt.heads import Head

    width, labels = checkpoint.hidden_size, task.label_names
    head = Head("last", np.zeros((len(labels), width), np.float32), np.zeros(len(labels), np.float32))
    return classifier_from(checkpoint, labels, head, device=device)


def _compare(classifier: Classifier, original: Classifier, task: Task) -> dict[str, Any]:
    """Milliseconds of one text, tokenising included: the result and the original, in turn."""
    models = {"resized": classifier, "original": original}
    texts = sorted(task.validation.texts[:SAMPLED], key=len)
    one = [texts[len(texts) // 2]]
    runs = {name: (lambda model=model: probabilities(model, one)) for name, model in models.items()}
    return {name: asdict(timing) for name, timing in interleaved(runs, COMPARE_S).items()}


def _beside(checkpoint: Checkpoint, scratch: Path) -> int:
    """Bytes of a member beside its weights: tokenizer, configs, labels."""
    with TemporaryDirectory(dir=scratch) as place:
        load_tokenizer(checkpoint).save_pretrained(place)
        return CONFIG_BYTES + sum(path.stat().st_size for path in Path(place).rglob("*") if path.is_file())


def _original(checkpoint: Checkpoint, task: Task, device: str, rows: int) -> dict[str, Any]:
    """What the checkpoint that was resized weighs, and how good it is as it is where it has a head for these labels, and there is
    time to see all test texts."""
    from regraft.evaluate.metrics import metrics

    about = {
        "reference": checkpoint.reference,
        "parameters": checkpoint.parameters,
        "bytes": checkpoint.bytes,
        "test": None,
    }
    if checkpoint.labels is None or set(checkpoint.labels) != set(task.label_names) or rows < len(task.test):
        return about
    found = probabilities(load_classifier(checkpoint, device), task.test.texts)
    order = [checkpoint.labels.index(label) for label in task.label_names]
    return {**about, "test": metrics(task.test.labels, found[:, order])}


def _said(found: Found) -> dict[str, Any]:
    tried: Sequence[Any] = found.tried
    return {
        "cut": dict(found.counts), "steps": [asdict(step) for step in found.steps],
        "tried": [asdict(one) for one in tried], "not_applicable": dict(found.not_applicable), "notes": list(found.notes),
    }  # fmt: skip
