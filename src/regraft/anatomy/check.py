"""The acceptance test of an anatomy: coverage and shapes of a checkpoint, and the declared symmetry of every axis.

Wrong layouts (GPT-2 read as interleaved, grouped heads the wrong way round) pass the shape check. A permutation of the units of a
`free` axis that changes the logits shows them: in float64, with maps that differ per layer and per head, an exact one stays below
1e-10, and a wrong layout changes them by about their own size.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regraft.anatomy.apply import Opened, change, open_bound
from regraft.anatomy.bind import Binding
from regraft.errors import AnatomyError

BOUND = 1e-10


@dataclass(frozen=True)
class Claim:
    """One thing that was checked.

    Args:
        subject: tensors, shapes, or an axis by name.
        outcome: pass, fail, or stated (declared, and nothing to test).
        known: exact, or sampled.
        detail: A sentence.
        difference: Of the logits, the largest; None where none was measured.
    """

    subject: str
    outcome: str
    known: str
    detail: str
    difference: float | None = None


_STATED = {
    "ids": "ids, seen from outside: a permutation renumbers what goes in or comes out.",
    "sequence": "a sequence: its order matters; it can be cut and repeated.",
    "fixed": "fixed: no map.",
}


def check_anatomy(opened: Opened, seed: int = 0) -> list[Claim]:
    """Check a checkpoint that was bound (`open_bound`): what binding has found, and every axis that its tensors carry.

    The symmetries are tested on a random model of the checkpoint's own class: with its sizes up to two million elements, else
    with the config shrunk. The checkpoint's own weights are not read.

    Raises:
        AnatomyError: No tiny model of its class can be made.
    """
    binding = opened.binding
    apart = f", {len(binding.ignored)} ignored, {len(binding.unread)} of heads that the class does not have"
    claims = [
        Claim("tensors", "pass", "exact", f"{len(binding.tensors)} bound{apart}; {len(binding.ties)} tied."),
        Claim("shapes", "pass", "exact", "Every shape is what its axes make it."),
    ]
    with tempfile.TemporaryDirectory() as place:
        return claims + _symmetries(opened, Path(place), seed)


def _symmetries(opened: Opened, place: Path, seed: int) -> list[Claim]:
    from regraft.anatomy import tiny

    elements = sum(one.elements for one in opened.tensors.values())
    settings = opened.binding.settings if elements <= tiny.SMALL else tiny.shrunk(opened.binding)
    tiny.random_checkpoint(settings, place / "tiny", seed)
    small = open_bound(str(place / "tiny"), opened.binding.anatomy)
    before = tiny.outputs(tiny.load_exactly(small.folder, small.binding.settings), seed)
    claims = []
    for name, axis in opened.binding.anatomy.axes.items():
        if name not in opened.binding.carried:
            continue
        if axis.order != "free":
            claims.append(Claim(name, "stated", "exact", _STATED[axis.order]))
        elif small.binding.sizes.get(name, 0) < 2 or name not in small.binding.carried:
            claims.append(Claim(name, "stated", "exact", "free, and with one unit there is nothing to permute."))
        else:
            claims.append(_permuted(small, name, place / "permuted", before, seed))
    return claims


def _permuted(small: Opened, name: str, target: Path, before: Mapping[str, object], seed: int) -> Claim:
    from regraft.anatomy import tiny

    choice = Shuffle(small.binding, name, seed)
    try:
        plan = change(small, {name: choice}, target)
        after = tiny.outputs(tiny.load_exactly(target, plan.settings), seed)
    except AnatomyError as fault:
        return Claim(name, "fail", "sampled", f"A permutation is refused: {fault.problem}")
    difference = 0.0
    for key, old in before.items():
        values, new = np.asarray(old), np.asarray(after[key])
        carried = tiny.BASE_OUTPUTS.get(key)
        if carried is not None and small.binding.axis(carried) == name:
            values = values[..., choice({})]
        difference = max(difference, float(np.abs(values - new).max()))
    held = difference <= BOUND  # false for NaN
    words = "changes nothing" if held else "changes the outputs: the axis is laid out in another way, or is not free"
    return Claim(name, "pass" if held else "fail", "sampled", f"free: a random permutation {words}.", difference)


@dataclass(frozen=True)
class Shuffle:
    """A permutation of an axis, another one for each enclosing unit, and never the identity."""

    binding: Binding
    name: str
    seed: int = 0

    def __call__(self, units: Mapping[str, int]) -> np.ndarray:
        size = self.binding.sizes[self.name]
        draw = np.random.default_rng(zlib.crc32(f"{self.seed} {self.name} {sorted(units.items())}".encode()))
        found = draw.permutation(size)
        return np.roll(found, 1) if np.array_equal(found, np.arange(size)) else found
