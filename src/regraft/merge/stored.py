"""Numbers in their stored formats inside compiled loops: decoded when they are read, rounded when they are written, in registers.

The type of an array says what its bits are: uint16 bfloat16, int16 float16, uint32 float32 (`bits_as` gives such views). A
loop over the elements that goes over a *tuple* of inputs inside is compiled for their number: the inner loop is unrolled and
the outer one becomes vector code, and nothing but stored bits goes through memory.

    @kernel
    def mean(out, inputs):
        largest = np.uint32(0)
        for at in range(out.size):
            total = 0.0
            for number in range(len(inputs)):
                total += np.float64(decoded(inputs[number][at]))
            largest = max(largest, store(out, at, np.float32(total / len(inputs))))
        return fits(out, largest)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from regraft.merge.kernels import bits_of, float_of, kernel

# The views that say what the bits are.
BITS = {"BF16": np.uint16, "F16": np.int16, "F32": np.uint32}
# Inputs and base together that loops are compiled for; more go through blocks of float32.
MOST = 9


def bits_as(raw: np.ndarray, form: str) -> np.ndarray:
    """The view of an array that says what its bits are."""
    return raw.view(BITS[form])


def decoded(word: Any) -> Any:
    """float32 of a stored word."""
    raise NotImplementedError  # only in compiled loops


def store(out: Any, at: int, value: Any) -> Any:
    """Write float32 rounded to nearest, ties to even; gives its magnitude's bits back, for `fits`."""
    raise NotImplementedError


def fits(out: Any, largest: Any) -> Any:
    """Whether the largest magnitude that was stored is finite there, rounded, too."""
    raise NotImplementedError


@overload(decoded, strict=False)  # type: ignore[untyped-decorator]
def _decoded(word: Any) -> Any:
    if word == types.uint16:
        return lambda word: float_of(np.uint32(word) << np.uint32(16))
    if word == types.uint32:
        return lambda word: float_of(word)
    if word == types.int16:

        def of_float16(word: Any) -> Any:
            # A subnormal gets the exponent of the smallest normal number and loses its leading one by a subtraction.
            raw = np.uint32(np.uint16(word))
            magnitude = (raw & np.uint32(0x7FFF)) << np.uint32(13)
            small = bits_of(float_of(magnitude + np.uint32(0x38800000)) - float_of(np.uint32(0x38800000)))
            normal = magnitude + np.uint32(0x38000000)
            # What is not finite there is made so here.
            special = magnitude | np.uint32(0x7F800000)
            wide = small if magnitude < np.uint32(0x00800000) else normal
            wide = special if magnitude >= np.uint32(0x0F800000) else wide
            return float_of(wide | ((raw & np.uint32(0x8000)) << np.uint32(16)))

        return of_float16
    return None


@overload(store, strict=False)  # type: ignore[untyped-decorator]
def _store(out: Any, at: Any, value: Any) -> Any:
    if out.dtype == types.uint16:

        def as_bfloat16(out: Any, at: Any, value: Any) -> Any:
            word = bits_of(value)
            out[at] = np.uint16((word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
            return word & np.uint32(0x7FFFFFFF)

        return as_bfloat16
    if out.dtype == types.int16:

        def as_float16(out: Any, at: Any, value: Any) -> Any:
            # Added to a half, whose last place is that of the smallest subnormals, what is below the normal numbers is rounded.
            word = bits_of(value)
            magnitude = word & np.uint32(0x7FFFFFFF)
            odd = (magnitude >> np.uint32(13)) & np.uint32(1)
            normal = (magnitude - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13)
            small = bits_of(float_of(magnitude) + np.float32(0.5)) - np.uint32(0x3F000000)
            half = normal if magnitude >= np.uint32(0x38800000) else small
            out[at] = np.int16(np.uint16(half | ((word >> np.uint32(16)) & np.uint32(0x8000))))
            return magnitude

        return as_float16
    if out.dtype == types.uint32:

        def as_float32(out: Any, at: Any, value: Any) -> Any:
            out[at] = bits_of(value)
            return bits_of(value) & np.uint32(0x7FFFFFFF)

        return as_float32
    return None


@overload(fits, strict=False)  # type: ignore[untyped-decorator]
def _fits(out: Any, largest: Any) -> Any:
    # What is half-way above the largest number of a format rounds to infinity.
    if out.dtype == types.uint16:
        return lambda out, largest: largest < np.uint32(0x7F7F8000)
    if out.dtype == types.int16:
        return lambda out, largest: largest < np.uint32(0x477FF000)
    if out.dtype == types.uint32:
        return lambda out, largest: largest < np.uint32(0x7F800000)
    return None


@kernel
def decode(out: np.ndarray, words: np.ndarray) -> bool:
    """float32 of stored words; whether all are finite."""
    largest = np.uint32(0)
    for at in range(words.size):
        value = decoded(words[at])
        out[at] = value
        largest = max(largest, bits_of(value) & np.uint32(0x7FFFFFFF))
    return bool(largest < np.uint32(0x7F800000))


@kernel
def encode(out: np.ndarray, values: np.ndarray) -> bool:
    """Stored words of float32; whether all are finite, rounded, too."""
    largest = np.uint32(0)
    for at in range(values.size):
        largest = max(largest, store(out, at, values[at]))
    return bool(fits(out, largest))


@kernel
def combine_stored(out: np.ndarray, inputs: tuple[np.ndarray, ...], factors: tuple[float, ...], zero: float) -> bool:
    """zero + sum_i factors[i] * inputs[i], in float64, rounded to float32 and to the output's format."""
    largest = np.uint32(0)
    for at in range(out.size):
        total = zero
        for number in range(len(inputs)):
            total += factors[number] * np.float64(decoded(inputs[number][at]))
        largest = max(largest, store(out, at, np.float32(total)))
    return bool(fits(out, largest))
