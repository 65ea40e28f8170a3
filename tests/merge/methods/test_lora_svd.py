"""The weighted sum cut to a rank: held to peft's `svd`, and to a full decomposition in float64."""

from __future__ import annotations

import tracemalloc

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.errors import MethodError
from regraft.merge.methods.lora_svd import lora_svd
from regraft.merge.register import traits_of
from regraft.merge.stack import Stack


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = torch.nn.Linear(12, 9, bias=False)


def test_equals_peft() -> None:
    torch.manual_seed(0)
    configs = [
        peft.LoraConfig(r=rank, lora_alpha=3, target_modules=["map"], init_lora_weights=False) for rank in (2, 3)
    ]
    model = peft.get_peft_model(Small(), configs[0], adapter_name="0")
    model.add_adapter("1", configs[1])
    layer = model.base_model.model.map
    base = layer.get_base_layer().weight.detach().numpy()
    inputs = [base + layer.get_delta_weight(key).detach().numpy() for key in "01"]
    for rank in (1, 3, 5):
        model.add_weighted_adapter(["0", "1"], [1.5, -1.0], f"svd{rank}", combination_type="svd", svd_rank=rank)
        theirs = layer.get_delta_weight(f"svd{rank}").detach().numpy()
        np.testing.assert_allclose(lora_svd(Stack.of(inputs, base, [1.5, -1.0]), rank=rank), base + theirs, atol=2e-6)


def reference(inputs: list[np.ndarray], base: np.ndarray, weights: list[float], rank: int) -> np.ndarray:
    total = sum(w * (x.astype(np.float64) - base) for w, x in zip(weights, inputs, strict=True))
    u, s, vt = np.linalg.svd(total, full_matrices=False)
    return np.asarray(base + (u[:, :rank] * s[:rank]) @ vt[:rank])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999), rows=st.integers(1, 8), columns=st.integers(1, 8), rank=st.integers(1, 9),
    weights=st.lists(st.sampled_from([0.5, 1.0, -1.0, 2.0]), min_size=1, max_size=3),
)  # fmt: skip
def test_equals_a_full_decomposition(seed: int, rows: int, columns: int, rank: int, weights: list[float]) -> None:
    rng = np.random.default_rng(seed)
    base, *inputs = (rng.normal(size=(rows, columns)).astype(np.float32) for _ in range(len(weights) + 1))
    found = lora_svd(Stack.of(inputs, base, weights), rank=rank)
    np.testing.assert_allclose(found, reference(inputs, base, weights, rank), atol=1e-5)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (2, 3, 4), (0, 3)])
def test_what_is_no_matrix_gets_the_whole_sum(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    base, one = (np.asarray(rng.normal(size=shape), np.float32) for _ in range(2))
    expected = base + 2 * (one - base.astype(np.float64))
    np.testing.assert_array_equal(lora_svd(Stack.of([one], base, [2.0]), rank=1), expected.astype(np.float32))


def test_equal_to_the_base_gives_the_base_and_weight_zero_ignores() -> None:
    rng = np.random.default_rng(0)
    base, one, two = (rng.normal(size=(8, 6)).astype(np.float32) for _ in range(3))
    np.testing.assert_array_equal(lora_svd(Stack.of([base, base], base), rank=2), base)
    alone = lora_svd(Stack.of([one], base, [0.7]), rank=2)
    np.testing.assert_array_equal(lora_svd(Stack.of([one, two], base, [0.7, 0.0]), rank=2), alone)
    np.testing.assert_array_equal(lora_svd(Stack.of([one, two], base, [0.0, 0.0]), rank=2), base)
    both = [lora_svd(Stack.of(pair, base), rank=2) for pair in ([one, two], [two, one])]
    np.testing.assert_allclose(both[0], both[1], atol=1e-6)


def test_a_rank_is_a_whole_number() -> None:
    stack = Stack.of([np.ones((4, 4))], np.zeros((4, 4)))
    np.testing.assert_allclose(lora_svd(stack, rank=2.0), np.ones((4, 4)), atol=1e-6)  # type: ignore[arg-type]
    with pytest.raises(MethodError, match=r"rank 2\.5, expected a whole number"):
        lora_svd(stack, rank=2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(530, 700), (700, 530), (600, 20)])
def test_working_memory_is_what_it_says(shape: tuple[int, int]) -> None:
    working = traits_of("lora_svd").working
    assert working is not None and working((100,), 3) == 0
    rng = np.random.default_rng(0)
    stack = Stack.of([rng.normal(size=shape) for _ in range(3)], rng.normal(size=shape))
    tracemalloc.start()
    lora_svd(stack, rank=8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < working(shape, 3)
