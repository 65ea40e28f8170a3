"""The dull baselines that every result stands beside: the most frequent class, and TF-IDF with logistic regression.

A baseline is a function (train texts, train labels, number of classes) -> a fitted object with `predict`, `parameters` and
`bytes`. They are measured, never saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regraft.errors import TaskError
from regraft.methods import Source, method
from regraft.randomness import permutation


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
    """Logistic regression on TF-IDF weights of words and word pairs."""

    vectoriser: Any
    weight: NDArray[np.float64]  # [C, V]
    bias: NDArray[np.float64]  # [C]

    @property
    def parameters(self) -> int:
        return int(self.weight.size + self.bias.size + self.vectoriser.idf_.size)

    @property
    def bytes(self) -> int:
        words = sum(len(word.encode()) for word in self.vectoriser.vocabulary_)
        return int(self.weight.nbytes + self.bias.nbytes + self.vectoriser.idf_.nbytes + words)

    def predict(self, texts: Sequence[str]) -> NDArray[np.float64]:
        from scipy.special import softmax

        logits = self.vectoriser.transform(list(texts)) @ self.weight.T + self.bias
        return np.asarray(softmax(logits, axis=1))


@method(
    "baseline",
    "majority",
    source=Source("Scikit-learn developers", 2011, "1201.0490", "Scikit-learn: machine learning in Python (DummyClassifier)"),
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
def tfidf(texts: Sequence[str], labels: NDArray[np.int64], n_classes: int, *, regularisation: float = 10.0) -> Tfidf:
    """TF-IDF (1 + log tf, words and word pairs) and multinomial logistic regression.

    Args:
        texts, labels: The training examples; labels int64 in [0, n_classes).
        regularisation: Inverse strength `C` of scikit-learn's LogisticRegression.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectoriser = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]", dtype=np.float64)
    matrix = vectoriser.fit_transform(list(texts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 30 iterations rank the classes as 300 do
        model = LogisticRegression(C=regularisation, max_iter=30, tol=1e-3).fit(matrix, labels)
    weight = np.zeros((n_classes, matrix.shape[1]))
    bias = np.full(n_classes, -30.0)
    if len(model.classes_) == 2:  # scikit-learn stores one row for two classes
        low, high = model.classes_
        weight[high], bias[high], bias[low] = model.coef_[0], model.intercept_[0], 0.0
    else:
        weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
    return Tfidf(vectoriser, weight, bias)
