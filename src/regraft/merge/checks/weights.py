"""What a preflight says of the weights themselves, mostly from a few samples: values, ancestors, formats, what is given twice."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from regraft.checkpoint import sampled
from regraft.checkpoint.ancestry import FAR, Ancestry, ancestry
from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.weights import FLOATS, Weights
from regraft.merge.checks.findings import Finding, error, names, note
from regraft.merge.inputs import Opened
from regraft.merge.recipe.spec import Spec
from regraft.merge.register import traits_of

# Bytes of all inputs together up to which every value is looked at: a small part of a second, and far less than what a merge
# that takes seconds reads.
WHOLE = 256 * 2**20


def looks_at_all(opened: Opened, asked: bool) -> bool:
    """Whether every value is looked at before anything is written: when that is asked for, or costs next to nothing."""
    return asked or sum(info.nbytes for info in set(_stored(opened).values())) <= WHOLE


def not_finite(opened: Opened, whole: bool, threads: int = 1) -> list[Finding]:
    """NaN and infinity in what is stored: everywhere, or in a sample of each tensor. The merge itself looks at every value.

    Args:
        opened: The checkpoints.
        whole: Whether all values are read.
        threads: That read them.
    """
    stored = _stored(opened)
    places = [*set(stored.values())]  # what several adapters lie over is read once
    if whole:
        with ThreadPoolExecutor(threads) as pool:
            fine = dict(zip(places, pool.map(sampled.finite_throughout, places), strict=True))
    else:
        fine = {info: not sampled.not_finite({info.name: info}) for info in places}
    findings = []
    for one in opened.all:
        bad = {name: info for (who, name), info in stored.items() if who == one.reference and not fine[info]}
        if bad:
            files = sorted({str(info.file) for info in bad.values()})
            problem = f"{one.reference} holds NaN or infinite values in {names([*bad])} ({names(files)})."
            findings.append(error("non-finite", problem, "Use an intact copy of the checkpoint.", [*bad]))
    return findings


def _stored(opened: Opened) -> dict[tuple[str, str], TensorInfo]:
    """The floating-point tensors of all checkpoints and of their adapters, by reference and name."""
    return {
        (one.reference, name): info
        for one in opened.all
        for tensors in (one.tensors, {} if one.adapter is None else one.adapter.tensors)
        for name, info in tensors.items()
        if info.dtype in FLOATS
    }


def ancestries(opened: Opened) -> dict[str, Ancestry]:
    """Each input against the base, or against the first input. One that lies in the very same files needs no test."""
    origin = opened.template
    with np.errstate(invalid="ignore", over="ignore"):  # values that are not finite are found by themselves
        return {
            one.reference: ancestry(origin.tensors, one.tensors)
            for one in opened.inputs
            if one is not origin and _places(one) != _places(origin)
        }


def _places(one: Weights) -> set[Path]:
    return {file.resolve() for file in {info.file for info in one.tensors.values()}}


def related(method: str, tests: Mapping[str, Ancestry], whose: str) -> list[Finding]:
    """What the test of each input says; an error where a method needs kin."""
    findings = []
    for who, test in tests.items():
        words = f"correlation {test.correlation:.4f} of {test.elements:,} sampled weights, p {test.p_value:.1g}"
        if test.related is None:
            findings.append(note("ancestry", f"{who} has no matrices in common with {whose} to test for an ancestor."))
        elif not test.related:
            problem = f"{who} and {whose} share no ancestor: their weights are unrelated ({words})"
            findings.append(
                error("ancestry", f"{problem}.", "Merge fine-tunes of one checkpoint.", list(test.tensors))
                if traits_of(method).kin
                else note("ancestry", f"{problem}, which {method} does not ask for.", list(test.tensors))
            )
        elif test.correlation < FAR:
            findings.append(
                note("ancestry", f"{who} is far from {whose}: {words}. Merging may fail.", list(test.tensors))
            )
        if test.replaced:
            findings.append(note(
                "ancestry", f"{names(test.replaced)}: unrelated in {who} and {whose}, as if trained anew.", test.replaced
            ))  # fmt: skip
    return findings


def formats(spec: Spec, opened: Opened) -> list[Finding]:
    """Number formats that differ, within a checkpoint or between them."""
    kinds = {
        one.reference: sorted({info.dtype for info in one.tensors.values() if info.dtype in FLOATS})
        for one in opened.all
    }
    if len({tuple(one) for one in kinds.values()}) <= 1:
        return []
    written = spec.output.dtype or f"the formats of {opened.template.reference}"
    words = "; ".join(f"{who} {', '.join(one)}" for who, one in kinds.items())
    return [note("dtype", f"Number formats differ ({words}); the output has {written}.")]


def doubles(opened: Opened) -> list[Finding]:
    """Inputs that are given twice, and inputs that are the base."""
    findings = []
    first: dict[str, str] = {}
    for one in opened.inputs:
        if one.file_id in first:
            findings.append(note("same-input", f"{one.reference} is given twice (as {first[one.file_id]})."))
        first.setdefault(one.file_id, one.reference)
        if opened.base is not None and sampled.seem_equal(opened.base, one):
            findings.append(note("equal-base", f"{one.reference} has the values of the base wherever it was sampled."))
    return findings
