"""What the search of the size dial found, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from regraft.anatomy import Plan
from regraft.errors import ResizeError
from regraft.resize.cuts.cut import Kept
from regraft.resize.dial.limit import Limit
from regraft.resize.dial.shapes import Counts


@dataclass(frozen=True)
class Step:
    """What was done to the checkpoint that was written, and what it left.

    Args:
        what: In words.
        parameters, bytes: Of the shape.
        score: What the model was worth after it; None where nobody asked.
        measure: What that is: "agreement", "probe of training texts, on validation texts", "validation accuracy".
        seconds: That it took.
    """

    what: str
    parameters: int
    bytes: int
    score: float | None
    measure: str
    seconds: float


@dataclass(frozen=True)
class Tried:
    """A shape that was cut and scored; `recovered` is what it was worth after its first training."""

    counts: Counts
    parameters: int
    bytes: int
    score: float | None
    recovered: float | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        return "-".join(f"{axis}{count}" for axis, count in sorted(self.counts.items())) or "whole"


@dataclass
class Found:
    """What the search found. The checkpoint lies in `folder`, which belongs to the caller.

    `made` holds the index maps of each shape that was tried, and the plan that it was written by; `trained` is the folder that
    `Recover` wrote it into, or the one it was cut into.
    """

    folder: Path
    limit: Limit
    counts: Counts
    steps: list[Step] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    not_applicable: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    made: dict[str, tuple[Mapping[str, Kept], Plan]] = field(default_factory=dict)
    measured: float | None = None
    trained: Path | None = None

    def cut(self) -> tuple[Mapping[str, Kept], Plan]:
        """The maps and the plan of the shape that was chosen."""
        return self.made[said(self.counts)]


def said(counts: Counts) -> str:
    """A shape in words."""
    return ", ".join(f"{axis} {count}" for axis, count in sorted(counts.items())) or "the whole"


def measured(limit: Limit, value: float) -> None:
    """Check what the written checkpoint takes.

    Raises:
        ResizeError: It is beyond the limit.
    """
    if not limit.holds(value):
        raise ResizeError(
            f"The result takes {limit.said(value)}, and the limit is {limit.text}.",
            f"Give {limit.written(value)}, or trim the vocabulary as well.",
        )
