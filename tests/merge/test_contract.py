"""Every registered merge method keeps what it declares; methods that break a promise are caught."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from regraft import methods
from regraft.errors import MethodError
from regraft.merge import contract
from regraft.merge.kernels import linear_combination
from regraft.merge.register import Traits
from regraft.methods import Method, Source

MERGING = methods.methods("merge")
DECLARED = {
    "breadcrumbs": {"zero weight", "permutation", "base"},
    "dare_linear": {"zero weight", "base"},
    "dare_ties": {"zero weight", "base"},
    "della": {"zero weight", "base"},
    "karcher": {"identity", "zero weight", "permutation"},
    "layer_swap": {"identity"},
    "linear": {"identity", "zero weight", "permutation"},
    "model_stock": {"identity", "permutation", "base"},
    "pcb": {"permutation", "base"},
    "rws": {"base"},
    "rws_projected": {"base"},
    "sce": {"permutation", "base"},
    "slerp": {"identity"},
    "task_arithmetic": {"zero weight", "permutation", "base"},
    "ties": {"zero weight", "permutation", "base"},
    "transfer": {"base"},
}


def made_up(function, *invariances: str) -> Method:  # type: ignore[no-untyped-def]
    return Method(
        "merge", "made up", function, Source("Nobody", 2026, "", "A test"), "none", invariances=frozenset(invariances)
    )


def check(function, *invariances: str, base: str = "required", **traits) -> None:  # type: ignore[no-untyped-def]
    contract.check(made_up(function, *invariances), Traits(base=base, **traits))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", MERGING, ids=lambda method: method.name)
def test_a_method_keeps_its_contract(method: Method) -> None:
    contract.check(method)


def test_the_methods_declare_what_the_docs_say() -> None:
    found = {method.name: set(method.invariances) for method in MERGING}
    assert {name: found.get(name) for name in DECLARED} == DECLARED


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("breadcrumbs", {"beta": 0.3, "gamma": 0.2}),
        ("breadcrumbs", {"beta": 0.0, "gamma": 0.0}),
        ("dare_ties", {"density": 0.3, "elect": "weighted", "divide": "weight"}),
        ("della", {"density": 0.4, "epsilon": 0.3, "elect": "mass", "divide": "count"}),
        ("layer_swap", {"bottom": 1, "top": 1, "transition": 1, "outside": "average"}),
        ("pcb", {"scope": "tensor", "density": 0.9}),
        ("rws", {"bits": 8, "scale": 0.5}),
        ("rws_projected", {"layers": 0}),
        ("sce", {"density": 1.0}),
        ("sce", {"density": 0.5, "scale": 0.7}),
    ],
)
def test_other_options_keep_the_contract_too(name: str, options: dict[str, object]) -> None:
    contract.check(methods.get("merge", name), **options)


def test_identity_of_a_merge_that_averages_with_the_base_is_caught() -> None:
    def halfway(stack):  # type: ignore[no-untyped-def]
        return stack.combine(np.full(stack.n, 0.5 / stack.n), base=0.5)

    check(halfway, "permutation", "base")
    with pytest.raises(MethodError, match="declares identity"):
        check(halfway, "identity")


def test_a_merge_that_counts_inputs_of_weight_zero_is_caught() -> None:
    def mean(stack):  # type: ignore[no-untyped-def]
        return stack.combine(stack.weights / stack.n)

    with pytest.raises(MethodError, match="declares zero weight, but without that input"):
        check(mean, "zero weight", base="none")


def test_a_merge_that_looks_at_an_input_of_weight_zero_is_caught() -> None:
    def largest(stack):  # type: ignore[no-untyped-def]
        return stack.inputs().max(axis=0)

    with pytest.raises(MethodError, match="input 0 of 2"):
        check(largest, "zero weight", base="none")


def test_a_merge_that_prefers_the_first_input_is_caught() -> None:
    def first(stack):  # type: ignore[no-untyped-def]
        return stack.combine(np.eye(stack.n)[0])

    check(first, "identity", base="none")
    with pytest.raises(MethodError, match="another order moves"):
        check(first, "permutation", base="none")


def test_a_merge_that_moves_the_base_is_caught() -> None:
    with pytest.raises(MethodError, match="equal to the base change it"):
        check(lambda stack: stack.combine(np.full(stack.n, 1e-3), base=1.0), "base")


def test_a_merge_with_nan_where_nothing_changed_is_caught() -> None:
    def normalised(stack):  # type: ignore[no-untyped-def]
        deltas = stack.deltas()
        with np.errstate(all="ignore"):
            return (stack.base() + (deltas / np.abs(deltas)).sum(axis=0)).astype(np.float32)

    with pytest.raises(MethodError, match="NaN or infinite"):
        check(normalised)


@pytest.mark.parametrize("result", [np.zeros(3, np.float32), np.zeros((), np.float64), None])
def test_another_shape_or_dtype_is_caught(result: object) -> None:
    with pytest.raises(MethodError, match="expected float32 of that shape"):
        check(lambda stack: result)


def test_a_merge_without_a_seed_is_caught() -> None:
    draws = iter(range(1000))
    with pytest.raises(MethodError, match="gives two results"):
        check(lambda stack: stack.combine(np.full(stack.n, 0.1 + next(draws))))


def test_a_merge_that_depends_on_its_blocks_is_caught() -> None:
    def from_block(out, base, inputs, start):  # type: ignore[no-untyped-def]
        out[:] = inputs[0] + np.float32(out.size)

    with pytest.raises(MethodError, match="smaller blocks change"):
        check(lambda stack: stack.map(from_block))


def test_a_merge_that_writes_into_its_inputs_is_caught() -> None:
    def greedy(stack):  # type: ignore[no-untyped-def]
        stack.sources[0].values[...] *= np.float32(0.5)
        return np.zeros(stack.shape, np.float32)

    with pytest.raises(MethodError, match="are changed"):
        check(greedy)


def test_facts_of_the_model_and_what_was_prepared_arrive() -> None:
    seen = []

    def facts(stack, *, num_layers, prepared, density=0.5):  # type: ignore[no-untyped-def]
        seen.append((num_layers, prepared, density.shape == (stack.n,)))
        return stack.map(linear_combination, np.full(stack.n, 1.0 / stack.n), 0.0)

    check(facts, wants=("num_layers",), prepare=lambda stacks, **options: len(stacks), per_input=("density",))
    assert set(seen) == {(contract.LAYERS, 1, True)}


def test_a_base_that_is_optional_is_left_out_once() -> None:
    seen = set()

    def mean(stack):  # type: ignore[no-untyped-def]
        seen.add(stack.has_base)
        return stack.combine(np.full(stack.n, 1.0 / stack.n))

    check(mean, "identity", "base", base="optional")
    assert seen == {True, False}


def test_an_unknown_invariance_is_refused() -> None:
    with pytest.raises(MethodError, match="declares colour, which no check knows"):
        contract.check(replace(MERGING[0], invariances=frozenset({"colour"})))
