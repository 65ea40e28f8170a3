"""Whether a model was made to resist merging: its weights moved far from its base, where its function hardly moved.

A transformer computes with products of weights. Attention scores come from Q^T K, what attention adds from O V, and what a
feed-forward layer adds from its two matrices around an elementwise function. An invertible A between the factors (Q' = A Q,
K' = A^-T K; V' = B V, O' = O B^-1), or a permutation or scaling of hidden units, leaves the products as they are and takes the
factors anywhere: the model answers as before, and the mean of it and a sister model is noise. That is MergeLock (Wang et al.
2025, arXiv 2509.01548); rearranged feed-forward units and scaled heads are Wei et al. (2025, arXiv 2503.07661).

One checkpoint alone cannot show this: every set of weights is somebody's valid basis. Its base is needed. For each pair of
factors (a, b) with the product p of a layer

    factor  = max(|a - a0| / |a0|, |b - b0| / |b0|)
    product = |p - p0| / |p0|                          Frobenius norms; those of p by random probes: E|p z|^2 = |p|^2

Training moves both together; unrelated weights have factor and product near sqrt(2) or above; protection has a large factor and a
small product. A layer is called protected when factor >= `FAR` and product <= `NEAR` * factor, a model when at least `SHARE` of
its pairs of one kind are. The thresholds are ours, not the papers'. Scales that are moved between norms and matrices are not
found, nor is what is stored as one matrix (the attention of gpt2 and bloom, `qkv_proj`): only their feed-forward is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.reading import as_float32, read_raw
from regraft.checkpoint.weights import FLOATS
from regraft.randomness import integers
from regraft.zoo.record.folder import Folder
from regraft.zoo.record.read import modules_of
from regraft.zoo.record.record import Risk
from regraft.zoo.record.sizes import sizes_of
from regraft.zoo.record.tensors import tensors_of

CODE = "merge-protected"
FAR = 0.3
NEAR = 0.3
SHARE = 0.5
PROBES = 16
# What families call the factors, by the end of the tensor's name before ".weight"; the first of a kind that is there counts.
NAMES: Mapping[str, tuple[str, ...]] = {
    "q": ("attention.self.query", "attention.self.query_proj", "attention.attention.query", "attention.q_lin", "attention.attn.q",
          "self_attn.q_proj", "attn.attention.q_proj", "attn.q_proj", "SelfAttention.q", "attention.query"),
    "k": ("attention.self.key", "attention.self.key_proj", "attention.attention.key", "attention.k_lin", "attention.attn.k",
          "self_attn.k_proj", "attn.attention.k_proj", "attn.k_proj", "SelfAttention.k", "attention.key"),
    "v": ("attention.self.value", "attention.self.value_proj", "attention.attention.value", "attention.v_lin", "attention.attn.v",
          "self_attn.v_proj", "attn.attention.v_proj", "attn.v_proj", "SelfAttention.v", "attention.value"),
    "o": ("attention.output.dense", "attention.out_lin", "attention.attn.o", "self_attn.o_proj", "self_attn.out_proj",
          "self_attn.dense", "attn.attention.out_proj", "attn.out_proj", "SelfAttention.o", "attention.dense"),
    "up": ("intermediate.dense", "ffn.lin1", "mlp.up_proj", "mlp.fc1", "mlp.fc_in", "fc1", "DenseReluDense.wi_1",
           "DenseReluDense.wi", "mlp.dense_h_to_4h", "mlp.c_fc", "ffn"),
    "down": ("output.dense", "ffn.lin2", "mlp.down_proj", "mlp.fc2", "mlp.fc_out", "fc2", "DenseReluDense.wo",
             "mlp.dense_4h_to_h", "mlp.c_proj", "ffn_output"),
}  # fmt: skip
# (name, inner factor, outer factor, whether the inner axis is the rows of both): p = Q^T K, O V, W2 W1
_PAIRS = (
    ("attention scores", "k", "q", True),
    ("attention values", "v", "o", False),
    ("feed-forward", "up", "down", False),
)
_TRANSPOSED = ("mlp.c_fc", "mlp.c_proj")  # gpt2 stores [in, out]
_LAYER = re.compile(r"^(.*(?:^|\.)(?:layers?|h|blocks?|albert_layers)\.[0-9]+)\.(.+)\.weight$")


@dataclass(frozen=True)
class Moved:
    """How far a pair of factors and their product are from the base's; see the head of this file."""

    layer: str
    pair: str
    factor: float
    product: float

    @property
    def protected(self) -> bool:
        """Far in the factors, near in the product."""
        return self.factor >= FAR and self.product <= NEAR * self.factor


def protected(folder: Path, base: Path) -> tuple[Risk, ...]:
    """A risk "merge-protected" for each kind of pair that was moved without changing the function; empty otherwise.

    Args:
        folder: The checkpoint.
        base: What it was fine-tuned from, of the same architecture. With any other checkpoint nothing is found.

    Raises:
        CheckpointError: A file cannot be read, or became shorter meanwhile.
    """
    moved = compare(folder, base)
    found = []
    for name, *_ in _PAIRS:
        pairs = [one for one in moved if one.pair == name]
        moved_only = [one for one in pairs if one.protected]
        if pairs and len(moved_only) >= SHARE * len(pairs):
            one = max(moved_only, key=lambda one: one.factor)
            found.append(Risk(
                CODE, "warning", one.layer,
                f"The weights of {name} are far from the base's in {len(moved_only)} of {len(pairs)} layers "
                f"(here by {one.factor:.0%}), what they compute is not ({one.product:.1%}): merging is made to fail.",
            ))  # fmt: skip
    return tuple(found)


def compare(folder: Path, base: Path) -> list[Moved]:
    """`Moved` of every pair of factors that both checkpoints have in equal shapes."""
    opened, other = Folder(Path(folder).absolute()), Folder(Path(base).absolute())
    mine, theirs = _factors(opened), _factors(other)
    heads = sizes_of(opened.json_object("config.json"), opened, "config.json").heads
    found = []
    for layer in sorted(mine.keys() & theirs.keys()):
        for pair, inner, outer, by_rows in _PAIRS:
            tensors = [where[layer].get(kind) for where in (mine, theirs) for kind in (inner, outer)]
            if any(one is None for one in tensors):
                continue
            a, b, a0, b0 = (_matrix(*one) for one in tensors if one is not None)
            if a.shape == a0.shape and b.shape == b0.shape:
                moved = _moved(f"{layer} {pair}", a, b, a0, b0, by_rows, None if pair == "feed-forward" else heads)
                if moved is not None:
                    found.append(Moved(layer, pair, *moved))
    return found


def _factors(opened: Folder) -> dict[str, dict[str, tuple[str, TensorInfo]]]:
    """By layer: the matrix of each role, with its name in `NAMES`."""
    modules = modules_of(opened)
    tensors = tensors_of(opened, modules[0][1] if modules else "", modules[1:])
    found: dict[str, dict[str, tuple[str, TensorInfo]]] = {}
    for name, tensor in tensors.items():
        match = _LAYER.match(name)
        if match is None or len(tensor.shape) != 2 or tensor.dtype not in FLOATS:
            continue
        role = _ROLES.get(match[2])
        if role is not None:
            # A prefix such as "bert." depends on the class that was saved.
            layer = re.sub(r"^(?:bert|roberta|model|transformer|base_model|encoder\.bert)\.", "", match[1])
            found.setdefault(layer, {})[role] = (match[2], tensor)
    return found


_ROLES = {name: role for role, names in NAMES.items() for name in names}


def _matrix(name: str, tensor: TensorInfo) -> np.ndarray:
    values = as_float32(read_raw(tensor), tensor.dtype).reshape(tensor.shape)
    return values.T if name in _TRANSPOSED else values


def _moved(
    key: str, a: np.ndarray, b: np.ndarray, a0: np.ndarray, b0: np.ndarray, by_rows: bool, heads: int | None
) -> tuple[float, float] | None:
    """(factor, product); None where the shapes make no product, or a norm is zero or not finite."""
    norms = [float(np.linalg.norm(one)) for one in (a0, b0)]
    if min(norms) == 0 or not np.isfinite([*norms, float(np.linalg.norm(a)), float(np.linalg.norm(b))]).all():
        return None
    factor = max(float(np.linalg.norm(a - a0)) / norms[0], float(np.linalg.norm(b - b0)) / norms[1])
    signs = integers(2, a.shape[1] * PROBES, 0, "merge protection", key).reshape(a.shape[1], PROBES)
    probes = (2 * signs - 1).astype(np.float32)
    if by_rows:
        b, b0 = b.T, b0.T
    ours, bases = _product(a, b, probes, heads), _product(a0, b0, probes, heads)
    if ours is None or bases is None or not np.linalg.norm(bases):
        return None
    return factor, float(np.linalg.norm(ours - bases) / np.linalg.norm(bases))


def _product(inner: np.ndarray, outer: np.ndarray, probes: np.ndarray, heads: int | None) -> np.ndarray | None:
    """outer (inner z), without the product; heads of keys and values that several query heads share are repeated."""
    inside = inner @ probes
    if outer.shape[1] != inside.shape[0] and heads is not None and outer.shape[1] % heads == 0:
        size = outer.shape[1] // heads
        if inside.shape[0] % size == 0 and heads % (inside.shape[0] // size) == 0:
            shared = inside.reshape(-1, size, inside.shape[1])
            inside = np.repeat(shared, heads // len(shared), axis=0).reshape(heads * size, -1)
    return outer @ inside if outer.shape[1] == inside.shape[0] else None
