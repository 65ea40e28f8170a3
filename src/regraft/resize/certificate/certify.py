"""Certify a resized checkpoint: provenance, claims, each checked before anything is published, and the card.

resize tensors        exact     names, shapes, formats are what the anatomy makes of the config      needs this folder
resize weights        exact     weights_id                                                            this folder
resize files          exact     config and every other file, by their hashes                          this folder
size                  exact     parameters and bytes                                                  this folder
resize loads          exact     the stock class loads it in a process without Regraft                 this folder
resize format         exact     numbers are stored, or rounded, as said                               this folder
resize permutations   sampled   free permutations change nothing on a tiny model of the class         this folder
resize parent         exact     the parent is what it was                                             the parent
resize computes       sampled   it computes what the original does (with cut units masked)            the parent
resize texts          sampled   texts are encoded one to one by the trimmed vocabulary                the parent, the texts
resize latency        measured  beside the parent, in turn                                            the parent
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regraft import certificate
from regraft.anatomy import Opened, open_bound
from regraft.certificate import Claim
from regraft.checkpoint import identity
from regraft.errors import RegraftError, VerificationError
from regraft.evaluate.certify import member_size  # registers the check of the size, too
from regraft.resize.certificate.card import card
from regraft.resize.certificate.checks import encoded_otherwise, lacking, parameters_of, signature, too_large
from regraft.resize.certificate.planned import beside_rounding
from regraft.resize.certificate.record import ABOUT, CARD, record_of, small_files
from regraft.resize.certificate.speed import compare
from regraft.resize.certificate.steps import Step, asked
from regraft.store import write_whole

_PROMISES = {
    "mask": "it computes what the original does with the units masked that were cut",
    "same": "it computes what the original does",
}


class NotCertified(VerificationError):
    """A resized checkpoint that does not do what was to be promised of it: it gets no certificate."""


def certify(
    folder: Path, parent: Opened, steps: Sequence[Step], *, name: str | None = None, notes: Sequence[str] = (),
    texts: Sequence[str] = (), tokens: int | None = None,
) -> list[Claim]:  # fmt: skip
    """Write provenance (regraft.json), certificate and card into a folder that a resize has written.

    Every claim is checked first. What cannot be checked here is claimed as not passed, with the reason: models of more
    than `checks.LARGEST` parameters are not loaded.

    Args:
        folder: The stock folder, possibly under a hidden name.
        parent: What it was made from.
        steps: What was done (see `steps`).
        name: Of the checkpoint; the folder's by default.
        notes: What a user should know, in sentences.
        texts: The corpus that the vocabulary was trimmed to.
        tokens: Of the example that latency is measured with.

    Raises:
        NotCertified: A claim fails.
    """
    about = record_of(folder, parent, steps, notes)
    write_whole(folder / ABOUT, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    result = open_bound(str(folder))
    sizes = member_size(folder)
    claims = _claims(folder, parent, result, about, sizes)
    certificate.write(folder, claims)
    checked = [_held(verdict) for verdict in certificate.verify(folder)]
    if texts:
        checked.append(_texts_claim(parent, result, texts, steps))
    checked.append(_latency_claim(parent, result, tokens))
    failed = [one for one in checked if not one.passed and "not_checked" not in one.values]
    if failed:
        (folder / certificate.FILE).unlink()
        raise NotCertified(
            f"The resized checkpoint does not hold what it should: {failed[0].statement} ({failed[0].values['fault']}).",
            "Please report this with the name of the checkpoint.",
        )
    before = {"parameters": (parameters_of(parent), sizes[0]), "bytes of weights": (_bytes(parent), _bytes(result))}
    architecture = result.binding.settings.architecture
    text = card(name or folder.name, parent, about, checked, before, architecture)
    write_whole(folder / CARD, text)
    certificate.write(folder, checked)
    return checked


def _claims(
    folder: Path, parent: Opened, result: Opened, about: Mapping[str, Any], sizes: tuple[int, int]
) -> list[Claim]:
    """What is promised, not passed as long as it is not checked."""
    tensors, found = result.weights.tensors, asked(about["steps"])
    claims = [
        Claim("resize tensors", "names, shapes and number formats are what the anatomy makes of the config", "exact", "folder",
              False, {"tensors": len(tensors), "sha256": signature(result)}),
        Claim("resize weights", "no weight has changed", "exact", "folder", False,
              {"weights_id": identity.weights_id(tensors)}),
        Claim("resize files", f"config, tokenizer and {ABOUT} are as they were written", "exact", "folder", False,
              {"files": small_files(folder)}),
        Claim("size", "parameters and bytes", "exact", "folder", False, {"parameters": sizes[0], "bytes": sizes[1]}),
        Claim("resize loads", "the stock class loads it in a process without Regraft: no key missing, unexpected or mismatched",
              "exact", "folder", False, {"class": _class(result), "missing": lacking(parent)}),
        Claim("resize permutations", "on a tiny random model of its class, permutations of every free axis change nothing",
              "sampled", "folder", False, {}),
        Claim("resize parent", "it was made from this checkpoint", "exact", "parents", False, {"parent": about["parent"]}),
    ]  # fmt: skip
    stored = [one["format"] for one in about["steps"] if one["step"] == "store"]
    if stored:
        claims.append(Claim("resize format", f"numbers are stored as {stored[-1]}", "exact", "folder", False,
                            {"format": stored[-1]}))  # fmt: skip
    if found.computes in _PROMISES:
        promise = _PROMISES[found.computes] + beside_rounding(parent, result, found)
        claims.append(Claim("resize computes", promise, "sampled", "parents", False,
                            {"parent": about["parent"], "record": ABOUT, "seed": 0}))  # fmt: skip
    return claims


def _class(result: Opened) -> str:
    return result.binding.settings.architecture or "AutoModel"


def _bytes(opened: Opened) -> int:
    return sum(one.nbytes for one in opened.weights.tensors.values())


def _held(verdict: certificate.Verdict) -> Claim:
    """A claim with what checking it gave."""
    if verdict.outcome == "pass":
        more: dict[str, Any] = {"found": verdict.reason} if verdict.claim.known == "sampled" else {}
    else:
        more = {"not_checked" if verdict.outcome == "cannot check" else "fault": verdict.reason}
    return dataclasses.replace(verdict.claim, passed=verdict.outcome == "pass", values={**verdict.claim.values, **more})


def _texts_claim(parent: Opened, result: Opened, texts: Sequence[str], steps: Sequence[Step]) -> Claim:
    step = next(one for one in steps if one["step"] == "vocabulary")
    other = encoded_otherwise(parent, result, texts, step)
    values = {"parent": str(parent.weights.folder.absolute()), "record": ABOUT}
    fault = {} if other is None else {"fault": other}
    return Claim(
        "resize texts", f"{step['corpus']['texts']:,} texts are encoded one to one by the tokens that stayed", "sampled",
        "parents", other is None, {**values, **fault},
    )  # fmt: skip


def _latency_claim(parent: Opened, result: Opened, tokens: int | None) -> Claim:
    """One that has not passed where it cannot be measured: a format that this processor does not compute, a large model."""
    reason = too_large(parent) or too_large(result)
    found: dict[str, Any] = {}
    try:
        found = {} if reason else compare(parent, result, tokens)
    except (RegraftError, RuntimeError, ValueError, TypeError) as fault:
        reason = " ".join(str(fault).split())[:200] or type(fault).__name__
    measured = f"{found['ratio']:.2f} times" if found else "a part of"
    values = {"parent": str(parent.weights.folder.absolute()), **found}
    return Claim(
        "resize latency", f"one example takes {measured} what the original takes, measured in turn", "measured", "parents",
        bool(found), values if found else {**values, "not_checked": f"cannot check here: {reason}"},
    )  # fmt: skip
