"""Named points at which a run may be killed; the suite kills it at each and starts it again.

In normal use `point` does nothing. A test sets `hook`, which is called with the name of every point that is passed.
"""

from __future__ import annotations

from collections.abc import Callable

REUSE = (
    "run folder made",
    "task read",
    "baseline measured",
    "features written",
    "ranked",
    "decision logged",
    "leg trained",
    "leg written",
    "leg measured",
    "soup measured",
    "cut written",
    "family chosen",
    "member aside",
    "member written",
    "member tested",
    "recipe written",
    "result written",
)
MERGE = ("tensor merged", "merge written", "candidate measured")
PACK = (
    "packed file written",
    "pack written",
    "pack verified",
    "original aside",
    "pack in place",
    "original removed",
    "restored file written",
    "restore verified",
)
INDEX = ("checkpoints written", "checkpoints recorded", "gone written", "parents looked up")
POINTS = (*REUSE, *MERGE, *PACK, *INDEX)

hook: Callable[[str], None] | None = None


def point(name: str) -> None:
    """Pass the fault point `name`."""
    if hook is not None:
        hook(name)
