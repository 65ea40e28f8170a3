"""What becomes of every tensor of a merge: merged, copied from the template, read under another name, or left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from regraft.checkpoint.weights import FLOATS
from regraft.merge.checks.compatible import compare
from regraft.merge.checks.findings import Finding, names, note
from regraft.merge.checks.tied import copies
from regraft.merge.inputs import Opened


@dataclass(frozen=True)
class Aligned:
    """The checkpoints of a merge, brought to the template's names.

    Args:
        opened: The checkpoints under the template's names, tied heads too; what is stored twice is known as a copy.
        merged: The tensors of the template that the method merges: floating point, of one shape, of one meaning in all.
        copied: Its other tensors, and why they are kept as they are.
        left_out: Tensors of the others that the template, and so the output, does not have.
        findings: What differs.
    """

    opened: Opened
    merged: tuple[str, ...]
    copied: Mapping[str, str]
    left_out: tuple[str, ...]
    findings: tuple[Finding, ...]


def align(opened: Opened) -> Aligned:
    """Compare every checkpoint of a merge with its template."""
    template = opened.template
    whose = f"the base {template.reference}" if opened.base is not None else template.reference
    findings: list[Finding] = []
    left_out: dict[str, None] = {}
    apart: set[str] = set()
    found = []
    for one in opened.all:
        if one is template:
            found.append(one)
            continue
        compared = compare(template, one, one.reference, whose)
        findings += compared.findings
        left_out |= dict.fromkeys(compared.left_out)
        apart |= compared.apart
        tensors = {compared.renamed.get(name, name): info for name, info in one.tensors.items()}
        tensors |= {name: tensors[theirs] for name, theirs in compared.aliases.items()}
        found.append(one if tensors.keys() == one.tensors.keys() else replace(one, tensors=tensors))
    with_base = opened.base is not None
    as_merged = Opened(found[0] if with_base else None, tuple(found[with_base:]), opened.first)
    merged, copied = [], {}
    for name, info in template.tensors.items():
        shapes = {one.tensors[name].shape if name in one.tensors else None for one in as_merged.all}
        floats = all(one.tensors[name].dtype in FLOATS for one in as_merged.all if name in one.tensors)
        if info.dtype not in FLOATS:
            copied[name] = "not floating point"
        elif name in apart or shapes != {info.shape} or not floats:
            copied[name] = "not the same in all"
        else:
            merged.append(name)
    same = copies(as_merged.template, as_merged.all)
    same = {name: twin for name, twin in same.items() if name in merged and twin in merged}
    if same:
        pairs = [f"{name} of {twin}" for name, twin in same.items()]
        findings.append(
            note("tied", f"Stored as a copy in every checkpoint: {names(pairs)}; merged once, written twice.", [*same])
        )
    return Aligned(replace(as_merged, copies=same), tuple(merged), copied, tuple(left_out), tuple(findings))
