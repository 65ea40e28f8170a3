"""The functions that check the claims of a resized checkpoint again (`regraft verify`); see `certify` for what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regraft.anatomy import Opened, check_anatomy, open_bound
from regraft.certificate import Claim, Context, Outcome, checks
from regraft.checkpoint import identity
from regraft.checkpoint.files import read_json_object
from regraft.checkpoint.weights import FLOATS
from regraft.errors import AnatomyError, CheckpointError, MethodError, RegraftError, ResizeError
from regraft.resize.certificate.fresh import load_afresh
from regraft.resize.certificate.record import ABOUT, at_hand, is_same, small_files
from regraft.resize.certificate.same import difference
from regraft.resize.certificate.speed import compare
from regraft.resize.certificate.steps import Step, asked, texts_id, unranged
from regraft.resize.formats.half import FORMATS
from regraft.resize.formats.int8 import LEVELS
from regraft.resize.linear import linear_layers, weight_of
from regraft.resize.vocabulary.tokenizer import encodings, read_tokenizer, stock_encoder
from regraft.task import read_texts

# Parameters above which nothing is loaded to check it: in float64 such a model takes 16 GB.
LARGEST = 2_000_000_000
# Of regraft.json: every unit that stayed is in it.
RECORD_LIMIT = 256 * 2**20
# A machine at another time: the ratio of two latencies may be so many times what it was.
SLOWER = 2.0
# How far a rounded weight may be from a multiple of its row's scale, by what the number format leaves of it.
_LEVEL = {"F64": 1e-3, "F32": 1e-3, "F16": 0.1}


def signature(opened: Opened) -> str:
    """sha256 over names, formats and shapes."""
    rows = [[name, one.dtype, list(one.shape)] for name, one in sorted(opened.weights.tensors.items())]
    return identity.sha256("tensors", identity.canonical(rows))


def parameters_of(opened: Opened) -> int:
    """Floating-point numbers in all tensors."""
    return sum(one.elements for one in opened.weights.tensors.values() if one.dtype in FLOATS)


def too_large(opened: Opened) -> str:
    """Why a model is not loaded to check it, in words; empty where it is."""
    count = parameters_of(opened)
    return (
        "" if count <= LARGEST else f"it has {count:,} parameters, and at most {LARGEST:,} are loaded to check a claim"
    )


def lacking(parent: Opened) -> list[str]:
    """Keys of its class that the parent lacks, as its anatomy shows it without loading: a pooler that was never saved."""
    absent = [name for name, other in parent.binding.same.items() if name == "pool" and other == "hidden"]
    axis = parent.binding.anatomy.axes.get("pool") if absent else None
    return ["pooler."] if axis is not None else []


@checks("resize tensors")
def _tensors(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    opened = open_bound(str(folder))  # binds every tensor to the anatomy, or says which one does not fit
    if signature(opened) == claim.values["sha256"]:
        return "pass", f"{len(opened.weights.tensors)} tensors bound"
    return "fail", f"names, shapes or formats are not those of the {claim.values['tensors']} tensors written"


@checks("resize weights")
def _weights(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    found, expected = identity.weights_id(open_bound(str(folder)).weights.tensors), claim.values["weights_id"]
    if found == expected:
        return "pass", f"weights_id {found[:12]}"
    return "fail", f"weights_id {found[:12]}, they were written as {expected[:12]}"


@checks("resize files")
def _files(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    found, expected = small_files(folder), claim.values["files"]
    unlike = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if unlike:
        return "fail", f"changed, gone or new: {', '.join(unlike[:5])}"
    return "pass", f"{len(found)} files as they were written"


@checks("resize loads")
def _loads(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    opened = open_bound(str(folder))  # refuses pickles and remote code before stock code sees the folder
    if large := too_large(opened):
        return "cannot check", f"cannot check here: {large}"
    kind = str(claim.values["class"])
    if kind != (opened.binding.settings.architecture or "AutoModel"):
        return "fail", f"the config names the class {opened.binding.settings.architecture!r}, it was written for {kind}"
    found = load_afresh(opened.folder, kind, sum(one.nbytes for one in opened.tensors.values()))
    if found.fault:
        return ("cannot check" if found.late else "fail"), found.fault
    known = tuple(claim.values["missing"])
    missing = [name for name in found.missing if not any(part in name for part in known)]
    for what, names in (("missing", missing), ("unexpected", found.unexpected), ("mismatched", found.mismatched)):
        if names:
            return "fail", f"{found.kind} reports {what} keys: {', '.join(names[:3])}"
    beside = f"; drawn anew, as in the original: {', '.join(found.missing)}" if found.missing else ""
    return "pass", f"{found.kind}, in a process without Regraft{beside}"


@checks("resize format")
def _format(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    opened, name = open_bound(str(folder)), str(claim.values["format"])
    if name in FORMATS:
        other = [key for key, one in opened.tensors.items() if one.dtype in FLOATS and one.dtype != FORMATS[name]]
        return ("fail", f"{other[0]!r} is {opened.tensors[other[0]].dtype}") if other else ("pass", f"all are {name}")
    layers = linear_layers(opened)
    for key, layer in layers.items():
        if opened.tensors[key].dtype not in _LEVEL:
            return (
                "cannot check",
                f"{key!r} is stored as {opened.tensors[key].dtype}, too coarse to tell the levels apart",
            )
        weight = weight_of(opened, layer).astype(np.float64)
        scales = np.abs(weight).max(axis=1, keepdims=True) / LEVELS
        levels = weight / np.where(scales > 0.0, scales, 1.0)
        if float(np.abs(levels - np.rint(levels)).max(initial=0.0)) > _LEVEL[opened.tensors[key].dtype]:
            return "fail", f"{key!r} holds a weight that is no multiple of its row's scale"
    return "pass", f"{len(layers)} weights of linear layers have {2 * LEVELS + 1} levels a row"


@checks("resize permutations")
def _permutations(folder: Path, _: Claim, __: Context) -> tuple[Outcome, str]:
    opened = open_bound(str(folder))
    found = check_anatomy(opened)
    failed = [one for one in found if one.outcome == "fail"]
    if failed:
        return "fail", f"{failed[0].subject}: {failed[0].detail}"
    axes = [
        one.difference for one in found if one.subject in opened.binding.anatomy.axes and one.difference is not None
    ]
    return "pass", f"{len(axes)} axes permuted, largest difference {max(axes, default=0.0):.1e}"


@checks("resize parent")
def _parent(_: Path, claim: Claim, __: Context) -> tuple[Outcome, str]:
    parent = claim.values["parent"]
    opened, why = at_hand(parent)
    if opened is None:
        return "cannot check", why
    if is_same(parent, opened):
        return "pass", f"{parent['reference']} is the checkpoint it was made from"
    return "fail", f"{parent['reference']} is another checkpoint now"


@checks("resize computes")
def _computes(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    parent, why = at_hand(claim.values["parent"])
    if parent is None:
        return "cannot check", why
    if not is_same(claim.values["parent"], parent):
        return "cannot check", f"{claim.values['parent']['reference']} is another checkpoint now"
    result = open_bound(str(folder))
    large = too_large(parent) or too_large(result)
    if large:
        return "cannot check", f"cannot check here: {large}"
    try:
        found = difference(parent, result, asked(_steps(folder)), int(claim.values["seed"]))
    except ResizeError as fault:  # stored numbers are not those that were computed
        return "fail", fault.problem
    except (AnatomyError, CheckpointError, MethodError) as fault:
        return "cannot check", f"cannot check here: {fault.problem}"
    return ("pass" if found.within else "fail"), str(found)


def _steps(folder: Path) -> list[Step]:
    """What was done, as the folder has it on record."""
    return list(read_json_object(folder / ABOUT, RECORD_LIMIT)["steps"])


@checks("resize texts")
def _texts(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    step = next(one for one in _steps(folder) if one["step"] == "vocabulary")
    corpus, parent = step["corpus"], Path(claim.values["parent"])
    if corpus["source"] is None or not Path(corpus["source"]).is_file() or not parent.is_dir():
        return "cannot check", "the texts or the original's tokenizer are not at hand"
    texts = source_texts(Path(corpus["source"]), corpus["column"])
    if texts_id(texts) != corpus["sha256"]:
        return "cannot check", f"{corpus['source']} holds other texts now"
    other = encoded_otherwise(open_bound(str(parent)), open_bound(str(folder)), texts, step)
    return ("pass", f"{len(texts):,} texts") if other is None else ("fail", other)


def source_texts(path: Path, column: str | None) -> list[str]:
    """The texts of a file as `regraft resize --texts` reads them: lines of a .txt, rows of the others."""
    if path.suffix.lower() == ".txt":
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    return list(read_texts(str(path), column))


def encoded_otherwise(parent: Opened, result: Opened, texts: Sequence[str], step: Step) -> str | None:
    """The first text that the trimmed tokenizer does not encode as the original one under new ids, in words.

    Texts of which a token went are known to be encoded otherwise, as many as are on record.
    """
    kept = unranged(step["kept"])
    try:
        before, after = (stock_encoder(one.folder) or read_tokenizer(one.folder).encoder() for one in (parent, result))
    except RegraftError as fault:
        return fault.problem
    allowed = int(step["corpus"]["changed"])
    pairs = zip(encodings(before, texts, True), encodings(after, texts, True), strict=True)
    for number, (old, new) in enumerate(pairs):
        same = (
            len(old) == len(new)
            and all(one < len(kept) for one in new)
            and kept[np.asarray(new, np.int64)].tolist() == old
        )
        allowed -= not same
        if allowed < 0:
            return f"text {number} has other tokens"
    return None


@checks("resize latency")
def _latency(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    parent = Path(claim.values["parent"])
    if "ratio" not in claim.values:
        return "cannot check", f"it was not measured: {claim.values['not_checked']}"
    if not parent.is_dir():
        return "cannot check", "the original is not at hand"
    original, result = open_bound(str(parent)), open_bound(str(folder))
    if large := too_large(original) or too_large(result):
        return "cannot check", f"cannot check here: {large}"
    found: Mapping[str, Any] = compare(original, result, int(claim.values["tokens"]))
    words = f"{found['ratio']:.2f} times the original's latency here and now, was {claim.values['ratio']:.2f}"
    return ("pass" if found["ratio"] <= SLOWER * claim.values["ratio"] else "fail"), words
