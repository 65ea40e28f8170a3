"""Data that cannot be used is refused in words that name the file, the place and the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regraft.errors import BadReferenceError, TaskError
from regraft.task import load_task

GOOD = "text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(30))


def write(path: Path, body: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body if isinstance(body, bytes) else body.encode())
    return str(path)


def rows(*pairs: tuple[str, Any]) -> str:
    return "\n".join(json.dumps({"text": text, "label": label}) for text, label in pairs)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "is empty"),
        ("text,label\n", "has no rows"),
        ("\n\ntext,label\n", "line 1: expected a header row"),
        ("text,text,label\na,b,c\n", "line 1: the header names text more than once"),
        (GOOD + "one, two,a\n", "line 32: 3 fields, the header has 2. Put texts that hold the separator"),
        (GOOD + "alone\n", "line 32: 1 fields, the header has 2"),
        (GOOD + '"he said "no" twice",a\n', "line 32: .*expected after"),
        (GOOD + '"never closed,a\n', "line 32: unexpected end of data"),
        ("text,label\n" + "same,a\nother,b\n" * 2, "2 training examples are left .*too few"),
        ("text,label\n" + "".join(f"t{i},a\n" for i in range(30)), "every row has the label 'a'"),
        ("text,label\n" + "".join(f"t{i},\n" for i in range(30)), "column 'label' is empty in all rows"),
        ("text,label\n" + ",a\n,b\n" * 10, "column 'text' is empty"),
        ("text,label\n" + "".join(f"t{i},{i / 7}\n" for i in range(100)), "100 different real numbers: a regression"),
        ("text,label\n" + "".join(f"t{i},id{i}\n" for i in range(100)), "100 different values in 100 rows"),
        (
            "words,number\n" + "".join(f"{i},{i % 2}\n" for i in range(30)),
            "which column holds the text .no column of str",
        ),
        ("foo,bar\n" + "".join(f"a{i},b{i % 2}\n" for i in range(30)), "columns: foo, bar. .*--text-column NAME"),
        ("text,foo,bar\n" + "a,1,2\n" * 30, "which column holds the label .*columns: text, foo, bar"),
        ("question,sentence,label\n" + "a,b,c\n" * 30, "question and sentence could all be it"),
        ("text,intent,topic\n" + "a,b,c\n" * 30, "intent and topic could all be it"),
    ],
)
def test_csv(tmp_path: Path, body: str, words: str) -> None:
    reference = write(tmp_path / "data.csv", body)
    with pytest.raises(TaskError, match=words) as raised:
        load_task(reference)
    if "too few" not in words:
        assert "data.csv" in raised.value.problem
    assert raised.value.remedy


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"text": "a", "label": 1}\n{"text": \n', "line 2: not JSON"),
        ('{"text": "a", "label": 1}\n[1]\n', "line 2: expected an object, found list"),
        ('[{"text": "a"}, 3]', "element 2: expected an object, found int"),
        ("[" * 100_000, "not JSON"),
        ("[]", "has no rows"),
        (
            rows(*((f"t{i}", ["a", "b"]) for i in range(30))),
            "row 1: the label is a list, expected one string or number",
        ),
        (
            rows(*((f"t{i}", "ab"[i % 2]) for i in range(1200))) + '\n{"text": 5, "label": "a"}',
            "row 1201: 'text' is int",
        ),
        (rows(*((f"t{i}", None) for i in range(30))), "column 'label' is empty in all rows"),
    ],
)
def test_json(tmp_path: Path, body: str, words: str) -> None:
    with pytest.raises(TaskError, match=words) as raised:
        load_task(write(tmp_path / "data.jsonl", body))
    assert "data.jsonl" in raised.value.problem


def test_five_examples(tmp_path: Path) -> None:
    with pytest.raises(
        TaskError, match=r"5 training examples are left after duplicates and held-out splits: too few. Give data"
    ):
        load_task(write(tmp_path / "d.csv", "text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(5))))


@pytest.mark.parametrize(("option", "value"), [("text_column", "body"), ("label_column", "kind")])
def test_wrong_columns(tmp_path: Path, option: str, value: str) -> None:
    reference = write(tmp_path / "d.csv", GOOD)
    with pytest.raises(
        TaskError, match=f"no column '{value}'; it has text, label. Correct --{option.replace('_', '-')}"
    ):
        load_task(reference, **{option: value})  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="named as text and as label"):
        load_task(reference, text_column="text", label_column="text")
    with pytest.raises(TaskError, match="column 'label' holds numbers, expected strings"):
        load_task(write(tmp_path / "n.csv", "label,kind\n1,a\n2,b\n"), text_column="label", label_column="kind")


def test_columns_by_option_and_by_elimination(tmp_path: Path) -> None:
    body = "foo,bar\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(30))
    by_option = load_task(write(tmp_path / "d.csv", body), text_column="foo", label_column="bar")
    assert load_task(str(tmp_path / "d.csv"), text_column="foo").task_id == by_option.task_id
    assert load_task(write(tmp_path / "e.csv", GOOD)).task_id == by_option.task_id
    assert (
        load_task(
            write(
                tmp_path / "f.csv",
                "id,Utterance,Intent\n" + "".join(f"{i},text {i},{'ab'[i % 2]}\n" for i in range(30)),
            )
        ).task_id
        == by_option.task_id
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "caf\u00e9,a\n".encode() + "caf\u00e9,b\n".encode("latin-1"),
            "mixed encodings: line 32 is UTF-8, line 33 is not",
        ),
        (
            "caf\u00e9 ".encode() + "caf\u00e9,b\n".encode("latin-1"),
            "mixed encodings: line 32 is UTF-8, line 32 is not",
        ),
        (b"a\x81b,a\n", "line 32: byte 0x81 is neither UTF-8 nor Windows-1252"),
        (b"a\x00b,a\n", "line 32: holds a NUL byte"),
    ],
)
def test_encodings_that_are_refused(tmp_path: Path, line: bytes, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        load_task(write(tmp_path / "d.csv", GOOD.encode() + line))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_encodings_that_are_read(tmp_path: Path, encoding: str, kind: str) -> None:
    pairs = [(f"caf\u00e9 {i}", "ab"[i % 2]) for i in range(30)]
    lines = [f"{text},{label}" for text, label in pairs]
    if kind == "jsonl":
        lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in pairs]
    header = ["text,label"] if kind == "csv" else []
    task = load_task(write(tmp_path / f"d.{kind}", "\n".join(header + lines).encode(encoding)))
    texts = [text for split in task.splits().values() for text in split.texts]
    assert sorted(texts) == sorted(text for text, _ in pairs)
    assert any("Windows-1252" in note for note in task.notes) == (encoding in ("latin-1", "cp1252"))


def test_quotes_and_line_breaks_in_csv(tmp_path: Path) -> None:
    body = 'text,label\n"a, ""b""\nc",x\n' + "".join(f"t{i},{'xy'[i % 2]}\n" for i in range(30))
    task = load_task(write(tmp_path / "d.csv", body))
    assert 'a, "b"\nc' in [text for split in task.splits().values() for text in split.texts]


def test_unquoted_tsv_is_read_as_it_is(tmp_path: Path) -> None:
    body = 'text\tlabel\n"The best" said he\tx\n' + "".join(f"t{i}\t{'xy'[i % 2]}\n" for i in range(30))
    task = load_task(write(tmp_path / "d.tsv", body))
    assert '"The best" said he' in [text for split in task.splits().values() for text in split.texts]
    assert "d.tsv: quotes are read as plain characters." in task.notes


def test_lone_surrogates_are_repaired(tmp_path: Path) -> None:
    body = rows(*((f"t{i}", "ab"[i % 2]) for i in range(30))) + '\n{"text": "bad \\ud800 here", "label": "a"}'
    task = load_task(write(tmp_path / "d.jsonl", body))
    assert "train: 1 row with broken Unicode (lone surrogates) repaired." in task.notes
    assert "bad \ufffd here" in [text for split in task.splits().values() for text in split.texts]


def test_parquet(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"d.parquet: not a readable Parquet file"):
        load_task(write(tmp_path / "d.parquet", b"PAR1 no"))


def test_references_with_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(BadReferenceError, match=r"no such file or folder. Give a file, a folder"):
        load_task(str(tmp_path / "none.csv"))
    with pytest.raises(TaskError, match=r"files of the kind .xlsx are not read. Use .csv"):
        load_task(write(tmp_path / "d.xlsx", b"x"))
    with pytest.raises(TaskError, match=r"no train file; it holds d.xlsx. Name the files train, validation and test"):
        load_task(str(tmp_path))


def test_folders(tmp_path: Path) -> None:
    write(tmp_path / "twice" / "train.csv", GOOD)
    write(tmp_path / "twice" / "train.jsonl", rows(("a", "b")))
    with pytest.raises(TaskError, match=r"the train split is there as .csv and .jsonl"):
        load_task(str(tmp_path / "twice"))
    write(tmp_path / "shards" / "train-0.csv", GOOD)
    write(tmp_path / "shards" / "train-1.csv", "text,kind\na,b\n")
    with pytest.raises(TaskError, match=r"train-1.csv has the columns text, kind, .*train-0.csv has text, label"):
        load_task(str(tmp_path / "shards"))
    write(tmp_path / "columns" / "train.csv", GOOD)
    write(tmp_path / "columns" / "test.csv", "text,kind\na,b\n")
    with pytest.raises(TaskError, match=r"test.csv has no column 'label'; it has text, kind"):
        load_task(str(tmp_path / "columns"))
    write(tmp_path / "names" / "train.csv", GOOD)
    write(tmp_path / "names" / "valid.csv", "text,label\nnew,a\n")
    write(tmp_path / "names" / "dev.csv", "text,label\nnewer,a\n")
    task = load_task(str(tmp_path / "names"))
    assert task.validation.texts == ["new"]
    assert "names: dev files are not used." in task.notes


def test_splits_that_hold_the_same_texts(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", GOOD)
    write(tmp_path / "test.csv", GOOD)
    with pytest.raises(TaskError, match=r"all texts of train are also in test. Give splits that do not hold"):
        load_task(str(tmp_path))


def test_test_labels_that_train_lacks(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", GOOD)
    write(tmp_path / "test.csv", "text,label\nnew,a\nnewer,A\nnewest,B\n")
    with pytest.raises(TaskError, match=r"2 of 3 rows of test have labels that train lacks \('A', 'B'\)"):
        load_task(str(tmp_path))


def test_one_class_left_after_the_overlap(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "text,label\n" + "".join(f"t{i},a\n" for i in range(20)) + "only,b\n")
    write(tmp_path / "test.csv", "text,label\n" + "only,a\nfresh,a\n")
    with pytest.raises(TaskError, match=r"one class is left in train \('a'\)"):
        load_task(str(tmp_path))


def test_nothing_to_hold_out(tmp_path: Path) -> None:
    write(tmp_path / "d.csv", "text,label\n" + "".join(f"t{i},c{i}\n" for i in range(15)))
    with pytest.raises(TaskError, match="No class has two examples, so none can be held out for test"):
        load_task(str(tmp_path / "d.csv"))


def test_a_damaged_saved_folder(tmp_path: Path) -> None:
    write(tmp_path / "dataset_dict.json", "{}")
    with pytest.raises(TaskError, match=r"not a readable `datasets` folder|has no train split; it has none"):
        load_task(str(tmp_path))


@pytest.mark.parametrize("name", ["d.csv", "d.jsonl"])
def test_a_byte_order_mark_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    body = GOOD if name == "d.csv" else rows(*[(f"text {at}", "ab"[at % 2]) for at in range(30)]) + "\n"
    with pytest.raises(TaskError, match="mixed encodings: line 1 is UTF-8, line"):
        load_task(write(tmp_path / name, b"\xef\xbb\xbf" + body.encode() + b"caf\xe9,b\n"))
    with pytest.raises(TaskError, match="not utf-16"):
        load_task(write(tmp_path / name, b"\xff\xfe" + body.encode("utf-16-le") + b"\x00\xd8a"))
