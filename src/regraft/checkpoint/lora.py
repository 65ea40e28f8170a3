"""peft LoRA adapters as changes of a base's tensors, read without torch or peft.

    W' = W + scale * B A        A [r, in], B [out, r], scale = alpha / r, or alpha / sqrt(r) when rank-stabilised

A module that stores its weight as [in, out] (GPT-2's Conv1D, embeddings) gets the transpose. An adapter may also replace
whole tensors (heads, norms, biases), and add to a bias.

Sources: Hu et al. (2021), LoRA: low-rank adaptation of large language models, arXiv 2106.09685; Kalajdzievski (2023), A rank
stabilization scaling factor for fine-tuning with LoRA, arXiv 2312.03732. The names and the config are peft's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from regraft.checkpoint.adapter import Adapter
from regraft.checkpoint.blocks import in_blocks
from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.lora_parts import Prefix, check_plain, other_base, pair, scale_of, shown, some, sorted_tensors
from regraft.checkpoint.weights import raw_values
from regraft.errors import NonFiniteError


@dataclass(frozen=True)
class Factors:
    """The low-rank change of one tensor: scale * B A, transposed where the base stores [in, out].

    Args:
        A: [r, in] in the adapter's file; of an embedding [r, tokens].
        B: [out, r]; of an embedding [hidden, r].
        scale: alpha / r or alpha / sqrt(r).
        transposed: Whether the base stores the transpose of B A.
    """

    A: TensorInfo
    B: TensorInfo
    scale: float
    transposed: bool

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the tensor in the base."""
        outputs, inputs = self.B.shape[0], self.A.shape[1]
        return (inputs, outputs) if self.transposed else (outputs, inputs)

    @property
    def loaded_bytes(self) -> int:
        """What `load` keeps in memory."""
        return 8 * (self.A.elements + self.B.elements)


@dataclass(frozen=True)
class Offset:
    """The change of a bias: scale * values (peft's `lora_bias`)."""

    values: TensorInfo
    scale: float


@dataclass(frozen=True)
class Changes:
    """Everything that an adapter does to a base. A tensor may be replaced and then changed by factors.

    Args:
        factors: By the base tensor's name.
        replaced: Whole tensors of the adapter that stand in for the base's (`modules_to_save`, trained biases).
        offsets: By the bias's name.
        added: Whole tensors of the adapter that the base does not have: a head over a base without one.
    """

    factors: dict[str, Factors]
    replaced: dict[str, TensorInfo]
    offsets: dict[str, Offset]
    added: dict[str, TensorInfo]

    @property
    def touched(self) -> frozenset[str]:
        """The names of the base's tensors that the adapter changes."""
        return frozenset(self.factors) | frozenset(self.replaced) | frozenset(self.offsets)


class Delta:
    """A low-rank change in memory: any block of its elements, in the same bits however it is cut into blocks.

    Args:
        left: float64 [rows, r].
        right: float64 [r, columns].
        scale: Factor of the product.
    """

    def __init__(self, left: np.ndarray, right: np.ndarray, scale: float) -> None:
        self._left, self._right = np.ascontiguousarray(left), np.ascontiguousarray(right)
        self._scale = float(scale)

    @property
    def shape(self) -> tuple[int, int]:
        return self._left.shape[0], self._right.shape[1]

    def add_to(self, values: np.ndarray, start: int) -> bool:
        """Add the elements from `start` on to `values` (float32 [g]), rounded once; whether all results are finite."""
        from regraft.checkpoint.lora_kernels import add_product  # numba: not needed to look at an adapter

        return bool(add_product(values, start, self._left, self._right, self._scale))

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The rows from `start` up to `stop`, float32 [rows, columns]."""
        out = np.zeros((stop - start, self.shape[1]), np.float32)
        self.add_to(out.reshape(-1), start * self.shape[1])
        return out


def load(factors: Factors) -> Delta:
    """Read both factors.

    Raises:
        CheckpointError: The file became shorter.
        NonFiniteError: NaN or infinite factors.
    """
    down, up = read_array(factors.A), read_array(factors.B)
    return Delta(down.T, up.T, factors.scale) if factors.transposed else Delta(up, down, factors.scale)


def delta_rows(factors: Factors, start: int, stop: int) -> np.ndarray:
    """Rows of the change as the base stores the tensor, float32 [stop - start, columns]. `load` once for many blocks."""
    return load(factors).rows(start, stop)


def factors(adapter: Adapter, base: Mapping[str, TensorInfo]) -> dict[str, Factors]:
    """The low-rank changes by the base tensor's name; see `changes`, which raises the same."""
    return changes(adapter, base).factors


def changes(adapter: Adapter, base: Mapping[str, TensorInfo]) -> Changes:
    """What an adapter does to a base, from the headers of both.

    Adapter and base may differ by what leads a name: an adapter of a model with a head over a base that was saved without
    (`bert.encoder...` over `encoder...`), or the other way round.

    An embedding that a tied head shares is changed for both, as merging with peft does.

    Raises:
        CheckpointError: Not a plain LoRA, or an adapter for another base: names what does not exist or does not fit.
    """
    check_plain(adapter)
    modules, whole = sorted_tensors(adapter)
    prefix = Prefix.between(adapter, [*modules, *(name.rpartition(".")[0] for name in whole)], base)
    found = Changes({}, {}, {}, {})
    first = inputs_first(base)
    missing, unfit = [], []
    for module, parts in modules.items():
        name = prefix.rename(f"{module}.weight")
        down, up = pair(adapter, module, parts)
        if name not in base:
            if not _tied_twin(adapter, down, up, modules):
                missing.append(module)
            whole.pop(f"{module}.weight", None)
            continue
        transposed = _orientation(adapter, name, base[name].shape, down, up, first)
        if transposed is None:
            unfit.append(f"{name} is {shown(base[name].shape)}, the factors make {shown((up.shape[0], down.shape[1]))}")
            continue
        scale = scale_of(adapter, module, down.shape[0])
        found.factors[name] = Factors(down, up, scale, transposed)
        if "B.bias" in parts:
            bias = prefix.rename(f"{module}.bias")
            if bias not in base or base[bias].shape != parts["B.bias"].shape:
                missing.append(f"{module}.bias")
            found.offsets[bias] = Offset(parts["B.bias"], scale)
    for key, tensor in whole.items():
        name = prefix.rename(key)
        if name not in base:
            found.added[name] = tensor
        elif base[name].shape != tensor.shape:
            unfit.append(f"{name} is {shown(base[name].shape)}, the adapter's {shown(tensor.shape)}")
        else:
            found.replaced[name] = tensor
    if missing:
        raise other_base(adapter, f"changes {some(missing)}, which the base does not have")
    if unfit:
        raise other_base(adapter, f"does not fit: {some(unfit, '; ')}")
    return found


def inputs_first(base: Mapping[str, TensorInfo]) -> bool | None:
    """Whether the matrices of the blocks are stored as [in, out], as GPT-2's Conv1D does; None when nothing tells.

    A bias has the length of the outputs: matrices that have one and are not square tell.
    """
    votes = 0
    for name, info in base.items():
        bias = base.get(f"{name.removesuffix('.weight')}.bias")
        if not name.endswith(".weight") or bias is None or len(info.shape) != 2 or not in_blocks(name):
            continue
        rows, columns = info.shape
        if rows != columns and bias.shape in ((rows,), (columns,)):
            votes += 1 if bias.shape == (columns,) else -1
    return None if votes == 0 else votes > 0


def read_array(info: TensorInfo) -> np.ndarray:
    """A whole floating-point tensor as float64 of its shape.

    Raises:
        CheckpointError: The file became shorter.
        NonFiniteError: NaN or infinite values.
    """
    raw = raw_values(info)
    if info.dtype == "BF16":
        raw = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    values = raw.astype(np.float64).reshape(info.shape)
    if not np.isfinite(values).all():
        raise NonFiniteError(
            f"{info.file}: tensor {info.name!r} holds NaN or infinite values.", "Use an intact copy of the adapter."
        )
    return values


def _orientation(
    adapter: Adapter, name: str, stored: tuple[int, ...], down: TensorInfo, up: TensorInfo, first: bool | None
) -> bool | None:
    """Whether the base stores the transpose of B A; None when it fits neither way."""
    made = (up.shape[0], down.shape[1])
    if down.name.endswith("lora_embedding_A"):
        return True if stored == made[::-1] else None
    # peft sets fan_in_fan_out by the module that it met last, so the base's own evidence goes first.
    config_says = bool(adapter.config.get("fan_in_fan_out"))
    if made[0] == made[1]:
        return None if stored != made else (first if first is not None and in_blocks(name) else config_says)
    if stored == made:
        return False
    return True if stored == made[::-1] and (first or config_says) else None


def _tied_twin(
    adapter: Adapter, down: TensorInfo, up: TensorInfo, modules: Mapping[str, Mapping[str, TensorInfo]]
) -> bool:
    """Whether factors of a head that the base has no tensor for are those of the embedding that it is tied to."""
    if not adapter.config.get("ensure_weight_tying"):
        return False
    embeddings = [parts for parts in modules.values() if {"embedding_A", "embedding_B"} <= parts.keys()]
    return any(
        down.shape == parts["embedding_B"].shape[::-1] and up.shape == parts["embedding_A"].shape[::-1]
        for parts in embeddings
    )
