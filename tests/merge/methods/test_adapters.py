"""Methods of matrices over adapters: what rounding made of the base's weights is no direction of the change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from regraft.merge.methods.iso import iso_c, iso_cts
from regraft.merge.methods.opcm import opcm
from regraft.merge.methods.tsv import tsv_m
from regraft.merge.stack import Stack

Method = Callable[..., Any]
SIZE, RANK = 512, 2


def low_rank(seed: int, largest: float) -> np.ndarray:
    """A change of rank 2, float64, with singular values from `largest` on."""
    draw = np.random.default_rng(seed)
    left, right = (np.linalg.qr(draw.normal(size=(SIZE, RANK)))[0] for _ in range(2))
    return np.asarray((left * [largest, largest / 2]) @ right.T)


def merged_change(method: Method, changes: list[np.ndarray], base: np.ndarray) -> np.ndarray:
    """What a method changes when every input is a base with a change, rounded to float32."""
    inputs = [(base + change).astype(np.float32) for change in changes]
    found = method(Stack.of(inputs, base, name="h.0.weight"))
    return np.asarray(found, np.float64) - base


@pytest.mark.parametrize("method", [iso_c, iso_cts, tsv_m, opcm], ids=lambda method: method.__name__)
@pytest.mark.parametrize("rows", [1.0, 8.0], ids=["even", "a few large rows"])
def test_over_a_base_it_is_what_it_is_over_none(method: Method, rows: float) -> None:
    """Over zeros nothing is rounded away; beside the base the change is a hundredth, as an adapter's often is."""
    base = np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float32)
    base[:7] *= np.float32(rows)
    changes = [low_rank(seed, 0.5) for seed in (1, 2)]
    found = merged_change(method, changes, base)
    expected = merged_change(method, changes, np.zeros_like(base))
    np.testing.assert_allclose(found, expected, atol=1e-6 * rows)


def test_the_spectrum_of_a_few_directions_is_flat() -> None:
    base = np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float32)
    found = np.linalg.svd(merged_change(iso_c, [low_rank(1, 0.5)], base), compute_uv=False)
    np.testing.assert_allclose(found[:RANK], 0.375, rtol=1e-3)
    assert found[RANK] < 1e-4


def test_a_change_of_full_rank_keeps_all_of_it() -> None:
    """As before: nothing of a usual fine-tune is taken for rounding."""
    draw = np.random.default_rng(3)
    base = draw.normal(size=(96, 64)).astype(np.float32)
    change = 0.001 * draw.normal(size=(96, 64))
    found = np.linalg.svd(merged_change(iso_c, [change], base), compute_uv=False)
    np.testing.assert_allclose(found, np.linalg.svd(change, compute_uv=False).mean(), rtol=1e-3)
