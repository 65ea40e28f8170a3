"""What the version of a changed checkpoint should be called, and which changes nothing speaks of; see `diff`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from regraft.zoo.lineage.model import Model, names_parent

if TYPE_CHECKING:
    from regraft.zoo.lineage.diff import Diff

# Keys of config.json that are the architecture; others say what heads are called, or how it was trained.
ARCHITECTURE = re.compile(
    r"model_type|hidden_size|n_embd|layer|heads?$|_head$|intermediate|n_inner|vocab_size|position|act|norm_type|rope|window|type_vocab"
)
_VERSION = re.compile(r"(?:^|[-_./])v?([0-9]+(?:\.[0-9]+)+|v[0-9]+)(?=$|[-_./])")


def bump_of(found: Diff) -> tuple[str, str]:
    """major, minor, patch or none; and why."""
    reasons = []
    architecture = [key for key in found.config if ARCHITECTURE.search(key)]
    if found.layers or architecture:
        reasons.append(f"the architecture changed ({some(tuple(architecture)) if architecture else 'its layers'})")
    words = found.vocabulary
    if found.tokenizer or (words is not None and (words.added or words.removed or words.moved)):
        reasons.append(f"the tokenizer {tokenizer_words(found.tokenizer_ids)}")
    if found.labels[0] != found.labels[1]:
        reasons.append("the labels changed")
    if reasons:
        return "major", ", ".join(reasons)
    if found.weights_changed:
        return "minor", "weights changed, inputs and outputs mean the same"
    if found.dtypes[0] != found.dtypes[1]:
        return "minor", "the number format changed"
    if found.config or found.licences[0] != found.licences[1]:
        return "patch", "only metadata changed"
    return "none", "weights, tokenizer, config and licence are the same"


def tokenizer_words(ids: tuple[str | None, str | None]) -> str:
    """What became of a tokenizer: was added, was removed, changed. One that cannot be read counts as none."""
    if ids[0] is None and ids[1] is not None:
        return "was added"
    return "was removed" if ids[1] is None and ids[0] is not None else "changed"


def undocumented(found: Diff, first: tuple[Model, str], second: tuple[Model, str]) -> tuple[str, ...]:
    """Changes of weights that neither card nor name mentions; each checkpoint with the name of its record."""
    if not found.weights_changed:
        return ()
    silent = []
    if found.related is not False and not names_parent(second[0], first[0]):
        what = "names another base_model" if second[0].stated else "names no base_model"
        silent.append(f"weights changed, and the card of {found.second} {what}.")
    before, after = (_VERSION.findall(one[1].lower()) for one in (first, second))
    stem = [_VERSION.sub("", one[1].lower().split("/")[-1]) for one in (first, second)]
    if stem[0] == stem[1] and before == after:
        version = f"the version {before[-1]}" if before else "no version"
        silent.append(f"weights changed under one name, with {version} in it.")
    return tuple(silent)


def some(names: tuple[str, ...]) -> str:
    """A few of the names, and how many more there are."""
    if not names:
        return "none"
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
