"""The loops that touch every weight, compiled by numba: reading number formats, rounding back, random bits.

They release the interpreter's lock, so threads run them side by side, and allocate nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])

# Elements whose float64 sums stay in a core's first-level cache while one input after another is added.
STRIP = 512


def kernel(function: Function) -> Function:
    """Compile a loop over arrays; compiled code is kept on disk, so that only the very first call waits."""
    compiled: Function = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    return compiled


@intrinsic  # type: ignore[untyped-decorator]
def float_of(_context: Any, bits: Any) -> Any:
    """The float32 that has these bits (uint32), in a register: a view of an array would have to go through memory."""

    def cast(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), cast


@intrinsic  # type: ignore[untyped-decorator]
def bits_of(_context: Any, value: Any) -> Any:
    """The bits (uint32) of a float32: `float_of` undone."""

    def cast(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), cast


@kernel
def from_bfloat16(out: np.ndarray, raw: np.ndarray) -> bool:
    """float32 of bfloat16 bits (uint16); whether all are finite."""
    bits = out.view(np.uint32)
    highest = np.uint32(0)
    for at in range(raw.size):
        wide = np.uint32(raw[at]) << np.uint32(16)
        bits[at] = wide
        highest = max(highest, wide & np.uint32(0x7F800000))
    return bool(highest != np.uint32(0x7F800000))


@kernel
def difference_of_bfloat16(out: np.ndarray, raw: np.ndarray, base: np.ndarray) -> bool:
    """float32 of raw - base, both bfloat16 bits (uint16); whether all of both are finite."""
    highest = np.uint32(0)
    exponent = np.uint32(0x7F800000)
    for at in range(raw.size):
        mine, origin = np.uint32(raw[at]) << np.uint32(16), np.uint32(base[at]) << np.uint32(16)
        highest = max(highest, max(mine & exponent, origin & exponent))
        out[at] = float_of(mine) - float_of(origin)
    return bool(highest != exponent)


@kernel
def from_float32(out: np.ndarray, raw: np.ndarray) -> bool:
    """Copy float32; whether all are finite."""
    bits = raw.view(np.uint32)
    target = out.view(np.uint32)
    highest = np.uint32(0)
    for at in range(raw.size):
        target[at] = bits[at]
        highest = max(highest, bits[at] & np.uint32(0x7F800000))
    return bool(highest != np.uint32(0x7F800000))


@kernel
def to_bfloat16(out: np.ndarray, values: np.ndarray) -> bool:
    """bfloat16 bits (uint16) of float32, rounded to nearest, ties to even; whether all are finite, rounded, too."""
    bits = values.view(np.uint32)
    largest = np.uint32(0)
    for at in range(values.size):
        word = bits[at]
        out[at] = np.uint16((word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
        largest = max(largest, word & np.uint32(0x7FFFFFFF))
    return bool(largest < np.uint32(0x7F7F8000))  # what is half-way above the largest bfloat16 rounds to infinity


@kernel
def all_finite(values: np.ndarray) -> bool:
    """Whether every float32 is finite."""
    bits = values.view(np.uint32)
    highest = np.uint32(0)
    for at in range(values.size):
        highest = max(highest, bits[at] & np.uint32(0x7F800000))
    return bool(highest != np.uint32(0x7F800000))


@kernel
def philox(out: np.ndarray, start: int, key: np.uint64) -> None:
    """The uint32 number `start`, `start + 1`, ... of the stream `key`: Philox4x32-10.

    Source: Salmon et al. (2011), Parallel random numbers: as easy as 1, 2, 3. Number i is word i % 4 of the block whose
    counter is i // 4, so that any part of a stream can be made by itself.
    """
    mask = np.uint64(0xFFFFFFFF)
    first_multiplier, second_multiplier = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    low_key, high_key = key & mask, key >> np.uint64(32)
    for block in range(start // 4, (start + out.size + 3) // 4):
        c0, c1 = np.uint64(block) & mask, np.uint64(block) >> np.uint64(32)
        c2, c3 = np.uint64(0), np.uint64(0)
        k0, k1 = low_key, high_key
        for _ in range(10):
            p0, p1 = first_multiplier * c0, second_multiplier * c2
            c0, c1, c2, c3 = ((p1 >> np.uint64(32)) ^ c1 ^ k0), p1 & mask, ((p0 >> np.uint64(32)) ^ c3 ^ k1), p0 & mask
            k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
        at = block * 4 - start
        if at >= 0 and at + 4 <= out.size:
            out[at], out[at + 1], out[at + 2], out[at + 3] = np.uint32(c0), np.uint32(c1), np.uint32(c2), np.uint32(c3)
        else:
            for word in range(4):
                if 0 <= at + word < out.size:
                    out[at + word] = np.uint32((c0, c1, c2, c3)[word])


@kernel
def linear_combination(
    out: np.ndarray, base: np.ndarray, inputs: np.ndarray, start: int, coefficients: np.ndarray, of_base: float
) -> None:
    """of_base * base + sum_i coefficients[i] * inputs[i], in float64, rounded once."""
    total = np.empty(STRIP)
    for first in range(0, out.size, STRIP):
        size = min(STRIP, out.size - first)
        origin = base[first : first + size]
        for at in range(size):
            total[at] = of_base * np.float64(origin[at])
        for number in range(inputs.shape[0]):
            weight, row = coefficients[number], inputs[number, first : first + size]
            for at in range(size):
                total[at] += weight * np.float64(row[at])
        target = out[first : first + size]
        for at in range(size):
            target[at] = np.float32(total[at])


@kernel
def inner_products(partial: np.ndarray, base: np.ndarray, inputs: np.ndarray, start: int) -> None:
    """Add the inner products of (inputs - base) to the upper triangle of `partial`, row by row.

    Four sums side by side, in a fixed order: as fast as the memory, and the same bits on every processor.
    """
    count = inputs.shape[0]
    whole = base.size - base.size % 4
    place = 0
    for first in range(count):
        for second in range(first, count):
            s0 = s1 = s2 = s3 = 0.0
            for at in range(0, whole, 4):
                s0 += np.float64(inputs[first, at] - base[at]) * np.float64(inputs[second, at] - base[at])
                s1 += np.float64(inputs[first, at + 1] - base[at + 1]) * np.float64(
                    inputs[second, at + 1] - base[at + 1]
                )
                s2 += np.float64(inputs[first, at + 2] - base[at + 2]) * np.float64(
                    inputs[second, at + 2] - base[at + 2]
                )
                s3 += np.float64(inputs[first, at + 3] - base[at + 3]) * np.float64(
                    inputs[second, at + 3] - base[at + 3]
                )
            for at in range(whole, base.size):
                s0 += np.float64(inputs[first, at] - base[at]) * np.float64(inputs[second, at] - base[at])
            partial[place] += (s0 + s1) + (s2 + s3)
            place += 1
