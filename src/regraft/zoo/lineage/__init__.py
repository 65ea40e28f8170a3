"""Lineage: which checkpoints of a zoo descend from which, read from their weights, and what differs between two."""

from __future__ import annotations

from regraft.zoo.lineage.diff import Diff, diff
from regraft.zoo.lineage.edge import RELATIONS, Edge
from regraft.zoo.lineage.find import find_edges

__all__ = ["RELATIONS", "Diff", "Edge", "diff", "find_edges"]
