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


def test_our_methods_declare_every_invariance() -> None:
    assert {method.name: method.invariances ^ contract.INVARIANCES.keys() for method in RANKING} == {
        "knn": set(), "linear_probe": set(), "logme": set(),
    }  # fmt: skip


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


def test_an_unknown_invariance_is_refused() -> None:
    with pytest.raises(MethodError, match="declares colour, which no check knows"):
        contract.check(replace(RANKING[0], invariances=frozenset({"colour"})))
