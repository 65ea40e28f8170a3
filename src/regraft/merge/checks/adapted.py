"""Whether an adapter belongs over the checkpoint that it is put over, from the headers, configs and cards of both.

An adapter names its base. What is put under it is known to be another one, which refuses the merge,

- where both are on this machine (the named one as a folder, or in the Hub's cache), and differ in config, shapes or values;
- where it is on the Hub, or in the Hub's cache, by another name;
- where its own card says that it was made *from* the named one: a fine-tune of a base is no longer that base;
- where it says that it comes from others, and its name and card nowhere speak of the named one. (That it comes from another
  is not enough: a checkpoint of the Hub often says what it was fine-tuned from, and is the very one that is meant.)

Where none of this is so, nothing is known, and the user is warned.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from regraft.checkpoint import hub, lora, reference
from regraft.checkpoint.card import CARD_LIMIT, parents_of, read_card
from regraft.checkpoint.files import read_bytes
from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.rounding import to_stored
from regraft.checkpoint.sampled import decoded, run_of
from regraft.checkpoint.weights import FLOATS, Weights, open_weights
from regraft.errors import CheckpointError, NonFiniteError, RegraftError
from regraft.merge.checks.compatible import compare
from regraft.merge.checks.findings import Finding, error, names, note, warning

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# What makes another base of it, whatever its values are; heads are no part of most.
_OTHER = ("architecture", "config", "shapes", "tensors", "vocabulary")
_BY_PRECISION = ("BF16", "F16", "F32", "F64")


class _Verdict(NamedTuple):
    """Whether the base is the named one (None: not known), what says so, and where that stands."""

    same: bool | None
    words: str = ""
    where: tuple[str, ...] = ()


def check_adapter(one: Weights) -> list[Finding]:
    """Findings for a checkpoint with an adapter; none for one without."""
    adapter = one.adapter
    if adapter is None:
        return []
    try:
        changes = lora.changes(adapter, one.tensors)
    except CheckpointError as fault:
        return [error("adapter-shapes", fault.problem, fault.remedy, [str(adapter.folder)])]
    findings = []
    if changes.added:
        findings.append(error(
            "heads", f"{one.reference}: the adapter brings {names(list(changes.added))}, which its base does not have.",
            "Merge checkpoints with the same heads.", list(changes.added),
        ))  # fmt: skip
    found, own = _verdict(one), str(adapter.folder / "adapter_config.json")
    if found.same is None and not adapter.base:
        findings.append(note("adapter", f"{one.reference}: {own} names no base.", [own]))
    elif found.same is None:
        findings.append(warning(
            "adapter", f"{one.reference}: the adapter was made for {adapter.base} ({own}), and is put over {one.folder}; whether "
            f"they are the same is not known{found.words and f' ({found.words})'}.",
            f"Make sure that they are: give +ADAPTER over {adapter.base} itself.", [own, *found.where],
        ))  # fmt: skip
    elif not found.same:
        findings.append(error(
            "adapter", f"{one.reference}: the adapter was made for {adapter.base} ({own}), and is put over {one.folder}, which "
            f"is another: {found.words}.", "Put it over that checkpoint.", [own, *found.where],
        ))  # fmt: skip
    return findings


def _verdict(one: Weights) -> _Verdict:
    """Whether an adapter's base is the one that it is put over."""
    assert one.adapter is not None
    wanted = one.adapter.base
    if not wanted:
        return _Verdict(None)
    if reference.exists(wanted):
        if Path(wanted).expanduser().resolve() in {one.folder.resolve(), one.encoder_folder.resolve()}:
            return _Verdict(True)
        return _compared(wanted, wanted, one)
    name, found = wanted.removeprefix("hf:").split("@")[0], _hub_names(one)
    if name in found:
        return _Verdict(True)
    if not _HUB_NAME.fullmatch(name):
        return _Verdict(None, "the named one is not on this machine")
    if found:
        return _Verdict(False, f"on the Hub it is {', '.join(sorted(found))}")
    revision = one.adapter.config.get("revision")
    here = hub.cached(f"{name}@{revision}" if revision else name)
    return _stated(one, name) if here is None else _compared(str(here), name, one)


def _hub_names(one: Weights) -> set[str]:
    """The names on the Hub that a checkpoint is known by."""
    base = reference.parse(one.reference).base
    found = {base.removeprefix("hf:").split("@")[0]} if base.startswith("hf:") else set()
    folder = one.folder.absolute()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        found.add(folder.parent.parent.name.removeprefix("models--").replace("--", "/"))
    return found


def _compared(folder: str, called: str, one: Weights) -> _Verdict:
    """The named base, which is on this machine, beside what is there in its place: a copy is as good, also a rounded one."""
    try:
        named, put = open_weights(folder), replace(one, adapter=None)
        found = compare(named, put, str(one.folder), called)
        for other in found.findings:
            if other.severity == "error" and other.code in _OTHER:
                return _Verdict(False, other.problem.removesuffix("."), other.where)
        theirs = {found.renamed.get(name, name): info for name, info in put.tensors.items()}
        shared = [name for name, info in named.tensors.items() if name in theirs and info.shape == theirs[name].shape]
        unlike = [name for name in shared if not _alike(named.tensors[name], theirs[name])]
    except RegraftError as fault:
        return _Verdict(None, f"they cannot be compared: {fault.problem.removesuffix('.')}")
    if unlike:
        words = f"{len(unlike)} of {len(shared)} tensors hold other values where they were sampled ({names(unlike)})"
        return _Verdict(False, words, tuple(unlike))
    return _Verdict(True)


def _alike(mine: TensorInfo, theirs: TensorInfo) -> bool:
    """Whether a run of values from one place is the same in both, once rounded to the coarser of their formats."""
    first, second = run_of(mine), run_of(replace(theirs, name=mine.name))
    if mine.dtype == theirs.dtype:
        return first.tobytes() == second.tobytes()
    if mine.dtype not in FLOATS or theirs.dtype not in FLOATS:
        return False
    coarse = min(mine.dtype, theirs.dtype, key=_BY_PRECISION.index)
    try:
        one, two = (
            to_stored(decoded(run, info.dtype), coarse, mine.name) for run, info in ((first, mine), (second, theirs))
        )
    except NonFiniteError:
        return False
    return one.tobytes() == two.tobytes()


def _stated(one: Weights, name: str) -> _Verdict:
    """What a local folder says of itself, beside a name on the Hub that is nowhere on this machine."""
    card, config = one.folder / "README.md", one.encoder_folder / "config.json"
    parents, loaded = parents_of(read_card(one.folder)), str(one.config.get("_name_or_path") or "")
    if name in parents:
        return _Verdict(False, f"its card says that it was made from {name} ({card}: base_model)", (str(card),))
    if loaded == name:
        return _Verdict(None, f"it was loaded from {name}, and may have been changed since", (str(config),))
    stated = [(card, "base_model", parent) for parent in parents if _HUB_NAME.fullmatch(parent)]
    if _HUB_NAME.fullmatch(loaded) and not reference.exists(loaded):
        stated.append((config, "_name_or_path", loaded))
    words = ", ".join(f"{value} ({file}: {key})" for file, key, value in stated)
    where = tuple(str(file) for file, _, _ in stated)
    if stated and not _speaks_of(one, name):
        return _Verdict(False, f"it comes from {words}, and nothing in it speaks of {name}", where)
    return _Verdict(None, f"it comes from {words}" if stated else "it does not say what it is", where)


def _speaks_of(one: Weights, name: str) -> bool:
    """Whether a folder's name or its card has a Hub repository's name, with or without its owner's."""
    short = name.split("/")[-1].casefold()
    if any(short in folder.name.casefold() for folder in (one.folder.absolute(), one.folder.resolve())):
        return True
    with suppress(CheckpointError):
        text = read_bytes(one.folder / "README.md", CARD_LIMIT).decode("utf-8", "replace").casefold()
        return re.search(rf"(?<![\w.-]){re.escape(short)}(?![\w-])", text) is not None
    return False
