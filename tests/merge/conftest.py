"""Checkpoints to merge: written from arrays, or fine-tuned by adding noise."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regraft.checkpoint.weights import let_go, open_weights, raw_values

Raw = dict[str, tuple[str, tuple[int, ...], bytes]]


@pytest.fixture
def edited() -> Callable[..., Path]:
    """A function that changes entries of a JSON file of a checkpoint; None removes one."""

    def edit(folder: Path, file: str = "config.json", **entries: Any) -> Path:
        path = folder / file
        content = json.loads(path.read_text()) | entries
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        return folder

    return edit


@pytest.fixture
def three(tiny_bert: Path, tuned: Callable[..., Path]) -> tuple[Path, Path, Path]:
    """A base and two fine-tunes of it."""
    return tiny_bert, tuned(tiny_bert, "a", 1), tuned(tiny_bert, "b", 2)


def moved_on_a_grid(tensors: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Changed by a few different magnitudes: thresholds are met by many elements, and sums depend on their order."""
    draw = np.random.default_rng(seed)
    return {
        name: (values + np.float32(0.1) * draw.integers(-3, 4, values.shape) / np.float32(32)).astype(np.float32)
        for name, values in tensors.items()
    }


@pytest.fixture(scope="session")
def on_a_grid() -> Callable[..., dict[str, np.ndarray]]:
    """The function `moved_on_a_grid`."""
    return moved_on_a_grid


@pytest.fixture
def family(written: Any, llama: Any) -> Callable[..., list[Path]]:
    """A function that writes a base and three fine-tunes of it: `family(dtype=...)`."""

    def make(prefix: str = "", dtype: torch.dtype = torch.bfloat16, config: Mapping[str, Any] = {}) -> list[Path]:
        base = llama(0)
        every = [base, *(moved_on_a_grid(base, seed) for seed in (1, 2, 3))]
        return [
            written(f"{prefix}{name}", tensors, config, dtype)
            for name, tensors in zip(("base", *"abc"), every, strict=True)
        ]

    return make


@pytest.fixture(scope="session")
def raw_of() -> Callable[[Path], Raw]:
    """A function that gives formats, shapes and bytes of all tensors of a checkpoint, wherever they lie."""

    def read(folder: Path) -> Raw:
        tensors = open_weights(str(folder)).tensors
        found = {name: (info.dtype, info.shape, raw_values(info).tobytes()) for name, info in sorted(tensors.items())}
        let_go()
        return found

    return read


@pytest.fixture(scope="session")
def blocks_of() -> Callable[[int], AbstractContextManager[None]]:
    """A context manager in which blocks have so many elements."""

    @contextmanager
    def resized(size: int) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name, module in [*sys.modules.items()]:
                if name.startswith("regraft.merge.") and hasattr(module, "GRAIN"):
                    patch.setattr(module, "GRAIN", size)
            yield

    return resized
