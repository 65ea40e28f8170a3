"""Tensors of checkpoints on disk as sources and sinks of a stack: decoded as they are read, rounded as they are written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.lora import Delta, Factors, Offset, load
from regraft.checkpoint.weights import raw_values, read_values
from regraft.checkpoint.writer import Writer
from regraft.errors import NonFiniteError
from regraft.merge.kernels import (
    all_finite,
    difference_of_bfloat16,
    from_bfloat16,
    from_float32,
    to_bfloat16,
)
from regraft.merge.stored import bits_as, decode, encode

_WORDS = {"F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class FileSource:
    """A tensor in a safetensors file."""

    tensor: TensorInfo

    @cached_property
    def _raw(self) -> np.ndarray:
        return raw_values(self.tensor)

    def _part(self, start: int, size: int) -> np.ndarray:
        # Mapped pages, touched where they lie: copying blocks out of the page cache first took half as long again.
        part = self._raw[start : start + size]
        return part if part.flags.aligned else part.copy()  # a tensor after one of an odd number of bytes

    @property
    def stored(self) -> tuple[np.ndarray, str] | None:
        """All elements as they lie in memory, and their format; None where they do not lie on their own boundaries."""
        return (self._raw, self.tensor.dtype) if self._raw.flags.aligned else None

    def read(self, out: np.ndarray, start: int) -> bool:
        """See `regraft.merge.stack.Source`."""
        part = self._part(start, out.size)
        if self.tensor.dtype == "BF16":
            return bool(from_bfloat16(out, part))
        if self.tensor.dtype == "F16":
            return bool(decode(out, bits_as(part, "F16")))
        if self.tensor.dtype == "F32":
            return bool(from_float32(out, part))
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold is not finite
            out[:] = part
        return bool(all_finite(out))

    def read_delta(self, base: object, out: np.ndarray, start: int) -> bool:
        """Fill `out` with the difference to a base; false where it has to be read in two steps.

        What fine-tunes come in, bfloat16 over bfloat16, is decoded and subtracted in one loop: half the time of a pass.
        """
        if not isinstance(base, FileSource) or {self.tensor.dtype, base.tensor.dtype} != {"BF16"}:
            return False
        return bool(difference_of_bfloat16(out, self._part(start, out.size), base._part(start, out.size)))

    def where(self) -> str:
        """See `regraft.merge.stack.Source`."""
        return f"{self.tensor.file}: tensor {self.tensor.name!r}"


@dataclass(frozen=True)
class LoraSource:
    """A tensor of a base with an adapter's low-rank change, or the change of a bias, added."""

    base: FileSource
    factors: Factors | None
    offset: Offset | None = None

    @cached_property
    def _delta(self) -> Delta | None:
        return None if self.factors is None else load(self.factors)

    def read(self, out: np.ndarray, start: int) -> bool:
        """See `regraft.merge.stack.Source`."""
        finite = self.base.read(out, start)
        if self._delta is not None:
            return self._delta.add_to(out, start) and finite
        if self.offset is not None:
            out += np.float32(self.offset.scale) * read_values(self.offset.values, start, start + out.size)
        return bool(all_finite(out))

    def where(self) -> str:
        """See `regraft.merge.stack.Source`."""
        return f"{self.base.where()} with its adapter"


@dataclass(frozen=True)
class FileSink:
    """A tensor of the checkpoint that is written."""

    writer: Writer
    name: str
    dtype: str

    def write(self, values: np.ndarray, start: int) -> None:
        """Round to the stored format, to nearest, ties to even.

        Raises:
            NonFiniteError: A value is infinite or NaN, or too large for float16.
        """
        encoded, fits = self._encoded(values)
        if not fits:
            raise self._overflow(values)
        self.writer.write(self.name, encoded, start)

    @property
    def stored_as(self) -> str:
        """The format in which `write_stored` takes values."""
        return self.dtype

    def write_stored(self, raw: np.ndarray, start: int) -> None:
        """Take elements in their format, known to be finite."""
        self.writer.write(self.name, raw, start)

    def _encoded(self, values: np.ndarray) -> tuple[np.ndarray, bool]:
        """The values in the stored format, and whether all of them are finite in it."""
        if self.dtype == "BF16":
            raw = np.empty(values.size, np.uint16)
            return raw, bool(to_bfloat16(raw, values))
        if self.dtype == "F16":
            half = np.empty(values.size, np.float16)
            return half, bool(encode(bits_as(half, "F16"), values))
        return values if self.dtype == "F32" else values.astype(np.float64), bool(all_finite(values))

    def _overflow(self, values: np.ndarray) -> NonFiniteError:
        if not all_finite(values):
            return NonFiniteError(
                f"Merging gave NaN or infinite values in tensor {self.name!r}.",
                "Use smaller weights or another method.",
            )
        return NonFiniteError(
            f"Merging gave values in tensor {self.name!r} that {_WORDS[self.dtype]} cannot hold.",
            "Write float32: output: {dtype: float32}.",
        )
