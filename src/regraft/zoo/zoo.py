"""Open a zoo: every checkpoint that a reference means; what cannot be used is left out with its reason."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from regraft.budget import Deadline
from regraft.checkpoint import Checkpoint, open_checkpoint
from regraft.checkpoint.files import read_json_object
from regraft.checkpoint.reference import exists, parse
from regraft.errors import BadReferenceError, CheckpointError, HubError, RegraftError
from regraft.zoo import discover
from regraft.zoo.walk import Unreadable

MINILM_LAYERS = 6
_FILTER = re.compile(r"\s*zoo:[^,#]*[=<>]")  # as opposed to zoo:NAME


@dataclass(frozen=True)
class LeftOut:
    """A reference that gave no checkpoint: why, and what can be done."""

    reference: str
    problem: str
    remedy: str


@dataclass(frozen=True)
class Zoo:
    """The checkpoints of a zoo, each under a name of its own, and what was left out."""

    reference: str
    checkpoints: list[Checkpoint]
    left_out: list[LeftOut]


def open_zoo(reference: str, deadline: Deadline | None = None) -> Zoo:
    """Open every checkpoint that a reference means.

    Args:
        reference: `builtin:minilm` (its first 1 to 6 layers as six checkpoints), `hf:org/name`, `hf-cache:` (what is in
            the local Hub cache), any other reference to a checkpoint, a folder of checkpoints (three levels deep;
            adapters go over the base that they name), `zoo:FILTER` (what the catalogue has of it; its commas are the
            filter's own), or several of these with commas between them.
        deadline: Of downloads together; what is not there in time is left out. None lets them take as long as they need.

    A randomly initialised model of the smallest checkpoint's architecture is added where there is none, so that "from
    scratch" can always be compared with.

    Raises:
        BadReferenceError: An empty reference, or nothing at any of them (`HubError` when it is the Hub that says so).
        CheckpointError: Not one checkpoint can be used; the text says why for each.
    """
    opened: list[Checkpoint] = []
    left_out: list[LeftOut] = []
    faults: list[RegraftError] = []
    for part in _parts(reference):
        with _noting(part, left_out, faults):
            opened += _open_part(part, left_out, deadline)
    checkpoints = _without_repeats(opened)
    if not checkpoints:
        reasons = " ".join(f"{entry.reference!r}: {entry.problem} {entry.remedy}" for entry in left_out)
        # Nothing was found, or what was found cannot be used.
        absent = len(faults) == len(left_out) and all(isinstance(fault, BadReferenceError) for fault in faults)
        kind = next((HubError for fault in faults if isinstance(fault, HubError)), BadReferenceError)
        raise (kind if absent else CheckpointError)(
            f"The zoo {reference!r} holds no checkpoint that can be used. {reasons}".strip(),
            "Give another zoo, such as builtin:minilm, hf:org/name or a folder of checkpoints.",
        )
    with _noting(reference, left_out):
        checkpoints += _from_scratch(checkpoints)
    return Zoo(reference, _unique_names(checkpoints), left_out)


def _parts(reference: str) -> list[str]:
    """The references of a list; a folder whose name has a comma is one reference, and so is a filter of the catalogue."""
    if exists(reference) or _FILTER.match(reference):
        return [reference if exists(reference) else reference.strip()]
    parts = [part if exists(part) else part.strip() for part in reference.split(",") if part.strip()]
    if not parts:
        raise BadReferenceError(f"{reference!r} is no reference to a zoo.", "Give builtin:minilm or a folder.")
    return list(dict.fromkeys(parts))


@contextmanager
def _noting(reference: str, left_out: list[LeftOut], faults: list[RegraftError] | None = None) -> Iterator[None]:
    """An error of ours inside the block is written down, and the rest goes on."""
    try:
        yield
    except RegraftError as error:
        left_out.append(LeftOut(reference, error.problem, error.remedy))
        if faults is not None:
            faults.append(error)


def _open_part(reference: str, left_out: list[LeftOut], deadline: Deadline | None) -> list[Checkpoint]:
    if reference == "builtin:minilm":
        return _minilm()
    if reference in ("hf-cache:", "hf-cache"):
        return _open_candidates(discover.in_hub_cache(), left_out)
    if reference.startswith("zoo:") and "#" not in reference:
        return _of_catalogue(reference, left_out)
    if exists(reference) and Path(reference).expanduser().is_dir():
        folder = Path(reference).expanduser()
        troubles: list[Unreadable] = []
        candidates = discover.in_folder(folder, troubles)
        left_out += [
            LeftOut(one.path, f"The folder {one.problem}.", "Check its permissions; what is below is not known.")
            for one in troubles
        ]
        if not candidates:
            raise BadReferenceError(
                f"{reference} holds no checkpoint, {discover.DEPTH} levels deep.",
                "Give a folder with config.json and model.safetensors in it or below it.",
            )
        return _open_candidates(candidates, left_out)
    return [open_checkpoint(reference, deadline)]


def _of_catalogue(reference: str, left_out: list[LeftOut]) -> list[Checkpoint]:
    """What the catalogue has of a filter, or the one with a name."""
    from regraft.zoo.catalogue.reference import entries_of
    from regraft.zoo.catalogue.text import path_of

    found = [entry.record for entry in entries_of(reference.removeprefix("zoo:"))]
    if not found:
        raise BadReferenceError(f"{reference} means no checkpoint of the catalogue.", "Look with `regraft zoo ls`.")
    places = [(one, path_of(one.path)) for one in found]
    return _open_candidates(
        [discover.Candidate(str(path), path, frozenset({one.path, one.name})) for one, path in places], left_out
    )


def _minilm() -> list[Checkpoint]:
    """The first 1 to 6 layers of the embedded MiniLM, and the same architecture from scratch."""
    whole = [
        open_checkpoint(f"builtin:minilm#layers={layers}").renamed(f"minilm-l{layers}")
        for layers in range(1, MINILM_LAYERS + 1)
    ]
    return [*whole, open_checkpoint("builtin:minilm#random=0").renamed("minilm-random")]


def _open_candidates(candidates: list[discover.Candidate], left_out: list[LeftOut]) -> list[Checkpoint]:
    """Open checkpoints as they are and adapters over their bases."""
    opened: list[Checkpoint] = []
    for candidate in candidates:
        with _noting(candidate.reference, left_out):
            opened.append(_open_candidate(candidate, candidates))
    return opened


def _open_candidate(candidate: discover.Candidate, candidates: Iterable[discover.Candidate]) -> Checkpoint:
    if not candidate.is_adapter:
        return open_checkpoint(candidate.reference)
    named = str(read_json_object(candidate.folder / "adapter_config.json").get("base_model_name_or_path") or "")
    base = discover.base_of(candidate, named, candidates) if named else None
    if base is None:
        raise CheckpointError(
            f"{candidate.folder} is an adapter over {named or 'a base that it does not name'}, "
            "which is not in the zoo.",
            "Put its base model beside it, or write BASE+ADAPTER.",
        )
    return open_checkpoint(f"{base.reference}+{candidate.reference}")


def _from_scratch(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """The smallest checkpoint's architecture with random weights, unless a random one is there already."""
    if any(checkpoint.random is not None for checkpoint in checkpoints):
        return []
    smallest = min(checkpoints, key=lambda checkpoint: checkpoint.parameters)
    return [open_checkpoint(parse(smallest.reference).from_scratch())]


def _without_repeats(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Each checkpoint once, though several references may mean it."""
    kept: dict[tuple[object, ...], Checkpoint] = {}
    for found in checkpoints:
        adapter = None if found.adapter is None else found.adapter.resolve()
        kept.setdefault((found.folder.resolve(), adapter, found.num_layers, found.random), found)
    return list(kept.values())


def _unique_names(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Names made unique in the order of the zoo: by the folders that they lie in, else by -2, -3 ..."""
    named: dict[str, Checkpoint] = {}
    alike: dict[str, list[Checkpoint]] = {}
    for found in checkpoints:
        others = alike.setdefault(found.name, [])
        tries = chain([found.name], _by_folder(found, others), (f"{found.name}-{number}" for number in count(2)))
        name = next(one for one in tries if one not in named)
        named[name] = found if name == found.name else found.renamed(name)
        others.append(found)
    return list(named.values())


def _by_folder(found: Checkpoint, others: Iterable[Checkpoint]) -> Iterator[str]:
    """The name behind as many of the folders above as tell it from those of the same name: `sub-base` of `sub/base`."""
    above, theirs = _above(found), [_above(one) for one in others]
    if found.adapter is None:  # the name of one over a base is of two folders
        for number in range(1, len(above) + 1):
            if all(one[-number:] != above[-number:] for one in theirs):
                yield "-".join((*above[-number:], found.name))


def _above(found: Checkpoint) -> tuple[str, ...]:
    """The folders above a checkpoint's; of a snapshot in a Hub cache the owner."""
    folder = Path(os.fsencode(found.folder.absolute()).decode("utf-8", "backslashreplace"))
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return tuple(folder.parent.parent.name.split("--")[1:-1])
    return folder.parent.parts[1:]
