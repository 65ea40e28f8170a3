"""WUDI-Merging: Adam held to torch's on the published loss, the exact solution to its gradient and to lstsq."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.merge.methods.wudi import wudi
from regraft.merge.register import traits_of
from regraft.merge.stack import Stack


def draw(seed: int, count: int, *shape: int, size: float = 1e-2) -> tuple[list[np.ndarray], np.ndarray]:
    """Inputs and a base."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape).astype(np.float32)
    return [(base + size * rng.normal(size=shape)).astype(np.float32) for _ in range(count)], base


def task_vectors(inputs: list[np.ndarray], base: np.ndarray, weights: list[float]) -> np.ndarray:
    return np.stack([w * (np.float64(x) - np.float64(base)) for w, x in zip(weights, inputs, strict=True)])


def loss_of(change: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
    """The published loss."""
    disturbance = (change[None] - tasks) @ tasks.transpose(1, 2)
    return (disturbance.square().sum(dim=(1, 2)) / tasks.square().sum(dim=(1, 2))).sum()


def loss(change: np.ndarray, tasks: np.ndarray) -> float:
    return float(loss_of(torch.tensor(change), torch.tensor(tasks)))


def with_torch(tasks: np.ndarray, steps: int, rate: float) -> np.ndarray:
    given = torch.tensor(tasks)
    change = torch.nn.Parameter(given.sum(0))
    optimizer = torch.optim.Adam([change], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(change, given).backward()
        optimizer.step()
    return change.detach().numpy()


@pytest.mark.parametrize("shape", [(5, 6), (8, 4), (2, 12), (1, 9), (9, 1)])
@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 0.5, -2.0]])
def test_adam_is_that_of_the_authors(shape, weights):
    inputs, base = draw(1, len(weights), *shape)
    tasks = task_vectors(inputs, base, weights)
    merged = wudi(Stack.of(inputs, np.float32(base), weights), steps=300, rate=1e-4)
    change = np.float64(merged) - base
    np.testing.assert_allclose(change, with_torch(tasks, 300, 1e-4), atol=3e-6)
    assert loss(change, tasks) < 0.9 * loss(tasks.sum(0), tasks)


def test_the_published_defaults():
    inputs, base = draw(2, 3, 6, 5, size=1e-3)
    tasks = task_vectors(inputs, base, [1, 1, 1])
    change = np.float64(wudi(Stack.of(inputs, base))) - base
    np.testing.assert_allclose(change, with_torch(tasks, 300, 1e-5), atol=1e-6)
    assert loss(change, tasks) < loss(tasks.sum(0), tasks)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(1, 7), st.integers(1, 7),
    st.lists(st.sampled_from([0.5, 1.0, -1.0, 2.0]), min_size=2, max_size=4),
)  # fmt: skip
def test_exact_is_the_smallest_of_the_minimisers(seed, rows, columns, weights):
    """(T - D_i) D_i^T / |D_i| = 0 in the least squares: row by row an ordinary problem, with lstsq's smallest solution."""
    inputs, base = draw(seed, len(weights), rows, columns, size=1.0)
    base[:] = 0
    tasks = task_vectors(inputs, base, weights)
    scaled = [task / np.linalg.norm(task) for task in tasks]
    design = np.vstack(scaled)
    answers = np.vstack([task_scaled @ task.T for task, task_scaled in zip(tasks, scaled, strict=True)])
    expected, _, _, singular = np.linalg.lstsq(design, answers, rcond=1e-9)
    if singular[-1] < 1e-3 * singular[0]:
        return  # the rounding of the result would be all that one sees
    merged = wudi(Stack.of(inputs, base, weights), solve="exact")
    np.testing.assert_allclose(merged, expected.T, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 5), (2, 20), (5, 5)])
def test_the_gradient_of_exact_is_zero_and_no_adam_is_below_it(shape):
    inputs, base = draw(3, 3, *shape, size=1.0)
    base[:] = 0
    tasks = task_vectors(inputs, base, [1, 1, 1])
    exact = torch.tensor(np.float64(wudi(Stack.of(inputs, base), solve="exact")), requires_grad=True)
    lowest = loss_of(exact, torch.tensor(tasks))
    lowest.backward()
    assert exact.grad is not None
    assert float(exact.grad.abs().max()) < 1e-4
    long = np.float64(wudi(Stack.of(inputs, base), steps=3000, rate=1e-3))
    assert lowest.item() <= loss(long, tasks) + 1e-9


def test_exact_scales_with_the_deltas():
    inputs, base = draw(4, 2, 5, 4, size=1.0)
    base[:] = 0
    large = wudi(Stack.of([1000 * x for x in inputs], base), solve="exact")
    np.testing.assert_allclose(large, 1000 * wudi(Stack.of(inputs, base), solve="exact"), rtol=1e-4)


def test_exact_gives_equal_inputs_back():
    inputs, base = draw(5, 1, 6, 4)
    np.testing.assert_allclose(wudi(Stack.of(inputs * 3, base), solve="exact"), inputs[0], rtol=1e-5, atol=1e-6)


def test_cut_bounds_what_noise_is_magnified_to():
    """Two inputs whose rows are almost the same direction ask for opposite answers: exactly met, they blow up."""
    base = np.zeros((1, 2))
    near = [np.array([[1.0, 1e-3]]), -np.array([[1.0, -1e-3]])]
    assert np.abs(wudi(Stack.of(near, base), solve="exact")).max() > 100
    assert np.abs(wudi(Stack.of(near, base), solve="exact", cut=1e-3)).max() < 1.1


@pytest.mark.parametrize("solve", ["adam", "exact"])
class TestEdges:
    @pytest.mark.parametrize("shape", [(), (1,), (5,), (0,), (2, 3, 4), (0, 4), (4, 0), (1, 1), (3, 4)])
    def test_a_single_input_comes_back_and_the_base_stays(self, solve, shape):
        inputs, base = draw(6, 1, *shape)
        np.testing.assert_allclose(wudi(Stack.of(inputs, base), solve=solve), inputs[0], rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(wudi(Stack.of([base, base], base), solve=solve), base)

    @pytest.mark.parametrize("shape", [(4, 5), (1, 12)])
    def test_an_input_equal_to_the_base_has_no_say(self, solve, shape):
        inputs, base = draw(7, 1, *shape)
        np.testing.assert_allclose(wudi(Stack.of([base, inputs[0]], base), solve=solve), inputs[0], rtol=1e-6)

    def test_scale(self, solve):
        inputs, base = draw(8, 2, 4, 3)
        whole, half = (np.float64(wudi(Stack.of(inputs, base), solve=solve, scale=s)) - base for s in (1.0, 0.5))
        np.testing.assert_allclose(half, whole / 2, atol=1e-6)

    def test_weight_zero_ignores_an_input(self, solve):
        inputs, base = draw(9, 3, 6, 5)
        np.testing.assert_array_equal(
            wudi(Stack.of(inputs, base, [1.0, 0.0, 0.5]), solve=solve),
            wudi(Stack.of([inputs[0], inputs[2]], base, [1.0, 0.5]), solve=solve),
        )
        np.testing.assert_array_equal(wudi(Stack.of(inputs, base, [0.0] * 3), solve=solve), base)

    @pytest.mark.parametrize("shape", [(8, 6), (2, 9)])
    def test_the_order_changes_nothing(self, solve, shape):
        inputs, base = draw(10, 3, *shape)
        np.testing.assert_allclose(
            wudi(Stack.of(inputs, base, [1, 2, 3]), solve=solve),
            wudi(Stack.of(inputs[::-1], base, [3, 2, 1]), solve=solve),
            rtol=1e-4,
            atol=1e-5,
        )

    def test_embeddings_and_vectors_get_the_mean(self, solve):
        inputs, base = draw(11, 2, 6, 4)
        for name in (
            "transformer.wte.weight",
            "embeddings.word_embeddings.weight",
            "model.embed_tokens.weight",
            "shared.weight",
        ):
            merged = wudi(Stack.of(inputs, base, name=name), solve=solve)
            np.testing.assert_allclose(merged, np.mean(inputs, axis=0), rtol=1e-5, atol=1e-6)
        for name in ("mlp.shared_expert.gate.weight", "embed_out.weight", "lm_head.weight"):
            linear = wudi(Stack.of(inputs, base, name=name), solve=solve)
            np.testing.assert_array_equal(linear, wudi(Stack.of(inputs, base), solve=solve))
        vectors, base = draw(12, 2, 7)
        np.testing.assert_allclose(
            wudi(Stack.of(vectors, base), solve=solve), np.mean(vectors, axis=0), rtol=1e-5, atol=1e-6
        )

    @pytest.mark.parametrize("shape", [(600, 200), (200, 600), (50, 900)])
    def test_memory_stays_within_what_is_stated(self, solve, shape):
        inputs, base = draw(13, 3, *shape)
        stack = Stack.of(inputs, base)
        stated = traits_of("wudi").working(shape, 3)
        tracemalloc.start()
        wudi(stack, solve=solve, steps=2)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert 0.3 * stated < peak <= stated
