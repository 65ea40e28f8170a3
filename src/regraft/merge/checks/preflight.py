"""Everything that can be known of a merge before a byte is written: from headers, configs, tokenizer files, a few samples.

A preflight is data: what goes in, what differs and where, what is merged and what is copied, and what it will take. An error
refuses the merge unless its own code is allowed (`--allow heads`); what was allowed is recorded in the certificate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regraft.checkpoint.ancestry import Ancestry
from regraft.merge.align import Aligned, align
from regraft.merge.checks.adapted import check_adapter
from regraft.merge.checks.findings import Finding, check_codes, refuse
from regraft.merge.checks.recipe import recipe_findings
from regraft.merge.checks.room import (
    check_out,
    check_room,
    disk_of,
    flops_of,
    memory_of,
    seconds_of,
    size,
    threads_that_fit,
)
from regraft.merge.checks.vocabulary import comparing_bytes, tokenizer_findings
from regraft.merge.checks.weights import ancestries, doubles, formats, looks_at_all, not_finite, related
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
        seconds: About how long reading everything and writing the output once takes, and linear algebra; without the disk.
        workers: Threads.
        ancestry: The test of each input, by reference.
        aligned: What becomes of every tensor.
        tasks: The task_id of every task that the method looks at, by reference.
        flops: Operations of linear algebra, as `regraft.merge.flops` counts; 0 for elementwise methods.
        every_value: Whether every value was looked at for NaN, or a sample of each tensor.
    """

    method: str
    checkpoints: tuple[Mapping[str, Any], ...]
    findings: tuple[Finding, ...]
    memory: Mapping[str, Any]
    disk: Mapping[str, Any]
    seconds: float
    workers: int
    ancestry: Mapping[str, Ancestry]
    aligned: Aligned
    tasks: Mapping[str, str] = field(default_factory=dict)
    flops: float = 0.0
    every_value: bool = False

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
            "flops": self.flops, "every_value": self.every_value, "workers": self.workers, "tasks": dict(self.tasks),
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
        read = sum(int(one["bytes"]) for one in self.checkpoints)
        once = f"about {self.seconds:g} s to read {size(read)} and write {size(self.disk['needed'])} once, from memory"
        algebra = f", with about {self.flops:.1g} operations of linear algebra" if self.flops else ""
        found.append(("time", f"{once}{algebra}; a slower disk, and what else the method does, come on top"))
        looked = "every one is looked at" if self.every_value else "a sample of each tensor (all with --check-values)"
        found.append(("values", f"{looked}, for NaN and infinity"))
        for one in self.findings:
            word = "allowed" if one.allowed else "WARNING" if one.severity == "warning" else one.severity
            found.append((word, one.problem if one.allowed else f"{one.problem} {one.advice}".strip()))
        return found


def preflight_of(
    spec: Spec, opened: Opened, *, out: Path | None = None, max_memory: int, workers: int | None = None,
    allow: Iterable[str] = (), check_values: bool = False,
) -> Preflight:  # fmt: skip
    """Look at a merge before it is made.

    Args:
        spec: The merge.
        opened: Its checkpoints.
        out: The folder that will be written; None leaves out what concerns it.
        max_memory: Bytes of anonymous memory that may be used.
        workers: Threads; when None all cores, or as many as the memory allows.
        allow: Codes of errors that the user lets pass.
        check_values: Whether every value is looked at for NaN however large the inputs are; see `looks_at_all`.

    Raises:
        MethodError: A code that no error has.
        CheckpointError: A file that cannot be read.
    """
    codes, aligned = check_codes(allow), align(opened)
    same = aligned.opened  # under the template's names
    tests = ancestries(same)
    needed, tasks, data = _data(spec, same)
    threads = workers or threads_that_fit(spec, same, aligned.merged, max_memory, needed)
    memory, disk = memory_of(spec, same, aligned.merged, max_memory, threads), disk_of(spec, opened, out)
    memory = {**memory, "predicted": max(memory["predicted"] + needed, comparing_bytes(spec, opened))}
    every_value, flops = looks_at_all(opened, check_values), flops_of(spec, same, aligned.merged)
    findings = [
        *aligned.findings,
        *(found for one in opened.all for found in check_adapter(one)),
        *not_finite(opened, every_value, threads),
        *tokenizer_findings(spec, opened, aligned),
        *related(spec.method, tests, opened.template.reference),
        *formats(spec, opened),
        *doubles(same),
        *recipe_findings(spec, same, aligned.merged),
        *data,
        *check_out(out, opened),
        *check_room(memory, disk, out, threads),
    ]
    return Preflight(
        spec.method, tuple(_facts(opened)), tuple(found.let_pass(codes) for found in findings), memory, disk,
        seconds_of(spec, opened, disk, threads, flops), threads, tests, aligned, tasks, sum(flops), every_value,
    )  # fmt: skip


def _data(spec: Spec, opened: Opened) -> tuple[int, dict[str, str], list[Finding]]:
    """Bytes, tasks and findings of a method that looks at examples of each input's task."""
    if "statistics" not in traits_of(spec.method).wants:
        return 0, {}, []
    from regraft.merge.checks import data  # reads tasks, which no other method needs

    return data.memory_of(spec, opened), *data.look_at(spec, opened)


def _facts(opened: Opened) -> list[Mapping[str, Any]]:
    return [
        {
            "role": "base" if one is opened.base else "input", "reference": one.reference, "bytes": one.bytes,
            "tensors": len(one.tensors), "dtypes": dict(Counter(info.dtype for info in one.tensors.values())),
            "adapter": None if one.adapter is None else str(one.adapter.folder), "file_id": one.file_id,
        }
        for one in opened.all
    ]  # fmt: skip
