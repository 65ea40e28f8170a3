"""What a merge will take: memory, disk, time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from glob import escape
from math import prod
from pathlib import Path
from typing import Any

from regraft.checkpoint import lora
from regraft.checkpoint.headers import DTYPE_BYTES
from regraft.checkpoint.sampled import seconds_per_byte
from regraft.checkpoint.weights import FLOATS, Weights
from regraft.errors import CheckpointError, MethodError
from regraft.merge.algebra import one_thread_each
from regraft.merge.checks.findings import Finding, error, names
from regraft.merge.flops import seconds_per_flop
from regraft.merge.inputs import Opened
from regraft.merge.recipe.spec import DTYPES, RANK, Spec
from regraft.merge.register import traits_of
from regraft.merge.select_sampled import ROOM, SHARE
from regraft.merge.stack import GRAIN
from regraft.merge.tensors import settings_of
from regraft.outputs import is_checkpoint, overlaps, strangers, unfit

# Counts of the lower 16 bits of every input's magnitudes, by which thresholds are found, and of the upper 15.
_COUNTS = 8 * 2**16
# What is known of each tensor of each checkpoint, and of each of its blocks: names, shapes, places, counts.
_NAMED, _BLOCK = 2048, 256
# Methods that give changes of no higher rank than their inputs' together.
_KEEP_RANK = ("task_arithmetic", "lora_cat", "lora_svd", "knots")
# What is there once: file buffers, the journal, the certificate, the card.
_FIXED = 2**19


def memory_of(spec: Spec, opened: Opened, merged: Sequence[str], limit: int, threads: int) -> dict[str, Any]:
    """Bytes that a merge takes beyond the imports: an upper bound.

    Blocks are listed for one tensor at a time. Methods that work with whole tensors have one in each thread.

    Returns:
        `predicted`: the buffers of all threads, the factors of adapters, and what the method works with; `limit`;
        `working` and its `tensor`: what the method, and writing a LoRA, need for the largest tensor (None in blocks).
    """
    traits, n = traits_of(spec.method), len(opened.inputs)
    shapes = {name: opened.template.tensors[name].shape for name in merged}
    largest = max(map(prod, shapes.values()), default=0)
    blocks = -(-largest // GRAIN) + 1
    predicted = threads * _buffers(n, shapes) + _FIXED + (_BLOCK + 4 * n * (n + 1)) * blocks
    predicted += _NAMED * sum(len(one.tensors) for one in opened.all)
    if traits.selects:
        predicted += _selection(n, largest, threads)
    # Factors are kept as long as a tensor's stack is: those of all tensors where the method looks at all of them first.
    for one in opened.all:
        predicted += sum(_factors(one)) if traits.prepare is not None else max(_factors(one), default=0)
    needs = {}
    if traits.working is not None:
        needs = {name: _whole(traits.working(shape, n), shape) for name, shape in shapes.items()}
    if spec.output.format == "lora":
        needs = {name: needs.get(name, 0) + _extraction(shape) for name, shape in shapes.items()}
        predicted += _kept_factors(spec, opened, shapes)
    tensor, need = None, None
    if needs:
        tensor = max(needs, key=lambda name: (needs[name], name))
        need = needs[tensor]
        predicted += sum(sorted(needs.values())[-threads:])
    return {"predicted": predicted, "limit": limit, "working": need, "tensor": tensor}


def threads_that_fit(spec: Spec, opened: Opened, merged: Sequence[str], limit: int, more: int = 0) -> int:
    """All cores, or as many threads as have room within the limit beside `more` bytes; at least one."""
    least, most = 1, os.cpu_count() or 1
    while least < most:
        tried = (least + most + 1) // 2
        if memory_of(spec, opened, merged, limit, tried)["predicted"] + more <= limit:
            least = tried
        else:
            most = tried - 1
    return least


def _buffers(n: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of one thread: blocks of the base, the output and the inputs, their random bits, and a second set of inputs
    (spreads and scores between them, and adapted ones), the loops' own lines, and the output as it is written. Of a row that is
    longer than a block, DELLA has the deltas, the sums and the order (float64 and uint64) as well."""
    widest = max((shape[-1] for shape in shapes.values() if shape), default=1)
    return 4 * ((3 * n + 12) * GRAIN if widest <= GRAIN else (4 * n + 14) * widest)


def _selection(n: int, largest: int, threads: int) -> int:
    """Bytes of the search for the k-th largest magnitude of each input, in a tensor of `largest` elements."""
    blocks = -(-largest // GRAIN)
    apart = 4 * n * blocks * (GRAIN // SHARE)
    sampled = apart + 3 * apart // max(1, n) if apart <= ROOM else 0  # those of one input are put together, and parted
    return n * _COUNTS * (threads + 2) + 32 * n * blocks * (threads + 2) + sampled


def _whole(working: int, shape: tuple[int, ...]) -> int:
    """Bytes of a method that gives a whole tensor back: what it works with, the result, and what is written of it."""
    return working + 12 * prod(shape) if working else 0


def _kept_factors(spec: Spec, opened: Opened, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of a LoRA's factors, which are all kept until it is written: cut to its rank, or the adapters' side by side."""
    own = sum(sum(_factors(one)) for one in opened.inputs) if spec.output.rank is None else 0
    cut = 4 * (spec.output.rank or RANK) * sum(sum(shape) for shape in shapes.values() if len(shape) == 2)
    return max(cut, 3 * own)


def _extraction(shape: tuple[int, ...]) -> int:
    """Bytes for the difference of a whole tensor: base, merged, difference (float32), and its decomposition (float64)."""
    size = prod(shape)
    return 12 * size + (24 * size + 24 * min(shape) ** 2 if len(shape) == 2 else 0)


def _factors(one: Weights) -> list[int]:
    """Bytes of each low-rank change of an adapter in memory."""
    if one.adapter is None:
        return []
    try:
        return [factors.loaded_bytes for factors in lora.factors(one.adapter, one.tensors).values()]
    except CheckpointError:  # `check_adapter` says so
        return []


def disk_of(spec: Spec, opened: Opened, out: Path | None) -> dict[str, Any]:
    """Bytes that are `needed`, and those that are `free` where the output goes (None without an output)."""
    wanted = DTYPES.get(spec.output.dtype or "")
    tensors = opened.template.tensors.values()
    if spec.output.format == "lora":
        needed = sum(4 * (spec.output.rank or RANK) * sum(info.shape) for info in tensors if len(info.shape) == 2)
        if spec.method == "lora_cat" and spec.output.rank is None:  # exact, of the ranks of all adapters together
            needed = max(needed, sum(sum(_factors(one)) for one in opened.inputs) // 2)
    else:
        formats = [(info, wanted if wanted is not None and info.dtype in FLOATS else info.dtype) for info in tensors]
        needed = sum(info.elements * DTYPE_BYTES[dtype] for info, dtype in formats)
    if out is None or unfit(out):
        return {"needed": needed, "free": None}
    place = out.absolute()
    while not place.exists():
        place = place.parent
    # What an interrupted merge of the same output has written is used again: not the size of its files, which they have at once.
    left = out.absolute().parent.glob(f".{escape(out.name)}.*.partial/**/*.safetensors")
    written = sum(min(status.st_size, 512 * status.st_blocks) for status in (file.stat() for file in left))
    return {"needed": needed, "free": shutil.disk_usage(place).free + written}


def flops_of(spec: Spec, opened: Opened, merged: Sequence[str]) -> list[float]:
    """Operations of linear algebra for every tensor that has some, as `regraft.merge.flops` counts: the method's, and those of
    cutting the result to a LoRA. Empty for elementwise methods."""
    counted, lora_out = traits_of(spec.method).flops, spec.output.format == "lora"
    if counted is None and not lora_out:
        return []
    cut = _cut_flops(spec, opened) if lora_out else None
    found = []
    for name in merged:
        shape = opened.template.tensors[name].shape
        if len(shape) != 2 or (lora_out and name in opened.copies):
            continue
        low, work = _rank_of(opened, name), 0.0
        with suppress(MethodError):  # rules that leave a tensor out are found by themselves
            weights, options = settings_of(spec, opened, name)
            if counted is not None:
                work = counted(name, shape, int((weights != 0).sum()), **options, low=low)
        found.append(work + (cut(name, low) if cut is not None else 0.0))
    return [work for work in found if work]


def _cut_flops(spec: Spec, opened: Opened) -> Callable[[str, int | None], float]:
    """A function of a tensor's name and the rank of its change: what cutting it takes."""
    from regraft.merge.lora.extract import extraction_flops
    from regraft.merge.lora.fit import cannot_hold

    template = opened.template
    lost = cannot_hold(opened.own_tensors, template.config)
    side_by_side = spec.method == "lora_cat" and spec.output.rank is None

    def cut(name: str, low: int | None) -> float:
        rank = low if spec.method in _KEEP_RANK else None
        exact = side_by_side and low is not None
        shape = template.tensors[name].shape
        return 0.0 if name in lost else extraction_flops(shape, spec.output.rank or RANK, rank, exact)

    return cut


def _rank_of(opened: Opened, name: str) -> int | None:
    """The rank that the inputs' changes of a tensor have at most, together; None unless all are adapters over the base."""
    base = opened.base
    if base is None or any(one.adapter is None or one.tensors[name] != base.tensors[name] for one in opened.inputs):
        return None
    try:
        changes = [opened.changes[one.reference] for one in opened.inputs]
    except CheckpointError:  # `check_adapter` says so
        return None
    if any(name in one.replaced or name in one.offsets for one in changes):
        return None
    return sum(one.factors[name].rank for one in changes if name in one.factors)


def seconds_of(spec: Spec, opened: Opened, disk: Mapping[str, Any], threads: int, flops: Sequence[float] = ()) -> float:
    """Seconds of reading every input and writing the output once, and of the linear algebra, roughly: of one digit.

    Bytes go at the pace of decoding a small part that is in memory already, operations at that of a small product on one
    thread, which is what a tensor has; the largest tensor keeps one thread busy however many there are. What the disk, a
    method's passes over its numbers, and models that look at examples add cannot be known before.
    """
    seconds = bytes_of(opened, disk) * seconds_per_byte(opened.template) / threads
    if flops:
        with one_thread_each(spec):
            seconds += seconds_per_flop() * max(sum(flops) / threads, *flops)
    return float(f"{seconds:.1g}")


def bytes_of(opened: Opened, disk: Mapping[str, Any]) -> int:
    """Bytes that are read and written once."""
    return sum(one.bytes for one in opened.all) + int(disk["needed"])


def check_room(memory: Mapping[str, Any], disk: Mapping[str, Any], out: Path | None, threads: int) -> list[Finding]:
    """Findings for what does not fit."""
    findings = []
    if memory["predicted"] > memory["limit"]:
        whole, tensor = memory["working"], memory["tensor"]
        what = f"{size(whole)} of it for the whole tensor {tensor!r}" if whole else "for its buffers"
        problem = (
            f"The merge needs {size(memory['predicted'])} of memory, {what}; the limit is {size(memory['limit'])}."
        )
        remedies = ["Raise --max-memory"]
        if threads > 1:
            remedies.append("use fewer --workers")
        if whole:
            remedies.append("use an elementwise method, such as task_arithmetic or ties")
        findings.append(error("memory", problem, f"{', or '.join(remedies)}.", [tensor] if tensor else []))
    if disk["free"] is not None and disk["needed"] > disk["free"]:
        problem = f"{out} needs {size(disk['needed'])} on disk, {size(disk['free'])} are free."
        findings.append(error("disk", problem, "Free some space, or give a folder on another disk."))
    return findings


def check_out(out: Path | None, opened: Opened) -> list[Finding]:
    """Findings for an output folder that is in use."""
    if out is None:
        return []
    fault = unfit(out)
    if fault:
        return [error("out", f"The output {out} {fault}.", "Give another folder.", [str(out)], final=True)]
    target = out.absolute().resolve()
    for one in opened.all:
        own = {one.folder} | ({one.adapter.folder} if one.adapter is not None else set())
        if overlaps(out, own):
            problem = f"The output {out} lies in the folder of {one.reference}, or holds it."
            return [error("out", problem, "Give another folder.", [str(out)], final=True)]
    if target.exists() and not target.is_dir():
        return [error("out", f"The output {out} is a file.", "Give a folder.", [str(out)], final=True)]
    if target.exists() and any(target.iterdir()):
        # What takes its place removes it: a checkpoint may be meant, a folder of many, or of anything else, is not.
        other = not is_checkpoint(target)
        strange = [] if other else strangers(target)
        words = ", and what is in it is no checkpoint" if other else ""
        if strange:
            words = f": {names(strange)} there {'is' if len(strange) == 1 else 'are'} no part of a checkpoint"
        final = other or bool(strange)
        return [error("out", f"The output {out} is not empty{words}.", "Give a new folder.", [str(out)], final=final)]
    return []


def size(count: int) -> str:
    """Bytes in words."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"
