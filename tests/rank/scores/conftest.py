"""Examples on which every score is compared with its definition: more rows than columns, fewer, and the odd ones."""

from __future__ import annotations

import numpy as np
import pytest


def blobs(sizes: tuple[int, ...], columns: int, seed: int, signal: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian classes of these sizes in random order, in columns of several scales with means."""
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.repeat(np.arange(len(sizes)), sizes))
    features = draw.normal(size=(len(labels), columns)) * np.linspace(0.4, 1.6, columns) + 0.3
    return features + signal * draw.normal(size=(len(sizes), columns))[labels], labels


def constant_columns() -> tuple[np.ndarray, np.ndarray]:
    features, labels = blobs((9, 8, 7), 6, seed=3)
    features[:, 1], features[:, 4] = 0.0, 2.5
    return features, labels


CASES = {
    "more rows": lambda: blobs((14, 13, 13), 8, seed=0),
    "fewer rows": lambda: blobs((8, 7, 7), 35, seed=1),
    "unbalanced": lambda: blobs((21, 6, 2, 1), 7, seed=2),
    "constant columns": constant_columns,
    "two classes": lambda: blobs((11, 12), 5, seed=4),
    "hardly apart": lambda: blobs((15, 14, 13), 6, seed=5, signal=0.1),
    "small scale": lambda: (lambda one: (0.05 * one[0], one[1]))(blobs((12, 12, 9), 9, seed=6)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] and labels [N]."""
    return CASES[request.param]()


@pytest.fixture(params=("more rows", "fewer rows", "unbalanced", "two classes"))
def probabilities(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """Source probabilities [N, Z], one source class without any, and labels [N]."""
    features, labels = CASES[request.param]()
    odds = np.exp(features)
    odds[:, 2] = 0.0
    return odds / odds.sum(axis=1, keepdims=True), labels
