"""Randomness that depends on its purpose alone."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from regraft.randomness import generator, integers, permutation, raw_bits, seed_of

PINNED = [405093935004548480, 6065070088900034752, 781206283978428103]
PINNED_INTEGERS = [2, 32, 4, 91, 55, 3]
PINNED_ORDER = [0, 5, 2, 1, 4, 3]


def test_a_seed_is_the_hash_of_its_purpose() -> None:
    digest = hashlib.sha256(b"7\x1fshuffle\x1f3").digest()
    assert seed_of(7, "shuffle", 3) == int.from_bytes(digest[:8], "big")
    assert len({seed_of(0), seed_of(1), seed_of(0, "a"), seed_of(0, "b"), seed_of(0, "a", "b"), seed_of(0, "ab")}) == 6


def test_draws_do_not_depend_on_what_was_drawn_before() -> None:
    first = raw_bits(5, 0, "a")
    raw_bits(100, 0, "b")
    generator(0, "a").random(9)
    np.testing.assert_array_equal(raw_bits(5, 0, "a"), first)
    np.testing.assert_array_equal(raw_bits(3, 0, "a"), first[:3])
    assert not np.array_equal(raw_bits(5, 0, "b"), first)
    assert not np.array_equal(raw_bits(5, 1, "a"), first)


def test_the_bits_are_those_of_every_machine() -> None:
    assert raw_bits(3, 0, "pinned").tolist() == PINNED
    assert integers(100, 6, 0, "pinned").tolist() == PINNED_INTEGERS
    assert permutation(6, 0, "pinned").tolist() == PINNED_ORDER


@pytest.mark.parametrize("high", [1, 2, 7, 1000, 2**31])
def test_integers_fill_their_range(high: int) -> None:
    drawn = integers(high, 4000, 1, "range")
    assert drawn.dtype == np.int64
    assert drawn.min() >= 0
    assert drawn.max() < high
    assert drawn.mean() == pytest.approx((high - 1) / 2, rel=0.05, abs=1e-9)


def test_integers_are_uniform() -> None:
    counts = np.bincount(integers(10, 20_000, 2, "uniform"), minlength=10)
    assert ((counts - 2000) ** 2 / 2000).sum() < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001


def test_a_permutation_holds_everything_once() -> None:
    for count in (0, 1, 2, 50):
        order = permutation(count, 0, "order")
        assert order.dtype == np.int64
        assert sorted(order.tolist()) == list(range(count))
    assert permutation(50, 0, "order").tolist() != permutation(50, 0, "other").tolist()


def test_a_generator_is_the_same_twice() -> None:
    np.testing.assert_array_equal(generator(3, "x").standard_normal(4), generator(3, "x").standard_normal(4))
