"""Isotropic merging: held to the formulas with full singular value decompositions, to its flat spectrum, and to its edges."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.merge.methods.iso import iso_c, iso_cts, shares
from regraft.merge.register import traits_of
from regraft.merge.stack import Stack


def draw(seed: int, count: int, *shape: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Inputs and a base."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape).astype(np.float32)
    return [(base + 0.1 * rng.normal(size=shape)).astype(np.float32) for _ in range(count)], base


def task_vectors(inputs: list[np.ndarray], base: np.ndarray, weights: list[float]) -> list[np.ndarray]:
    return [w * (np.float64(x) - np.float64(base)) for w, x in zip(weights, inputs, strict=True)]


def polar(matrix: np.ndarray) -> np.ndarray:
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    return u @ vt


def reference_iso_c(tasks: list[np.ndarray]) -> np.ndarray:
    summed = np.add.reduce(tasks)
    return polar(summed) * np.linalg.svd(summed, compute_uv=False).mean()


def reference_iso_cts(tasks: list[np.ndarray], fraction: float) -> np.ndarray:
    """With arrays of the final size, filled block by block."""
    summed = np.add.reduce(tasks)
    rank, count = min(summed.shape), len(tasks)
    specific = min(round((rank - int(rank * fraction)) / count), rank // count)
    shared = rank - specific * count
    us, ss, vs = np.zeros((summed.shape[0], rank)), np.zeros(rank), np.zeros((rank, summed.shape[1]))
    u, s, vt = np.linalg.svd(summed, full_matrices=False)
    us[:, :shared], ss[:shared], vs[:shared] = u[:, :shared], s[:shared], vt[:shared]
    outside = np.eye(summed.shape[0]) - u[:, :shared] @ u[:, :shared].T
    for number, task in enumerate(tasks):
        u, s, vt = np.linalg.svd(outside @ task, full_matrices=False)
        place = slice(shared + number * specific, shared + (number + 1) * specific)
        us[:, place], ss[place], vs[place] = u[:, :specific], s[:specific], vt[:specific]
    return polar(us) @ np.diag(np.full(rank, ss.mean())) @ polar(vs)


weights_of_inputs = st.lists(st.sampled_from([0.5, 1.0, -1.0, 2.0]), min_size=1, max_size=4)
cases = st.tuples(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9), weights_of_inputs)


@settings(max_examples=60, deadline=None)
@given(cases, st.sampled_from([1.0, 0.3, -1.5]))
def test_iso_c_equals_the_formula(case, scale):
    seed, rows, columns, weights = case
    inputs, base = draw(seed, len(weights), rows, columns)
    expected = base + scale * reference_iso_c(task_vectors(inputs, base, weights))
    merged = iso_c(Stack.of(inputs, base, weights), scale=scale)
    assert merged.dtype == np.float32
    np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(cases, st.sampled_from([0.0, 0.5, 0.8, 1.0]))
def test_iso_cts_equals_the_formula(case, common):
    seed, rows, columns, weights = case
    inputs, base = draw(seed, len(weights), rows, columns)
    expected = base + reference_iso_cts(task_vectors(inputs, base, weights), common)
    merged = iso_cts(Stack.of(inputs, base, weights), common=common)
    np.testing.assert_allclose(merged, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("merge", [iso_c, iso_cts])
@pytest.mark.parametrize("shape", [(12, 12), (20, 7), (7, 20)])
def test_the_spectrum_is_flat(merge, shape):
    inputs, base = draw(1, 3, *shape)
    base[:] = 0
    values = np.linalg.svd(np.float64(merge(Stack.of(inputs, base))), compute_uv=False)
    np.testing.assert_allclose(values, values.mean(), rtol=1e-5)


def test_iso_c_keeps_the_sum_of_the_singular_values():
    inputs, base = draw(2, 3, 8, 6)
    before = np.linalg.svd(np.add.reduce(task_vectors(inputs, base, [1, 1, 1])), compute_uv=False).sum()
    after = np.linalg.svd(np.float64(iso_c(Stack.of(inputs, base))) - base, compute_uv=False).sum()
    assert after == pytest.approx(before, rel=1e-5)


def test_a_sum_of_low_rank_keeps_its_rank():
    rng = np.random.default_rng(3)
    delta = rng.normal(size=(9, 2)) @ rng.normal(size=(2, 8))
    values = np.linalg.svd(delta, compute_uv=False)
    merged = iso_c(Stack.of([delta.astype(np.float32)], np.zeros((9, 8), np.float32)))
    found = np.linalg.svd(np.float64(merged), compute_uv=False)
    np.testing.assert_allclose(found[:2], values[:2].mean(), rtol=1e-5)
    assert found[2] < 1e-6 * found[0]


def test_a_single_input_is_flattened_unless_it_has_one_direction():
    inputs, base = draw(4, 1, 5, 4)
    assert not np.allclose(iso_c(Stack.of(inputs, base)), inputs[0], atol=1e-3)
    for shape in [(1, 6), (6, 1), (1, 1)]:
        inputs, base = draw(5, 1, *shape)
        np.testing.assert_allclose(iso_c(Stack.of(inputs, base)), inputs[0], rtol=1e-6)
        np.testing.assert_allclose(iso_cts(Stack.of(inputs, base)), inputs[0], rtol=1e-6)


def test_nothing_common_left_over_is_iso_c():
    inputs, base = draw(6, 3, 6, 5)
    np.testing.assert_allclose(
        iso_cts(Stack.of(inputs, base), common=1.0), iso_c(Stack.of(inputs, base)), rtol=1e-5, atol=1e-6
    )
    inputs, base = draw(7, 3, 2, 9)  # fewer directions than inputs
    np.testing.assert_allclose(iso_cts(Stack.of(inputs, base)), iso_c(Stack.of(inputs, base)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rank", "inputs", "common", "expected"),
    [
        (768, 8, 0.8, (616, 19)),
        (10, 2, 0.8, (8, 1)),
        (3, 2, 0.0, (1, 1)),
        (5, 1, 0.5, (2, 3)),
        (1, 4, 0.8, (1, 0)),
        (0, 2, 0.8, (0, 0)),
    ],
)
def test_shares_add_up(rank, inputs, common, expected):
    assert shares(rank, inputs, common) == expected
    shared, each = expected
    assert shared + inputs * each == rank


@pytest.mark.parametrize("merge", [iso_c, iso_cts])
class TestEdges:
    @pytest.mark.parametrize("shape", [(), (1,), (5,), (0,), (2, 3, 4), (0, 4), (4, 0), (1, 1)])
    def test_inputs_equal_to_the_base_give_the_base(self, merge, shape):
        base = np.full(shape, 0.3, np.float32)
        np.testing.assert_array_equal(merge(Stack.of([base, base], base)), base)

    def test_other_tensors_get_the_mean(self, merge):
        inputs, base = draw(8, 3, 7)
        expected = base + 0.5 * np.mean(task_vectors(inputs, base, [1, 2, 1]), axis=0)
        np.testing.assert_allclose(merge(Stack.of(inputs, base, [1, 2, 1]), scale=0.5), expected, rtol=1e-6)

    def test_embeddings_are_matrices_unless_told(self, merge):
        inputs, base = draw(9, 2, 6, 4)
        stack = Stack.of(inputs, base, name="model.embed_tokens.weight")
        np.testing.assert_array_equal(merge(stack), merge(Stack.of(inputs, base)))
        np.testing.assert_allclose(merge(stack, embeddings="vector"), np.mean(inputs, axis=0), rtol=1e-5, atol=1e-6)

    def test_weight_zero_ignores_an_input(self, merge):
        inputs, base = draw(10, 3, 6, 5)
        np.testing.assert_array_equal(
            merge(Stack.of(inputs, base, [1.0, 0.0, 0.5])), merge(Stack.of([inputs[0], inputs[2]], base, [1.0, 0.5]))
        )
        np.testing.assert_array_equal(merge(Stack.of(inputs, base, [0.0, 0.0, 0.0])), base)

    def test_the_order_changes_nothing(self, merge):
        inputs, base = draw(11, 3, 8, 6)
        np.testing.assert_allclose(
            merge(Stack.of(inputs, base, [1, 2, 3])),
            merge(Stack.of(inputs[::-1], base, [3, 2, 1])),
            rtol=1e-5,
            atol=1e-6,
        )

    def test_the_sum_may_be_zero(self, merge):
        base = np.zeros((3, 4), np.float32)
        delta = np.arange(12, dtype=np.float32).reshape(3, 4)
        assert np.isfinite(merge(Stack.of([delta, -delta], base))).all()

    @pytest.mark.parametrize("shape", [(600, 200), (200, 600)])
    def test_memory_stays_within_what_is_stated(self, merge, shape):
        inputs, base = draw(12, 3, *shape)
        stack = Stack.of(inputs, base)
        stated = traits_of(merge.__name__).working(shape, 3)
        tracemalloc.start()
        merge(stack)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert 0.4 * stated < peak <= stated
