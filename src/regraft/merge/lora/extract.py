"""The difference of two checkpoints as a LoRA: a stock peft folder, with what it loses stated.

    merged - base  ~  B A        U S V^T cut to rank r,   B = U sqrt(S) [out, r],   A = sqrt(S) V^T [r, in]

No B A of that rank is nearer in the Frobenius norm (Eckart & Young 1936). lora_alpha is the rank, so that peft's scale is 1.
Errors are measured on the factors as they are stored, rounding included.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from regraft.checkpoint.adapter import CONFIG, WEIGHTS
from regraft.checkpoint.blocks import in_blocks, is_embedding
from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.lora import Factors, inputs_first, read_array
from regraft.checkpoint.lora_parts import PREFIX
from regraft.errors import CheckpointError, MethodError, NonFiniteError
from regraft.merge import flops
from regraft.merge.lora.fit import cannot_hold
from regraft.merge.lora.stored import decoded, encoded, write_factors
from regraft.merge.low_rank import HALF_UNIT, energy, leading, leading_flops
from regraft.merge.methods.lora_cat import concatenated
from regraft.merge.recipe.spec import DTYPES

_BLOCK = 1024  # rows that are compared at a time


@dataclass(frozen=True)
class Held:
    """What became of one matrix.

    Args:
        rank: Of the factors that were kept.
        norm: Frobenius norm of its change.
        error: Frobenius norm of what the factors lack.
    """

    rank: int
    norm: float
    error: float

    @property
    def relative(self) -> float:
        """The error as a share of the change; 0 without a change."""
        return self.error / self.norm if self.norm else 0.0


@dataclass(frozen=True)
class Extraction:
    """What a LoRA holds of a change.

    Args:
        held: By the base tensor's name.
        lost: Frobenius norm of every change that is not in it, by the tensor's name, and why.
    """

    held: Mapping[str, Held]
    lost: Mapping[str, tuple[float, str]]

    @property
    def norm(self) -> float:
        """Frobenius norm of the whole change."""
        return sqrt(sum(one.norm**2 for one in self.held.values()) + sum(norm**2 for norm, _ in self.lost.values()))

    @property
    def relative(self) -> float:
        """Frobenius norm of everything that the LoRA lacks, as a share of the whole change."""
        missing = sum(one.error**2 for one in self.held.values()) + sum(norm**2 for norm, _ in self.lost.values())
        return sqrt(missing) / self.norm if self.norm else 0.0

    @property
    def lost_share(self) -> float:
        """The share of the squared norm that lies in tensors which are not in it."""
        return sum(norm**2 for norm, _ in self.lost.values()) / self.norm**2 if self.norm else 0.0


def extraction_flops(shape: tuple[int, ...], rank: int, low: int | None = None, exact: bool = False) -> float:
    """What a matrix takes, as `regraft.merge.flops` counts: its leading directions, and the product that the error is measured
    by. `exact` factors of rank `low` (`add_sum`) are multiplied twice instead."""
    if exact:
        return 2 * flops.product(shape[0], low or 0, shape[1])
    return leading_flops(shape, rank, low) + flops.product(shape[0], min(rank, *shape), shape[1])


@dataclass
class LoraWriter:
    """Collects the changes of a base, tensor by tensor (of several threads, too), and writes them as one peft folder.

    Args:
        base: The base's tensors.
        config: Its config.json.
        rank: The largest rank of a matrix.
        dtype: Of the stored factors.
        allow_lost: Whether changes that no LoRA can hold may be dropped.
        base_name: What the adapter names as its base.
        revision: Of the base on the Hub.

    Raises:
        MethodError: A rank below 1, or an unknown dtype.
    """

    base: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    rank: int
    dtype: str = "float32"
    allow_lost: bool = False
    base_name: str = ""
    revision: str | None = None
    _held: dict[str, Held] = field(default_factory=dict, init=False)
    _lost: dict[str, tuple[float, str]] = field(default_factory=dict, init=False)
    _factors: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise MethodError(f"A LoRA of rank {self.rank} was asked for, expected 1 or more.")
        if self.dtype not in DTYPES:
            raise MethodError(f"A LoRA of {self.dtype} was asked for, expected one of {', '.join(DTYPES)}.")
        self._reasons = cannot_hold(self.base, self.config)
        self._first = bool(inputs_first(self.base))

    def add(self, name: str, base: np.ndarray, merged: np.ndarray) -> None:
        """Take one tensor: float32, of the base's shape.

        Raises:
            CheckpointError: A name or shape that the base does not have.
            NonFiniteError: NaN or infinite values, or factors that overflow the dtype.
        """
        if name not in self.base or merged.shape != self.base[name].shape:
            had = list(self.base[name].shape) if name in self.base else "nothing"
            raise CheckpointError(
                f"{name!r} is {list(merged.shape)}, the base has {had}.", "Extract over its own base."
            )
        if np.array_equal(base, merged):
            return
        delta = merged - base
        if not np.isfinite(delta).all():
            raise NonFiniteError(f"The change of {name!r} holds NaN or infinite values.", "Use intact checkpoints.")
        if name in self._reasons:
            self._lost[name] = (sqrt(energy(delta)), self._reasons[name])
            return
        change = delta.T if self._transposed(name) else delta
        # Only what changed can have been rounded to something else.
        noise = HALF_UNIT * sqrt(energy(np.where(delta != 0, merged, np.float32(0))))
        left, values, right = leading(change, self.rank, noise)
        scale = np.sqrt(values)
        self._keep(name, scale[:, None] * right, left * scale, lambda start, stop: change[start:stop])

    def add_sum(self, name: str, parts: Sequence[Factors | None], weights: Sequence[float]) -> None:
        """Take the weighted sum of what adapters do to a tensor, exactly: their factors side by side, of any rank.

        Args:
            parts: One an adapter; None where it does not change the tensor.
            weights: One an adapter.

        Raises:
            CheckpointError: See `add_factors`.
        """
        chosen = [(part, weight) for part, weight in zip(parts, weights, strict=True) if part is not None]
        if chosen:
            arrays = [(read_array(part.A), read_array(part.B), part.scale) for part, _ in chosen]
            self.add_factors(name, *concatenated(arrays, [weight for _, weight in chosen]))

    def add_factors(self, name: str, down: np.ndarray, up: np.ndarray) -> None:
        """Take a change that is known as B A, as it is: A [r, in], B [out, r], scale 1; of any rank.

        Raises:
            CheckpointError: A tensor that no LoRA holds, or factors that do not fit it.
            NonFiniteError: The factors overflow the dtype.
        """
        turned = self._transposed(name) if name in self.base else False
        made = (down.shape[1], up.shape[0]) if turned else (up.shape[0], down.shape[1])
        if name in self._reasons or name not in self.base or self.base[name].shape != made:
            raise CheckpointError(
                f"{name!r} cannot hold factors that make {list(made)}: "
                f"{self._reasons.get(name) or 'the base has no such tensor'}.",
                "Use adapters of this base.",
            )
        if down.shape[0] and down.any() and up.any():
            self._keep(name, down, up, lambda start, stop: np.asarray(up[start:stop] @ down))

    def finish(self, folder: Path) -> Extraction:
        """Write adapter_config.json and adapter_model.safetensors into a folder that exists.

        Raises:
            CheckpointError: Nothing changed, or changes would be lost that were not allowed to be: names them.
        """
        # In an order of their own, as sums over them are rounded: threads bring them in any.
        found = Extraction(dict(sorted(self._held.items())), dict(sorted(self._lost.items())))
        if self._lost and not self.allow_lost:
            names = [f"{name} ({why})" for name, (_, why) in sorted(self._lost.items())]
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise CheckpointError(
                f"A LoRA cannot hold the changes of {', '.join(names[:4])}{more}: "
                f"{found.lost_share:.2%} of the whole change (squared norm).",
                "Write a full checkpoint, or allow them to be dropped.",
            )
        if not self._factors:
            raise CheckpointError(
                "No matrix changed that a LoRA could hold: there is nothing to write.", "Use the base as it is."
            )
        tensors = {}
        for name, (down, up) in self._factors.items():
            module = PREFIX + name.removesuffix(".weight")
            if is_embedding(name):
                tensors[f"{module}.lora_embedding_A"], tensors[f"{module}.lora_embedding_B"] = down, up
            else:
                tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = down, up
        write_factors(folder / WEIGHTS, tensors, DTYPES[self.dtype])
        (folder / CONFIG).write_text(json.dumps(self._config(), indent=2, sort_keys=True) + "\n")
        return found

    def _transposed(self, name: str) -> bool:
        """Whether the base stores [in, out]."""
        return is_embedding(name) or (self._first and in_blocks(name))

    def _keep(self, name: str, down: np.ndarray, up: np.ndarray, rows: Callable[[int, int], np.ndarray]) -> None:
        """Store factors of a change, whose rows are given a block at a time."""
        stored = encoded(down, self.dtype), encoded(up, self.dtype)
        first, second = decoded(stored[0], self.dtype), decoded(stored[1], self.dtype)
        if not (np.isfinite(first).all() and np.isfinite(second).all()):
            raise NonFiniteError(f"The factors of {name!r} overflow {self.dtype}.", "Store them in float32.")
        norm = missing = 0.0
        for start in range(0, len(second), _BLOCK):
            change = rows(start, start + _BLOCK)
            norm += energy(change)
            missing += energy(change - second[start : start + _BLOCK] @ first)
        self._held[name] = Held(len(first), sqrt(norm), sqrt(missing))
        self._factors[name] = stored

    def _config(self) -> dict[str, Any]:
        ranks = {name.removesuffix(".weight"): len(down) for name, (down, _) in self._factors.items()}
        most = max(ranks.values())
        # peft matches patterns with the end of a module's name; the caret makes it the whole name.
        lower = {f"^{module}": rank for module, rank in sorted(ranks.items()) if rank != most}
        causal = re.search("CausalLM|LMHead", " ".join(map(str, self.config.get("architectures") or ())))
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM" if causal else None,
            "base_model_name_or_path": self.base_name or None,
            "revision": self.revision,
            "r": most,
            "lora_alpha": most,
            "rank_pattern": lower,
            "alpha_pattern": lower,
            "target_modules": sorted(ranks),
            "fan_in_fan_out": any(self._first and in_blocks(name) for name in self._factors),
            "lora_dropout": 0.0,
            "bias": "none",
            "init_lora_weights": True,
            "inference_mode": True,
            "modules_to_save": None,
        }
