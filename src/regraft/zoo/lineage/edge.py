"""An edge of the lineage graph."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

RELATIONS = ("identical", "finetuned", "merged", "truncated", "pruned", "quantised", "lora-merged")


@dataclass(frozen=True)
class Edge:
    """A child and the checkpoints that it was made from.

    Args:
        child: As it was given to `find_edges`: the folder, or the checkpoint's reference.
        parents: One, or several of a merge (the base of a task arithmetic included).
        relation: One of `RELATIONS`, or two of them, the structural one first: "truncated+finetuned".
        p_value: Of the independence test between child and (first) parent; None where there was too little to test.
        distance: Length of the change over the length of the parent's weights, over what both have; of the first parent.
        evidence: What was found, in words and numbers, and what of it was sampled.
        stated: Whether the direction is the card's word: the weights show that the two are neighbours, not which came first.
    """

    child: str
    parents: tuple[str, ...]
    relation: str
    p_value: float | None
    distance: float | None
    evidence: str
    stated: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "parents": list(self.parents)}
