"""The sample of a checkpoint that all pairwise work is done on: drawn once, at the same elements in every relative.

Which elements of a tensor are read depends on its name without the layer's number, and on its shape: layers can then be
compared with each other, which finds cut and reordered ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.reading import as_float32, read_at, read_raw
from regraft.randomness import integers, permutation
from regraft.zoo.lineage.model import OUTER, Model
from regraft.zoo.lineage.thresholds import LEAST, ORDERED, RUN, TOTAL


@dataclass(frozen=True)
class Sample:
    """A checkpoint's sample.

    Args:
        layers: float32 [layers, d]: of each block the sampled elements, tensor after tensor in the order of their names.
        outer: Of every tensor outside the blocks, float32 [d_t].
        scale: float64 [d]: the root of (elements / sampled elements): a sum of squares so weighted estimates the tensor's.
        matrix: bool [d]: which elements are a matrix's.
        tensor: int [d]: the number of the tensor that an element belongs to.
    """

    layers: np.ndarray
    outer: Mapping[str, np.ndarray]
    scale: np.ndarray
    matrix: np.ndarray
    tensor: np.ndarray

    @property
    def finite(self) -> bool:
        """Whether all of it is."""
        return bool(np.isfinite(self.layers).all() and all(np.isfinite(one).all() for one in self.outer.values()))


def roles_of(model: Model) -> list[str]:
    """Names of tensors that every block has in the same shape, sorted."""
    shapes: dict[str, set[tuple[int, ...]]] = {}
    counts: dict[str, int] = {}
    for (layer, role), info in model.tensors.items():
        if layer != OUTER:
            shapes.setdefault(role, set()).add(info.shape)
            counts[role] = counts.get(role, 0) + 1
    return sorted(role for role in shapes if len(shapes[role]) == 1 and counts[role] == len(model.layers))


def sample_of(model: Model, roles: list[str], deepest: int) -> Sample:
    """Read a checkpoint's sample; `roles` and `deepest` (the most layers) are of its whole group, for equal samples."""
    first = model.layers[0]
    shapes = {role: model.tensors[first, role].shape for role in roles}
    matrices = sum(len(shape) == 2 for shape in shapes.values())
    most = max(LEAST, TOTAL // max(1, matrices * deepest))
    chosen = {role: places(role, shape, most if len(shape) == 2 else LEAST) for role, shape in shapes.items()}
    rows = [
        np.concatenate([values_at(model.tensors[layer, role], chosen[role]) for role in roles])
        for layer in model.layers
    ]
    outer = {
        role: values_at(info, places(role, info.shape, most))
        for (layer, role), info in model.tensors.items()
        if layer == OUTER
    }
    counts = [len(chosen[role]) for role in roles]
    scale = np.repeat([np.sqrt(np.prod(shapes[role]) / len(chosen[role])) for role in roles], counts)
    matrix = np.repeat([len(shapes[role]) == 2 for role in roles], counts)
    return Sample(np.stack(rows), outer, scale, matrix, np.repeat(np.arange(len(roles)), counts))


@lru_cache(maxsize=1024)
def places(role: str, shape: tuple[int, ...], count: int) -> np.ndarray:
    """Up to `count` element numbers: runs at places that name and shape fix; all of them where there are no more."""
    elements = int(np.prod(shape))
    if elements <= count:
        return np.arange(elements)
    runs = elements // RUN
    wanted = count // RUN
    if runs <= ORDERED:
        drawn = permutation(runs, 0, "lineage sample", role, shape)[:wanted]
    else:  # the same ones twice are few; the first of each counts
        drawn = np.array(
            list(dict.fromkeys(integers(min(runs, 2**32), 2 * wanted, 0, "lineage sample", role, shape).tolist()))[
                :wanted
            ]
        )
    starts = np.sort(drawn) * RUN
    return np.asarray((starts[:, None] + np.arange(RUN)).reshape(-1))


def values_at(info: TensorInfo, at: np.ndarray) -> np.ndarray:
    """Elements of a tensor as float32."""
    return as_float32(read_at(info, at), info.dtype)


def matrix_of(info: TensorInfo, rows: int | None = None) -> np.ndarray:
    """The first rows of a matrix, or all, as float32 [rows, columns]."""
    count = info.shape[0] if rows is None else min(rows, info.shape[0])
    return as_float32(read_raw(info, 0, count * info.shape[1]).reshape(count, info.shape[1]), info.dtype)
