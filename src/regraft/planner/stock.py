"""Resize a checkpoint without a task: vocabulary, sizes or a limit, number format; checked, certified, a stock folder.

    checkpoint -> vocabulary -> sizes, or the best shape under a limit -> number format -> certificate -> renamed to its place
                  (texts)       (cut, or grown)

Nothing is trained. What lies between is beside the output, and removed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from regraft.anatomy import Opened, open_bound
from regraft.budget import Budget, Deadline
from regraft.certificate import Claim
from regraft.checkpoint import identity, load_tokenizer, open_checkpoint
from regraft.errors import BudgetError, RegraftError, ResizeError
from regraft.planner.resizing import check_out, median_tokens
from regraft.planner.wishes import Corpus, check_texts, check_wishes, grows_to
from regraft.progress import SILENT, Progress
from regraft.resize.certificate import certify, cut_step, grow_step, store_step, trim_step
from regraft.resize.certificate.checks import parameters_of, too_large
from regraft.resize.certificate.speed import compare
from regraft.resize.certificate.steps import said
from regraft.resize.cuts import cut
from regraft.resize.dial import Agreement, Limit, Search, measured
from regraft.resize.formats.half import FORMATS, to_half
from regraft.resize.formats.int8 import int8_rounded
from regraft.resize.growth import grow
from regraft.resize.vocabulary import trim
from regraft.store import replace_folder

GROWTH = "lemon"
DEFAULT_TEXTS = "builtin:pydoc"


@dataclass
class _Work:
    """The checkpoint on its way: the folder that it lies in now, and what was done so far."""

    place: Path
    now: Opened
    steps: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tried: list[dict[str, Any]] = field(default_factory=list)

    def folder(self) -> Path:
        """Where the next step writes."""
        return self.place / str(len(self.steps))

    def went(self, folder: Path, step: dict[str, Any]) -> None:
        """Go on with what a step wrote."""
        self.now = open_bound(str(folder))
        self.steps.append(step)


def resize_stock(
    checkpoint: str, out: Path, *, sizes: Mapping[str, int] | None = None, to: str | None = None, vocabulary: bool = False,
    store: str | None = None, method: str | None = None, criterion: str | None = None, texts: Corpus | Sequence[str] = (),
    budget: str = "5m", seed: int = 0, progress: Progress = SILENT, started: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Cut, grow, trim or round one checkpoint, or find the shape under a limit that computes most of what it does.

    Args:
        out: A new or empty folder.
        sizes: Axis -> units that it is to have, all fewer than now (a cut) or all more (growth).
        to: A limit instead: `params=10M`, `bytes=40MB`, `latency=5ms`. Units are chosen by one half of the texts; shapes are
            scored by the agreement of their hidden states with the checkpoint's over the other. Without texts (images) the
            deepest shape is taken.
        vocabulary: Keep only the tokens of the texts first, and single characters.
        store: bf16, fp16 or int8-rounded (weights rounded to what int8 can say, stored as they were).
        method: Of growth; lemon by default.
        criterion: Of importance; by default activations of widths and the similarity of layers' hidden states.
        texts: What importance is measured on, and what the vocabulary is trimmed to. A few hundred of `builtin:pydoc` where a
            text model needs some and none are given; never for the vocabulary.
        budget: Of the search under a limit.

    Returns:
        What `regraft resize --json` prints.

    Raises:
        ResizeError: Nothing to do, wishes that exclude each other, sizes or limits that cannot be (with the nearest that can).
        NotCertified: The result does not hold what it should. Nothing is written then.
    """
    corpus = texts if isinstance(texts, Corpus) else Corpus(list(texts))
    check_wishes(sizes, to, vocabulary, store, method, criterion, corpus)
    limit = None if to is None else Limit.parse(to)
    opened = open_bound(checkpoint)
    check_out(out, opened.weights.folder)
    check_texts(opened, criterion, corpus)
    grows = False if sizes is None else grows_to(opened, sizes, method, criterion)
    deadline = _deadline(budget, started)
    identity.check_finite(opened.weights.tensors.values())
    needed = limit is not None or (sizes is not None and not grows)
    chosen = corpus.spread() or (_default_texts(opened, criterion, seed) if needed else [])
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as place:
        work = _Work(Path(place), opened)
        if vocabulary:
            progress.say("Trimming the vocabulary")
            target = work.folder()
            done = trim(checkpoint, corpus.texts, target)
            work.went(target, trim_step(done, corpus.texts, corpus.source, corpus.column))
        if limit is not None:
            _search(work, limit, chosen, criterion, store, deadline, seed, progress, checkpoint)
        elif sizes is not None and grows:
            _grow(work, sizes, method or GROWTH, seed)
        elif sizes is not None:
            _cut(work, sizes, criterion, chosen, seed)
        if store is not None:
            target = work.folder()
            rounded = int8_rounded(work.now, target) if store not in FORMATS else to_half(work.now, store, target)
            work.went(target, store_step(store, rounded))
        progress.say("Checking what is promised")
        tokens = _tokens(checkpoint, chosen)
        final = work.now.weights.folder
        claims = certify(
            final, opened, work.steps, name=out.name, notes=list(dict.fromkeys(work.notes)),
            texts=corpus.texts if vocabulary else (), tokens=tokens,
        )  # fmt: skip
        found = _found(out, opened, work, claims)
        if limit is not None:
            _check_limit(limit, found)
        replace_folder(final, out)
    return {**found, "limit": to}


def _deadline(budget: str, started: float | None) -> Deadline:
    allowed = Budget.parse(budget)
    if allowed.seconds is None:
        raise BudgetError(f"{budget!r} does not limit a resize.", "Give seconds or minutes: 5m.")
    return Deadline(allowed.seconds, 0.0 if started is None else time.monotonic() - started)


def _default_texts(opened: Opened, criterion: str | None, seed: int) -> list[str]:
    """A few hundred texts for a text model with a tokenizer, where something reads texts; none otherwise."""
    from regraft.resize.importance import find
    from regraft.task import load_task

    if "vocab" not in opened.binding.carried or (criterion is not None and not find(criterion).traits.reads_texts):
        return []
    try:
        load_tokenizer(open_checkpoint(opened.weights.reference))
    except RegraftError:
        return []
    return Corpus(load_task(DEFAULT_TEXTS, seed=seed).train.texts).spread()


def _tokens(checkpoint: str, texts: Sequence[str]) -> int | None:
    """The length of an example to time; None where nothing says it."""
    try:
        return median_tokens(open_checkpoint(checkpoint), texts) if texts else None
    except RegraftError:  # no text model, or one without a tokenizer
        return None


def _cut(work: _Work, sizes: Mapping[str, int], criterion: str | None, texts: Sequence[str], seed: int) -> None:
    """Cut to sizes, by magnitudes where there are no texts."""
    before, target = work.now, work.folder()
    chosen = criterion or ("activation" if texts else "magnitude")
    done = cut(before, sizes, target, criterion=chosen, texts=texts, seed=seed)
    by = {axis: one.criterion for axis, one in done.scores.items()}
    work.notes += done.plan.notes
    work.went(target, cut_step(before, done.kept, done.plan, by, len(texts)))


def _grow(work: _Work, sizes: Mapping[str, int], method: str, seed: int) -> None:
    """Grow to sizes. What is meant to be lossless is compared before its numbers are rounded; not if it is too large."""
    before, target = work.now, work.folder()
    grown = grow(str(before.weights.folder), method, sizes, target, seed=seed, check=not too_large(before))
    work.notes += grown.notes
    work.went(target, grow_step(grown, seed))


def _search(
    work: _Work, limit: Limit, texts: Sequence[str], criterion: str | None, store: str | None, deadline: Deadline, seed: int,
    progress: Progress, checkpoint: str,
) -> None:  # fmt: skip
    """The shape under a limit whose hidden states agree most with the checkpoint's, on other texts than its units were chosen by;
    without texts the deepest, by the magnitudes of its weights."""
    before, target = work.now, work.folder()
    chosen_by, compared = (texts[::2], texts[1::2]) if len(texts) > 1 else (texts, texts)
    if not texts:
        work.notes.append("No texts: units stay by magnitude or as the criterion says, and no shape is scored.")
    reference = str(before.weights.folder)
    tokens = _tokens(checkpoint, texts)

    def measure(folder: Path) -> float:
        return float(compare(before, open_bound(str(folder)), tokens)["resized"]["median_ms"])

    search = Search(
        reference, limit, Agreement(before, compared) if compared else None, None, chosen_by, criterion=criterion, tokens=tokens,
        bytes_each=2 if store in FORMATS else None, beside=_beside(before), deadline=deadline, seed=seed,
        measure=measure if limit.kind == "latency" and not too_large(before) else None, measures=("agreement", ""),
        progress=progress,
    )  # fmt: skip
    try:
        found = search.run(target)
    except ResizeError as fault:  # a trimmed one lies where nobody knows it
        raise ResizeError(fault.problem.replace(reference, checkpoint), fault.remedy) from fault
    kept, plan = found.cut()
    by = {axis: one.scores.criterion for axis, one in kept.items()}
    work.notes += [*plan.notes, *found.notes]
    work.notes += [f"{axis} is not cut: {reason}" for axis, reason in found.not_applicable.items()]
    work.tried = [asdict(one) for one in found.tried]
    if found.counts:
        maps = {axis: dict(one.made) for axis, one in kept.items()}
        work.went(target, cut_step(before, maps, plan, by, len(chosen_by)))
    else:
        work.notes.append(f"Nothing had to be cut: {limit.text} holds.")
        work.went(target, {"step": "copy", "computes": "same", "why": ""})


def _beside(opened: Opened) -> int:
    """Bytes of the other files that stay: tokenizer, configs, modules."""
    files = (path for path in opened.weights.folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files if path.suffix in (".json", ".txt", ".jinja", ".model"))


def _found(out: Path, opened: Opened, work: _Work, claims: Sequence[Claim]) -> dict[str, Any]:
    """What is told of the result."""
    size = next(one.values for one in claims if one.check == "size")
    latency = next((dict(one.values) for one in claims if one.check == "resize latency" and one.passed), None)
    unchecked = {one.check: one.values["not_checked"] for one in claims if "not_checked" in one.values}
    return {
        "name": out.name, "path": str(out), "parameters": size["parameters"], "bytes": size["bytes"],
        "original": {"reference": opened.weights.reference, "parameters": parameters_of(opened),
                     "bytes": sum(one.nbytes for one in opened.weights.tensors.values())},
        "steps": [{**{key: value for key, value in one.items() if key != "kept"}, "said": said(one)} for one in work.steps],
        "tried": work.tried, "notes": list(dict.fromkeys(work.notes)),
        "latency": None if latency is None else {key: latency[key] for key in ("resized", "original", "ratio")},
        "certificate": {"claims": len(claims), "passed": sum(one.passed for one in claims), "not_checked": unchecked},
    }  # fmt: skip


def _check_limit(limit: Limit, found: Mapping[str, Any]) -> None:
    """What was written is what is measured."""
    if limit.kind != "latency":
        measured(limit, found["parameters" if limit.kind == "params" else "bytes"])
    elif found["latency"] is not None:
        measured(limit, found["latency"]["resized"]["median_ms"])
