"""What a member is certified for, and the functions that check it again (`regraft verify`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regraft import certificate
from regraft.certificate import FILE, Claim, Context, Outcome, checks
from regraft.checkpoint import Checkpoint, open_checkpoint
from regraft.checkpoint.classifier import Classifier, logits_of, probabilities
from regraft.checkpoint.export import ABOUT, load_member, stock_logits, write_classifier
from regraft.errors import CheckpointError, RegraftError
from regraft.evaluate.card import Made, card
from regraft.evaluate.metrics import metrics
from regraft.task import Task
from regraft.version import __version__

# Fixed inputs, so that a folder can be checked without the task.
SAMPLES = (
    "hello",
    "How do I change the address on my account?",
    "play some jazz in the kitchen",
    "Return a new list containing all items from the iterable in ascending order.",
    "The quick brown fox jumps over the lazy dog.",
    "¿Dónde está la biblioteca?",
    "1 + 1 = 2",
    "an unusually long request that goes on and on " * 8,
)
# fp32 logits of one machine against another's: other kernels, other thread counts, other padding.
TOLERANCE = 1e-3
SCORE_TOLERANCE = 0.005


def weight_files(folder: Path) -> Iterator[Path]:
    """All weight files of a member, in a fixed order."""
    yield from sorted(folder.rglob("*.safetensors"))


def files_id(folder: Path) -> str:
    """sha256 over names and bytes of the files that decide what a member computes."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).as_posix()
        if not path.is_file() or inside in {FILE, "README.md"}:
            continue
        digest.update(inside.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def weights_id(folder: Path) -> str:
    """sha256 over names, types, shapes and bytes of every tensor of a member, whatever file it lies in."""
    return open_checkpoint(str(folder)).weights_id


def write_certified(
    classifier: Classifier,
    folder: Path,
    name: str,
    parent: Checkpoint,
    task: Task,
    made: Made,
    figures: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a classifier into an empty folder as a member: stock files, card, provenance, certificate.

    Args:
        figures: `test` (a score), `test_rows`, `latency_ms` (or None).

    Returns:
        `format`, `parameters`, `bytes`, `bytes_bf16`, `weights_id`, `certificate` (claims made, claims that hold).

    Raises:
        CheckpointError: The stock library computes something else: such a folder is not published.
    """
    provenance = {
        "regraft": __version__,
        "parent": {"reference": parent.reference, "checkpoint_id": parent.checkpoint_id},
        "task": {"reference": task.reference, "task_id": task.task_id},
        "made": {
            "method": made.method,
            "settings": dict(made.settings),
            "legs": [list(leg) for leg in made.legs],
            "seed": made.seed,
        },
    }
    write_classifier(classifier, folder, provenance)
    parameters, size = member_size(folder)
    known = {**figures, "parameters": parameters, "bytes": size}
    claims = _claims(folder, classifier, parent, task, known)
    if "kept" in (step := made.settings.get("cut") or {}):
        claims.append(_cut_claim(folder, step, made.legs))
    if not all(claim.passed for claim in claims):
        raise CheckpointError(
            f"Stock {classifier.format} computes something else from {name} than was measured.",
            "Please report this with the name of the base model.",
        )
    (folder / "README.md").write_text(card(name, classifier.format, parent, task, made, known))
    certificate.write(folder, claims)
    return {
        "format": classifier.format, "parameters": parameters, "bytes": size, "bytes_bf16": 2 * parameters,
        "weights_id": claims[0].values["weights_id"],
        "certificate": {"claims": len(claims), "passed": sum(claim.passed for claim in claims)},
    }  # fmt: skip


def _claims(
    folder: Path, classifier: Classifier, parent: Checkpoint, task: Task, figures: Mapping[str, Any]
) -> list[Claim]:
    form = classifier.format
    ours = logits_of(classifier, list(SAMPLES))
    stock = stock_logits(folder, list(SAMPLES), form).numpy()
    gap = float(np.abs(ours - stock).max()) if ours.shape == stock.shape else float("inf")
    rounded = [[float(f"{value:.6g}") for value in row] for row in ours]
    return [
        Claim("files", "no file that decides what this model computes has changed", "exact", "folder", True,
              {"sha256": files_id(folder), "weights_id": weights_id(folder)}),
        Claim("stock", f"stock {form} loads it and computes these logits on {len(SAMPLES)} fixed texts", "sampled", "folder",
              gap <= TOLERANCE, {"format": form, "tolerance": TOLERANCE, "difference": gap, "logits": rounded}),
        Claim("parent", "it was made from this checkpoint", "exact", "parents", True,
              {"reference": parent.reference, "checkpoint_id": parent.checkpoint_id}),
        Claim("size", "parameters and bytes", "exact", "folder", True,
              {"parameters": figures["parameters"], "bytes": figures["bytes"]}),
        Claim("test", f"{task.metric} on the test split", "measured", "task", True,
              {"task": task.reference, "task_id": task.task_id, "rows": figures["test_rows"], "metric": task.metric,
               "value": figures["test"][task.metric], "tolerance": SCORE_TOLERANCE}),
    ]  # fmt: skip


def _cut_claim(folder: Path, step: Mapping[str, Any], legs: Sequence[tuple[int, int]]) -> Claim:
    """What a cut left (see `resize.certificate.steps.cut_step`), and how long that was trained."""
    after, trained = dict(step["after"]), sum(steps for steps, _ in legs)
    by = ", ".join(dict.fromkeys(step["by"].values()))
    return Claim(
        "cut", f"it has the layers and widths that a cut by {by} left, trained again for {trained:,} steps", "exact", "folder",
        _sizes(folder, after) == after,
        {"before": dict(step["before"]), "after": after, "by": dict(step["by"]), "texts": step["texts"], "steps": trained},
    )  # fmt: skip


def _sizes(folder: Path, axes: Iterable[str]) -> dict[str, int]:
    from regraft.anatomy import open_bound

    found = open_bound(str(folder)).binding.sizes
    return {axis: int(found[axis]) for axis in axes}


def member_size(folder: Path) -> tuple[int, int]:
    """Parameters of all weight files, and the bytes of the whole folder."""
    from safetensors import safe_open

    parameters = 0
    for path in weight_files(folder):
        with safe_open(path, "np") as file:
            parameters += sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys())  # noqa: SIM118
    made_later = {FILE, ABOUT, "README.md"}
    return parameters, sum(
        path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name not in made_later
    )


@checks("files")
def _files(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    found = files_id(folder)
    if found == claim.values["sha256"]:
        return "pass", "all files as they were written"
    return "fail", f"the files hash to {found[:12]}, they were written as {claim.values['sha256'][:12]}"


@checks("stock")
def _stock(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    open_checkpoint(str(folder))  # refuses pickles, remote code and unknown modules before stock code sees the folder
    try:
        found = stock_logits(folder, list(SAMPLES), claim.values["format"]).numpy()
    except Exception as fault:
        return "fail", f"the stock class does not load it: {fault}"
    expected = np.array(claim.values["logits"])
    if found.shape != expected.shape:
        return "fail", f"logits of shape {found.shape}, expected {expected.shape}"
    gap = float(np.abs(found - expected).max())
    outcome: Outcome = "pass" if gap <= claim.values["tolerance"] else "fail"
    return outcome, f"largest difference {gap:.1e}, tolerance {claim.values['tolerance']:.0e}"


@checks("parent")
def _parent(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    reference = claim.values["reference"]
    if reference.startswith("hf:"):
        # A certificate of somebody else's must not make this machine download what it names.
        return (
            "cannot check",
            f"the parent {reference} is on the Hub; compare its checkpoint_id with `regraft zoo show`",
        )
    try:
        found = open_checkpoint(reference).checkpoint_id
    except RegraftError as fault:
        return "cannot check", f"the parent {reference} is not at hand: {fault.problem}"
    if found == claim.values["checkpoint_id"]:
        return "pass", f"{reference} is the checkpoint it was made from"
    return "fail", f"{reference} is another checkpoint now ({found[:12]}, was {claim.values['checkpoint_id'][:12]})"


@checks("size")
def _size(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    parameters, size = member_size(folder)
    expected = (claim.values["parameters"], claim.values["bytes"])
    return ("pass" if (parameters, size) == expected else "fail"), f"{parameters:,} parameters, {size:,} bytes"


@checks("cut")
def _cut(folder: Path, claim: Claim, _: Context) -> tuple[Outcome, str]:
    try:
        found = _sizes(folder, claim.values["after"])
    except (RegraftError, KeyError) as fault:
        return "fail", f"its axes cannot be read: {fault}"
    said = ", ".join(f"{axis} {size}" for axis, size in found.items())
    return ("pass" if found == claim.values["after"] else "fail"), said


@checks("test")
def _test(folder: Path, claim: Claim, context: Context) -> tuple[Outcome, str]:
    if context.task is None:
        return "cannot check", f"needs the task: add --task {claim.values['task']}"
    task: Task = context.task
    if task.task_id != claim.values["task_id"]:
        return "cannot check", f"{task.reference} is another task, or its data have changed"
    classifier = load_member(folder, context.device)
    missing = sorted(set(task.label_names) - set(classifier.labels))
    if missing:
        return "fail", f"the model does not know the task's {', '.join(missing[:5])}"
    rows, metric, expected = claim.values["rows"], claim.values["metric"], claim.values["value"]
    order = [classifier.labels.index(label) for label in task.label_names]
    found = probabilities(classifier, task.test.texts[:rows])[:, order]
    seen = metrics(task.test.labels[:rows], found)[metric]
    outcome: Outcome = "pass" if abs(seen - expected) <= claim.values["tolerance"] else "fail"
    return outcome, f"{metric} {seen:.4f}, was {expected:.4f}"
