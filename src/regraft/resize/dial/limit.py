"""What a resized checkpoint may take: `params=10M`, `bytes=40MB`, `latency=5ms`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from decimal import Decimal
from math import ceil, floor, log10

from regraft.errors import ResizeError

_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}
_BYTES = {"b": 1.0, "": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_SECONDS = {"ms": 1.0, "s": 1e3, "us": 1e-3}
UNITS = {"params": _COUNTS, "bytes": _BYTES, "latency": _SECONDS}
# Of a limit of latency, what a shape may take when it is first timed.
LATENCY_MARGIN = 0.92
EXAMPLES = "params=10M, bytes=40MB or latency=5ms"
_PATTERN = re.compile(r"\s*(\w+)\s*=\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


@dataclass(frozen=True)
class Limit:
    """A limit on one measure of size; at most, not about.

    Args:
        kind: params (numbers in all weight files), bytes (of the folder, tokenizer included), latency (median milliseconds of
            one example).
        value: In numbers, bytes or milliseconds.
        text: As the user wrote it.
    """

    kind: str
    value: float
    text: str

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Read `params=10M`, `bytes=40MB` (or MiB), `latency=5ms`.

        Raises:
            ResizeError: Anything else, or a limit of zero.
        """
        match = _PATTERN.fullmatch(text)
        kind = match[1].lower() if match is not None else ""
        if match is None or kind not in UNITS or match[3].lower() not in UNITS[kind]:
            raise ResizeError(f"Cannot read the limit {text!r}.", f"Write {EXAMPLES}.")
        # In decimals: 4.068 * 1000 is below 4068 in floats, and a limit that was written for 4068 would not hold it.
        value = float(Decimal(match[2]) * Decimal(str(UNITS[kind][match[3].lower()])))
        if kind == "latency" and not match[3]:
            raise ResizeError(f"The limit {text!r} has no unit.", "Write latency=5ms.")
        if value <= 0:
            raise ResizeError(f"The limit {text!r} is zero.", f"Write {EXAMPLES}.")
        return cls(kind, value, text.strip())

    def holds(self, value: float) -> bool:
        """Whether something that takes `value` keeps to it."""
        return value <= self.value

    def tightened(self) -> Limit:
        """What is searched with: a latency that is timed again comes out a little otherwise."""
        return replace(self, value=LATENCY_MARGIN * self.value) if self.kind == "latency" else self

    def written(self, value: float) -> str:
        """The nearest limit above a value, as a user writes it: params=15.9M."""
        digits = 3 if self.kind == "latency" else 4
        scale = 10.0 ** (floor(log10(value)) + 1 - digits) if value > 0 else 1.0
        above = ceil(value / scale - 1e-9) * scale
        if self.kind == "latency":
            return f"latency={above:.10f}".rstrip("0").rstrip(".") + "ms"
        unit, size = next(
            ((unit, size) for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)) if above >= size), ("", 1.0)
        )
        return f"{self.kind}={above / size:.{digits}g}{unit}" + ("B" if self.kind == "bytes" else "")

    def said(self, value: float) -> str:
        """A measured value in words: 10.2M parameters."""
        if self.kind == "latency":
            return f"{value:.2f} ms"
        for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if value >= scale:
                return f"{value / scale:.3g}{unit}" + (" parameters" if self.kind == "params" else "B")
        return f"{value:.0f}" + (" parameters" if self.kind == "params" else " bytes")
