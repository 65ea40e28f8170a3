"""The compiled loops: number formats to the bit, sums to the last place, random bits as published."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.merge import kernels

U32, U64 = np.uint32, np.uint64
# Low halves around every decision that rounding to the upper half takes.
LOW_HALVES = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def of_bits(*words: int) -> np.ndarray:
    return np.array(words, np.uint32).view(np.float32)


def rounded(values: np.ndarray) -> tuple[np.ndarray, bool]:
    out = np.empty(values.size, np.uint16)
    return out, kernels.to_bfloat16(out, values)


def test_every_bfloat16_is_read() -> None:
    raw = np.arange(2**16, dtype=np.uint16)
    out = np.empty(raw.size, np.float32)
    assert not kernels.from_bfloat16(out, raw)
    expected = torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16).to(torch.float32).numpy()
    assert np.array_equal(out.view(U32), expected.view(U32))
    finite = raw[np.isfinite(expected)]
    assert kernels.from_bfloat16(np.empty(finite.size, np.float32), finite)


def test_rounding_to_bfloat16_is_torchs() -> None:
    """Every upper half, subnormals and both signs included, with every kind of lower half."""
    words = (np.arange(2**16, dtype=np.uint32)[:, None] << U32(16) | LOW_HALVES).reshape(-1)
    values = words.view(np.float32)[np.isfinite(words.view(np.float32))]
    out, _ = rounded(values)
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(out, expected)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(value=FINITE)
def test_rounding_to_bfloat16_takes_the_nearest_and_the_even_of_two(value: float) -> None:
    (found,), fits = rounded(np.array([value], np.float32))
    near = [int(found) + step for step in (-1, 0, 1)]
    others = [of_bits(one << 16)[0] for one in near if 0 <= one < 2**16]
    mine = of_bits(int(found) << 16)[0]
    if not fits:
        assert np.isinf(mine)
        return
    distances = [abs(Fraction(float(one)) - Fraction(value)) for one in others if np.isfinite(one)]
    distance = abs(Fraction(float(mine)) - Fraction(value))
    assert distance == min(distances)
    if distances.count(distance) > 1 and distance:
        assert found % 2 == 0


def test_halves_go_to_the_even_one() -> None:
    ones, evens = rounded(of_bits(0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF))[0], [0x3F80, 0x3F82, 0x3F81, 0x3F80]
    assert ones.tolist() == evens
    subnormal, fits = rounded(of_bits(0x00008000, 0x00018000, 0x80008001, 0x00000001))
    assert (subnormal.tolist(), fits) == ([0x0000, 0x0002, 0x8001, 0x0000], True)


@pytest.mark.parametrize(("word", "fits"), [
    (0x7F7F7FFF, True), (0x7F7F8000, False), (0xFF7F8000, False), (0x7F7FFFFF, False), (0x7F800000, False),
    (0xFF800000, False), (0x7FC00000, False), (0x7FFFFFFF, False), (0xFFFFFFFF, False), (0xFF7F7FFF, True),
])  # fmt: skip
@pytest.mark.parametrize("place", [0, 40, 99])
def test_what_bfloat16_cannot_hold_is_told(word: int, fits: bool, place: int) -> None:
    values = np.ones(100, np.float32)
    values[place] = of_bits(word)[0]
    assert rounded(values)[1] is fits


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 500, 1100])
def test_no_value_that_is_not_finite_slips_through(bad: float, place: int) -> None:
    values = np.linspace(-1, 1, 1101).astype(np.float32)
    out = np.empty_like(values)
    raw = rounded(values)[0]
    assert kernels.all_finite(values) and kernels.from_float32(out, values)
    assert kernels.from_bfloat16(out, raw) and kernels.difference_of_bfloat16(out, raw, raw)
    values[place] = bad
    spoilt = raw.copy()
    spoilt[place] = values[place : place + 1].view(np.uint16)[1] | 0x40 * np.isnan(bad)
    assert not kernels.all_finite(values) and not kernels.from_float32(out, values)
    assert not kernels.from_bfloat16(out, spoilt)
    assert not kernels.difference_of_bfloat16(out, spoilt, raw)
    assert not kernels.difference_of_bfloat16(out, raw, spoilt)


def test_a_difference_in_one_step_is_that_of_two() -> None:
    draw = np.random.default_rng(0)
    one, other = (rounded(draw.standard_normal(1500).astype(np.float32))[0] for _ in range(2))
    found, first, second = (np.empty(1500, np.float32) for _ in range(3))
    kernels.difference_of_bfloat16(found, one, other)
    kernels.from_bfloat16(first, one)
    kernels.from_bfloat16(second, other)
    assert np.array_equal(found, first - second)


def test_empty_tensors_are_finite() -> None:
    nothing, bits = np.empty(0, np.float32), np.empty(0, np.uint16)
    assert kernels.all_finite(nothing) and kernels.from_float32(nothing, nothing)
    assert kernels.from_bfloat16(nothing, bits) and rounded(nothing)[1]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_a_combination_is_rounded_once(data: st.DataObject) -> None:
    """The nearest float32 to the exact sum, but for the last place of the float64 sum."""
    n = data.draw(st.integers(1, 4))
    weights = data.draw(st.lists(st.floats(-4, 4), min_size=n, max_size=n))
    of_base = data.draw(st.floats(-4, 4))
    small = st.floats(-1e6, 1e6, width=32)
    values = [data.draw(small) for _ in range(n + 1)]
    columns = np.array(values, np.float32)[:, None]
    out = np.empty(1, np.float32)
    kernels.linear_combination(out, columns[0], columns[1:], 0, np.array(weights), of_base)
    terms = [
        Fraction(weight) * Fraction(float(value)) for weight, value in zip([of_base, *weights], values, strict=True)
    ]
    slack = float(sum(abs(term) for term in terms)) * 2.0**-50
    exact = float(sum(terms))
    low, high = np.float32(exact - slack), np.float32(exact + slack)
    assert low <= out[0] <= high


def test_sums_are_wider_than_float32() -> None:
    """1e8 + 1 - 1e8 is 0 in float32."""
    columns = np.array([[1e8], [1.0], [1e8]], np.float32)
    out = np.empty(1, np.float32)
    kernels.linear_combination(out, np.zeros(1, np.float32), columns, 0, np.array([1.0, 1.0, -1.0]), 0.0)
    assert out[0] == 1.0


@pytest.mark.parametrize("size", [0, 1, 3, 4, 511, 512, 513, 1200])
def test_any_size_is_covered(size: int) -> None:
    draw = np.random.default_rng(size)
    base, inputs = draw.integers(-9, 9, size).astype(np.float32), draw.integers(-9, 9, (3, size)).astype(np.float32)
    out = np.full(size, np.nan, np.float32)
    kernels.linear_combination(out, base, inputs, 0, np.array([0.5, 2.0, -1.0]), 0.25)
    assert np.array_equal(out, 0.25 * base + 0.5 * inputs[0] + 2 * inputs[1] - inputs[2])
    partial = np.full(6, 100.0)
    kernels.inner_products(partial, base, inputs, 0)
    deltas = (inputs - base).astype(np.float64)
    assert np.array_equal(partial - 100, (deltas @ deltas.T)[np.triu_indices(3)])


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    """Ten rounds on plain integers, as the paper's figure draws them."""
    (left, a, right, b), (one, other) = counter, key
    for _ in range(10):
        product, second = left * 0xD2511F53, right * 0xCD9E8D57
        left, a = second // 2**32 ^ a ^ one, second % 2**32
        right, b = product // 2**32 ^ b ^ other, product % 2**32
        one, other = (one + 0x9E3779B9) % 2**32, (other + 0xBB67AE85) % 2**32
    return [left, a, right, b]


# The known answers that come with the authors' Random123.
@pytest.mark.parametrize(("counter", "key", "answer"), [
    ((0,) * 4, (0,) * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
])  # fmt: skip
def test_the_oracle_gives_the_published_answers(counter: tuple[int, ...], key: tuple[int, ...], answer: str) -> None:
    assert philox4x32(counter, key) == [int(word, 16) for word in answer.split()]  # type: ignore[arg-type]


def drawn(start: int, count: int, key: int) -> list[int]:
    out = np.empty(count, np.uint32)
    kernels.philox(out, start, U64(key))
    return [int(word) for word in out]


def test_the_first_published_answer() -> None:
    assert drawn(0, 4, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    start=st.one_of(st.integers(0, 50), st.integers(2**34 - 20, 2**34 + 20), st.integers(0, 2**60)),
    count=st.integers(0, 13),
    key=st.integers(0, 2**64 - 1),
)
def test_any_part_of_any_stream(start: int, count: int, key: int) -> None:
    """Number i is word i % 4 of the block i // 4: also past the first word of the counter."""
    expected = []
    for at in range(start, start + count):
        block = at // 4
        expected.append(philox4x32((block % 2**32, block // 2**32, 0, 0), (key % 2**32, key // 2**32))[at % 4])
    assert drawn(start, count, key) == expected


def test_parts_are_the_whole() -> None:
    whole, cuts = drawn(3, 1000, 77), [0, 1, 2, 5, 9, 13, 200, 201, 999, 1000]
    parts = [drawn(3 + low, high - low, 77) for low, high in pairwise(cuts)]
    assert [word for part in parts for word in part] == whole
    assert len(set(whole)) == 1000
