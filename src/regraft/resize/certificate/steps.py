"""What was done to a checkpoint, step after step, as data: what regraft.json holds, and what a check goes by.

    {"step": "cut", "before": {"ffn": 64}, "after": {"ffn": 32}, "by": {"ffn": "activation"}, "texts": 256,
     "kept": {"ffn": [{"at": {"layer": 0}, "units": "0-3,7,12-14"}, ...]}, "computes": "mask", "why": ""}

`computes` says what is promised of the outputs:
    mask     what the original does with the cut units masked
    same     what the original does
    other    something else; `why` says why
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.anatomy import Opened, Plan
from regraft.resize.formats.half import Halved
from regraft.resize.formats.int8 import Rounded
from regraft.resize.growth import Grown
from regraft.resize.importance import Place
from regraft.resize.importance.places import is_layers
from regraft.resize.vocabulary import Trimmed

Step = Mapping[str, Any]
Kept = Mapping[str, Mapping[Place, np.ndarray]]


def cut_step(opened: Opened, kept: Kept, plan: Plan, by: Mapping[str, str], texts: int = 0) -> dict[str, Any]:
    """A cut.

    Args:
        opened: What was cut.
        kept: The units that stayed, by axis and place (`Cut.kept`).
        plan: As it was written.
        by: The criterion of each axis.
        texts: How many texts were looked at.
    """
    named = opened.binding.anatomy.named_units()
    unlike = [axis for axis in kept if axis in named and not is_layers(opened.binding, axis)]
    why = plan.approximate[0] if plan.approximate else ""
    if unlike:
        why = why or f"The units of {unlike[0]} are tensors of their own, and there is no mask of them."
    before = {axis: opened.binding.sizes[axis] for axis in kept}
    after = {axis: len(next(iter(places.values()))) for axis, places in kept.items() if places}
    listed = {
        axis: [{"at": dict(place), "units": ranges(units)} for place, units in places.items()]
        for axis, places in kept.items()
    }
    return {
        "step": "cut", "before": before, "after": after, "by": dict(by), "texts": texts, "kept": listed,
        "computes": "other" if why else "mask", "why": why,
    }  # fmt: skip


def grow_step(grown: Grown, seed: int) -> dict[str, Any]:
    """A growth. One that was found lossless, or is by construction, promises the outputs of the original."""
    meant = grown.lossless
    return {
        "step": "grow", "method": grown.method, "before": dict(grown.before), "after": dict(grown.after), "seed": seed,
        "known": grown.known, "statement": grown.statement, "computes": "same" if meant else "other",
        "why": "" if meant else grown.statement,
    }  # fmt: skip


def trim_step(
    trimmed: Trimmed, texts: Sequence[str], source: str | None = None, column: str | None = None
) -> dict[str, Any]:
    """A trimmed vocabulary.

    Args:
        texts: The corpus; a hash of it goes on record, the texts do not.
        source: The file that it was read from, as an absolute path; None: it came as a list.
        column: Of that file.
    """
    return {
        "step": "vocabulary", "before": trimmed.tokens_before, "after": trimmed.tokens_after,
        "covered": trimmed.covered, "kept": ranges(np.array(trimmed.kept)),
        "corpus": {"texts": trimmed.texts, "sha256": texts_id(texts), "source": source, "column": column,
                   "changed": len(trimmed.changed)},
        "computes": "same", "why": "",
    }  # fmt: skip


def store_step(name: str, done: Halved | Sequence[Rounded]) -> dict[str, Any]:
    """A number format: bf16, fp16 or int8-rounded. The original's numbers are rounded to 16 bits, too, for a comparison."""
    if isinstance(done, Halved):
        facts: dict[str, Any] = {"tensors": done.tensors, "error": done.error, "flushed": done.flushed}
        return {"step": "store", "format": name, **facts, "computes": "same", "why": ""}
    error = max((one.error for one in done), default=0.0)
    why = "Each weight of a linear layer is rounded to one of 255 multiples of a scale of its row."
    return {"step": "store", "format": name, "tensors": len(done), "error": error, "computes": "other", "why": why}


def other_step(what: str, **facts: Any) -> dict[str, Any]:
    """A step of which nothing is promised but what is read off the folder: sparsity, low ranks, training."""
    return {
        "step": what,
        **facts,
        "computes": "other",
        "why": f"What {what} does to the outputs is measured, not promised.",
    }


@dataclass(frozen=True)
class Asked:
    """What the outputs are to be compared with, read from the steps on record.

    Args:
        computes, why: Of all steps together (see the head of this file).
        kept: Of a cut, by axis and place.
        tokens: The old id of each new token; None where the vocabulary is as it was.
        half: bf16 or fp16, to which the original's numbers are rounded; None: as they are.
        grown: (method, sizes of the axes that changed, seed) of a growth.
    """

    computes: str
    why: str = ""
    kept: Kept = field(default_factory=dict)
    tokens: np.ndarray | None = None
    half: str | None = None
    grown: tuple[str, Mapping[str, int], int] | None = None


def asked(steps: Sequence[Step]) -> Asked:
    """What the steps on record promise of the outputs."""
    why = next((str(one["why"]) for one in steps if one["computes"] == "other"), "")
    sizes = [one for one in steps if one["step"] in ("cut", "grow")]
    if len(sizes) > 1:
        why = why or "Sizes were changed more than once, and the units of a later change are numbered otherwise."
    cut = next((one for one in steps if one["step"] == "cut"), None)
    kept = {} if cut is None else {axis: _places(places) for axis, places in cut["kept"].items()}
    trimmed = next((one for one in steps if one["step"] == "vocabulary"), None)
    half = next((str(one["format"]) for one in steps if one.get("format") in ("bf16", "fp16")), None)
    growth = next((one for one in steps if one["step"] == "grow"), None)
    grown = None if growth is None else (str(growth["method"]), dict(growth["after"]), int(growth["seed"]))
    computes = "other" if why else "mask" if cut is not None else "same"
    return Asked(computes, why, kept, None if trimmed is None else unranged(trimmed["kept"]), half, grown)


def _places(listed: Sequence[Mapping[str, Any]]) -> dict[Place, np.ndarray]:
    return {tuple((str(axis), int(unit)) for axis, unit in one["at"].items()): unranged(one["units"]) for one in listed}


def ranges(units: np.ndarray) -> str:
    """Numbers in their order, with runs of neighbours as first-last: "0-3,7,12-14"."""
    values = np.asarray(units, np.int64)
    starts = np.flatnonzero(np.diff(values, prepend=-2) != 1)
    return ",".join(
        str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in np.split(values, starts[1:])
    )


def unranged(text: str) -> np.ndarray:
    """What `ranges` wrote, int64."""
    ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    return np.concatenate([np.arange(part[0], part[-1] + 1, dtype=np.int64) for part in ends])


def texts_id(texts: Sequence[str]) -> str:
    """sha256 over texts in their order."""
    return hashlib.sha256(json.dumps(list(texts), ensure_ascii=True).encode()).hexdigest()


def said(step: Step) -> str:
    """A step in words, for the card and the command."""
    if step["step"] == "vocabulary":
        return (
            f"Vocabulary: {step['after']:,} of {step['before']:,} tokens, those of {step['corpus']['texts']:,} texts."
        )
    if step["step"] == "store":
        return f"Numbers stored as {step['format']}: {step['tensors']} tensors, at most {step['error']:.2g} off."
    if step["step"] in ("cut", "grow"):
        sizes = ", ".join(f"{axis} {step['before'][axis]:,} to {size:,}" for axis, size in step["after"].items())
        how = f" with {step['method']}" if step["step"] == "grow" else _by(step)
        return f"{'Cut' if step['step'] == 'cut' else 'Grown'}: {sizes}{how}."
    return f"{str(step['step']).capitalize()}."


def _by(step: Step) -> str:
    names = list(dict.fromkeys(step["by"].values()))
    over = f" over {step['texts']:,} texts" if step["texts"] else ""
    return f", by {' and '.join(names)}{over}" if names else ""
