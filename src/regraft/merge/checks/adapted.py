"""Whether an adapter belongs over the checkpoint that it is put over, from the headers and configs of both."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from regraft.checkpoint import lora, reference
from regraft.checkpoint.sampled import seem_equal
from regraft.checkpoint.weights import Weights, open_weights
from regraft.errors import CheckpointError, RegraftError
from regraft.merge.checks.findings import Finding, error, names, note


def check_adapter(one: Weights) -> list[Finding]:
    """Findings for a checkpoint with an adapter; none for one without."""
    adapter = one.adapter
    if adapter is None:
        return []
    try:
        changes = lora.changes(adapter, one.tensors)
    except CheckpointError as fault:
        return [error("adapter-shapes", fault.problem, fault.remedy, [str(adapter.folder)])]
    findings = []
    if changes.added:
        findings.append(error(
            "heads", f"{one.reference}: the adapter brings {names(list(changes.added))}, which its base does not have.",
            "Merge checkpoints with the same heads.", list(changes.added),
        ))  # fmt: skip
    same = _same_base(one)
    if same is False:
        findings.append(error(
            "adapter", f"{one.reference}: the adapter in {adapter.folder} was made for {adapter.base}.",
            "Put it over that checkpoint.", [str(adapter.folder / "adapter_config.json")],
        ))  # fmt: skip
    elif same is None and adapter.base:
        findings.append(note(
            "adapter", f"{one.reference}: the adapter was made for {adapter.base}; whether that is its base here is not known.",
            [str(adapter.folder / "adapter_config.json")],
        ))  # fmt: skip
    return findings


def _same_base(one: Weights) -> bool | None:
    """Whether the adapter's base is the one that it is put over; None when the two names cannot be compared."""
    assert one.adapter is not None
    wanted = one.adapter.base
    if not wanted:
        return None
    if reference.exists(wanted):
        if Path(wanted).expanduser().resolve() in {one.folder.resolve(), one.encoder_folder.resolve()}:
            return True
        with suppress(RegraftError):
            return seem_equal(open_weights(wanted), replace(one, adapter=None))  # a copy is as good
        return None
    name, found = wanted.removeprefix("hf:").split("@")[0], _hub_names(one)
    if name in found:
        return True
    return False if found and name.count("/") == 1 else None


def _hub_names(one: Weights) -> set[str]:
    """The names on the Hub that a checkpoint is known by."""
    base = reference.parse(one.reference).base
    found = {base.removeprefix("hf:").split("@")[0]} if base.startswith("hf:") else set()
    folder = one.folder.absolute()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        found.add(folder.parent.parent.name.removeprefix("models--").replace("--", "/"))
    return found
