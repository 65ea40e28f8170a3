"""Leading singular directions: held to full decompositions, on small matrices and on those that are worth a projection."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.merge.low_rank import WIDTH, WORTH, energy, leading, left_basis


def product(seed: int, rows: int, columns: int, rank: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), rows=st.integers(1, 9), columns=st.integers(1, 9), rank=st.integers(1, 9))
def test_no_matrix_of_that_rank_is_nearer(seed: int, rows: int, columns: int, rank: int) -> None:
    matrix = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    left, values, right = leading(matrix, rank)
    exact = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    count = min(rank, len(exact))
    assert left.shape == (rows, count) and right.shape == (count, columns)
    np.testing.assert_allclose(values, exact[:count], rtol=1e-9)
    np.testing.assert_allclose(left.T @ left, np.eye(count), atol=1e-9)
    missing = np.linalg.norm(matrix - (left * values) @ right)
    np.testing.assert_allclose(missing, np.sqrt((exact[count:] ** 2).sum()), atol=1e-9)
    assert (left[np.abs(left).argmax(axis=0), np.arange(count)] > 0).all()


def test_as_many_directions_as_there_are() -> None:
    assert len(leading(product(0, 30, 20, 3), 10)[1]) == 3
    left, values, right = leading(np.zeros((4, 3)), 2)
    assert left.shape == (4, 0) and values.shape == (0,) and right.shape == (0, 3)


@pytest.mark.parametrize("shape", [(WORTH + 40, WORTH + 8), (WORTH + 8, WORTH + 40)])
def test_large_matrices_with_and_without_a_projection(shape: tuple[int, int]) -> None:
    rounding = 1e-6 * np.random.default_rng(1).normal(size=shape)
    matrix = (product(0, *shape, 5) + rounding).astype(np.float32)
    noise = 1.01 * float(np.linalg.norm(rounding))
    exact = np.linalg.svd(matrix.astype(np.float64))
    for allowed in (noise, 0.0):
        left, values, right = leading(matrix, 5, allowed)
        np.testing.assert_allclose(values, exact[1][:5], rtol=1e-9)
        np.testing.assert_allclose((left * values) @ right, (exact[0][:, :5] * exact[1][:5]) @ exact[2][:5], atol=1e-5)
    assert len(leading(matrix, 9, noise)[1]) == 5, "what may be rounding is no direction"
    assert len(leading(matrix, WIDTH + 9, 0.0)[1]) == 5, "below a millionth of the largest there is none"


def test_a_projection_that_leaves_something_out_is_not_used() -> None:
    shape = (WORTH + 8, WORTH)
    matrix = np.random.default_rng(0).normal(size=shape)  # full rank: no space of WIDTH holds it
    exact = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(leading(matrix, 4, 1e-3)[1], exact[:4], rtol=1e-9)
    assert left_basis([matrix], 1e-3).shape == (shape[0], WORTH)


@pytest.mark.parametrize("shape", [(6, 5), (5, 9), (20, 3), (WORTH + 8, WORTH)])
def test_the_shared_basis_holds_all_and_orders_by_strength(shape: tuple[int, int]) -> None:
    matrices = [product(seed, *shape, 2) for seed in range(3)]
    basis = left_basis(matrices, 1e-6)
    joined = np.concatenate(matrices, axis=1)
    strengths = np.linalg.svd(joined, compute_uv=False)
    assert basis.shape[1] == (strengths > 1e-9 * strengths[0]).sum()
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-9)
    np.testing.assert_allclose(basis @ (basis.T @ joined), joined, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(basis.T @ joined, axis=1), strengths[: basis.shape[1]], rtol=1e-7)


def test_nothing_changed() -> None:
    assert left_basis([np.zeros((3, 4))]).shape == (3, 0)


def test_energy_is_summed_in_float64() -> None:
    values = np.full((3000, 1), 1e-3, np.float32)
    assert energy(values) == pytest.approx(3000 * float(np.float32(1e-3)) ** 2, rel=1e-14)
    assert energy(values[:, 0]) == pytest.approx(energy(values), rel=1e-14)
