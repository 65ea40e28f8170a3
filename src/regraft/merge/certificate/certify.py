"""What a merged checkpoint is certified for, and the functions that check it again (`regraft verify`).

merge tensors    exact     names, shapes and formats are the template's                     needs this folder
merge files      exact     config and tokenizer are, byte for byte, the source's            this folder
merge weights    exact     weights_id                                                       this folder
merge elements   sampled   tensors made again from the parents have the stored bytes        the parents
merge inputs     sampled   the parents are what they were                                   the parents
merge tasks      exact     the tasks whose examples it looked at hold the same ones         the tasks
merge recipe     exact     the recipe, its versions, and what was let pass, are on record   this folder
merge lora       sampled   what a LoRA lacks of the merge                                   the parents
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft import certificate
from regraft.certificate import Claim, Context, Outcome, checks
from regraft.checkpoint.files import read_json_object
from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.identity import canonical, sha256
from regraft.checkpoint.weights import FLOATS, Weights
from regraft.errors import VerificationError
from regraft.merge.align import Aligned, align
from regraft.merge.certificate.card import card
from regraft.merge.certificate.record import (
    ABOUT,
    missing_parents,
    missing_tasks,
    record_of,
    spec_of_record,
    tensors_of,
    weights_id,
)
from regraft.merge.certificate.remake import SAMPLED, chosen, lora_errors, same_as_stored
from regraft.merge.certificate.small_files import config_changes, config_name, small_files
from regraft.merge.checks.preflight import Preflight
from regraft.merge.inputs import Opened, open_inputs
from regraft.merge.recipe.spec import DTYPES, Output, Spec
from regraft.merge.tensors import Prepared
from regraft.store import write_whole

if TYPE_CHECKING:
    from regraft.merge.lora.extract import Extraction

# The error of a LoRA, measured again: relative, and of the error itself.
_TOLERANCE, _SHARE = 1e-3, 1e-2
_ASIDE = re.compile(r"\.(.+)\.[0-9a-f]{8,}\.partial")


def certify(
    folder: Path, spec: Spec, opened: Opened, found: Preflight, extraction: Extraction | None = None,
    prepared: Prepared | None = None,
) -> None:  # fmt: skip
    """Write provenance (regraft.json), card and certificate into a folder that has its weights and small files.

    Args:
        folder: The merged checkpoint, possibly still under its hidden name.
        spec: The merge.
        opened: Its checkpoints, as they were opened.
        found: What the preflight found.
        extraction: What a LoRA holds, if one was written.
        prepared: What the method had to know of all tensors; None: it is found out again.

    Raises:
        VerificationError: A tensor made again is not the one that was written: the disk, or a defect of ours.
    """
    about = record_of(spec, opened, found)
    write_whole(folder / ABOUT, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    tensors = tensors_of(folder)
    claims = [_weights_claim(tensors), _inputs_claim(about), _recipe_claim(folder, found.allowed)]
    if about["tasks"]:
        claims.append(_tasks_claim(about))
    if spec.output.format == "checkpoint":
        claims[:0] = [
            _tensors_claim(tensors, opened.template, spec.output),
            _files_claim(folder, opened.template, spec.output),
        ]
        claims.insert(3, _elements_claim(tensors, spec, found.aligned, prepared))
    if extraction is not None:
        claims.append(_lora_claim(folder, spec, found.aligned, extraction, prepared))
    for claim in claims:
        if not claim.passed:
            raise VerificationError(
                f"{folder} is not what was to be written: {claim.statement} does not hold.", "Merge again."
            )
    named = _ASIDE.fullmatch(folder.name)
    parameters = sum(info.elements for info in tensors.values() if info.dtype in FLOATS)
    text = card(named[1] if named else folder.name, spec, opened, parameters=parameters, allowed=found.allowed)
    write_whole(folder / "README.md", text)
    certificate.write(folder, claims)


def _signature(tensors: Mapping[str, TensorInfo], dtype: str | None = None) -> str:
    """sha256 over names, formats and shapes; floating point in another format where one is given."""
    rows = [
        [name, dtype if dtype is not None and info.dtype in FLOATS else info.dtype, list(info.shape)]
        for name, info in sorted(tensors.items())
    ]
    return sha256("tensors", canonical(rows))


def _tensors_claim(tensors: Mapping[str, TensorInfo], template: Weights, output: Output) -> Claim:
    expected = _signature(template.tensors, DTYPES.get(output.dtype or ""))
    formats = f", floating point as {output.dtype}" if output.dtype else ""
    return Claim(
        "merge tensors", f"names, shapes, number formats and tied weights are those of {template.reference}{formats}", "exact",
        "folder", _signature(tensors) == expected, {"tensors": len(tensors), "sha256": expected},
    )  # fmt: skip


def _files_claim(folder: Path, template: Weights, output: Output) -> Claim:
    sources, changed = small_files(template, output), config_changes(template, output)
    digests = {name: _digest(folder / name) for name in sources}
    unlike = [name for name, source in sources.items() if digests[name] != _digest(source)]
    but = f", but for {', '.join(changed)} in {config_name(template)}" if changed else ""
    source = f"{template.reference}" + (
        f" (tokenizer: {output.tokenizer})" if output.tokenizer not in (None, "base") else ""
    )
    return Claim(
        "merge files", f"config and tokenizer files are byte for byte those of {source}{but}", "exact", "folder",
        unlike == ([config_name(template)] if changed else []), {"files": digests, "changed": changed},
    )  # fmt: skip


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _weights_claim(tensors: Mapping[str, TensorInfo]) -> Claim:
    return Claim("merge weights", "no weight has changed", "exact", "folder", True, {"weights_id": weights_id(tensors)})


def _elements_claim(
    tensors: Mapping[str, TensorInfo], spec: Spec, aligned: Aligned, prepared: Prepared | None
) -> Claim:
    names = chosen(aligned)
    gap = same_as_stored(spec, aligned, tensors, names, prepared)
    elements = sum(tensors[name].elements for name in names)
    return Claim(
        "merge elements", f"{len(names)} tensors ({elements:,} weights), made again from the parents, are those stored here",
        "sampled", "parents", gap is None, {"tensors": names, "elements": elements, "most": SAMPLED},
    )  # fmt: skip


def _inputs_claim(about: Mapping[str, Any]) -> Claim:
    statement = f"it was made from these {len(about['parents'])} checkpoints"
    return Claim("merge inputs", statement, "sampled", "parents", True, {"parents": about["parents"]})


def _tasks_claim(about: Mapping[str, Any]) -> Claim:
    statement = f"examples of these {len(about['tasks'])} tasks were looked at"
    return Claim("merge tasks", statement, "exact", "task", True, {"tasks": about["tasks"]})


def _recipe_claim(folder: Path, allowed: Sequence[str]) -> Claim:
    passed = f" ({', '.join(allowed)})" if allowed else ""
    statement = f"{ABOUT} holds the recipe, the versions and what was let pass{passed}, as they were"
    values = {"sha256": _digest(folder / ABOUT), "allowed": list(allowed)}
    return Claim("merge recipe", statement, "exact", "folder", True, values)


def _lora_claim(folder: Path, spec: Spec, aligned: Aligned, extraction: Extraction, prepared: Prepared | None) -> Claim:
    names = chosen(aligned, extraction.held)
    stated = {name: extraction.held[name].relative for name in names}
    lost = {name: {"norm": norm, "why": why} for name, (norm, why) in extraction.lost.items()}
    return Claim(
        "merge lora", f"it lacks {extraction.relative:.2%} of the change (Frobenius norm), and so much of {len(names)} matrices",
        "sampled", "parents", _lora_gap(stated, lora_errors(spec, aligned, folder, names, prepared)) is None,
        {"relative": extraction.relative, "tensors": stated, "lost": lost},
    )  # fmt: skip


def _lora_gap(stated: Mapping[str, float], found: Mapping[str, float]) -> str | None:
    """The first matrix whose error is not the stated one, in words."""
    for name, error in stated.items():
        if abs(found[name] - error) > _TOLERANCE + _SHARE * error:
            return f"{name!r} lacks {found[name]:.2%}, was {error:.2%}"
    return None


@checks("merge tensors")
def _check_tensors(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    tensors = tensors_of(folder)
    if _signature(tensors) == claim.values["sha256"]:
        return "pass", f"{len(tensors)} tensors"
    return (
        "fail",
        f"{len(tensors)} tensors, with other names, shapes or formats than the {claim.values['tensors']} written",
    )


@checks("merge files")
def _check_files(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    files = claim.values["files"]
    unlike = [
        name for name, digest in files.items() if not (folder / name).is_file() or _digest(folder / name) != digest
    ]
    return (
        ("fail", f"changed or gone: {', '.join(unlike)}")
        if unlike
        else ("pass", f"{len(files)} files as they were written")
    )


@checks("merge weights")
def _check_weights(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    found, expected = weights_id(tensors_of(folder)), claim.values["weights_id"]
    if found == expected:
        return "pass", f"weights_id {found[:12]}"
    return "fail", f"weights_id {found[:12]}, they were written as {expected[:12]}"


@checks("merge recipe")
def _check_recipe(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    path = folder / ABOUT
    if path.is_file() and _digest(path) == claim.values["sha256"]:
        return "pass", f"{ABOUT} as it was written"
    return "fail", f"{ABOUT} has changed or is gone"


@checks("merge inputs")
def _check_inputs(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    absent, unlike = missing_parents(claim.values["parents"])
    if unlike:
        return "fail", f"other checkpoints now: {', '.join(unlike)}"
    if absent:
        return "cannot check", f"not at hand: {', '.join(absent)}"
    return "pass", f"{len(claim.values['parents'])} checkpoints as they were, wherever they were sampled"


@checks("merge tasks")
def _check_tasks(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    absent, unlike = missing_tasks(claim.values["tasks"])
    if unlike:
        return "fail", f"other examples now: {', '.join(unlike)}"
    if absent:
        return "cannot check", f"not at hand: {', '.join(absent)}"
    return "pass", f"{len(claim.values['tasks'])} tasks as they were"


def _lacking(about: Mapping[str, Any]) -> str:
    """What making a tensor again needs and does not have, in words; empty when all is there."""
    for what, found in (
        ("parents", missing_parents(about["parents"])), ("tasks", missing_tasks(about.get("tasks", ()))),
    ):  # fmt: skip
        if any(found):
            return f"needs the {what} as they were: {', '.join([*found[0], *found[1]])}"
    return ""


@checks("merge elements")
def _check_elements(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    about = read_json_object(folder / ABOUT)
    if lacking := _lacking(about):
        return "cannot check", lacking
    spec, opened = open_inputs(spec_of_record(about))
    gap = same_as_stored(spec, align(opened), tensors_of(folder), claim.values["tensors"])
    return ("pass", f"{claim.values['elements']:,} weights made again") if gap is None else ("fail", gap)


@checks("merge lora")
def _check_lora(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    about, stated = read_json_object(folder / ABOUT), claim.values["tensors"]
    if lacking := _lacking(about):
        return "cannot check", lacking
    spec, opened = open_inputs(spec_of_record(about))
    gap = _lora_gap(stated, lora_errors(spec, align(opened), folder, list(stated)))
    return ("pass", f"{len(stated)} matrices compared with the merge") if gap is None else ("fail", gap)
