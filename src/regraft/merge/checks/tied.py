"""Tied heads: an output layer that one checkpoint stores and another one shares with its embeddings, or that all store twice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from regraft.checkpoint import lora
from regraft.checkpoint.blocks import in_blocks, is_embedding
from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.weights import FLOATS, Weights, raw_values
from regraft.errors import CheckpointError
from regraft.merge.checks.findings import Finding, error, note
from regraft.randomness import integers

_GENERATES = re.compile("LMHead|ForCausalLM|ForMaskedLM|ForPreTraining|ForConditionalGeneration")
_SAMPLE = 4096
# Elements of the middle of a tensor by which copies are looked for, and bytes that are compared at a time.
_FEW, _BLOCK = 64, 2**20


@dataclass
class Tied:
    """What is explained by tied heads.

    Args:
        missing: Names that the other checkpoint still lacks.
        extra: Names that it still has more.
        findings: What was explained.
        aliases: Tensors of the template, and the name that the other one has them under.
    """

    missing: list[str]
    extra: list[str]
    findings: list[Finding] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)


def tied(template: Weights, other: Weights, missing: Sequence[str], extra: Sequence[str], who: str, whose: str) -> Tied:
    """Explain one-sided tensors as copies of others, or as heads that the other side has tied.

    Args:
        missing: Names that only the template has.
        extra: Names that only the other one has.
        who: What the other one is called in sentences.
        whose: What the template is called.
    """
    found = Tied(list(missing), list(extra))
    for name in missing:
        twin, copy = _twin(template, name)
        if twin is None or twin not in other.tensors or other.tensors[twin].shape != template.tensors[name].shape:
            continue
        if copy or ties(other):
            found.missing.remove(name)
            found.aliases[name] = twin
            found.findings.append(_finding(name, twin, copy, whose, who))
    for name in extra:
        twin, copy = _twin(other, name)
        if twin is not None and (copy or ties(template)):
            found.extra.remove(name)
            found.findings.append(_finding(name, twin, copy, who, whose))
    return found


def ties(checkpoint: Weights) -> bool:
    """Whether a checkpoint has an output layer although it stores none: it is then tied to the embeddings."""
    classes = " ".join(map(str, checkpoint.config.get("architectures") or ()))
    return checkpoint.config.get("tie_word_embeddings") is not False and _GENERATES.search(classes) is not None


def _finding(name: str, twin: str, copy: bool, holder: str, sharer: str) -> Finding:
    if copy:
        problem = f"{holder} stores {name!r} as a copy of {twin!r} (values compared in a sample); {sharer} stores one of them."
        return note("tied", problem, [name])
    problem = f"{holder} has a {name!r} of its own; in {sharer} it is tied to {twin!r}."
    return error("tied", problem, "Merge checkpoints that are all tied, or all untied.", [name])


def _twin(owner: Weights, name: str) -> tuple[str | None, bool]:
    """The tensor that a tensor outside the blocks may be tied to, and whether their values are the same."""
    info = owner.tensors[name]
    if in_blocks(name) or info.dtype not in FLOATS:
        return None, False
    like = [
        one for one, its in owner.tensors.items()
        if one != name and not in_blocks(one) and its.shape == info.shape and its.dtype == info.dtype
    ]  # fmt: skip
    for one in like:
        if _same_values(info, owner.tensors[one]):
            return one, True
    embeddings = [one for one in like if len(info.shape) == 2 and is_embedding(one)]
    return (embeddings[0] if embeddings else None), False


def _same_values(first: TensorInfo, second: TensorInfo) -> bool:
    """Whether sampled values of two tensors of one format are equal, and not all one number."""
    if not first.elements:
        return False
    places = np.sort(integers(first.elements, min(_SAMPLE, first.elements), 0, "tied", first.name))
    mine, theirs = raw_values(first)[places], raw_values(second)[places]
    return bool((mine == theirs).all() and (mine != mine[0]).any())


def copies(template: Weights, checkpoints: Sequence[Weights]) -> dict[str, str]:
    """Tensors outside the layers that are a copy of another one, byte for byte, in every checkpoint: the other one's name.

    What was trained as two does not end as one, so that these are one parameter, stored twice: a tied head, the tables of an
    encoder and its decoder. Changed apart (drawn for by their names, weighed by their place) they would not be one any more.
    The first of them, whose name the others are called by, is an embedding where there is one, and the nearest to the top.

    Args:
        template: The checkpoint whose names all of them have.
        checkpoints: All of them, the template included.
    """
    alike: dict[tuple[object, ...], list[str]] = {}
    for name in sorted(template.tensors, key=lambda name: (not is_embedding(name), name.count("."), name)):
        if (seen := _glance(name, template, checkpoints)) is not None:
            alike.setdefault(seen, []).append(name)
    found: dict[str, str] = {}
    for same in alike.values():
        for at, name in enumerate(same):
            others = (one for one in same[:at] if one not in found)
            twin = next((one for one in others if _one_parameter(name, one, template, checkpoints)), None)
            if twin is not None:
                found[name] = twin
    return found


def _glance(name: str, template: Weights, checkpoints: Sequence[Weights]) -> tuple[object, ...] | None:
    """Format, shape and a few bytes of a tensor in each checkpoint; None for one that is no copy of anything."""
    info = template.tensors[name]
    every = [one.tensors.get(name) for one in checkpoints]
    if in_blocks(name) or any(one is None or one.dtype not in FLOATS or one.shape != info.shape for one in every):
        return None
    parts, varied = [], False
    for one in every:
        assert one is not None
        raw = raw_values(one)
        middle = raw.size // 2
        part = raw[max(0, middle - _FEW) : middle + _FEW]
        parts.append((one.dtype, part.tobytes()))
        varied |= bool((part != part[:1]).any())
    # Many a norm is all ones, many a bias all zeros: that says nothing.
    return (info.dtype, info.shape, *parts) if varied else None


def _one_parameter(name: str, twin: str, template: Weights, checkpoints: Sequence[Weights]) -> bool:
    """Whether two tensors have the same bytes in all, and adapters, which may change one alone, leave them one."""
    for one in checkpoints:
        if one.adapter is not None:
            with suppress(CheckpointError):  # which is refused elsewhere
                touched = lora.changes(one.adapter, one.tensors).touched
                # Where one stands for both, an adapter of it changes both, as merging with peft does.
                if name in touched or (twin in touched and not ties(template)):
                    return False
    return all(_same_bytes(one.tensors[name], one.tensors[twin]) for one in checkpoints)


def _same_bytes(first: TensorInfo, second: TensorInfo) -> bool:
    if (first.file, first.start, first.end) == (second.file, second.start, second.end):
        return True
    mine, theirs = (raw_values(one).view(np.uint8) for one in (first, second))
    return mine.size == theirs.size and all(
        np.array_equal(mine[start : start + _BLOCK], theirs[start : start + _BLOCK])
        for start in range(0, mine.size, _BLOCK)
    )
