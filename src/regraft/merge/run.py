"""The engine of a merge: open, check, stream tensor by tensor, write, certify.

open       headers and small files of the base and of every input
preflight  everything that can be known before a byte is written
prepare    what a method has to know of all tensors at once (thresholds of a global trim)
stream     a stack a tensor, the method over its blocks on all cores, the result straight into the file; methods of whole
           matrices take several tensors at a time, a core each
finish     small files, card, certificate; then the folder gets its name
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from regraft import faults
from regraft.checkpoint.read_ahead import ReadAhead
from regraft.checkpoint.sampled import all_finite
from regraft.checkpoint.weights import FLOATS, Weights, let_go, raw_values
from regraft.checkpoint.writer import Slot, Writer, discard, layout, resumable_folder
from regraft.errors import MethodError, NonFiniteError, VerificationError
from regraft.merge.algebra import by_tensor, one_thread_each
from regraft.merge.align import Aligned
from regraft.merge.certificate.certify import certify
from regraft.merge.certificate.record import tensors_of
from regraft.merge.certificate.small_files import copy_small_files
from regraft.merge.checks.findings import check_codes, refuse
from regraft.merge.checks.preflight import Preflight, preflight_of
from regraft.merge.checks.room import check_out
from regraft.merge.inputs import Opened, open_inputs
from regraft.merge.lora.whole import write_lora
from regraft.merge.recipe.spec import DTYPES, Spec
from regraft.merge.settings import said
from regraft.merge.sources import FileSink
from regraft.merge.tensors import Prepared, merged_tensor, stack_of
from regraft.merge.turns import in_turn
from regraft.progress import SILENT, Progress
from regraft.store import key_of
from regraft.version import __version__

MAX_MEMORY = 512 * 2**20


@dataclass(frozen=True)
class MergeResult:
    """What a merge made: `bytes` of tensors in `out`, of which so many were `merged`, and `copied` from the template."""

    out: Path
    method: str
    merged: int
    copied: int
    bytes: int
    seconds: Mapping[str, float]
    preflight: Preflight

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            **vars(self),
            "out": str(self.out),
            "seconds": dict(self.seconds),
            "preflight": self.preflight.to_json(),
        }


@dataclass(frozen=True)
class Job:
    """A merge that was checked: what becomes of every tensor."""

    spec: Spec
    aligned: Aligned
    slots: list[Slot]
    workers: int

    @cached_property
    def merged(self) -> frozenset[str]:
        """The tensors that the method merges."""
        return frozenset(self.aligned.merged)

    @property
    def opened(self) -> Opened:
        """The checkpoints under the template's names."""
        return self.aligned.opened

    @property
    def template(self) -> Weights:
        """The checkpoint whose layout, config and small files the output takes."""
        return self.opened.template


def merge(
    spec: Spec,
    out: str | os.PathLike[str],
    *,
    max_memory: int = MAX_MEMORY,
    workers: int | None = None,
    allow: Sequence[str] = (),
    check_values: bool = False,
    sync: bool = False,
    progress: Progress = SILENT,
) -> MergeResult:
    """Merge checkpoints into one.

    Args:
        spec: What to merge and how.
        out: The folder that is made; killed and started again with the same spec, the merge goes on.
        max_memory: Bytes of anonymous memory that merging may take beyond the imports.
        workers: Threads; when None all cores, or as many as the memory allows. The result does not depend on it.
        allow: Codes of preflight errors that are to be let pass.
        check_values: Look at every value for NaN before a byte is written, however large the inputs; small ones always are.
        sync: Wait until the disk has the files (else a power cut shortly after may lose them; a kill never does).

    Raises:
        RegraftError: Preflight refuses, an input holds NaN, the disk is full; nothing half-written is left as `out`.
    """
    if isinstance(max_memory, bool) or not isinstance(max_memory, Integral):
        raise MethodError(
            f"max_memory is {said(max_memory)}, expected a whole number of bytes.", "Write 2**30 for 1 GiB."
        )
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, Integral) or workers < 1):
        raise MethodError(f"workers is {said(workers)}, expected at least 1.", "Leave it out to use all cores.")
    try:
        return _merge(spec, Path(out), max_memory, workers, allow, check_values, sync, progress)
    finally:
        let_go()


def _merge(
    spec: Spec, out: Path, max_memory: int, workers: int | None, allow: Sequence[str], check_values: bool, sync: bool,
    progress: Progress,
) -> MergeResult:  # fmt: skip
    started = time.monotonic()
    spec, opened = open_inputs(spec)
    found = preflight_of(
        spec, opened, out=out, max_memory=max_memory, workers=workers, allow=allow, check_values=check_values
    )
    found.refuse()
    checked = time.monotonic()
    job, codes = _job(spec, found.aligned, found.workers), check_codes(allow)
    with resumable_folder(out, _key(job, found.tasks)) as folder, _hopeless_discarded(folder):
        extraction, prepared = None, Prepared(spec, job.opened, found.aligned.merged, found.workers)
        if spec.output.format == "lora":
            extraction = write_lora(
                folder, spec, found.aligned, allow_lost="lora-loss" in codes, workers=found.workers, prepared=prepared,
                progress=progress,
            )  # fmt: skip
        else:
            _stream(job, folder, prepared, sync, progress)
        streamed = time.monotonic()
        if spec.output.format == "checkpoint":
            copy_small_files(job.template, folder, spec.output)
        certify(folder, spec, opened, found, extraction, prepared)
        refuse([one.let_pass(codes) for one in check_out(out, opened)])  # what has come there since the preflight
    seconds = {
        "preflight": checked - started, "merge": streamed - checked, "finish": time.monotonic() - streamed,
    }  # fmt: skip
    merged = len(found.aligned.merged)
    copied = len(job.slots) - merged if extraction is None else 0
    size = sum(info.nbytes for info in tensors_of(out).values())
    return MergeResult(out, spec.method, merged, copied, size, seconds, found)


@contextmanager
def _hopeless_discarded(folder: Path) -> Iterator[None]:
    """Remove what is half-written where it would fail again: of these inputs, or on bytes that were lost."""
    try:
        yield
    except (NonFiniteError, VerificationError):
        discard(folder)
        raise


def _job(spec: Spec, aligned: Aligned, workers: int) -> Job:
    template = aligned.opened.template
    slots = layout(template.tensors, template.folder)
    wanted = DTYPES.get(spec.output.dtype or "")
    if wanted is not None:
        slots = [replace(slot, dtype=wanted) if slot.dtype in FLOATS else slot for slot in slots]
    return Job(spec, aligned, slots, workers)


def _key(job: Job, tasks: Mapping[str, str]) -> str:
    """What a half-written folder belongs to: other weights, another template or other examples make another merge."""
    return key_of(
        "merge",
        spec=job.spec.as_dict(),
        files=[one.file_id for one in job.opened.all],
        template=job.template.file_id,
        tasks=dict(tasks),
        slots=[str(slot) for slot in job.slots],
        version=__version__,
    )


def _stream(job: Job, folder: Path, prepared: Prepared, sync: bool, progress: Progress) -> None:
    """Tensor by tensor, in the order of the files; what an earlier process has finished stays."""
    ahead = ReadAhead([[one.tensors.get(slot.name) for one in job.opened.all] for slot in job.slots])
    # The threads end (`closing`) before the writer closes its files: none writes into a file that is another's by then.
    with ahead, Writer(folder, job.slots) as writer, progress.bar(f"merging with {job.spec.method}", len(job.slots)):
        known = prepared.value
        merge = _by_tensor if by_tensor(job.spec) else _by_block
        todo = [slot for slot in job.slots if not writer.is_finished(slot.name)]
        done = {slot.name for slot in todo}
        with closing(merge(job, todo, writer, known)) as left:
            for number, slot in enumerate(job.slots):
                if slot.name in done:
                    ahead.before(number)
                    next(left)
                    writer.finish(slot.name)
                    faults.point("tensor merged")
                progress.advance()
        if sync:
            writer.sync()


def _by_block(job: Job, slots: Sequence[Slot], writer: Writer, known: Any) -> Generator[None, None, None]:
    """One tensor after another, its blocks shared out to the threads."""
    with ThreadPoolExecutor(job.workers) as pool:
        for slot in slots:
            _write_tensor(job, slot, writer, known, pool)
            yield


def _by_tensor(job: Job, slots: Sequence[Slot], writer: Writer, known: Any) -> Generator[None, None, None]:
    """A tensor a thread."""
    with one_thread_each(job.spec):
        yield from in_turn(lambda slot: _write_tensor(job, slot, writer, known), slots, job.workers)


def _write_tensor(job: Job, slot: Slot, writer: Writer, known: Any, pool: ThreadPoolExecutor | None = None) -> None:
    if slot.name in job.merged:
        _merge_tensor(job, slot, writer, pool, known)
    else:
        _copy_tensor(job, slot, writer)


def _merge_tensor(job: Job, slot: Slot, writer: Writer, pool: ThreadPoolExecutor | None, prepared: Any) -> None:
    sink = FileSink(writer, slot.name, slot.dtype)
    stack = stack_of(job.spec, job.opened, slot.name, sink=sink, pool=pool, workers=job.workers)
    merged = merged_tensor(job.spec, job.opened, stack, prepared)
    if merged is not None:
        sink.write(np.ascontiguousarray(merged, np.float32).reshape(-1), 0)


def _copy_tensor(job: Job, slot: Slot, writer: Writer) -> None:
    """What is not merged keeps its bytes; a float of another format is converted."""
    tensor = job.template.tensors[slot.name]
    raw, step = raw_values(tensor), 2**18
    as_stored = tensor.dtype not in FLOATS or (slot.dtype == tensor.dtype and job.template.adapter is None)
    source = None if as_stored else job.opened.source(job.template, slot.name)
    sink = FileSink(writer, slot.name, slot.dtype)
    for start in range(0, tensor.elements, step):
        if source is None:
            part = raw[start : start + step]
            if tensor.dtype in FLOATS and not all_finite(part, tensor.dtype):
                raise NonFiniteError(
                    f"{tensor.file}: tensor {tensor.name!r} holds NaN or infinite values.",
                    "Use an intact copy of the checkpoint.",
                )
            writer.write(slot.name, part, start)
        else:
            values = np.empty(min(step, tensor.elements - start), np.float32)
            source.read(values, start)
            sink.write(values, start)
