"""The logistic probe against scikit-learn, its path of strengths, and its edges."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from regraft.budget import Deadline
from regraft.errors import NonFiniteError
from regraft.train import logistic
from regraft.train.logistic import STRENGTHS, fit_logistic

SHAPES = ((120, 10), (40, 80))


def data(
    rows: int, columns: int, seed: int = 0, signal: float = 1.5, classes: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    features = draw.normal(size=(rows, columns))
    features[:, :classes] += signal * np.eye(classes)[labels]
    scale = np.linspace(0.1, 10.0, columns)
    return (features * scale + 5 * scale).astype(np.float32), labels.astype(np.int64)


def scikit_learn(features: np.ndarray, labels: np.ndarray, l2: float) -> np.ndarray:
    """Probabilities of LogisticRegression(C = 1 / (l2 N)) on standardised data."""
    z = ((features - features.mean(axis=0, dtype=np.float64)) / features.std(axis=0, dtype=np.float64)).astype(
        np.float64
    )
    return LogisticRegression(C=1 / (l2 * len(z)), tol=1e-10, max_iter=5000).fit(z, labels).predict_proba(z)


@pytest.fixture
def to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Iterate until fp32 can do no better."""
    monkeypatch.setattr(logistic, "CHANGE", 0.0)
    monkeypatch.setattr(logistic, "GRADIENT", 1e-7)


@pytest.mark.usefixtures("to_the_end")
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("l2", [1e-1, 1e-2, 1e-3])
def test_the_optimum_is_that_of_scikit_learn(rows: int, columns: int, l2: float) -> None:
    features, labels = data(rows, columns)
    fitted = fit_logistic(features, labels, 4, l2=l2, max_iter=2000)
    found = softmax(fitted.logits(features).astype(np.float64), axis=1)
    assert np.abs(found - scikit_learn(features, labels, l2)).max() < 1e-3


@pytest.mark.usefixtures("to_the_end")
def test_two_classes_are_a_softmax_like_any_other() -> None:
    features, labels = data(100, 6, classes=2)
    z = (features - features.mean(axis=0)) / features.std(axis=0)
    # Of two rows of a softmax with a penalty each, the difference counts: half the penalty of a single row.
    wanted = LogisticRegression(C=2 / (1e-2 * 100), tol=1e-10, max_iter=5000).fit(z, labels).predict_proba(z)
    found = softmax(fit_logistic(features, labels, 2, l2=1e-2, max_iter=2000).logits(features), axis=1)
    assert np.abs(found - wanted).max() < 1e-3


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_stopping_early_costs_little(rows: int, columns: int) -> None:
    features, labels = data(rows, columns)
    found = softmax(fit_logistic(features, labels, 4, l2=1e-2).logits(features), axis=1)
    assert np.abs(found - scikit_learn(features, labels, 1e-2)).max() < 0.02


def test_a_fit_is_the_same_twice_and_again_from_its_strength_and_iterations() -> None:
    features, labels = data(200, 10)
    first, second = fit_logistic(features, labels, 4, seed=3), fit_logistic(features, labels, 4, seed=3)
    again = fit_logistic(features, labels, 4, l2=first.l2, max_iter=first.iterations)
    for other in (second, again):
        assert np.array_equal(first.weight, other.weight)
        assert np.array_equal(first.bias, other.bias)
        assert (first.l2, first.iterations) == (other.l2, other.iterations)
    assert first.weight.dtype == first.bias.dtype == np.float32


def test_a_fit_that_was_cut_short_is_made_again_from_its_iterations() -> None:
    features, labels = data(200, 10)
    ticks = iter(np.arange(0.0, 1e6, 1.0))
    cut = fit_logistic(features, labels, 4, l2=1e-3, deadline=Deadline(7.0, clock=lambda: float(next(ticks))))
    assert 1 < cut.iterations < fit_logistic(features, labels, 4, l2=1e-3).iterations
    again = fit_logistic(features, labels, 4, l2=1e-3, max_iter=cut.iterations)
    assert np.array_equal(cut.weight, again.weight)


def test_the_strength_is_one_that_does_well_on_unseen_examples() -> None:
    features, labels = data(400, 60, signal=1.0)
    unseen, wanted = data(4000, 60, seed=1, signal=1.0)
    accuracy = {}
    for l2 in STRENGTHS:
        accuracy[l2] = (fit_logistic(features, labels, 4, l2=l2).logits(unseen).argmax(axis=1) == wanted).mean()
    chosen = fit_logistic(features, labels, 4)
    assert chosen.l2 in STRENGTHS
    assert accuracy[chosen.l2] >= max(accuracy.values()) - 0.03


def test_an_absent_class_stays_away_and_changes_nothing_else() -> None:
    features, labels = data(80, 6, classes=3)
    spread = np.array([0, 2, 5])[labels]
    fitted = fit_logistic(features, spread, 7, l2=1e-2)
    probabilities = softmax(fitted.logits(features), axis=1)
    assert fitted.weight.shape == (7, 6)
    assert probabilities[:, [1, 3, 4, 6]].max() < 1e-9
    assert np.array_equal(fitted.weight[[0, 2, 5]], fit_logistic(features, labels, 3, l2=1e-2).weight)


@pytest.mark.parametrize("l2", [None, 1e-2])
def test_a_class_may_have_one_example(l2: float | None) -> None:
    features, labels = data(61, 6, classes=3)
    labels[labels == 2] = 0
    labels[-1] = 2
    features[-1] += 50
    fitted = fit_logistic(features, labels, 3, l2=l2)
    assert np.isfinite(fitted.weight).all()
    assert fitted.logits(features)[-1].argmax() == 2


def test_one_class_only_is_predicted() -> None:
    features, _ = data(20, 6)
    fitted = fit_logistic(features, np.full(20, 1), 3)
    assert (fitted.logits(features).argmax(axis=1) == 1).all()


def test_two_examples_are_enough() -> None:
    features = np.array([[0.0, 1.0], [1.0, 0.0]], dtype=np.float32)
    fitted = fit_logistic(features, np.array([0, 1]), 2)
    assert fitted.logits(features).argmax(axis=1).tolist() == [0, 1]


@pytest.mark.parametrize("l2", [None, 1e-2])
def test_a_deadline_in_the_past_gives_something_finite(l2: float | None) -> None:
    features, labels = data(200, 10)
    fitted = fit_logistic(features, labels, 4, l2=l2, deadline=Deadline(1.0, spent_s=9.0, clock=lambda: 0.0))
    assert fitted.iterations == 1
    assert np.isfinite(fitted.weight).all()
    assert (fitted.logits(features).argmax(axis=1) == labels).mean() > 0.4


def test_a_deadline_without_a_limit_changes_nothing() -> None:
    features, labels = data(100, 6)
    free, unlimited = fit_logistic(features, labels, 4), fit_logistic(features, labels, 4, deadline=Deadline(None))
    assert np.array_equal(free.weight, unlimited.weight)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_unit_of_the_features_does_not_matter(scale: float) -> None:
    features, labels = data(100, 6)
    wanted = fit_logistic(features, labels, 4, l2=1e-2).logits(features)
    changed = (features * scale).astype(np.float32)
    assert fit_logistic(changed, labels, 4, l2=1e-2).logits(changed) == pytest.approx(wanted, abs=5e-3)


@pytest.mark.parametrize("value", [0.0, 0.1, 1234.5])
def test_a_constant_column_gets_no_weight(value: float) -> None:
    features, labels = data(100, 6)
    features[:, 3] = value
    fitted = fit_logistic(features, labels, 4, l2=1e-2)
    assert np.abs(fitted.weight[:, 3]).max() < 1e-3
    assert np.isfinite(fitted.bias).all()


def test_features_that_are_not_finite_are_refused() -> None:
    features, labels = data(20, 3, classes=3)
    features[4, 1] = np.nan
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        fit_logistic(features, labels, 3)


def test_the_features_are_not_changed() -> None:
    features, labels = data(40, 6)
    kept = features.copy()
    fit_logistic(features, labels, 4)
    assert np.array_equal(features, kept)


def test_dead_columns_get_no_weight() -> None:
    """all-MiniLM-L6-v2 has columns of 1e-32; standardising them gave weights of 1e31, and infinite gradients later."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    features = (rng.standard_normal((90, 6)) + 2 * np.eye(3, 6)[labels]).astype(np.float32)
    features[:, 4] = 1e-32 * rng.standard_normal(90)
    assert np.abs(fit_logistic(features, labels, 3, l2=1e-2).weight).max() < 100


def test_it_takes_little_more_memory_than_the_standardised_copy() -> None:
    features, labels = data(30_000, 200)
    tracemalloc.start()
    fit_logistic(features, labels, 4, l2=1e-2, max_iter=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.7 * features.nbytes
