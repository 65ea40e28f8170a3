"""The factors of a LoRA as a file holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_factors(path: Path, tensors: Mapping[str, np.ndarray], dtype: str) -> None:
    """A safetensors file of arrays in their stored form."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, values in sorted(tensors.items()):
        end = position + values.nbytes
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for _, values in sorted(tensors.items()):
            file.write(np.ascontiguousarray(values).data)


def encoded(values: np.ndarray, dtype: str) -> np.ndarray:
    """As the file holds them; bfloat16 as its bits, rounded to nearest, ties to even."""
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return values.astype(dtype)
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)


def decoded(stored: np.ndarray, dtype: str) -> np.ndarray:
    """float64 of what the file holds."""
    if dtype == "bfloat16":
        stored = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float64)
