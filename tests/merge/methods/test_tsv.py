"""TSV-Merge: held to the formula with singular value decompositions, and to its edges."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.merge.methods.matrices import factors, orthogonal_product
from regraft.merge.methods.tsv import tsv_m
from regraft.merge.register import traits_of
from regraft.merge.stack import Stack


def draw(seed: int, count: int, *shape: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Inputs and a base."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape).astype(np.float32)
    return [(base + 0.1 * rng.normal(size=shape)).astype(np.float32) for _ in range(count)], base


def truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(np.float64(matrix), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def reference(tasks: list[np.ndarray]) -> np.ndarray:
    """Procrustes by the singular value decompositions of the stacked vectors, as the paper writes it."""
    share = min(tasks[0].shape) // len(tasks)
    triples = [np.linalg.svd(task, full_matrices=False) for task in tasks]
    u = np.hstack([u[:, :share] for u, _, _ in triples])
    s = np.hstack([s[:share] for _, s, _ in triples])
    vt = np.vstack([vt[:share] for _, _, vt in triples])
    p, _, qt = np.linalg.svd(u, full_matrices=False)
    a, _, bt = np.linalg.svd(vt, full_matrices=False)
    return p @ qt @ np.diag(s) @ a @ bt


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(4, 10), st.integers(4, 10),
    st.lists(st.sampled_from([0.5, 1.0, -1.0, 2.0]), min_size=1, max_size=4), st.sampled_from([1.0, 0.3, -1.5]),
)  # fmt: skip
def test_equals_the_formula(seed, rows, columns, weights, scale):
    inputs, base = draw(seed, len(weights), rows, columns)
    tasks = [w * (np.float64(x) - np.float64(base)) for w, x in zip(weights, inputs, strict=True)]
    merged = tsv_m(Stack.of(inputs, base, weights), scale=scale)
    assert merged.dtype == np.float32
    np.testing.assert_allclose(merged, base + scale * reference(tasks), rtol=1e-4, atol=1e-5)


def test_the_spectrum_is_that_of_the_parts():
    """Orthogonal shares do not touch each other's singular values."""
    inputs, base = draw(1, 3, 9, 12)
    base[:] = 0
    kept = np.concatenate([np.linalg.svd(np.float64(x), compute_uv=False)[:3] for x in inputs])
    found = np.linalg.svd(np.float64(tsv_m(Stack.of(inputs, base))), compute_uv=False)
    np.testing.assert_allclose(found, np.sort(kept)[::-1], rtol=1e-5)


def test_inputs_that_are_orthogonal_already_add_up():
    left, right = np.diag([3.0, 2.0, 0, 0]), np.diag([0, 0, 5.0, 1.0])
    merged = tsv_m(Stack.of([left, right], np.zeros((4, 4))))
    np.testing.assert_allclose(merged, left + right, atol=1e-6)


def test_a_single_input_comes_back():
    for shape in [(6, 4), (4, 6), (1, 5), (5, 1), (1, 1), (5,)]:
        inputs, base = draw(2, 1, *shape)
        np.testing.assert_allclose(tsv_m(Stack.of(inputs, base)), inputs[0], rtol=1e-6, atol=1e-6)


def test_equal_inputs_come_back_once_and_truncated():
    inputs, base = draw(3, 1, 8, 6)
    expected = base + truncated(np.float64(inputs[0]) - base, 3)
    np.testing.assert_allclose(tsv_m(Stack.of(inputs * 2, base)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (0,), (2, 3, 4), (0, 4), (4, 0), (1, 1)])
def test_inputs_equal_to_the_base_give_the_base(shape):
    base = np.full(shape, 0.3, np.float32)
    np.testing.assert_array_equal(tsv_m(Stack.of([base, base], base)), base)


@pytest.mark.parametrize("shape", [(7,), (2, 9), (9, 1), ()])
def test_other_tensors_and_narrow_matrices_get_the_mean(shape):
    inputs, base = draw(4, 3, *shape)
    expected = base + 0.5 * np.mean(
        [w * (np.float64(x) - base) for w, x in zip([1, 2, 1], inputs, strict=True)], axis=0
    )
    np.testing.assert_allclose(tsv_m(Stack.of(inputs, base, [1, 2, 1]), scale=0.5), expected, rtol=1e-6)


def test_an_input_equal_to_the_base_still_takes_its_share():
    inputs, base = draw(5, 1, 6, 6)
    expected = base + truncated(np.float64(inputs[0]) - base, 3)
    np.testing.assert_allclose(tsv_m(Stack.of([inputs[0], base], base)), expected, rtol=1e-5, atol=1e-6)


def test_weight_zero_ignores_an_input_and_frees_its_share():
    inputs, base = draw(6, 3, 7, 6)
    np.testing.assert_array_equal(
        tsv_m(Stack.of(inputs, base, [1.0, 0.0, 0.5])), tsv_m(Stack.of([inputs[0], inputs[2]], base, [1.0, 0.5]))
    )
    np.testing.assert_array_equal(tsv_m(Stack.of(inputs, base, [0.0, 0.0, 0.0])), base)


def test_the_order_changes_nothing():
    inputs, base = draw(7, 3, 9, 8)
    np.testing.assert_allclose(
        tsv_m(Stack.of(inputs, base, [1, 2, 3])), tsv_m(Stack.of(inputs[::-1], base, [3, 2, 1])), rtol=1e-5, atol=1e-6
    )


def test_embeddings_are_matrices_unless_told():
    inputs, base = draw(8, 2, 6, 4)
    stack = Stack.of(inputs, base, name="embeddings.word_embeddings.weight")
    np.testing.assert_array_equal(tsv_m(stack), tsv_m(Stack.of(inputs, base)))
    np.testing.assert_allclose(tsv_m(stack, embeddings="vector"), np.mean(inputs, axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(600, 200), (200, 600)])
def test_memory_stays_within_what_is_stated(shape):
    inputs, base = draw(9, 3, *shape)
    stack = Stack.of(inputs, base)
    stated = traits_of("tsv_m").working(shape, 3)
    tracemalloc.start()
    tsv_m(stack)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.4 * stated < peak <= stated


class TestFactors:
    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9), st.integers(0, 9))
    def test_they_are_the_singular_triples(self, seed, rows, columns, rank):
        rng = np.random.default_rng(seed)
        rank = min(rank, rows, columns)
        matrix = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
        left, values, right = factors(matrix)
        expected = np.linalg.svd(matrix, compute_uv=False)
        assert len(values) == (expected > 2.0**-20 * expected[0]).sum() <= rank
        np.testing.assert_allclose(values, expected[: len(values)], rtol=1e-4)
        np.testing.assert_allclose((left * values) @ right.T, matrix, atol=1e-5)
        assert left.shape == (rows, len(values))
        assert right.shape == (columns, len(values))

    def test_small_singular_values_are_kept_and_rounding_is_not(self):
        rng = np.random.default_rng(0)
        u, v = np.linalg.qr(rng.normal(size=(30, 6)))[0], np.linalg.qr(rng.normal(size=(20, 6)))[0]
        true = np.array([1.0, 1e-1, 1e-2, 1e-4, 1e-5, 1e-8])
        left, values, right = factors((u * true) @ v.T)
        np.testing.assert_allclose(values, true[:5], rtol=1e-5)
        np.testing.assert_allclose(left.T @ left, np.eye(5), atol=1e-5)
        np.testing.assert_allclose(right.T @ right, np.eye(5), atol=1e-12)

    def test_at_most_so_many(self):
        matrix = np.random.default_rng(1).normal(size=(5, 7))
        np.testing.assert_array_equal(factors(matrix, 2).values, factors(matrix).values[:2])
        assert factors(matrix, 0).values.size == 0

    @pytest.mark.parametrize("scale", [1e-38, 1e30])
    def test_scales(self, scale):
        matrix = np.random.default_rng(2).normal(size=(4, 3))
        np.testing.assert_allclose(factors(matrix * scale).values, factors(matrix).values * scale, rtol=1e-10)

    def test_orthogonal_columns_are_left_alone(self):
        rng = np.random.default_rng(3)
        u, v = np.linalg.qr(rng.normal(size=(6, 3)))[0], np.linalg.qr(rng.normal(size=(5, 3)))[0]
        values = np.array([3.0, 2.0, 1.0])
        np.testing.assert_allclose(orthogonal_product(u, values, v), (u * values) @ v.T, atol=1e-12)
