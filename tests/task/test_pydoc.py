"""builtin:pydoc: enough of it, the answer hidden, nothing alike in two splits."""

from __future__ import annotations

import ast
import itertools
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from regraft.errors import TaskError
from regraft.task import Task, load_task, pydoc
from regraft.task.pydoc import Docstring


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("builtin:pydoc")


def library(folder: Path, packages: int = 16, per_package: int = 60) -> Path:
    """A standard library made up for the test: every docstring is different."""
    numbers = itertools.count()
    for package in list(pydoc.PACKAGES)[:packages]:
        place = folder / pydoc.PACKAGES[package][0]
        names = [place] if place.suffix else [place / f"{stem}.py" for stem in ("__init__", "one", "two")]
        for path in names:
            path.parent.mkdir(parents=True, exist_ok=True)
            body = [
                f'def f{i}():\n    """The {package} of w{next(numbers)} v{next(numbers)} u{next(numbers)} is done."""\n'
                for i in range(per_package // len(names))
            ]
            path.write_text("\n".join(body), encoding="utf-8")
    return folder


def test_it_is_large_enough(task: Task) -> None:
    assert len(task.label_names) >= pydoc.MIN_CLASSES
    assert len(task.train) >= 1200
    counts = Counter(task.train.labels.tolist())
    assert min(counts.values()) >= 20
    assert max(counts.values()) <= pydoc.MAX_TEXTS
    for split in (task.validation, task.test):
        assert set(split.labels.tolist()) == set(range(len(task.label_names)))
    assert len(task.test) >= 300


def test_texts_are_short_and_the_answer_is_masked(task: Task) -> None:
    for split in task.splits().values():
        for text, label in zip(split.texts, split.labels, strict=True):
            assert task.label_names[label] not in text.lower()
            assert len(text.split()) <= pydoc.MAX_WORDS
            assert "\n" not in text


def test_nothing_is_alike_in_two_splits(task: Task) -> None:
    """By brute force over all pairs, apart from the index that the code uses."""
    words = {name: [pydoc.words_of(text) for text in split.texts] for name, split in task.splits().items()}
    for one, other in itertools.combinations(words, 2):
        left = {s for bag in words[one] for s in pydoc.shingles(bag)}
        right = {s for bag in words[other] for s in pydoc.shingles(bag)}
        assert left.isdisjoint(right)
        sets = [set(bag) for bag in words[other]]
        for bag in map(set, words[one]):
            for rest in sets:
                if len(rest) >= pydoc.JACCARD * len(bag) and len(bag) >= pydoc.JACCARD * len(rest):
                    assert len(bag & rest) < pydoc.JACCARD * len(bag | rest)


def test_units_stay_in_one_split() -> None:
    texts = [Docstring(f"text {i}", "p", f"unit {i % 13 % 7}") for i in range(200)]
    splits = pydoc.assign(texts)
    places = defaultdict(set)
    for name, part in splits.items():
        for docstring in part:
            places[docstring.unit].add(name)
    assert all(len(names) == 1 for names in places.values())
    assert sum(map(len, splits.values())) == 200
    assert all(splits.values())


def test_it_is_the_same_every_time(task: Task) -> None:
    assert load_task("builtin:pydoc").task_id == task.task_id
    assert load_task("builtin:pydoc", seed=5).task_id == task.task_id  # the split is by module, not by chance


def test_masking() -> None:
    mask = pydoc.masker("email", {"email", "message", "policy"})
    assert mask("An Email message, emails; EmailPolicy and messages of email.message") == (
        "An _ _, _s; _Policy and messages of _._"
    )


def test_near_copies_are_found() -> None:
    def made(*texts: str) -> list[Docstring]:
        return [Docstring(text, "p", "u") for text in texts]

    others = made("Return the number of bytes that were read from the file so far.", "Close it now.")
    texts = made(
        "Return the number of bytes that were written to the file so far.",  # 9 of 12 words: kept
        "Return the number of bytes that were read from a pipe.",  # shares a run of 8 words
        "close it, NOW!",  # the whole text
        "So far the number of bytes read from the file that were: return.",  # the same words in another order
        "Close it.",
    )
    kept = [d.text for d in pydoc.without_near_copies(texts, others)]
    assert kept == [texts[0].text, texts[4].text]


def test_ambiguous_texts_are_left_out() -> None:
    found = {
        "a": [Docstring("Return the  result.", "a", "u"), Docstring("only a", "a", "u")],
        "b": [Docstring("return the result.", "b", "u")],
    }
    assert {name: [d.text for d in left] for name, left in pydoc.without_ambiguous(found).items()} == {
        "a": ["only a"],
        "b": [],
    }


def test_docstrings_of_nested_definitions_belong_to_the_outer_one() -> None:
    tree = ast.parse(
        '"""module"""\nclass A:\n  """a"""\n  def f(self):\n    """f"""\nasync def g():\n  """g"""\nx = 1\n'
    )
    assert list(pydoc._of_module(tree)) == [("", "module"), ("A", "a"), ("A", "f"), ("g", "g")]


def test_nothing_is_imported_or_run(tmp_path: Path) -> None:
    folder = library(tmp_path / "lib")
    with (folder / "asyncio" / "one.py").open("a", encoding="utf-8") as file:
        file.write("\nraise SystemExit('this module was run')\n")
    (folder / "asyncio" / "broken.py").write_text("def (:\n", encoding="utf-8")
    (folder / "asyncio" / "tests").mkdir()
    (folder / "asyncio" / "tests" / "left_out.py").write_text('"""A test of the event loop."""', encoding="utf-8")
    (folder / "asyncio" / "escape.py").write_text('x = "\\d"\n', encoding="utf-8")
    built = pydoc.build(folder)
    assert len({e.label for e in built.splits["train"]}) == 16
    assert not any("event loop" in e.text for part in built.splits.values() for e in part)
    assert built.notes[0].startswith("Docstrings of 16 packages in this Python")


def test_a_missing_package_is_noted_and_too_many_are_refused(tmp_path: Path) -> None:
    folder = library(tmp_path / "lib")
    shutil.rmtree(folder / "xml")
    assert "Packages with too few docstrings here: xml." in pydoc.build(folder).notes
    small = library(tmp_path / "small", packages=11)
    with pytest.raises(TaskError, match=r"holds the docstrings of 11 packages, 12 are needed: this Python has no .py"):
        pydoc.build(small)
    with pytest.raises(TaskError, match="holds the docstrings of 0 packages"):
        pydoc.build(tmp_path / "nothing")


def test_neither_trivial_nor_hopeless(task: Task) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10, max_iter=500))
    model.fit(task.train.texts, task.train.labels)
    assert 0.45 < model.score(task.test.texts, task.test.labels) < 0.85
