"""Shapes with half of an encoder's blocks, and what each is worth before it is trained again.

`hidden` stays: the trained head reads it. Every number of layers goes with the widest layers that leave half of the blocks'
parameters; a shape with much less than half has lost what it need not lose, and is left out.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from regraft.anatomy import Opened, change
from regraft.checkpoint.blocks import in_blocks
from regraft.errors import RegraftError, ResizeError, StoreError
from regraft.planner.recovery import Recovery
from regraft.resize.cuts.cut import Kept, criteria_of
from regraft.resize.cuts.sizes import followed
from regraft.resize.dial import Limit, Shapes
from regraft.resize.dial.shapes import Counts
from regraft.resize.importance import scores

SHARE = 0.5
# Of that, what a shape has at least.
LEAST = 0.75
# The most shapes that are cut and scored.
MOST_SHAPES = 6


@dataclass(frozen=True)
class Half:
    """A shape: units of its axes, parameters in its blocks, and what a probe makes of it before training."""

    counts: Counts
    blocks: int
    score: float = 0.0


def half_shapes(opened: Opened) -> list[Half]:
    """The shapes, those with the most parameters first.

    Raises:
        ResizeError: There is none.
    """
    shapes = Shapes(opened, body=True)
    shapes.widths.pop("hidden", None)

    def blocks(counts: Counts) -> int:
        return sum(prod(one.shape) for one in shapes.plan(counts).outputs if in_blocks(one.source))

    most = SHARE * blocks({})
    if not most:
        raise ResizeError(f"The tensors of {opened.folder} show no repeated blocks.", "Resize it by hand.")
    limit = Limit("params", most, f"{SHARE:.0%} of the blocks' parameters")
    found = sorted((Half(one, blocks(one)) for one in shapes.under(limit, blocks)), key=lambda one: -one.blocks)
    return ([one for one in found if one.blocks >= LEAST * most] or found[:1])[:MOST_SHAPES]


def scored(
    opened: Opened, halves: Sequence[Half], recovery: Recovery, texts: Sequence[str], seed: int, scratch: Path,
    stop: Callable[[], bool],
) -> list[Half]:  # fmt: skip
    """The shapes that can be cut, with their scores, the best first; importance is measured once.

    Args:
        stop: Asked before each shape but the first; when true the others are left.

    Raises:
        RegraftError: What all of them failed with.
        StoreError: The disk is full.
    """
    whole = [followed(opened.binding, one.counts) for one in halves]
    named = {axis: keep for one in halves for axis, keep in one.counts.items()}
    every = {axis: keep for one in whole for axis, keep in one.items()}
    worth = scores(opened, criteria_of(opened.binding, every, named, "activation", None), texts=texts, seed=seed)
    found, failed = list[Half](), list[RegraftError]()
    for number, (one, counts) in enumerate(zip(halves, whole, strict=True)):
        if found and stop():
            break
        folder = scratch / str(number)
        try:
            change(opened, {axis: Kept(worth[axis], keep) for axis, keep in counts.items()}, folder)
            found.append(Half(one.counts, one.blocks, recovery.score(folder)))
        except StoreError:
            raise
        except RegraftError as fault:
            failed.append(fault)
        shutil.rmtree(folder, ignore_errors=True)
    if not found:
        raise failed[0]
    return sorted(found, key=lambda one: (-one.score, one.blocks))
