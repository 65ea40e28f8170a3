"""`load_task` on good data: formats, splits, identity, and what cleaning leaves."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.errors import BadReferenceError, TaskError
from regraft.task import Split, Task, load_task
from regraft.task.clean import fold

ROWS = [(f"{word} number {i}", label) for i in range(20) for word, label in (("up", "rise"), ("down", "fall"))]


def said(task: Task) -> tuple[str, ...]:
    """Its notes, without those that warn of how little the toy data are."""
    return tuple(note for note in task.notes if not note.endswith("say little."))


def write_csv(path: Path, rows: list[tuple[Any, ...]], header: tuple[str, ...] = ("text", "label")) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])
    return str(path)


def content(task: Task) -> dict[str, list[tuple[str, str]]]:
    return {
        name: sorted((text, task.label_names[label]) for text, label in zip(s.texts, s.labels, strict=True))
        for name, s in task.splits().items()
    }


def test_one_file_is_split_70_10_20(tmp_path: Path) -> None:
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(1000)]
    task = load_task(write_csv(tmp_path / "d.csv", rows))
    assert (len(task.train), len(task.validation), len(task.test)) == (700, 100, 200)
    assert task.label_names == ("a", "b")
    assert np.bincount(task.test.labels).tolist() == [100, 100]
    assert sorted(row for part in content(task).values() for row in part) == sorted(rows)
    assert said(task) == (
        "test: 200 rows held out of train, stratified.",
        "validation: 100 rows held out of train, stratified.",
    )
    assert task.name == "d"


def test_formats_give_the_same_task(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, labels = zip(*ROWS, strict=True)
    made = [write_csv(tmp_path / "d.csv", ROWS), write_csv(tmp_path / "d.tsv", ROWS)]
    objects = [{"text": text, "label": label} for text, label in ROWS]
    for name, body in (
        ("d.jsonl", "\n".join(map(json.dumps, objects)) + "\n\n"),
        ("d.json", json.dumps(objects, indent=1)),
        ("e.json", "\n".join(map(json.dumps, objects))),
        ("semicolons.csv", "text;label\n" + "".join(f"{t};{label}\n" for t, label in ROWS)),
    ):
        (tmp_path / name).write_text(body, encoding="utf-8")
        made.append(str(tmp_path / name))
    pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "d.parquet")
    made.append(str(tmp_path / "d.parquet"))
    tasks = [load_task(reference) for reference in made]
    assert len({task.task_id for task in tasks}) == 1
    assert all(task.train.texts == tasks[0].train.texts for task in tasks)


def test_class_labels_of_datasets_keep_their_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"text": [f"word {i}" for i in range(30)], "label": [i % 2 for i in range(30)]}
    data = datasets.Dataset.from_dict(rows, features=features)
    unlabelled = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [-1, -1]}, features=features)
    saved = datasets.DatasetDict({"train": data, "test": unlabelled, "extra": data})
    saved.save_to_disk(str(tmp_path / "saved"))
    data.to_parquet(str(tmp_path / "d.parquet"))
    task = load_task(str(tmp_path / "saved"))
    assert task.label_names == ("no", "yes")
    assert "Splits not used: extra." in task.notes
    assert "test: no row has a label, so this split is not used." in task.notes
    other = load_task(str(tmp_path / "d.parquet"))
    assert other.task_id == task.task_id


def test_folder_with_given_splits(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ROWS)
    write_csv(tmp_path / "dev.tsv", [("up and away", "rise"), ("down below", "fall")])
    (tmp_path / "test.jsonl").write_text('{"label": "fall", "text": "down there"}\n', encoding="utf-8")
    task = load_task(str(tmp_path))
    assert (len(task.train), len(task.validation), len(task.test)) == (40, 2, 1)
    assert said(task) == ()
    assert task.test.texts == ["down there"]
    assert task.name == tmp_path.name


def test_train_and_test_only_takes_validation_from_train(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ROWS)
    write_csv(tmp_path / "test.csv", [("up and away", "rise")])
    task = load_task(str(tmp_path))
    assert (len(task.train), len(task.validation), len(task.test)) == (36, 4, 1)


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_do_not_change_the_task(tmp_path: Path, shards: int) -> None:
    for i in range(shards):
        write_csv(tmp_path / "many" / "data" / f"train-{i:05}-of-{shards:05}.csv", ROWS[i::shards])
    assert load_task(str(tmp_path / "many")).task_id == load_task(write_csv(tmp_path / "one.csv", ROWS)).task_id


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 3), st.integers(20, 50))
def test_row_order_does_not_change_the_task(
    tmp_path_factory: pytest.TempPathFactory, shuffler: random.Random, seed: int, most: int
) -> None:
    rows = [*ROWS, ("UP number 1", "rise"), ("up number 2", "fall"), ("left", "side"), ("right", "side")]
    folder = tmp_path_factory.mktemp("orders")
    ordered = load_task(write_csv(folder / "a.csv", rows), seed=seed, max_rows=most)
    shuffler.shuffle(rows)
    shuffled = load_task(write_csv(folder / "b.csv", rows), seed=seed, max_rows=most)
    assert content(shuffled) == content(ordered)
    assert shuffled.task_id == ordered.task_id
    assert shuffled.train.texts == ordered.train.texts
    assert shuffled.notes == ordered.notes


def test_identity_tells_tasks_apart(tmp_path: Path) -> None:
    reference = write_csv(tmp_path / "d.csv", ROWS)
    ids = {
        load_task(reference).task_id,
        load_task(reference, metric="macro_f1").task_id,
        load_task(reference, seed=1).task_id,
        load_task(write_csv(tmp_path / "e.csv", [*ROWS, ("sideways", "fall")])).task_id,
    }
    assert len(ids) == 4
    assert load_task(reference).task_id == load_task(reference).task_id


def test_rows_that_cannot_be_used_are_left_out_and_noted(tmp_path: Path) -> None:
    rows = [
        *ROWS,
        ("", "rise"),
        ("  \t", "fall"),
        ("no label", ""),
        ("Up  Number 1", "rise"),
        ("down number 3", "rise"),
    ]
    task = load_task(write_csv(tmp_path / "d.csv", rows))
    assert sum(map(len, task.splits().values())) == len(ROWS) - 1
    assert "train: 2 rows without text left out." in task.notes
    assert "train: 1 row without a label left out." in task.notes
    assert "train: 1 row left out, repeating another's text." in task.notes
    assert "train: 1 text left out with labels that contradict each other equally often." in task.notes


def test_the_majority_settles_a_conflict_and_a_tie_is_left_out(tmp_path: Path) -> None:
    rows = [
        *ROWS,
        ("two to one", "rise"),
        ("Two to one", "fall"),
        ("two  to one", "rise"),
        ("one to one", "rise"),
        ("one to one", "fall"),
    ]
    task = load_task(write_csv(tmp_path / "d.csv", rows))
    found = {text: task.label_names[label] for split in task.splits().values()
             for text, label in zip(split.texts, split.labels, strict=True)}  # fmt: skip
    assert "one to one" not in found
    assert {label for text, label in found.items() if text.casefold().split()[:3] == ["two", "to", "one"]} == {"rise"}
    assert "train: 1 text had more than one label; the most frequent is kept." in task.notes


def test_a_guess_is_said_and_little_data_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("comment,team\n" + "".join(f"{text},{label}\n" for text, label in ROWS))
    task = load_task(str(path))
    assert task.notes[0] == "columns: text 'comment' and label 'team', guessed by name and content."
    assert any(
        note.startswith("validation: ") and note.endswith("figures on so little say little.") for note in task.notes
    )
    named = load_task(str(path), text_column="comment", label_column="team")
    assert named.notes == task.notes[1:]


def test_overlap_is_removed_from_train(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9 opens", "Cafe\u0301  opens"
    write_csv(tmp_path / "train.csv", [*ROWS, (composed, "rise"), ("both", "fall")])
    write_csv(tmp_path / "validation.csv", [("both", "fall"), ("only here", "rise"), ("in test", "rise")])
    write_csv(tmp_path / "test.csv", [(decomposed, "rise"), ("in test", "rise"), ("in test", "rise")])
    task = load_task(str(tmp_path))
    assert (len(task.train), len(task.validation), len(task.test)) == (40, 2, 3)
    assert decomposed in task.test.texts  # compared in normal form, kept as written
    assert said(task) == (
        "validation: 1 row left out, also in test.",
        "train: 1 row left out, also in test.",
        "train: 1 row left out, also in validation.",
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xy")), min_size=10, max_size=60), st.data())
def test_no_text_is_in_two_splits(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], data: st.DataObject
) -> None:
    rows = [*ROWS, *((f"{text} {data.draw(st.sampled_from(['A', 'a', 'b']))}", label) for text, label in pairs)]
    task = load_task(write_csv(tmp_path_factory.mktemp("leak") / "d.csv", rows))
    texts = [{fold(text) for text in split.texts} for split in task.splits().values()]
    assert sum(map(len, texts)) == len(set.union(*texts)) == sum(map(len, task.splits().values()))


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([10, 9, 2], ("2", "9", "10")),
        ([1.0, 0.0, 2.0], ("0", "1", "2")),
        ([True, False, True], ("False", "True")),
        (["b", "10", "9"], ("10", "9", "b")),
        ([0.5, 1.5, 2.0], ("0.5", "1.5", "2")),
    ],
)
def test_labels_become_sorted_words(tmp_path: Path, values: list[Any], names: tuple[str, ...]) -> None:
    lines = [json.dumps({"text": f"text {i}", "label": values[i % 3]}) for i in range(30)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert load_task(str(tmp_path / "d.jsonl")).label_names == names


def test_whole_floats_and_integers_are_the_same_labels(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [(text, "1.0" if label == "rise" else "0.0") for text, label in ROWS])
    write_csv(tmp_path / "test.csv", [("up and away", "1")])
    assert load_task(str(tmp_path)).label_names == ("0", "1")


def test_max_rows_takes_a_stratified_sample_and_says_so(tmp_path: Path) -> None:
    rows = [(f"text {i}", "rare" if i % 100 == 0 else "often" if i % 4 else "some") for i in range(20_000)]
    task = load_task(write_csv(tmp_path / "d.csv", rows), max_rows=1000)
    assert sum(map(len, task.splits().values())) == 1000
    assert "train: 1,000 of 20,000 rows used, a stratified sample (--max-rows 1000)." in task.notes
    counts = sum(np.bincount(split.labels, minlength=3) for split in task.splits().values())
    assert np.allclose(counts, [750, 11, 239], atol=4)
    assert load_task("builtin:pydoc", max_rows=100).summary()["splits"]["train"] == 100


def test_labels_unseen_in_training_are_left_out(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ROWS)
    write_csv(tmp_path / "test.csv", [*((f"up {i} more", "rise") for i in range(9)), ("left", "side")])
    task = load_task(str(tmp_path))
    assert len(task.test) == 9
    assert "test: 1 row left out with labels that are not in train ('side')." in task.notes


def test_few_examples_of_a_class_are_noted(tmp_path: Path) -> None:
    task = load_task(write_csv(tmp_path / "d.csv", [*ROWS, ("alone", "lonely")]))
    assert "train: a single example of 1 label (lonely)." in task.notes


def test_two_examples_of_each_class_can_be_split(tmp_path: Path) -> None:
    rows = [(f"text {i} {j}", f"class {i}") for i in range(15) for j in range(2)]
    task = load_task(write_csv(tmp_path / "d.csv", rows))
    assert len(task.train) >= 15
    assert min(len(task.validation), len(task.test)) >= 2
    assert len(task.label_names) == 15


def test_summary_has_plain_types(tmp_path: Path) -> None:
    task = load_task(write_csv(tmp_path / "d.csv", ROWS))
    summary = json.loads(json.dumps(task.summary()))
    assert summary["splits"] == {"train": 28, "validation": 4, "test": 8}
    assert summary["classes"]["rise"] == {"train": 14, "validation": 2, "test": 4}
    assert summary["words"] == {"min": 3, "median": 3, "p90": 3, "p99": 3, "max": 3}
    assert summary["task_id"] == task.task_id


def test_a_split_has_one_label_for_each_text() -> None:
    with pytest.raises(ValueError, match="2 texts with labels of shape"):
        Split(["a", "b"], np.zeros(3, dtype=np.int64))


def test_arguments_are_checked(tmp_path: Path) -> None:
    reference = write_csv(tmp_path / "d.csv", ROWS)
    with pytest.raises(TaskError, match=r"Unknown metric 'f1'. Choose one of accuracy, macro_f1."):
        load_task(reference, metric="f1")
    with pytest.raises(TaskError, match="Allow at least 10"):
        load_task(reference, max_rows=3)
    with pytest.raises(BadReferenceError, match="The built-in task is"):
        load_task("builtin:other")
    with pytest.raises(TaskError, match="has no columns to choose"):
        load_task("builtin:pydoc", text_column="text")


def test_nothing_is_written_beside_the_data(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ROWS)
    load_task(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["train.csv"]


def test_a_long_document_is_read(tmp_path: Path) -> None:
    """The standard library's reader stops at 131,072 characters of a field unless it is told otherwise."""
    long = "many words " * 20_000
    body = "text,label\n" + "".join(f'"{long}{i}",{"ab"[i % 2]}\n' for i in range(30))
    (tmp_path / "d.csv").write_text(body, encoding="utf-8")
    task = load_task(str(tmp_path / "d.csv"))
    assert all(len(text) > 200_000 for text in task.train.texts)
