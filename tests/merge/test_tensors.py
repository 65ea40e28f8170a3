"""One tensor of a merge: the settings that hold for it, and what the method learns of all tensors before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regraft.merge.inputs import Opened, open_inputs
from regraft.merge.methods.ties import prepare, ties
from regraft.merge.recipe.spec import Spec, spec_of
from regraft.merge.stack import Stack
from regraft.merge.tensors import merged_tensor, prepared_for, settings_of, stack_of

LAYER = "model.layers.{}.mlp.up_proj.weight"


@pytest.fixture
def three(written: Any, llama: Any) -> tuple[Path, Path, Path]:
    return written("base", llama(0)), written("a", llama(1)), written("b", llama(2))


def weights_at(spec: Spec, opened: Opened, name: str) -> list[float]:
    return [float(one) for one in settings_of(spec, opened, name)[0]]


def test_a_gradient_runs_from_the_embeddings_to_the_head(three: tuple[Path, Path, Path]) -> None:
    base, a, b = three
    spec, opened = open_inputs(spec_of("dare_linear", [a, b], base, weight=[[0.0, 1.0], 0.5], density=[1.0, 0.5]))
    found = {name: weights_at(spec, opened, name) for name in opened.template.tensors}
    assert found["model.embed_tokens.weight"] == [0.0, 0.5]
    assert [found[LAYER.format(layer)] for layer in range(3)] == [[0.0, 0.5], [0.5, 0.5], [1.0, 0.5]]
    assert found["model.norm.weight"] == found["lm_head.weight"] == [1.0, 0.5]
    density = settings_of(spec, opened, LAYER.format(1))[1]["density"]
    assert (density.dtype, density.tolist()) == (np.float64, [1.0, 0.5])


@pytest.mark.parametrize(("name", "before"), [
    ("model.embed_tokens.weight", True), ("bert.embeddings.word_embeddings.weight", True), ("transformer.wte.weight", True),
    ("wpe.weight", True), ("shared.weight", True), ("embed_out.weight", False), ("gpt_neox.final_layer_norm.bias", False),
    ("lm_head.weight", False), ("pooler.dense.weight", False), ("classifier.bias", False),
])  # fmt: skip
def test_what_lies_before_the_layers(name: str, before: bool, written: Any) -> None:
    folder = written(
        "one", {name: np.zeros(2, np.float32), "h.0.w": np.zeros(2, np.float32), "h.1.w": np.zeros(2, np.float32)}
    )
    spec, opened = open_inputs(spec_of("linear", [folder], weight=[[0.25, 0.75]]))
    assert weights_at(spec, opened, name) == [0.25 if before else 0.75]


def test_rules_name_tensors(three: tuple[Path, Path, Path]) -> None:
    base, a, b = three
    rules = [{"filter": "mlp", "value": 0.3}, {"filter": "layers.2", "value": 0.7}, {"value": 1.0}]
    spec, opened = open_inputs(spec_of("ties", [a, b], base, weight=rules, density=[rules, 0.1], scale=rules))
    for name, expected in (
        (LAYER.format(2), 0.3),
        ("model.layers.2.input_layernorm.weight", 0.7),
        ("lm_head.weight", 1.0),
    ):
        weights, options = settings_of(spec, opened, name)
        assert weights.tolist() == [expected] * 2
        assert sorted(options["density"]) == sorted([expected, 0.1])
        assert options["scale"] == expected


def test_facts_of_the_model_arrive_where_a_method_asks_for_them(three: tuple[Path, Path, Path]) -> None:
    base, a, b = three
    spec, opened = open_inputs(spec_of("layer_swap", [a, b]))
    assert settings_of(spec, opened, LAYER.format(0))[1]["num_layers"] == 3
    spec, opened = open_inputs(spec_of("ties", [a, b], base))
    assert settings_of(spec, opened, LAYER.format(0))[1] == {}


def test_a_stack_is_what_the_files_hold(three: tuple[Path, Path, Path], llama: Any) -> None:
    base, a, b = three
    spec, opened = open_inputs(spec_of("dare_linear", [a, b], base, weight=[2.0, 3.0], seed=5))
    stack = stack_of(spec, opened, LAYER.format(1))
    assert (stack.name, stack.shape, stack.seed, stack.weights.tolist()) == (LAYER.format(1), (96, 32), 5, [2.0, 3.0])
    assert np.array_equal(stack.base(), llama(0)[LAYER.format(1)])
    assert np.array_equal(stack.inputs(), np.stack([llama(seed)[LAYER.format(1)] for seed in (1, 2)]))


def test_the_method_over_a_tensor(three: tuple[Path, Path, Path], llama: Any) -> None:
    base, a, b = three
    spec, opened = open_inputs(spec_of("ties", [a, b], base, density=0.3, weight=0.5))
    stack = stack_of(spec, opened, LAYER.format(1))
    found = merged_tensor(spec, opened, stack, None)
    expected = ties(Stack.of(list(stack.inputs()), llama(0)[LAYER.format(1)], [0.5, 0.5]), density=0.3)
    assert np.array_equal(found, expected)


def test_a_global_trim_does_not_depend_on_the_order_of_the_tensors(written: Any, llama: Any) -> None:
    """On a grid equal magnitudes are everywhere; which of them are the first must not follow the files."""
    grid = [{name: np.round(values * 20) / 64 for name, values in llama(seed).items()} for seed in range(3)]
    base, a, b = (written(name, tensors) for name, tensors in zip("xab", grid, strict=True))
    spec, opened = open_inputs(spec_of("ties", [a, b], base, density=0.1, trim="global"))
    names = list(opened.template.tensors)
    found = prepared_for(spec, opened, names)
    assert set(found) == set(names)
    turned = prepared_for(spec, opened, names[::-1])
    assert all(found[name].last.tolist() == turned[name].last.tolist() for name in names)
    stacks = [stack_of(spec, opened, name) for name in sorted(names)]
    by_hand = prepare(stacks, density=0.1, trim="global")
    assert by_hand is not None and all(by_hand[name].last.tolist() == found[name].last.tolist() for name in names)
    merged = {name: merged_tensor(spec, opened, stack_of(spec, opened, name), found) for name in names}
    changed = sum(int((merged[name] != grid[0][name]).sum()) for name in names)
    assert 0.1 * sum(grid[0][name].size for name in names) < changed


def test_most_methods_prepare_nothing(three: tuple[Path, Path, Path]) -> None:
    base, a, b = three
    spec, opened = open_inputs(spec_of("linear", [a, b]))
    assert prepared_for(spec, opened, list(opened.template.tensors)) is None
    spec, opened = open_inputs(spec_of("ties", [a, b], base, trim="global"))
    assert prepared_for(spec, opened, []) is None
