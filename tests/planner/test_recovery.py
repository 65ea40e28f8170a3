"""Training a cut checkpoint again: what is on record of it, and what scores are measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from regraft.adapt import Head, classifier_from
from regraft.checkpoint import open_checkpoint
from regraft.checkpoint.export import write_classifier
from regraft.features import Features
from regraft.planner import recovery as module
from regraft.planner.recovery import Recovery, teacher_of, trained_head
from regraft.rank import linear_probe
from regraft.task import Split, Task, load_task


@pytest.fixture
def task(toy_task_files: Path) -> Task:
    return load_task(str(toy_task_files))


def test_the_record_holds_the_training_of_what_was_trained_further(
    tiny_bert: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    legs = iter([[(3, 5)], [(7, 7)]])
    monkeypatch.setattr(Recovery, "_train", lambda *_: next(legs))
    recovery = Recovery(task, tmp_path)
    first = recovery.recover(tiny_bert, 20.0, tmp_path / "one")
    second = recovery.recover(tmp_path / "one", 20.0, tmp_path / "two")
    assert recovery.legs == {tmp_path / "one": [(3, 5)], tmp_path / "two": [(3, 5), (7, 7)]}
    assert min(first, second) >= 0.0 and max(first, second) <= 1.0
    assert open_checkpoint(str(tmp_path / "two")).labels == tuple(task.label_names)
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}  # no states or features stay


def features_are(
    monkeypatch: pytest.MonkeyPatch, values: Mapping[str, np.ndarray], seen: list[str] | None = None
) -> None:
    """Every checkpoint computes these of the texts."""

    def extract(_: object, texts: Sequence[str], **__: object) -> Features:
        if seen is not None:
            seen.extend(texts)
        rows = np.stack([values[text] for text in texts]).astype(np.float32)
        return Features(np.stack([rows, rows]), np.stack([rows, rows]), 0.0)

    monkeypatch.setattr(module, "extract", extract)


def grouped(groups: int = 10) -> tuple[Task, dict[str, np.ndarray]]:
    """A task whose splits are by source, and features that show the source of a text and nothing else."""
    values: dict[str, np.ndarray] = {}

    def split(first: int, name: str) -> Split:
        sources = np.repeat(np.arange(first, first + groups), 6)
        texts = [f"{name} {number}" for number in range(len(sources))]
        values.update({text: np.eye(3 * groups)[source] for text, source in zip(texts, sources, strict=True)})
        return Split(texts, (sources % 2).astype(np.int64))

    splits = [split(number * groups, name) for number, name in enumerate(("train", "validation", "test"))]
    return Task("r", "n", ("even", "odd"), "accuracy", *splits, (), "id"), values


def test_what_texts_of_one_source_share_is_no_quality(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, values = grouped()
    features_are(monkeypatch, values)
    among = np.stack([values[text] for text in task.validation.texts])
    assert linear_probe(among, task.validation.labels) == 1.0  # others of the same source give each away
    assert Recovery(task, tmp_path).score(tiny_bert) == 0.5  # nothing was learned of these sources


def test_scores_are_of_validation_texts_after_a_fit_of_training_texts(
    tiny_bert: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits, seen = (task.train, task.validation), list[str]()
    noise = np.random.default_rng(0)
    values = {text: np.eye(3)[label] + 0.1 * noise.normal(size=3)
              for split in splits for text, label in zip(split.texts, split.labels, strict=True)}  # fmt: skip
    features_are(monkeypatch, values, seen)
    recovery = Recovery(task, tmp_path)
    recovery._pace_s = 1e-9
    assert recovery.score(tiny_bert) == recovery.score(tiny_bert) == 1.0
    assert set(seen) == {*task.train.texts, *task.validation.texts}
    seen.clear()
    monkeypatch.setattr(module, "FITTED", 9)
    monkeypatch.setattr(module, "SCORED", 6)
    assert recovery.score(tiny_bert) == 1.0
    assert len(set(seen) & set(task.train.texts)) == 9 and len(set(seen) & set(task.validation.texts)) == 6
    assert len(seen) == 15


@pytest.fixture
def member(tiny_bert: Path, task: Task, tmp_path: Path) -> tuple[Path, Head]:
    """A written classifier over tiny_bert and its head: logits are the first three hidden units, times 9."""
    head = Head("last", 9.0 * np.eye(3, 32, dtype=np.float32), np.array([0.0, 0.1, 0.2], np.float32))
    folder = tmp_path / "member"
    folder.mkdir()
    write_classifier(classifier_from(open_checkpoint(str(tiny_bert)), task.label_names, head), folder, {})
    return folder, head


def test_a_trained_head_is_found_in_the_order_of_the_labels(
    member: tuple[Path, Head], tiny_bert: Path, tiny_classifier: Path, task: Task
) -> None:
    folder, head = member
    found = trained_head(open_checkpoint(str(folder)), task.label_names[::-1])
    assert found is not None and found.view == "last" and found.hidden == 32
    np.testing.assert_array_equal(found.weight, head.weight[::-1])
    np.testing.assert_array_equal(found.bias, head.bias[::-1])
    assert trained_head(open_checkpoint(str(folder)), ("other", *task.label_names[1:])) is None
    assert trained_head(open_checkpoint(str(tiny_bert)), task.label_names) is None
    assert trained_head(open_checkpoint(str(tiny_classifier)), task.label_names) is None  # of a stock class


def test_training_starts_from_the_better_head(
    member: tuple[Path, Head], tiny_bert: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training texts say nothing, so that a new head is a guess; validation texts agree with the trained one, or not."""
    folder, head = member
    starts: list[np.ndarray] = []
    monkeypatch.setattr(Recovery, "_train", lambda self, adaptation, *_: starts.append(
        adaptation.classifier.head.weight.detach().numpy().copy()) or [])  # fmt: skip
    noise = np.random.default_rng(0)
    values = {text: noise.normal(size=32) for text in task.train.texts}
    right = {text: np.eye(32)[label] for text, label in zip(task.validation.texts, task.validation.labels, strict=True)}
    features_are(monkeypatch, values | right)
    Recovery(task, tmp_path).recover(folder, 20.0, tmp_path / "own")  # the folder's own head
    Recovery(task, tmp_path, head=head).recover(tiny_bert, 20.0, tmp_path / "given")  # of what was cut
    features_are(monkeypatch, values | {text: -one for text, one in right.items()})
    Recovery(task, tmp_path, head=head).recover(tiny_bert, 20.0, tmp_path / "worse")
    wide = Head("last", np.ones((3, 48), np.float32), np.zeros(3, np.float32))
    Recovery(task, tmp_path, head=wide).recover(tiny_bert, 20.0, tmp_path / "cut")  # hidden has fewer units now
    np.testing.assert_array_equal(starts[0], head.weight)
    np.testing.assert_array_equal(starts[1], head.weight)
    assert not any(np.array_equal(one, head.weight) for one in starts[2:])


def test_a_teacher_is_the_stock_model_over_the_training_texts(
    tiny_classifier: Path, tiny_bert: Path, task: Task
) -> None:
    opened = open_checkpoint(str(tiny_classifier))
    found = teacher_of(opened, task, 60.0)
    assert found is not None and found.shape == (len(task.train), 3)
    tokenizer = AutoTokenizer.from_pretrained(tiny_classifier)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_classifier)
    order = [model.config.label2id[label] for label in task.label_names]
    for row in (0, 7, 31):
        with torch.no_grad():
            logits = model(**tokenizer(task.train.texts[row], return_tensors="pt")).logits[0, order]
        np.testing.assert_allclose(found[row], logits.numpy(), atol=1e-5)
    assert teacher_of(opened, task, 0.0) is None  # it would take longer
    assert teacher_of(open_checkpoint(str(tiny_bert)), task, 60.0) is None


def test_a_teacher_has_a_share_of_the_loss(
    tiny_bert: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, object]] = []
    monkeypatch.setattr(Recovery, "_train", lambda self, adaptation, data, *_: seen.append(
        (adaptation.settings.distill, data.teacher)) or [])  # fmt: skip
    teacher = np.zeros((len(task.train), 3), np.float32)
    Recovery(task, tmp_path).recover(tiny_bert, 20.0, tmp_path / "alone")
    Recovery(task, tmp_path, teacher=teacher).recover(tiny_bert, 20.0, tmp_path / "taught")
    assert seen[0] == (0.0, None)
    assert seen[1][0] == 0.5 and seen[1][1] is teacher


def test_little_time_has_room_for_few_texts(task: Task, tmp_path: Path) -> None:
    recovery = Recovery(task, tmp_path)
    assert recovery.room(0.1, 5000) == 5000  # nothing is known yet
    recovery._pace_s = 0.01
    assert recovery.room(20.0, 5000) == 2000
    assert recovery.room(0.0, 5000) == 100
    assert recovery.room(0.0, 7) == 7
    assert np.isfinite(recovery.room(1e9, 5000))
