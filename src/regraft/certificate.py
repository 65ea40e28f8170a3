"""Certificates: what was checked about a checkpoint that we wrote, and how to check it again.

A `Claim` says what is promised and how it is known:
    exact      keys, shapes, config, bytes
    sampled    on n inputs, within a tolerance
    measured   on one machine, at one time
and what is needed to check it again: this `folder`, its `parents`, or the `task`. Claims are data; the function that
checks a kind of claim again is registered by whoever makes it (`@checks("weights_id")`), so that this file knows nothing
of models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from regraft.errors import RegraftError, VerificationError
from regraft.store import write_whole

FILE = "certificate.json"
Known = Literal["exact", "sampled", "measured"]
Needs = Literal["folder", "parents", "task"]
Outcome = Literal["pass", "fail", "cannot check"]


@dataclass(frozen=True)
class Claim:
    """One promise about a folder.

    Args:
        check: The name of the registered function that checks it.
        statement: The promise in words.
        known: How it is known.
        needs: What is needed to check it again.
        passed: Whether it held when it was made.
        values: What the check compares with (hashes, shapes, figures, tolerances).
    """

    check: str
    statement: str
    known: Known
    needs: Needs
    passed: bool
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What checking a claim again gave, and why."""

    claim: Claim
    outcome: Outcome
    reason: str


Check = Callable[[Path, Claim, "Context"], tuple[Outcome, str]]
_checks: dict[str, Check] = {}


@dataclass(frozen=True)
class Context:
    """What the person who verifies has at hand: the task's reference, if any, and where parents are looked for."""

    task: Any = None
    device: str = "cpu"


def checks(name: str) -> Callable[[Check], Check]:
    """Register the function that checks claims named `name` again."""

    def register(function: Check) -> Check:
        _checks[name] = function
        return function

    return register


def write(folder: Path, claims: Iterable[Claim]) -> None:
    """Store the certificate beside the weights."""
    content = {"regraft_certificate": 1, "claims": [asdict(claim) for claim in claims]}
    write_whole(folder / FILE, json.dumps(content, indent=2) + "\n")


def read(folder: Path) -> list[Claim]:
    """The claims of a folder.

    Raises:
        VerificationError: There is no certificate, or it cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        raise VerificationError(f"{folder} has no {FILE}.", "Only what Regraft wrote can be verified.")
    try:
        content = json.loads(path.read_text())
        if content["regraft_certificate"] != 1:
            raise VerificationError(
                f"{path} is of version {content['regraft_certificate']}, expected 1.", "Update Regraft."
            )
        claims = [Claim(**claim) for claim in content["claims"]]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise VerificationError(f"{path} cannot be read: {fault}.", "Restore the folder, or make it again.") from fault
    if not claims:
        raise VerificationError(f"{path} holds no claim.", "Restore the folder, or make it again.")
    return claims


def verify(folder: Path, context: Context | None = None) -> list[Verdict]:
    """Check every claim of a folder again: pass, fail or cannot check, each with a reason."""
    context = context or Context()
    verdicts = []
    for claim in read(folder):
        function = _checks.get(claim.check)
        if function is None:
            verdicts.append(Verdict(claim, "cannot check", f"this version knows no check {claim.check!r}"))
            continue
        try:
            outcome, reason = function(folder, claim, context)
        except Exception as fault:  # whatever a damaged folder or certificate leads a check to
            words = str(fault) if isinstance(fault, RegraftError) else f"{type(fault).__name__}: {fault}"
            outcome, reason = "fail", f"the check could not be made: {words}"
        verdicts.append(Verdict(claim, outcome, reason))
    return verdicts
