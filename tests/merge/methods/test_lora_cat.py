"""Concatenated adapters: held to peft's `cat`, and to the sum of the changes in float64."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regraft.errors import RegraftError
from regraft.merge.methods.lora_cat import concatenated, lora_cat
from regraft.merge.stack import Stack


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = torch.nn.Linear(12, 9, bias=False)


def adapters(*ranks: int) -> peft.PeftModel:
    """A model of one matrix with an adapter of every rank."""
    torch.manual_seed(0)
    model = None
    for number, rank in enumerate(ranks):
        config = peft.LoraConfig(r=rank, lora_alpha=3 + number, target_modules=["map"], init_lora_weights=False)
        if model is None:
            model = peft.get_peft_model(Small(), config, adapter_name=str(number))
        else:
            model.add_adapter(str(number), config)
    assert model is not None
    return model


def test_equals_peft() -> None:
    model = adapters(2, 3, 1)
    weights = [0.5, -1.5, 2.0]
    model.add_weighted_adapter(["0", "1", "2"], weights, "merged", combination_type="cat")
    layer = model.base_model.model.map
    theirs = layer.get_delta_weight("merged").detach().numpy()
    base = layer.get_base_layer().weight.detach().numpy()
    parts = [
        (layer.lora_A[key].weight.detach().numpy(), layer.lora_B[key].weight.detach().numpy(), layer.scaling[key])
        for key in "012"
    ]
    down, up = concatenated(parts, weights)
    assert down.shape == (6, 12) and up.shape == (9, 6)
    np.testing.assert_allclose(up @ down, theirs, atol=1e-6)
    inputs = [base + layer.get_delta_weight(key).detach().numpy() for key in "012"]
    np.testing.assert_allclose(lora_cat(Stack.of(inputs, base, weights)), base + theirs, atol=2e-6)


@given(seed=st.integers(0, 99), weights=st.lists(st.sampled_from([0.0, 1.0, -0.5, 3.0]), min_size=1, max_size=4))
def test_the_product_is_the_weighted_sum(seed: int, weights: list[float]) -> None:
    rng = np.random.default_rng(seed)
    parts = [(rng.normal(size=(r, 5)), rng.normal(size=(4, r)), 0.5 * r) for r in range(1, len(weights) + 1)]
    down, up = concatenated(parts, weights)
    assert len(down) == sum(len(a) for (a, _, _), weight in zip(parts, weights, strict=True) if weight)
    expected = sum(weight * scale * b @ a for (a, b, scale), weight in zip(parts, weights, strict=True))
    np.testing.assert_allclose(up @ down, expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 5), (2, 3, 4)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    base, *inputs = (np.asarray(rng.normal(size=shape), np.float32) for _ in range(3))
    expected = base + 0.3 * (inputs[0] - base.astype(np.float64)) - 2 * (inputs[1] - base.astype(np.float64))
    found = lora_cat(Stack.of(inputs, base, [0.3, -2.0]))
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_weights_of_one_half_give_equal_inputs_back() -> None:
    base, one = np.zeros(4, np.float32), np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(lora_cat(Stack.of([one, one], base, [0.5, 0.5])), one)
    np.testing.assert_array_equal(lora_cat(Stack.of([one, one], base)), 2 * one)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(RegraftError, match="NaN"):
        lora_cat(Stack.of([np.array([np.nan])], np.zeros(1)))
