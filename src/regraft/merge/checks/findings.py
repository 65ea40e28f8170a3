"""What a preflight finds: data, each with a code, where it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from regraft.errors import (
    BudgetError,
    CheckpointError,
    MethodError,
    NonFiniteError,
    RegraftError,
    RunError,
    StoreError,
    TaskError,
)

Severity = Literal["error", "warning", "note"]

# The errors that a user can let pass, one by one, and what then happens. "the template" is the base, or the first input.
ALLOW = {
    "architecture": "architectures of another name are merged as far as names and shapes agree",
    "config": "the template's config is kept although others' differ in what the model computes",
    "tokenizer": "the chosen tokenizer is kept although others number their tokens otherwise",
    "vocabulary": "tensors with a row a token come whole from the template where their sizes differ",
    "heads": "heads that differ come whole from the template; those that it lacks are left out",
    "tied": "an output layer is taken for tied to the embeddings, or left out, as the template has it",
    "ancestry": "checkpoints that share no ancestor are merged",
    "adapter": "an adapter is put over another base than the one that it names",
    "lora-loss": "changes that no LoRA can hold are left out of it",
    "filter": "rules that hold for no tensor are without effect",
    "out": "the checkpoint that is in the output folder is replaced",
}

# The exception for each code; CheckpointError for all others.
_ERRORS: dict[str, type[RegraftError]] = {
    "data": TaskError,
    "option": MethodError,
    "filter": MethodError,
    "non-finite": NonFiniteError,
    "memory": BudgetError,
    "disk": StoreError,
    "out": RunError,
}
_SHOWN = 3  # names in a sentence
_KEPT = 50  # names in the data


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Args:
        code: What kind of thing; those of `ALLOW` can be let pass.
        severity: An error refuses the merge, unless it is allowed; a warning is for the user to look into; a note is for
            information.
        problem: What differs, in one sentence.
        remedy: What to do about it; empty for most notes.
        where: The tensors, files or entries, at most `_KEPT`.
        allowed: Whether the user let this error pass.
        final: Whether it cannot be let pass although its code can.
    """

    code: str
    severity: Severity
    problem: str
    remedy: str = ""
    where: tuple[str, ...] = ()
    allowed: bool = False
    final: bool = False

    @property
    def refuses(self) -> bool:
        """Whether the merge cannot go on because of this."""
        return self.severity == "error" and not self.allowed

    @property
    def advice(self) -> str:
        """The remedy, and the flag that lets it pass if there is one."""
        flag = f"Or let it pass with --allow {self.code}: {ALLOW[self.code]}." if self._can_pass else ""
        return f"{self.remedy} {flag}".strip()

    @property
    def _can_pass(self) -> bool:
        return self.severity == "error" and self.code in ALLOW and not self.final

    def let_pass(self, codes: Iterable[str]) -> Finding:
        """The same finding, allowed if it can be and its code is among these."""
        return replace(self, allowed=True) if self._can_pass and self.code in set(codes) else self

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "code": self.code, "severity": self.severity, "problem": self.problem, "remedy": self.advice,
            "where": list(self.where), "allowed": self.allowed,
        }  # fmt: skip


def error(code: str, problem: str, remedy: str = "", where: Sequence[str] = (), final: bool = False) -> Finding:
    """A finding that refuses the merge."""
    return Finding(code, "error", problem, remedy, tuple(where[:_KEPT]), final=final)


def warning(code: str, problem: str, remedy: str = "", where: Sequence[str] = ()) -> Finding:
    """A finding that may be a mistake, which nothing here can tell."""
    return Finding(code, "warning", problem, remedy, tuple(where[:_KEPT]))


def note(code: str, problem: str, where: Sequence[str] = ()) -> Finding:
    """A finding for information."""
    return Finding(code, "note", problem, where=tuple(where[:_KEPT]))


def names(found: Sequence[str]) -> str:
    """A few names in a sentence, and how many more there are."""
    shown = ", ".join(found[:_SHOWN])
    return f"{shown} and {len(found) - _SHOWN} more" if len(found) > _SHOWN else shown


def refuse(findings: Sequence[Finding]) -> None:
    """Raise for the findings that refuse the merge: all of their problems in one text.

    Raises:
        RegraftError: Of the kind of the first one.
    """
    bad = [found for found in findings if found.refuses]
    if not bad:
        return
    kind = _ERRORS.get(bad[0].code, CheckpointError)
    if len(bad) == 1:
        raise kind(bad[0].problem, bad[0].advice)
    lines = [f"  {found.problem} {found.advice}".rstrip() for found in bad]
    raise kind("\n".join([f"The merge is refused for {len(bad)} reasons:", *lines]))


def check_codes(allow: Iterable[str]) -> tuple[str, ...]:
    """The codes that a user allows, sorted, each once.

    Raises:
        MethodError: No error has such a code.
    """
    codes = tuple(sorted({allow} if isinstance(allow, str) else set(allow)))
    for code in codes:
        if code not in ALLOW:
            raise MethodError(f"There is nothing to allow by the name {code!r}.", f"Known: {', '.join(sorted(ALLOW))}.")
    return codes
