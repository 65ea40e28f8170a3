"""Small samples of weights, read straight from the pages of the files: enough to refuse what is plainly broken."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.rounding import to_float
from regraft.checkpoint.weights import FLOATS, Weights, raw_values
from regraft.randomness import integers

RUN = 256  # consecutive elements of each tensor
_SCANNED = 2**18  # elements that are looked at together
# What holds the bits of a stored number, and the magnitude of its infinity: every NaN is above it.
_INFINITY: dict[str, tuple[Any, int]] = {
    "BF16": (np.uint16, 0x7F80), "F16": (np.uint16, 0x7C00), "F32": (np.uint32, 0x7F800000),
    "F64": (np.uint64, 0x7FF0000000000000),
}  # fmt: skip
_TIMED = 2**18  # elements that are decoded to see how fast that is


def decoded(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Stored floating-point values as float64 of the same shape (bfloat16 comes as uint16)."""
    return to_float(raw, dtype)


def all_finite(raw: np.ndarray, dtype: str) -> bool:
    """Whether stored floating-point values hold neither NaN nor infinity (bfloat16 comes as uint16)."""
    if dtype == "BF16":
        return bool(((raw & np.uint16(0x7F80)) != np.uint16(0x7F80)).all())
    return bool(np.isfinite(raw).all())


def run_of(tensor: TensorInfo, seed: int = 0) -> np.ndarray:
    """Up to `RUN` consecutive elements as stored, from a place that name, size and seed fix."""
    count = min(RUN, tensor.elements)
    start = int(integers(tensor.elements - count + 1, 1, seed, "sampled run", tensor.name, tensor.elements)[0])
    return raw_values(tensor)[start : start + count]


def not_finite(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """The names of tensors in whose sample there is NaN or infinity."""
    return [
        name for name, tensor in tensors.items()
        if tensor.dtype in FLOATS and not np.isfinite(decoded(run_of(tensor), tensor.dtype)).all()
    ]  # fmt: skip


def finite_throughout(tensor: TensorInfo) -> bool:
    """Whether no value of a floating-point tensor is NaN or infinite: all of it is read, about 6 GB/s from memory."""
    kind, infinity = _INFINITY[tensor.dtype]
    words = raw_values(tensor).view(kind)
    magnitudes, mask = np.empty(min(words.size, _SCANNED), kind), kind(np.iinfo(kind).max >> 1)
    for start in range(0, words.size, _SCANNED):
        part = words[start : start + _SCANNED]
        if np.bitwise_and(part, mask, out=magnitudes[: part.size]).max() >= infinity:
            return False
    return True


def seem_equal(first: Weights, second: Weights) -> bool:
    """Whether two checkpoints have the same tensors, and the same values wherever they are sampled."""
    if first.adapter is not None or second.adapter is not None or first.tensors.keys() != second.tensors.keys():
        return False
    return all(
        tensor.dtype == second.tensors[name].dtype
        and tensor.shape == second.tensors[name].shape
        and run_of(tensor).tobytes() == run_of(second.tensors[name]).tobytes()
        for name, tensor in first.tensors.items()
    )


def differ(base: Weights, other: Weights, name: str) -> bool:
    """Whether a tensor of the same shape has other values where it is sampled, or an adapter over it that may change it."""
    if other.adapter is not None and any(name.removesuffix(".weight") in key for key in other.adapter.tensors):
        return True
    mine, theirs = base.tensors[name], other.tensors[name]
    return not np.array_equal(decoded(run_of(mine), mine.dtype), decoded(run_of(theirs), theirs.dtype))


def seconds_per_byte(checkpoint: Weights) -> float:
    """How long decoding a byte that is in memory takes on one thread here and now, from a part of the largest tensor.

    The part is decoded twice and the second time counts: the first one waits for the disk, which reads a whole file at
    another pace than a few scattered pages.
    """
    floats = [tensor for tensor in checkpoint.tensors.values() if tensor.dtype in FLOATS and tensor.elements]
    if not floats:
        return 0.0
    largest = max(floats, key=lambda tensor: (tensor.elements, tensor.name))
    raw = raw_values(largest)[:_TIMED]
    decoded(raw, largest.dtype)
    started = time.perf_counter()
    decoded(raw, largest.dtype)
    return (time.perf_counter() - started) / raw.nbytes
