"""The dull baselines: probabilities whatever the labels, and more than guessing where words tell."""

from __future__ import annotations

import numpy as np
import pytest

from regraft import methods
from regraft.errors import TaskError
from regraft.evaluate import baselines, metrics
from regraft.evaluate.baselines import LONGEST, length_read, majority, seconds_a_text, tfidf

BASELINES = methods.methods("baseline")
TOPICS = (("cat", "dog", "horse", "bird"), ("rain", "snow", "wind", "sun"), ("song", "piano", "drum", "choir"))
FILLER = ("the", "a", "we", "saw", "today", "again", "and", "very", "nice", "old", "new", "by", "house")


def toy(rows: int, seed: int, classes: int = 3) -> tuple[list[str], np.ndarray]:
    """Short texts in which one word tells the class."""
    draw = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    texts = []
    for label in labels:
        words = [*draw.choice(FILLER, size=4), *draw.choice(TOPICS[label], size=1)]
        texts.append(" ".join(draw.permutation(words)))
    return texts, labels.astype(np.int64)


CASES = {
    "three classes": ([0, 1, 2], 3),
    "two classes": ([0, 1], 2),
    "an absent class": ([0, 2], 4),
    "three of five classes": ([0, 1, 4], 5),
    "one class only": ([1], 3),
}


@pytest.mark.parametrize("method", BASELINES, ids=lambda method: method.name)
@pytest.mark.parametrize("case", CASES)
def test_predictions_are_probabilities(method: methods.Method, case: str) -> None:
    present, classes = CASES[case]
    texts, labels = toy(30, seed=0, classes=len(present))
    fitted = method(texts, np.asarray(present)[labels], classes)
    found = fitted.predict([*texts, "never heard of it", ""])
    assert found.shape == (32, classes)
    assert found.dtype == np.float64
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert found.sum(axis=1) == pytest.approx(np.ones(32))
    absent = np.setdiff1d(np.arange(classes), present)
    assert found[:, absent].sum(axis=1).max(initial=0.0) < 1e-6
    assert isinstance(fitted.parameters, int)
    assert isinstance(fitted.bytes, int)
    assert 0 < fitted.parameters < fitted.bytes


@pytest.mark.parametrize("method", BASELINES, ids=lambda method: method.name)
def test_a_class_may_have_one_example(method: methods.Method) -> None:
    texts, labels = toy(20, seed=0, classes=2)
    found = method([*texts, "a drum by the piano"], np.append(labels, 2), 3).predict(texts)
    assert found.sum(axis=1) == pytest.approx(np.ones(20))
    assert (found[:, 2] > 0).all()


@pytest.mark.parametrize("method", BASELINES, ids=lambda method: method.name)
def test_a_fit_is_the_same_twice(method: methods.Method) -> None:
    texts, labels = toy(40, seed=1)
    first, second = (method(texts, labels, 3).predict(texts) for _ in range(2))
    assert np.array_equal(first, second)


def test_the_majority_is_the_frequencies() -> None:
    fitted = majority(["x"] * 4, np.array([2, 0, 2, 2]), 4)
    assert fitted.predict(["a", "b"]).tolist() == [[0.25, 0.0, 0.75, 0.0]] * 2
    assert (fitted.parameters, fitted.bytes) == (4, 32)


@pytest.mark.parametrize("classes", [2, 3])
def test_tfidf_beats_the_majority_where_words_tell(classes: int) -> None:
    texts, labels = toy(150, seed=2, classes=classes)
    unseen, wanted = toy(60, seed=3, classes=classes)
    words = metrics(wanted, tfidf(texts, labels, classes).predict(unseen))
    guess = metrics(wanted, majority(texts, labels, classes).predict(unseen))
    assert words["accuracy"] > 0.95 > guess["accuracy"] + 0.4


def test_tfidf_is_multinomial_logistic_regression_on_its_weights() -> None:
    from sklearn.linear_model import LogisticRegression

    texts, labels = toy(90, seed=4)
    fitted = tfidf(texts, labels, 3)
    matrix = fitted.vectoriser.transform(texts)
    wanted = LogisticRegression(C=30.0, tol=1e-8, max_iter=1000).fit(matrix, labels).predict_proba(matrix)
    assert np.abs(fitted.predict(texts) - wanted).max() < 0.02  # it stops early


def test_tfidf_reads_single_letters_and_signs() -> None:
    texts = ["a ?", "b ?", "a !", "b !"] * 5
    by_letter = tfidf(texts, np.array([0, 1, 0, 1] * 5), 2).predict(["a", "b"])
    by_sign = tfidf(texts, np.array([0, 0, 1, 1] * 5), 2).predict(["?", "!"])
    assert by_letter.argmax(axis=1).tolist() == by_sign.argmax(axis=1).tolist() == [0, 1]


def test_texts_without_a_word_are_refused() -> None:
    with pytest.raises(TaskError, match="All 2 texts are empty"):
        tfidf(["", " \n"], np.array([0, 1]), 2)


def test_short_texts_are_read_whole_and_long_ones_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, labels = toy(60, seed=0)
    assert length_read(texts) == LONGEST
    long = [text + " end" * LONGEST for text in texts]
    assert length_read(long) == LONGEST
    monkeypatch.setattr(baselines, "MOST_CHARACTERS", 60 * 100)
    assert length_read(long) == 100
    assert length_read(texts) == LONGEST  # together they hold less
    fitted = tfidf(long, labels, 3)
    assert fitted.predict(long) == pytest.approx(fitted.predict(baselines.cut(long, 100)))
    assert metrics(labels, fitted.predict(texts))["accuracy"] > 0.9


def test_seconds_grow_with_what_is_read_and_with_what_is_told_apart() -> None:
    short, middle, long = (seconds_a_text(["x" * size] * 10, 10) for size in (50, 500, 10**6))
    assert 0 < middle < long < 0.01
    assert middle == pytest.approx(10 * short)
    assert seconds_a_text([], 10) == 0.0
    # The fit passes over every character for every class: at many classes twice as many take twice as long.
    few, many = (seconds_a_text(["x" * 500], classes) for classes in (10_000, 20_000))
    assert many == pytest.approx(2 * few, rel=0.01)
    assert many - few == pytest.approx(10 * (seconds_a_text(["x" * 50], 20_000) - seconds_a_text(["x" * 50], 10_000)))


def test_nearly_as_many_classes_as_texts_are_no_warning() -> None:
    """scikit-learn takes them for a regression and says so; warnings are errors here."""
    texts = [f"word{number} and word{number + 1}" for number in range(40)]
    assert tfidf(texts, np.arange(40), 40).predict(texts[:2]).shape == (2, 40)
