"""Everything that can be known of a merge before a byte is written: from headers, configs, tokenizer files, a few samples.

A preflight is data: what goes in, what differs and where, what is merged and what is copied, and what it will take. An error
refuses the merge unless its own code is allowed (`--allow heads`); what was allowed is recorded in the certificate.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from regraft.checkpoint import sampled
from regraft.checkpoint.ancestry import FAR, Ancestry, ancestry
from regraft.checkpoint.blocks import block_of
from regraft.checkpoint.weights import FLOATS, Weights
from regraft.errors import MethodError
from regraft.merge.align import Aligned, align
from regraft.merge.certificate.small_files import tokenizer_folder
from regraft.merge.checks.adapted import check_adapter
from regraft.merge.checks.findings import Finding, check_codes, error, names, note, refuse
from regraft.merge.checks.room import check_out, check_room, disk_of, memory_of, seconds_of, size
from regraft.merge.checks.vocabulary import differences
from regraft.merge.inputs import Opened
from regraft.merge.recipe.spec import Spec
from regraft.merge.register import traits_of


@dataclass(frozen=True)
class Preflight:
    """What is known before a merge.

    Args:
        method: Its name.
        checkpoints: Of each (the base first): role, reference, bytes, tensors, number formats, adapter, file_id.
        findings: Errors and notes.
        memory: Bytes: `predicted`, `limit`, and `working` with its `tensor` for methods that need whole tensors.
        disk: Bytes: `needed`, and `free` where the output goes (None without an output).
        seconds: Of reading everything and writing the output once, at the pace that was measured just now.
        ancestry: The test of each input, by reference.
        aligned: What becomes of every tensor.
    """

    method: str
    checkpoints: tuple[Mapping[str, Any], ...]
    findings: tuple[Finding, ...]
    memory: Mapping[str, Any]
    disk: Mapping[str, Any]
    seconds: float
    ancestry: Mapping[str, Ancestry]
    aligned: Aligned

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that refuse the merge."""
        return tuple(found for found in self.findings if found.refuses)

    @property
    def allowed(self) -> tuple[str, ...]:
        """The codes of the errors that the user let pass."""
        return tuple(sorted({found.code for found in self.findings if found.allowed}))

    def refuse(self) -> None:
        """Raise if anything refuses the merge; see `regraft.merge.checks.findings.refuse`."""
        refuse(self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "method": self.method, "checkpoints": [dict(one) for one in self.checkpoints],
            "findings": [found.to_json() for found in self.findings], "allowed": list(self.allowed),
            "merged": len(self.aligned.merged), "copied": dict(self.aligned.copied),
            "left_out": list(self.aligned.left_out),
            "memory": dict(self.memory), "disk": dict(self.disk), "seconds": self.seconds,
            "ancestry": {name: found.to_json() for name, found in self.ancestry.items()},
        }  # fmt: skip

    def rows(self) -> list[tuple[str, str]]:
        """What to show: (word, text)."""
        found = [
            (
                one["role"],
                f"{one['reference']}: {one['tensors']} tensors, {size(one['bytes'])}, {', '.join(one['dtypes'])}",
            )
            for one in self.checkpoints
        ]
        of = self.aligned
        found.append(("tensors", f"{len(of.merged)} merged, {len(of.copied)} copied, {len(of.left_out)} left out"))
        found += [
            ("ancestry", f"{name}: correlation {one.correlation:.4f} on {one.elements:,} weights, p {one.p_value:.1g}")
            for name, one in self.ancestry.items()
        ]
        working = (
            f", {size(self.memory['working'])} of it for {self.memory['tensor']}" if self.memory["working"] else ""
        )
        found.append(("memory", f"{size(self.memory['predicted'])} of {size(self.memory['limit'])}{working}"))
        free = f", {size(self.disk['free'])} free" if self.disk["free"] is not None else ""
        found.append(("disk", f"{size(self.disk['needed'])}{free}"))
        found.append(("time", f"{self.seconds:.1f} s for one pass over all weights"))
        for one in self.findings:
            word = "allowed" if one.allowed else one.severity
            found.append((word, one.problem if one.allowed else f"{one.problem} {one.advice}".strip()))
        return found


def preflight_of(
    spec: Spec, opened: Opened, *, out: Path | None = None, max_memory: int, workers: int | None = None,
    allow: Iterable[str] = (),
) -> Preflight:  # fmt: skip
    """Look at a merge before it is made.

    Args:
        spec: The merge.
        opened: Its checkpoints.
        out: The folder that will be written; None leaves out what concerns it.
        max_memory: Bytes of anonymous memory that may be used.
        workers: Threads; all cores when None.
        allow: Codes of errors that the user lets pass.

    Raises:
        MethodError: A code that no error has.
        CheckpointError: A file that cannot be read.
    """
    codes, threads = check_codes(allow), workers or os.cpu_count() or 1
    aligned, tests = align(opened), _ancestries(opened)
    memory, disk = memory_of(spec, opened, aligned.merged, max_memory, threads), disk_of(spec, opened.template, out)
    needed, data = _data(spec, opened)
    memory = {**memory, "predicted": memory["predicted"] + needed}
    findings = [
        *aligned.findings,
        *(found for one in opened.all for found in (*check_adapter(one), *_values(one))),
        *_tokenizers(spec, opened, aligned),
        *_related(tests, opened.template.reference),
        *_formats(spec, opened),
        *_doubles(opened),
        *_recipe(spec, opened, aligned.merged),
        *data,
        *check_out(out, opened),
        *check_room(memory, disk, out),
    ]
    return Preflight(
        spec.method, tuple(_facts(opened)), tuple(found.let_pass(codes) for found in findings), memory, disk,
        seconds_of(opened, disk, threads), tests, aligned,
    )  # fmt: skip


def _facts(opened: Opened) -> list[Mapping[str, Any]]:
    return [
        {
            "role": "base" if one is opened.base else "input", "reference": one.reference, "bytes": one.bytes,
            "tensors": len(one.tensors), "dtypes": dict(Counter(info.dtype for info in one.tensors.values())),
            "adapter": None if one.adapter is None else str(one.adapter.folder), "file_id": one.file_id,
        }
        for one in opened.all
    ]  # fmt: skip


def _values(one: Weights) -> list[Finding]:
    """NaN and infinity in the sample; the merge itself looks at every value."""
    bad = sampled.not_finite(one.tensors)
    if one.adapter is not None:
        bad += sampled.not_finite(one.adapter.tensors)
    if not bad:
        return []
    files = sorted({str(info.file) for name in bad if (info := one.tensors.get(name)) is not None})
    where = f" ({names(files)})" if files else ""
    problem = f"{one.reference} holds NaN or infinite values in {names(bad)}{where}."
    return [error("non-finite", problem, "Use an intact copy of the checkpoint.", bad)]


def _ancestries(opened: Opened) -> dict[str, Ancestry]:
    """Each input against the base, or against the first input. One that lies in the very same files needs no test."""
    origin = opened.template
    return {
        one.reference: ancestry(origin.tensors, one.tensors)
        for one in opened.inputs
        if one is not origin and _places(one) != _places(origin)
    }


def _places(one: Weights) -> set[Path]:
    return {file.resolve() for file in {info.file for info in one.tensors.values()}}


def _related(tests: Mapping[str, Ancestry], whose: str) -> list[Finding]:
    findings = []
    for who, test in tests.items():
        words = f"correlation {test.correlation:.4f} of {test.elements:,} sampled weights, p {test.p_value:.1g}"
        if test.related is None:
            findings.append(note("ancestry", f"{who} has no matrices in common with {whose} to test for an ancestor."))
        elif not test.related:
            findings.append(error(
                "ancestry", f"{who} and {whose} share no ancestor: their weights are unrelated ({words}).",
                "Merge fine-tunes of one checkpoint.", list(test.tensors),
            ))  # fmt: skip
        elif test.correlation < FAR:
            findings.append(
                note("ancestry", f"{who} is far from {whose}: {words}. Merging may fail.", list(test.tensors))
            )
        if test.replaced:
            findings.append(note(
                "ancestry", f"{names(test.replaced)}: unrelated in {who} and {whose}, as if trained anew.", test.replaced
            ))  # fmt: skip
    return findings


def _tokenizers(spec: Spec, opened: Opened, aligned: Aligned) -> list[Finding]:
    """Every tokenizer against the one that is written."""
    chosen, findings = tokenizer_folder(opened.template, spec.output), []
    refused = any(found.code == "vocabulary" for found in aligned.findings)  # which says the same, and weighs more
    for one in opened.all:
        if one.encoder_folder.resolve() == chosen.resolve():
            continue
        found = differences(chosen, one.encoder_folder)
        if found.tokens:
            make = note if refused else error
            problem = f"{one.reference} has another tokenizer than {chosen}: {'; '.join(found.tokens)}."
            findings.append(make("tokenizer", problem, where=[str(one.encoder_folder)]))
        if found.settings:
            findings.append(note(
                "tokenizer-settings", f"{one.reference} sets its tokenizer otherwise than {chosen}, whose settings are kept: "
                f"{'; '.join(found.settings)}.", [str(one.encoder_folder)],
            ))  # fmt: skip
    return findings


def _formats(spec: Spec, opened: Opened) -> list[Finding]:
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


def _doubles(opened: Opened) -> list[Finding]:
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


def _recipe(spec: Spec, opened: Opened, merged: tuple[str, ...]) -> list[Finding]:
    """What the recipe says of layers and names, against the tensors that there are."""
    findings = [note("recipe", text) for text in spec.notes]
    for one in opened.all:
        if spec.layers is not None and one.num_layers != spec.layers:
            problem = f"{one.reference} has {one.num_layers} layers, the recipe is for {spec.layers}."
            findings.append(error("layers", problem, "Use a recipe for these checkpoints."))
    idle = spec.idle_filters(list(opened.template.tensors))
    if idle:
        problem = f"No tensor's name holds {names([repr(text) for text in idle])}, which rules of the recipe filter by."
        findings.append(error("filter", problem, "Correct the filter."))
    unset = [name for name in merged if not _is_set(spec, name, opened.template.num_layers)]
    if unset:
        problem = f"No rule of the recipe says what holds for {names(unset)}."
        findings.append(error("option", problem, "End the rules with one without filter: {value: 1.0}.", unset))
    if spec.output.format == "lora":
        findings += _lora(opened, merged)
    if not merged:
        findings.append(error("tensors", "There is no tensor that could be merged.", "Use checkpoints of one kind."))
    return findings


def _data(spec: Spec, opened: Opened) -> tuple[int, list[Finding]]:
    """Bytes and findings of a method that looks at examples of each input's task."""
    if "statistics" not in traits_of(spec.method).wants:
        return 0, []
    from regraft.merge.checks import data  # reads tasks, which no other method needs

    return data.memory_of(spec, opened), data.findings_of(spec, opened)


def _lora(opened: Opened, merged: tuple[str, ...]) -> list[Finding]:
    """What a LoRA cannot be written of, or not wholly."""
    from regraft.merge.lora.extract import cannot_hold  # scipy: not needed to write a checkpoint

    base = opened.base
    if base is None:
        return [error("option", "A LoRA is the difference to a base, and there is no base.", "Name the base.")]
    unfit = cannot_hold(base.tensors, base.config)
    lost = [name for name in merged if name in unfit and any(sampled.differ(base, one, name) for one in opened.inputs)]
    if not lost:
        return []
    words = names([f"{name} ({unfit[name]})" for name in lost])
    return [error("lora-loss", f"A LoRA cannot hold the changes of {words}.", "Write a full checkpoint.", lost)]


def _is_set(spec: Spec, name: str, layers: int) -> bool:
    """Whether the settings of the recipe have a number for a tensor, before the layers or after them."""
    places: tuple[Literal["before", "after"], ...] = ("before", "after")
    for where in places:
        with suppress(MethodError):
            spec.options_at(name, block_of(name), layers, where)
            return True
    return False
