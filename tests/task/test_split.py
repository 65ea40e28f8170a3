"""Choosing rows: quotas and thresholds against brute force, and at a million rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.task.split import hold_out, quotas, row_key, sample, smallest


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(0, 400), st.integers(0, 4))
def test_quotas_share_what_is_wanted(available: list[int], total: int, least: int) -> None:
    counts = np.array(available, dtype=np.int64)
    share = quotas(counts, total, least)
    floor = np.minimum(counts, least)
    assert (share <= counts).all()
    assert (share >= floor).all()
    assert share.sum() == max(floor.sum(), min(total, counts.sum()))
    rest, left = counts - floor, share.sum() - floor.sum()
    assert (np.abs((share - floor) * max(rest.sum(), 1) - rest * left) < max(rest.sum(), 1)).all()


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 6)), min_size=1, max_size=40), st.data())
def test_smallest_is_the_head_of_a_sorted_list(rows: list[tuple[int, int]], data: st.DataObject) -> None:
    codes = np.array([code for code, _ in rows], dtype=np.int64)
    keys = np.array([key for _, key in rows], dtype=np.uint64)
    share = np.array([data.draw(st.integers(0, int((codes == c).sum()))) for c in range(4)], dtype=np.int64)
    chosen = smallest(codes, keys, share)
    for code in range(4):
        mine = list(np.flatnonzero(codes == code))
        expected = sorted(mine, key=lambda i: (keys[i], i))[: share[code]]
        assert sorted(expected) == [i for i in mine if chosen[i]]
    assert not chosen[codes < 0].any()


def test_a_million_rows() -> None:
    generator = np.random.default_rng(0)
    codes = np.minimum(generator.geometric(0.05, 1_000_000) - 1, 99).astype(np.int64)
    keys = generator.integers(0, 2**63, 1_000_000, dtype=np.uint64)
    chosen = sample(codes, keys, 10_000)
    order = generator.permutation(len(codes))
    assert chosen.sum() == 10_000
    assert (sample(codes[order], keys[order], 10_000) == chosen[order]).all()
    counts = np.bincount(codes, minlength=100)
    assert np.abs(np.bincount(codes[chosen], minlength=100) - counts / 100).max() <= 10
    # Within a class every row had the same chance: no drift along the file.
    assert abs(np.flatnonzero(chosen).mean() / 1e6 - 0.5) < 0.01


@pytest.mark.parametrize(
    ("counts", "held"),
    [([100, 100], [10, 10]), ([8, 8], [2, 2]), ([3, 90], [1, 8]), ([1, 97], [0, 10]), ([2, 2, 2], [1, 1, 0])],
)
def test_hold_out_takes_a_tenth_and_at_least_two_of_a_class(counts: list[int], held: list[int]) -> None:
    codes = np.repeat(np.arange(len(counts)), counts)
    keys = np.random.default_rng(0).integers(0, 2**63, len(codes), dtype=np.uint64)
    assert np.bincount(codes[hold_out(codes, keys, 0.1)], minlength=len(counts)).tolist() == held


def test_hold_out_has_an_upper_limit() -> None:
    codes = np.zeros(100_000, dtype=np.int64)
    assert hold_out(codes, np.arange(100_000, dtype=np.uint64), 0.1, most=2000).sum() == 2000


def test_keys_depend_on_every_part() -> None:
    keys = {
        row_key(0, "test", "a", "b"),
        row_key(1, "test", "a", "b"),
        row_key(0, "validation", "a", "b"),
        row_key(0, "test", "ba", ""),
        row_key(0, "test", "", "ba"),
        row_key(0, "test", "a", "c"),
    }
    assert len(keys) == 6
    assert row_key(0, "test", "a", "b") == row_key(0, "test", "a", "b")
