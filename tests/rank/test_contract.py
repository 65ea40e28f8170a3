"""Every ranking method keeps what it declares; methods that break a promise are caught."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from regraft import methods
from regraft.errors import MethodError
from regraft.methods import Method, Source
from regraft.rank import contract

RANKING = methods.methods("rank")


def made_up(function, *invariances: str) -> Method:  # type: ignore[no-untyped-def]
    return Method(
        "rank", "made up", function, Source("Nobody", 2026, "", "A test"), "none", invariances=frozenset(invariances)
    )


def fisher(features, labels, *, seed=0):  # type: ignore[no-untyped-def]
    """The spread of the class means in units of each column's: it moves when the basis does."""
    means = np.stack([features[labels == label].mean(axis=0) for label in np.unique(labels)])
    return float((means.var(axis=0) / (features.var(axis=0) + 1e-12)).max())


def copied_logme(features, labels, *, seed=0):  # type: ignore[no-untyped-def]
    """LogME as common copies have it: the log determinant over N directions only, at fixed alpha and beta."""
    alpha, beta = 0.5, 2.0
    squares = np.linalg.svd(features, compute_uv=False) ** 2
    return float(0.5 * features.shape[1] * np.log(alpha) - 0.5 * np.log(alpha + beta * squares).sum())


@pytest.mark.parametrize("method", RANKING, ids=lambda method: method.name)
def test_a_method_keeps_its_contract(method: Method) -> None:
    contract.check(method)


SEES_CLASSES = {"class means", "any labels at N < D"}
# What each method does not declare; every entry has a counter-example below.
UNDECLARED = {
    "gbc": SEES_CLASSES,
    "h_score": {"class means"},
    "h_score_shrunk": SEES_CLASSES | {"zero columns"},
    "knn": SEES_CLASSES,
    "leep": set(),
    "lfc": SEES_CLASSES,
    "linear_probe": SEES_CLASSES,
    "logme": SEES_CLASSES,
    "logme_regression": SEES_CLASSES | {"label permutation"},
    "nce": set(),
    "nleep": SEES_CLASSES | {"row permutation"},
    "parc": SEES_CLASSES | {"rotation", "zero columns"},
    "ped": SEES_CLASSES | {"rotation", "scaling", "zero columns"},
    "sfda": SEES_CLASSES | {"scaling", "zero columns"},
    "tmi": {"rotation", "scaling", "zero columns", "any labels at N < D"},
    "transrate": SEES_CLASSES | {"scaling"},
}
# The regularisation of SFDA is exp(-5 x the largest eigenvalue of the scatter): on the features of the contract it is nothing,
# in a smaller unit it decides.
UNIT = {"sfda": 0.1, "ped": 0.03}


def test_what_our_methods_do_not_declare() -> None:
    found = {method.name: set(contract.invariances(method)) - method.invariances for method in RANKING}
    assert found == UNDECLARED


@pytest.mark.parametrize(
    ("name", "change"), [(name, change) for name in UNDECLARED for change in sorted(UNDECLARED[name])]
)
def test_what_is_not_declared_moves_the_score(name: str, change: str) -> None:
    method, unit = methods.get("rank", name), UNIT.get(name, 1.0)
    moves = []
    for shape in contract.SHAPES:
        if change == "any labels at N < D" and shape[0] > shape[1]:
            continue
        features, labels = contract.given(method, shape)
        after, classes = contract.INVARIANCES[change](unit * features, labels)
        moves.append(abs(method(after, classes, seed=0) - method(unit * features, labels, seed=0)))
    assert max(moves) > 1e-3


@pytest.mark.parametrize("name", contract.INVARIANCES)
def test_each_change_changes_its_input(name: str) -> None:
    features, labels = contract.example(40, 90)
    after, classes = contract.INVARIANCES[name](features, labels)
    assert after.shape != features.shape or not (np.array_equal(after, features) and np.array_equal(classes, labels))


def test_a_score_that_depends_on_the_basis_is_caught() -> None:
    contract.check(made_up(fisher, "scaling", "zero columns", "label permutation", "row permutation"))
    with pytest.raises(MethodError, match="declares rotation, but moves from"):
        contract.check(made_up(fisher, "rotation"))


def test_the_common_copy_of_logme_is_caught_by_zero_columns() -> None:
    before, after = contract.scores(made_up(copied_logme), "zero columns", (40, 90))
    assert abs(after - before) > 100
    with pytest.raises(MethodError, match="declares zero columns"):
        contract.check_invariance(made_up(copied_logme, "zero columns"), "zero columns")


def test_a_score_without_a_seed_is_caught() -> None:
    draws = iter(range(10))
    with pytest.raises(MethodError, match="gives 0, then 1 on the same features"):
        contract.check(made_up(lambda features, labels, *, seed=0: next(draws)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_caught(value: float) -> None:
    with pytest.raises(MethodError, match="Seed it"):
        contract.check(made_up(lambda features, labels, *, seed=0: value))


def test_a_score_that_writes_into_its_input_is_caught() -> None:
    def greedy(features, labels, *, seed=0):  # type: ignore[no-untyped-def]
        features *= 0.5
        return 1.0

    with pytest.raises(MethodError, match="changes the features"):
        contract.check(made_up(greedy))


def test_a_score_that_prefers_noise_is_caught() -> None:
    with pytest.raises(MethodError, match="separable features"):
        contract.check(made_up(lambda features, labels, *, seed=0: -fisher(features, labels)))


def test_a_score_that_takes_labels_for_places_is_caught() -> None:
    def placed(features, labels, *, seed=0):  # type: ignore[no-untyped-def]
        return fisher(features, labels) + float(labels.max())

    with pytest.raises(MethodError, match=r"when class c is called 7 c \+ 3"):
        contract.check(made_up(placed))


def test_a_score_that_sees_no_classes_may_say_so() -> None:
    def spread(features, labels, *, seed=0):  # type: ignore[no-untyped-def]
        means = np.stack([features[labels == label].mean(axis=0) for label in labels])
        return float(((features - means) ** 2).mean())

    contract.check(made_up(spread, "rotation", "class means"))
    with pytest.raises(MethodError, match="separable features"):
        contract.check(made_up(spread, "rotation"))
    with pytest.raises(MethodError, match="declares class means, but moves"):
        contract.check(made_up(fisher, "class means"))


def test_a_score_that_saturates_may_say_so_but_only_where_it_does() -> None:
    contract.check(made_up(naive_h_score, "any labels at N < D"))
    with pytest.raises(MethodError, match=r"separable features \(40, 90\)"):
        contract.check(made_up(lambda *given, seed=0: round(naive_h_score(*given), 6)))
    with pytest.raises(MethodError, match="declares any labels at N < D, but moves"):
        contract.check(made_up(fisher, "any labels at N < D"))


def naive_h_score(features, labels, *, seed=0):  # type: ignore[no-untyped-def]
    """Unshrunk: C - 1 wherever there are more columns than rows."""
    means = np.stack([features[labels == label].mean(axis=0) for label in labels])
    return float(np.trace(np.linalg.pinv(np.cov(features.T), rcond=1e-10) @ np.cov(means.T)))


def test_source_outputs_are_probabilities_and_keep_their_own_invariances() -> None:
    seen = []

    def head(outputs, labels, *, seed=0):  # type: ignore[no-untyped-def]
        seen.append(outputs)
        return float(np.log(outputs[np.arange(len(labels)), labels % 7 % 4 if labels.max() > 3 else labels]).mean())

    one = replace(made_up(head, "row permutation", "zero columns"), needs=frozenset({"source outputs", "labels"}))
    contract.check_separable(one)
    contract.check_invariance(one, "row permutation")
    contract.check_invariance(one, "zero columns")
    assert all(np.allclose(outputs.sum(axis=1), 1.0) and (outputs >= 0).all() for outputs in seen)
    with pytest.raises(MethodError, match="column permutation, but moves"):
        contract.check_invariance(replace(one, invariances=frozenset({"column permutation"})), "column permutation")
    with pytest.raises(MethodError, match="declares rotation, which no check knows"):
        contract.check(replace(one, invariances=frozenset({"rotation"})))


def test_an_unknown_invariance_is_refused() -> None:
    with pytest.raises(MethodError, match="declares colour, which no check knows"):
        contract.check(replace(RANKING[0], invariances=frozenset({"colour"})))
