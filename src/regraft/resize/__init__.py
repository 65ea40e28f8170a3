"""Resize a checkpoint: smaller or larger, in a standard format, with a certificate of what was checked.

    from regraft import resize

    resize.cut("models/bert", {"layer": 6}, Path("small"), texts=texts)          layers, neurons, heads, hidden units
    resize.grow("models/bert", "lemon", {"layer": 24}, Path("large"))            a larger model that computes the same
    resize.trim("models/bert", texts, Path("narrow"))                            the vocabulary
    resize.to_half(resize.open_bound("models/bert"), "bf16", Path("half"))       number formats

Each writes a stock folder; `certify(folder, parent, steps)` adds provenance, card and certificate. `regraft resize`, and
`regraft.planner.resizing.resize_stock` from Python, do all of it at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regraft.anatomy import open_bound
    from regraft.resize.certificate.certify import certify
    from regraft.resize.cuts.cut import cut
    from regraft.resize.cuts.minitron import minitron
    from regraft.resize.formats.half import to_half
    from regraft.resize.formats.int8 import int8_rounded, load_int8, pack_int8
    from regraft.resize.growth.grow import grow
    from regraft.resize.lowrank.engine import load_low_rank, low_rank, pack_low_rank
    from regraft.resize.sparsity.engine import sparsify
    from regraft.resize.vocabulary.trim import trim

__all__ = [
    "certify",
    "cut",
    "grow",
    "int8_rounded",
    "load_int8",
    "load_low_rank",
    "low_rank",
    "minitron",
    "open_bound",
    "pack_int8",
    "pack_low_rank",
    "sparsify",
    "to_half",
    "trim",
]

_HOMES = {
    "certify": "resize.certificate", "cut": "resize.cuts", "minitron": "resize.cuts", "grow": "resize.growth",
    "trim": "resize.vocabulary", "sparsify": "resize.sparsity.engine", "low_rank": "resize.lowrank.engine",
    "pack_low_rank": "resize.lowrank.engine", "load_low_rank": "resize.lowrank.engine", "to_half": "resize.formats.half",
    "int8_rounded": "resize.formats.int8", "pack_int8": "resize.formats.int8", "load_int8": "resize.formats.int8",
    "open_bound": "anatomy",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import torch and the methods only when one is used."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"regraft.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'regraft.resize' has no attribute {name!r}")
