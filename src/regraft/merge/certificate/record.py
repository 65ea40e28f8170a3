"""What a merge leaves on record (regraft.json): the recipe, its parents and how to know them again, versions."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from regraft import certificate
from regraft.checkpoint import reference
from regraft.checkpoint.adapter import WEIGHTS
from regraft.checkpoint.files import optional_json_object
from regraft.checkpoint.headers import TensorInfo, read_header
from regraft.checkpoint.identity import canonical, sha256
from regraft.checkpoint.sampled import run_of
from regraft.checkpoint.weights import Weights, open_weights, raw_values
from regraft.errors import RegraftError, VerificationError
from regraft.merge.algebra import THREADS, by_tensor
from regraft.merge.checks.preflight import Preflight
from regraft.merge.inputs import Opened, template_first
from regraft.merge.recipe.spec import Input, Output, Spec
from regraft.version import __version__

ABOUT = "regraft.json"


def record_of(spec: Spec, opened: Opened, found: Preflight) -> dict[str, Any]:
    """What goes on record. Labels and format of a member are the template's: what reads it looks for them here."""
    kept = {
        key: value for key, value in optional_json_object(opened.template.folder / ABOUT).items()
        if key in ("format", "labels")
    }  # fmt: skip
    given, parents = template_first(spec, opened)
    return {
        "regraft": __version__, **kept, "merge": given.as_dict(), "allowed": list(found.allowed),
        "findings": [{"code": one.code, "allowed": one.allowed, "problem": one.problem} for one in found.findings],
        "copied": dict(found.aligned.copied), "left_out": list(found.aligned.left_out),
        "ancestry": {name: one.to_json() for name, one in found.ancestry.items()},
        "parents": [_parent(one, opened.base is one) for one in parents],
        "tasks": [_task(reference, task_id) for reference, task_id in found.tasks.items()],
        **({"threads_per_tensor": THREADS} if by_tensor(spec) else {}),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("numpy", "numba", "scipy")}},
    }  # fmt: skip


def _parent(one: Weights, is_base: bool) -> dict[str, Any]:
    return {
        "role": "base" if is_base else "input", "reference": one.reference, "path": _path(one), "file_id": one.file_id,
        "sample": sample_id(one), "weights_id": _known_weights_id(one),
    }  # fmt: skip


def _task(reference: str, task_id: str) -> dict[str, str]:
    """A task whose examples were looked at; `path` is where this machine finds it again."""
    path = Path(reference).expanduser()
    return {"reference": reference, "path": str(path.absolute()) if path.exists() else reference, "task_id": task_id}


def _path(one: Weights) -> str:
    """The reference by which this machine finds the very files again, without asking the Hub."""
    adapter = "" if one.adapter is None else f"+{one.adapter.folder.absolute()}"
    return f"{one.folder.absolute()}{adapter}"


def sample_id(one: Weights) -> str:
    """sha256 over names, formats, shapes and a few values of every tensor of a checkpoint, and of its adapter and its scales."""
    adapted = {} if one.adapter is None else one.adapter.tensors
    parts = [] if one.adapter is None else [one.adapter.function]
    for tensors in (one.tensors, adapted):
        for name in sorted(tensors):
            info = tensors[name]
            parts += [canonical([name, info.dtype, info.shape]), run_of(info).tobytes().hex()]
    return sha256("sample", *parts)


def _known_weights_id(one: Weights) -> str | None:
    """The weights_id that a parent's own certificate states."""
    if one.adapter is not None or not (one.folder / certificate.FILE).exists():
        return None
    try:
        stated = [claim.values.get("weights_id") for claim in certificate.read(one.folder)]
    except VerificationError:
        return None
    return next((str(value) for value in stated if value), None)


def tensors_of(folder: Path) -> Mapping[str, TensorInfo]:
    """The tensors of a merged checkpoint, or of a LoRA."""
    adapter = folder / WEIGHTS
    return read_header(adapter) if adapter.exists() else open_weights(str(folder)).tensors


def weights_id(tensors: Mapping[str, TensorInfo]) -> str:
    """As `regraft.checkpoint.identity.weights_id`, on all cores."""
    names = sorted(tensors)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(pool.map(lambda name: hashlib.sha256(raw_values(tensors[name]).data).hexdigest(), names))
    parts = [
        canonical([name, tensors[name].dtype, tensors[name].shape, one])
        for name, one in zip(names, digests, strict=True)
    ]
    return sha256(*parts)


def spec_of_record(about: Mapping[str, Any]) -> Spec:
    """The spec that regraft.json holds, with the parents and tasks where they lay.

    Raises:
        RegraftError: The record is damaged.
    """
    merge, paths = about["merge"], [parent["path"] for parent in about["parents"]]
    base = paths.pop(0) if merge.get("base") is not None else None
    tasks = {task["reference"]: task["path"] for task in about.get("tasks", ())}

    def placed(options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of an input, or of all, with its task where it lies."""
        kept = {key: value for key, value in options.items() if key != "checkpoint"}
        return kept | ({"data": tasks.get(kept["data"], kept["data"])} if "data" in kept else {})

    inputs = tuple(Input(path, placed(one)) for path, one in zip(paths, merge["inputs"], strict=True))
    options, output = placed(merge.get("options", {})), Output(**merge.get("output", {}))
    return Spec(merge["merge"], base, inputs, options, output, merge.get("seed", 0), merge.get("layers"))


def missing_parents(parents: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """The references of parents that are not at hand, and of those that have changed."""
    absent, unlike = [], []
    for parent in parents:
        found, known = _at_hand(parent["path"]), parent["weights_id"]
        if found is None:
            absent.append(parent["reference"])
        elif sample_id(found) != parent["sample"] or (known is not None and weights_id(found.tensors) != known):
            unlike.append(parent["reference"])
    return absent, unlike


def missing_tasks(tasks: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """The references of tasks that are not at hand, and of those that hold other examples now; none is downloaded."""
    from regraft.task import load_task  # only methods that look at examples need it

    absent, unlike = [], []
    for task in tasks:
        here = task["path"].startswith("builtin:") or Path(task["path"]).exists()
        try:
            found = load_task(task["path"]).task_id if here else None
        except RegraftError:
            found = ""
        if found is None:
            absent.append(task["reference"])
        elif found != task["task_id"]:
            unlike.append(task["reference"])
    return absent, unlike


def _at_hand(path: str) -> Weights | None:
    """A checkpoint on this machine; a record of somebody else's must not make it download what the record names."""
    parsed = reference.parse(path)
    if not all(reference.exists(part) for part in (parsed.base, parsed.adapter) if part is not None):
        return None
    try:
        return open_weights(path)
    except RegraftError:
        return None
