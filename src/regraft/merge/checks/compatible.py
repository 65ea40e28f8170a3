"""What differs between the template of a merge (the base, or the first input) and another checkpoint of it.

Pure functions over headers, configs, and a few sampled values. What comes out are findings, and what the merge makes of the
other checkpoint's tensors: which are called otherwise (`renamed`: saved by a class that puts its own name in front), which of
the template's are read under another name (`aliases`: tied heads), and which are not merged although both have them (`apart`:
heads of other labels, vocabularies of other sizes).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from regraft.checkpoint.blocks import in_blocks
from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.identity import NOT_FUNCTION
from regraft.checkpoint.weights import FLOATS, Weights, raw_values
from regraft.merge.checks.findings import Finding, error, names, note
from regraft.merge.checks.prefix import new_names, one_sided, prefix_of, prefixed
from regraft.merge.checks.tied import tied

# The last layers that a task brings along; sentence-transformers modules are named by their folder: 2_Dense.
_HEADS = re.compile(
    r"(?:^|\.)(?:classifier|score|classification_head|qa_outputs|pooler|pre_classifier|lm_head|embed_out|cls"
    r"|vocab_(?:transform|projector|layer_norm)|discriminator_predictions|generator_(?:predictions|lm_head))\."
    r"|^[0-9]+_[A-Za-z]+\."
)
# Of those, the ones whose rows are a task's labels.
_LABELLED = re.compile(r"(?:^|\.)(?:classifier|score|classification_head|pre_classifier)\.|^[0-9]+_Dense\.")
# Masks and tables that old files store among the weights; no one trains them.
_BUFFERS = re.compile(r"(?:^|\.)(?:attn\.bias|masked_bias|inv_freq|position_ids|token_type_ids)$")
# Entries that hold in training only, that only generation reads, or that the tensors and the tokenizer show.
_IDLE = re.compile(
    r"drop|pdrop|initializer|_init|gradient|loss|label|cache|_token_id$|torchscript|max_position_embeddings"
    r"|n_positions|n_ctx|vocab_size|tie_word_embeddings|architectures|model_type|max_window_layers|pretraining_tp"
)


@dataclass(frozen=True)
class Comparison:
    """What was found of one other checkpoint.

    Args:
        findings: What differs.
        renamed: Tensors of the other one, and what the template calls them, whose names begin otherwise.
        aliases: Tensors of the template, and the name that the other one has them under (once renamed).
        apart: Tensors that both have and that are not merged.
        left_out: Tensors of the other one that the template lacks.
    """

    findings: tuple[Finding, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    apart: frozenset[str] = frozenset()
    left_out: tuple[str, ...] = ()


def compare(template: Weights, other: Weights, who: str, whose: str) -> Comparison:
    """Compare an input with the template.

    Args:
        who: What the other one is called in sentences, such as "input 2 (./b)".
        whose: What the template is called.
    """
    findings = [*_architectures(template.config, other.config, who, whose), *_configs(template, other, who, whose)]
    missing, extra = one_sided(template, other)
    prefix, renamed = prefix_of(missing, extra), dict[str, str]()
    if prefix is not None:
        renamed = new_names(template, other, prefix)
        findings.append(prefixed(prefix, renamed, missing, extra, who, whose))
        if not renamed:
            return Comparison(tuple(findings))
        other = replace(other, tensors={renamed.get(name, name): info for name, info in other.tensors.items()})
        missing, extra = one_sided(template, other)
    explained = tied(template, other, missing, extra, who, whose)
    findings += explained.findings
    findings += _findings_for(explained.missing, f"missing in {who}", template, whose, headless=bool(renamed))
    findings += _findings_for(explained.extra, f"in {who} only", other, whose)
    shapes, apart = _shapes(template, other, who, whose)
    labelled = _labels(template, other, apart, who, whose)
    findings += shapes + labelled + _buffers(template, other, who, whose)
    apart |= {name for found in labelled for name in found.where}
    return Comparison(tuple(findings), renamed, explained.aliases, frozenset(apart), tuple(extra))


def _architectures(template: Mapping[str, Any], other: Mapping[str, Any], who: str, whose: str) -> list[Finding]:
    kinds = [str(config.get("model_type", "unknown")) for config in (template, other)]
    if kinds[0] != kinds[1]:
        return [error(
            "architecture", f"{who} is a {kinds[1]} (model_type), {whose} is a {kinds[0]}.",
            "Merge checkpoints of one architecture.", ["config.json: model_type"],
        )]  # fmt: skip
    classes = [config.get("architectures") or [] for config in (template, other)]
    if classes[0] != classes[1] and all(classes):
        words = [", ".join(map(str, one)) for one in classes]
        return [
            note("classes", f"{who} was saved as {words[1]}, {whose} as {words[0]}.", ["config.json: architectures"])
        ]
    return []


def _configs(template: Weights, other: Weights, who: str, whose: str) -> list[Finding]:
    """Entries that change what is computed. One that a file leaves out stands at its class's default, unknown here."""
    mine, theirs = _flat(template.config), _flat(other.config)
    unequal = sorted(key for key in mine.keys() & theirs.keys() if mine[key] != theirs[key])
    single = sorted(key for key in mine.keys() ^ theirs.keys() if mine.get(key, theirs.get(key)) is not None)
    found = []
    if unequal:
        words = [f"{key} {_value(theirs[key])} (there {_value(mine[key])})" for key in unequal]
        found.append(error(
            "config", f"{who} computes otherwise than {whose}: {names(words)}.",
            "Use checkpoints of one architecture and size.", [f"config.json: {key}" for key in unequal],
        ))  # fmt: skip
    if single:
        found.append(note(
            "config-entries", f"{names(single)}: named in the config of {who} or of {whose} only.",
            [f"config.json: {key}" for key in single],
        ))  # fmt: skip
    return found


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """The entries that change what is computed, nested ones with dots."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key in NOT_FUNCTION or key.startswith("_") or _IDLE.search(key):
            continue
        found |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found


def _value(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _findings_for(found: Sequence[str], what: str, owner: Weights, whose: str, headless: bool = False) -> list[Finding]:
    """Findings for tensors that one side lacks.

    Args:
        headless: Whether the side that lacks them was saved without its head by another class: that one is then kept.
    """
    buffers = [name for name in found if owner.tensors[name].dtype not in FLOATS or _BUFFERS.search(name)]
    heads = [name for name in found if name not in buffers and _HEADS.search(name) and not in_blocks(name)]
    rest = [name for name in found if name not in buffers and name not in heads]
    findings = []
    if buffers:
        findings.append(note("buffers", f"{names(buffers)}: {what}; {whose} decides.", buffers))
    if heads and headless:
        findings.append(note("heads", f"{names(heads)}: {what}; copied from {whose}.", heads))
    elif heads:
        findings.append(error("heads", f"{names(heads)}: {what}.", "Merge checkpoints with the same heads.", heads))
    if rest:
        findings.append(error(
            "tensors", f"{names(rest)}: {what} ({_files(owner, rest)}).",
            "Use checkpoints of one architecture, downloaded whole.", rest,
        ))  # fmt: skip
    return findings


def _files(owner: Weights, found: Iterable[str]) -> str:
    return names(sorted({str(owner.tensors[name].file) for name in found}))


def _shapes(template: Weights, other: Weights, who: str, whose: str) -> tuple[list[Finding], set[str]]:
    """Findings for tensors of other shapes, and their names where these can be let pass."""
    groups: dict[str, list[str]] = {"vocabulary": [], "heads": [], "shapes": []}
    for name, mine in template.tensors.items():
        theirs = other.tensors.get(name)
        if theirs is None or (theirs.shape == mine.shape and (theirs.dtype in FLOATS) == (mine.dtype in FLOATS)):
            continue
        groups[_kind_of_difference(name, template, other)].append(name)
    remedies = {
        "vocabulary": "Merge checkpoints with one vocabulary.",
        "heads": "Merge checkpoints with the same heads.",
        "shapes": "Use checkpoints of one architecture and size.",
    }
    findings = []
    for code, found in groups.items():
        if found:
            words = [_shape_words(name, template.tensors[name], other.tensors[name], whose) for name in found]
            findings.append(error(code, f"{who}: {names(words)}.", remedies[code], found))
    return findings, {*groups["vocabulary"], *groups["heads"]}


def _kind_of_difference(name: str, template: Weights, other: Weights) -> str:
    mine, theirs = template.tensors[name].shape, other.tensors[name].shape
    if in_blocks(name) or not mine or not theirs or mine[1:] != theirs[1:]:
        return "shapes"
    if (mine[0], theirs[0]) == (_vocab_size(template), _vocab_size(other)):
        return "vocabulary"
    return "heads" if _HEADS.search(name) else "shapes"


def _vocab_size(checkpoint: Weights) -> Any:
    config = checkpoint.config
    nested = config.get("text_config")
    return config.get("vocab_size") or (nested.get("vocab_size") if isinstance(nested, Mapping) else None)


def _shape_words(name: str, mine: TensorInfo, theirs: TensorInfo, whose: str) -> str:
    return f"{name!r} is {theirs.dtype} {list(theirs.shape)} in {theirs.file}, and {mine.dtype} {list(mine.shape)} in {whose}"


def _labels(template: Weights, other: Weights, apart: set[str], who: str, whose: str) -> list[Finding]:
    """Heads of one shape for other labels: their rows mean other things."""
    labels = [_labels_of(one.config) for one in (template, other)]
    heads = [
        name for name in template.tensors if _LABELLED.search(name) and name in other.tensors and name not in apart
    ]
    if not heads or not all(labels) or labels[0] == labels[1]:
        return []
    first = [names([*one.values()]) for one in labels if one]
    return [error(
        "heads", f"{who} has a head for other labels ({first[1]}) than {whose} ({first[0]}).",
        "Merge heads of one task.", heads,
    )]  # fmt: skip


def _labels_of(config: Mapping[str, Any]) -> dict[str, str] | None:
    """id2label, unless it only numbers the labels."""
    labels = config.get("id2label")
    if not isinstance(labels, Mapping) or all(str(one).startswith("LABEL_") for one in labels.values()):
        return None
    return {str(key): str(value) for key, value in labels.items()}


def _buffers(template: Weights, other: Weights, who: str, whose: str) -> list[Finding]:
    """Whole numbers and truth values are not merged: the template's are kept."""
    unequal = [
        name for name, mine in template.tensors.items()
        if mine.dtype not in FLOATS and name in other.tensors and other.tensors[name].shape == mine.shape
        and not np.array_equal(raw_values(mine), raw_values(other.tensors[name]))
    ]  # fmt: skip
    if not unequal:
        return []
    return [note("buffers", f"{names(unequal)}: other values in {who}; those of {whose} are kept.", unequal)]
