"""Names that begin otherwise: `bert.encoder.layer.0...` in a checkpoint with a head, `encoder.layer.0...` in one without.

A class of transformers with a head puts the name of the model below it in front of that model's tensors. Where the other
beginning makes every such tensor fit one of the template's, the two are the same model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from regraft.checkpoint.weights import Weights
from regraft.merge.checks.findings import Finding, error, note

Prefix = tuple[str, str]


def one_sided(template: Weights, other: Weights) -> tuple[list[str], list[str]]:
    """The names that only the template has, and those that only the other one has."""
    missing = [name for name in template.tensors if name not in other.tensors]
    return missing, [name for name in other.tensors if name not in template.tensors]


def prefix_of(missing: Sequence[str], extra: Sequence[str]) -> Prefix | None:
    """(template's, other's) beginning if most missing names are extra ones with another one; one of them is empty."""
    for left, right in ((missing, extra), (extra, missing)):
        ends = set(right)
        counts = Counter(name.split(".", 1)[0] for name in left if name.partition(".")[2] in ends)
        if counts and (best := counts.most_common(1)[0])[1] * 2 > min(len(left), len(right)):
            return (f"{best[0]}.", "") if left is missing else ("", f"{best[0]}.")
    return None


def new_names(template: Weights, other: Weights, prefix: Prefix) -> dict[str, str]:
    """What the template calls the other one's tensors; empty when one of them would not fit."""
    mine, theirs = prefix
    found = {}
    for name, info in other.tensors.items():
        called = mine + name.removeprefix(theirs)
        known = template.tensors.get(called)
        if name in template.tensors or not name.startswith(theirs) or known is None or called in other.tensors:
            continue
        if known.shape != info.shape:
            return {}
        found[name] = called
    return found


def prefixed(
    prefix: Prefix, renamed: Mapping[str, str], missing: Sequence[str], extra: Sequence[str], who: str, whose: str
) -> Finding:
    """The finding: matched under the template's names, or refused."""
    longer, shorter = (whose, who) if prefix[0] else (who, whose)
    words = (
        f"The tensors of {longer} are named with {''.join(prefix)!r} in front, those of {shorter} without: "
        "they were saved by other classes"
    )
    if renamed:
        return note("names", f"{words}. {len(renamed)} tensors are matched by the rest of their names.", [*renamed])
    return error(
        "tensors", f"{words}, and their shapes differ.",
        "Load both with one class of transformers, and save them again.", [*missing[:25], *extra[:25]],
    )  # fmt: skip
