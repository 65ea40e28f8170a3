"""The dull baselines that every result stands beside: the most frequent class, and TF-IDF with logistic regression.

A baseline is a function (train texts, train labels, number of classes) -> a fitted object with `predict`, `parameters` and
`bytes`. They are measured, never saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from regraft.errors import TaskError
from regraft.methods import Source, method

# Passes over the data, and steps at least: more move the accuracy on banking77, hwu64 and snips by less than its error.
PASSES, STEPS = 20, 10_000
# The logit of a class without examples: its probability is as good as zero, and finite.
ABSENT = -30.0


# Most words and word pairs: long texts would otherwise make a weight matrix larger than the models it stands beside.
MOST_TERMS = 60_000
# Characters of a text that are read: more than the 512 tokens that most encoders beside it see. And of all training texts
# together: counting word pairs takes about 20 bytes a character.
LONGEST, MOST_CHARACTERS = 4000, 30_000_000
# Seconds a character takes to be read and counted.
CHARACTER_S = 7.5e-7
# Seconds the fit takes for a character and a class: 20 passes over a weight for each class and each word that is there.
FIT_S = 3.3e-8


class Baseline(Protocol):
    """A fitted baseline."""

    @property
    def parameters(self) -> int:
        """How many numbers it has learned."""

    @property
    def bytes(self) -> int:
        """How much memory these take."""

    def predict(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Class probabilities [N, C]."""


@dataclass(frozen=True)
class Majority:
    """Predicts the class frequencies of the training data, whatever the text."""

    frequencies: NDArray[np.float64]

    @property
    def parameters(self) -> int:
        return int(self.frequencies.size)

    @property
    def bytes(self) -> int:
        return int(self.frequencies.nbytes)

    def predict(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return np.tile(self.frequencies, (len(texts), 1))


@dataclass(frozen=True)
class Tfidf:
    """Logistic regression on TF-IDF weights of words and word pairs in the first `length` characters of a text."""

    length: int
    vectoriser: Any
    weight: NDArray[np.float32]  # [V, C]: rows of words lie together, so that a text touches only its own
    bias: NDArray[np.float32]  # [C]

    @property
    def parameters(self) -> int:
        return int(self.weight.size + self.bias.size + self.vectoriser.idf_.size)

    @property
    def bytes(self) -> int:
        words = sum(len(word.encode()) for word in self.vectoriser.vocabulary_)
        return int(self.weight.nbytes + self.bias.nbytes + self.vectoriser.idf_.nbytes + words)

    def predict(self, texts: Sequence[str]) -> NDArray[np.float64]:
        from scipy.special import softmax

        logits = (self.vectoriser.transform(cut(texts, self.length)) @ self.weight + self.bias).astype(np.float64)
        return np.asarray(softmax(logits, axis=1))


def cut(texts: Sequence[str], length: int) -> list[str]:
    """The first `length` characters of each text."""
    return [text[:length] for text in texts]


def length_read(texts: Sequence[str]) -> int:
    """How many characters of each text are read: at most `LONGEST`, and together at most `MOST_CHARACTERS`."""
    sizes = np.array([len(text) for text in texts], dtype=np.int64)
    low, high = 1, LONGEST
    while low < high:  # the largest that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= MOST_CHARACTERS else (low, middle - 1)
    return low


def seconds_a_text(texts: Sequence[str], n_classes: int) -> float:
    """What `tfidf` takes for one of these texts: it is read once and fitted for every class."""
    length = length_read(texts)
    characters = sum(min(len(text), length) for text in texts) / max(1, len(texts))
    return characters * (CHARACTER_S + FIT_S * max(n_classes, 10))


@method(
    "baseline",
    "majority",
    source=Source(
        "Scikit-learn developers", 2011, "1201.0490", "Scikit-learn: machine learning in Python (DummyClassifier)"
    ),
    claim="what guessing the most frequent class reaches; anything useful is above it",
    needs=("labels",),
)
def majority(texts: Sequence[str], labels: NDArray[np.int64], n_classes: int) -> Majority:
    """The class frequencies of the training labels, whatever the text."""
    counts = np.bincount(labels, minlength=n_classes).astype(np.float64)
    return Majority(counts / counts.sum())


@method(
    "baseline",
    "tfidf",
    source=Source("Salton & Buckley", 1988, "", "Term-weighting approaches in automatic text retrieval"),
    claim="sparse word weights and a linear model are hard to beat when classes differ by their words",
    needs=("text", "labels"),
)
def tfidf(texts: Sequence[str], labels: NDArray[np.int64], n_classes: int, *, regularisation: float = 30.0) -> Tfidf:
    """TF-IDF (1 + log tf, words and word pairs) and multinomial logistic regression, fitted in single precision by SAG.

    The stochastic average gradient (Schmidt, Le Roux & Bach 2017, arXiv:1309.2388) touches only the words of one example at
    a time; on 9,000 short texts of 77 classes it takes a tenth of the time of L-BFGS.

    Of long texts the beginning is read (`length_read`), in training and prediction.

    Args:
        texts, labels: The training examples; labels int64 in [0, n_classes).
        regularisation: Inverse strength `C` of scikit-learn's LogisticRegression.

    Raises:
        TaskError: No text has a single word or sign.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    if not any(text.strip() for text in texts):
        raise TaskError(f"All {len(texts)} texts are empty.", "Check which column holds the text.")
    length = length_read(texts)
    vectoriser = TfidfVectorizer(
        max_features=MOST_TERMS,
        ngram_range=(1, 2),
        sublinear_tf=True,
        token_pattern=r"(?u)\b\w+\b|[^\w\s]",
        dtype=np.float32,
    )
    matrix = vectoriser.fit_transform(cut(texts, length))
    present = np.unique(labels)
    weight = np.zeros((matrix.shape[1], n_classes), dtype=np.float32)
    bias = np.full(n_classes, ABSENT, dtype=np.float32)
    bias[present] = 0.0
    if len(present) == 1:  # nothing to tell apart
        return Tfidf(length, vectoriser, weight, bias)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # see PASSES
        # One text or two a class: said of the task where it is read.
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%", UserWarning)
        passes = max(PASSES, STEPS // len(labels))
        model = LogisticRegression(C=regularisation, solver="sag", max_iter=passes, tol=1e-3, random_state=0)
        model.fit(matrix, labels)
    if len(present) == 2:  # scikit-learn stores one row for two classes
        weight[:, present[1]], bias[present[1]] = model.coef_[0], model.intercept_[0]
    else:
        weight[:, present], bias[present] = model.coef_.T, model.intercept_
    return Tfidf(length, vectoriser, weight, bias)
