"""Find the edges: from headers to samples to whole tensors, each stage only on what the one before has left.

1  headers    checkpoints are grouped by names and shapes of their blocks' matrices
2  samples    about 2^16 elements of each are read once, at the same places; families are sorted out by correlation and by the
              independence test (Zhu et al. 2025, arXiv 2502.12292; Bonferroni over all pairs); distances are products of samples
3  copies     equal samples, confirmed over whole tensors: identical, or only the head differs
4  merges     linear and sparse combinations (see `combine`)
5  trees      of what has the same layers, by distance and direction (see `tree`, `direction`); then of cut checkpoints, which
              hang from those with more layers
6  kinds      what each edge is (see `kinds`), from corners of its matrices

Cost for n checkpoints of which families have k members: n samples read (by memory map), k^2 inner products of samples, about
2 k direction statistics and k kinds, each of which reads at most 2^22 elements of two checkpoints; whole files are read only
to confirm copies. Memory: n samples of about 2^16 float32, and k^2 float64.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from regraft.checkpoint.checkpoint import Checkpoint
from regraft.checkpoint.weights import let_go
from regraft.progress import SILENT, Progress
from regraft.zoo.lineage.edge import Edge
from regraft.zoo.lineage.family import families
from regraft.zoo.lineage.kin import Kin
from regraft.zoo.lineage.model import open_models


def find_edges(
    checkpoints: Sequence[Checkpoint | str | os.PathLike[str]],
    *,
    stated: Mapping[str, Sequence[str]] | None = None,
    progress: Progress | None = None,
) -> list[Edge]:
    """Which checkpoints descend from which, by their weights.

    An edge leads to the nearest ancestor that is in the zoo. A checkpoint whose parent is not there gets none, siblings get
    none to each other, and of copies that are equal the first (by the card, then by name) counts as the parent. The result
    does not depend on the order of the list.

    Args:
        checkpoints: Folders in Hugging Face layout, or opened checkpoints. Adapters, random initialisations and what cannot
            be opened have no edges; that is said through `progress`.
        stated: Parents that each one's card names, by the child's key; None reads the cards. They decide only what the
            weights leave open, and such edges are marked.
        progress: Told what is done.

    Returns:
        Edges sorted by child.
    """
    progress = progress or SILENT
    try:
        models = open_models(checkpoints, stated, progress)
        found: list[Edge] = []
        kept = families(models, progress)
        with progress.bar("lineage", max(1, len(kept))):
            for family in kept:
                found += Kin(family).edges()
                progress.advance()
        return sorted(found, key=lambda edge: (edge.child, edge.parents))
    finally:
        let_go()
