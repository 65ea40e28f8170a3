"""MODEL SELECTOR: beliefs and information against loops over Bayes' rule, and what it is for: few labels find the best."""

from __future__ import annotations

from math import log

import numpy as np
import pytest

from regraft.errors import TaskError
from regraft.rank.few_labels import GRID, ModelSelector, choose_epsilon, information, posterior, select


def crowd(seed: int, rows: int = 300, models: int = 12, classes: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions [N, M], labels [N], and each model's accuracy [M]; one is clearly the best."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, rows)
    rates = np.append(draw.uniform(0.4, 0.7, models - 1), 0.9)
    wrong = (labels[:, None] + draw.integers(1, classes, (rows, models))) % classes
    predictions = np.where(draw.random((rows, models)) < rates, labels[:, None], wrong)
    return predictions, labels, (predictions == labels[:, None]).mean(axis=0)


def naive_posterior(predictions: np.ndarray, labelled: dict[int, int], epsilon: float) -> list[float]:
    odds = []
    for model in range(predictions.shape[1]):
        likely = 1.0
        for row, label in labelled.items():
            likely *= 1 - epsilon if predictions[row, model] == label else epsilon
        odds.append(likely)
    return [one / sum(odds) for one in odds]


def naive_information(row: np.ndarray, belief: list[float], epsilon: float, classes: int) -> float:
    before = -sum(p * log(p) for p in belief if p > 0)
    after = 0.0
    for label in range(classes):
        odds = [p * (1 - epsilon if one == label else epsilon) for p, one in zip(belief, row.tolist(), strict=True)]
        after += -sum(one / sum(odds) * log(one / sum(odds)) for one in odds if one > 0) / classes
    return before - after


@pytest.mark.parametrize("epsilon", [0.1, 0.35, 0.49])
def test_the_belief_is_bayes_rule(epsilon: float) -> None:
    predictions, labels, _ = crowd(0)
    selector = ModelSelector(predictions, epsilon=epsilon)
    for row in (3, 8, 100):
        selector.tell(row, labels[row])
    wanted = naive_posterior(predictions, {row: int(labels[row]) for row in (3, 8, 100)}, epsilon)
    assert selector.posterior == pytest.approx(wanted)
    assert selector.posterior.sum() == pytest.approx(1.0)
    right = [sum(predictions[row, model] == labels[row] for row in (3, 8, 100)) for model in range(12)]
    assert selector.best == [model for model in range(12) if right[model] == max(right)]


@pytest.mark.parametrize("epsilon", [0.05, 0.4])
@pytest.mark.parametrize("classes", [5, 9])
def test_the_information_is_that_of_every_belief_that_could_follow(epsilon: float, classes: int) -> None:
    predictions, _, _ = crowd(1, rows=30)
    belief = np.random.default_rng(0).dirichlet(np.ones(12))
    belief[3] = 0.0
    belief /= belief.sum()
    found = information(predictions, belief, epsilon, classes)
    wanted = [naive_information(row, belief.tolist(), epsilon, classes) for row in predictions]
    assert found == pytest.approx(wanted, abs=1e-12)


def test_it_asks_for_the_most_informative_example() -> None:
    predictions, labels, _ = crowd(2, rows=60)
    selector = ModelSelector(predictions, epsilon=0.4)
    for _ in range(5):
        belief = selector.posterior.tolist()
        left = [row for row in range(60) if row not in selector.labelled]
        told = {row: naive_information(predictions[row], belief, 0.4, 5) for row in left}
        row = selector.ask()
        assert told[row] == pytest.approx(max(told.values()), abs=1e-9)
        assert selector.ask() == row  # asking changes nothing
        selector.tell(row, labels[row])


def test_examples_on_which_all_agree_are_asked_for_last() -> None:
    predictions = np.array([[0, 0, 0], [0, 1, 2], [1, 1, 1], [2, 2, 0]])
    selector = ModelSelector(predictions, epsilon=0.3)
    order = []
    for label in (0, 0, 0, 0):
        order.append(selector.ask())
        selector.tell(order[-1], label)
    assert set(order[:2]) == {1, 3}
    assert sorted(order) == [0, 1, 2, 3]
    with pytest.raises(TaskError, match="Every example is labelled"):
        selector.ask()


def nested(seed: int, rows: int = 300, models: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Models that all solve the easy examples, and more or fewer of the hard ones: [N, M], labels [N], accuracies [M]."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 5, rows)
    hard = draw.random(rows) < 0.2
    skills = np.append(draw.uniform(0.1, 0.5, models - 1), 0.9)
    right = draw.random((rows, models)) < np.where(hard[:, None], skills, 0.98)
    wrong = (labels[:, None] + draw.integers(1, 5, (rows, models))) % 5
    predictions = np.where(right, labels[:, None], wrong)
    return predictions, labels, right.mean(axis=0)


def test_few_labels_find_the_best_model_more_often_than_random_ones() -> None:
    budget, hits, random_hits = 12, 0.0, 0.0
    for seed in range(12):
        predictions, labels, rates = nested(seed)
        best = int(np.argmax(rates))
        found = select(predictions, lambda row, labels=labels: labels[row], budget, epsilon=0.4, seed=seed)
        assert len(found.labelled) == budget
        hits += (best in found.best) / len(found.best)
        rows = np.random.default_rng(seed).permutation(300)[:budget]
        right = (predictions[rows] == labels[rows, None]).sum(axis=0)
        random_hits += (right[best] == right.max()) / (right == right.max()).sum()
    assert hits > random_hits + 2


def test_the_error_rate_is_chosen_without_labels_and_with_the_seed() -> None:
    predictions, _, _ = crowd(4, rows=80, models=6)
    chosen = choose_epsilon(predictions, seed=1)
    assert chosen in GRID
    assert chosen == choose_epsilon(predictions, seed=1) == ModelSelector(predictions, seed=1).epsilon
    assert choose_epsilon(predictions, seed=1, grid=(0.2,)) == 0.2


def test_models_that_agree_leave_the_middle_of_the_grid() -> None:
    predictions = np.tile(np.arange(10)[:, None] % 2, (1, 3))
    assert choose_epsilon(predictions) == GRID[len(GRID) // 2]


def test_selection_is_the_same_for_a_seed_and_names_do_not_matter() -> None:
    predictions, labels, _ = crowd(5)
    names = np.array(["ant", "bee", "cat", "dog", "eel"])
    first = select(predictions, lambda row: labels[row], 10, epsilon=0.4, seed=3)
    again = select(names[predictions], lambda row: names[labels[row]], 10, epsilon=0.4, seed=3)
    assert list(first.labelled) == list(again.labelled)
    assert first.posterior == pytest.approx(again.posterior)


def test_a_label_that_no_model_predicts_is_one_that_all_got_wrong() -> None:
    selector = ModelSelector(np.array([[0, 1], [1, 0]]), epsilon=0.3)
    selector.tell(0, "something else")
    assert selector.posterior == pytest.approx([0.5, 0.5])
    assert selector.best == [0, 1]


def test_a_label_of_another_kind_is_refused() -> None:
    selector = ModelSelector(np.array([[0, 1], [1, 1], [2, 0]]), epsilon=0.4)
    with pytest.raises(TaskError, match="The label of row 0 is '1', and models predict 1"):
        selector.tell(0, "1")
    assert not selector.labelled


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = np.random.default_rng(0).integers(0, 5, (40, 7))
    belief = np.full(7, 1 / 7)
    whole = information(predictions, belief, 0.4, 5)
    monkeypatch.setattr("regraft.rank.few_labels.CELLS", 3 * 7)
    assert np.array_equal(information(predictions, belief, 0.4, 5), whole)


def test_posteriors_of_many_labels_stay_finite() -> None:
    assert posterior([5000.0, 4990.0], 0.01) == pytest.approx([1.0, 0.0], abs=1e-12)


def test_what_cannot_be_selected_from_is_refused() -> None:
    table = np.array([[0, 1], [1, 1]])
    for wrong in (np.zeros(4), np.zeros((4, 1)), np.zeros((0, 3))):
        with pytest.raises(TaskError, match="Predictions of shape"):
            ModelSelector(wrong)
    with pytest.raises(TaskError, match="NaN"):
        ModelSelector(np.array([[0.0, np.nan]]))
    with pytest.raises(TaskError, match="several kinds"):
        ModelSelector(np.array([[0, "a"]], dtype=object))
    for epsilon in (0.0, 0.5, 1.0):
        with pytest.raises(TaskError, match="An error rate of"):
            ModelSelector(table, epsilon=epsilon)
    selector = ModelSelector(table, epsilon=0.3)
    selector.tell(1, 0)
    with pytest.raises(TaskError, match="Row 1 is labelled already"):
        selector.tell(1, 0)
    with pytest.raises(TaskError, match="Row 7 is not one of 2"):
        selector.tell(7, 0)
