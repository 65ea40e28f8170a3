"""Risks that the listing, the headers and the small files of a folder show; no weights are read.

Code words are stable: catalogues keep them and users filter by them. `CODES` is the whole list, those of `deep` included.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from regraft.checkpoint import blocks, safety
from regraft.checkpoint.headers import TensorInfo
from regraft.errors import RegraftError
from regraft.zoo.record.folder import Folder
from regraft.zoo.record.licences import forbids
from regraft.zoo.record.record import Claim, Record, Risk, Severity
from regraft.zoo.record.sizes import TOWERS, Sizes

CODES = {
    "unreadable": "the folder cannot be listed, or holds nothing of a checkpoint",
    "unreadable-file": "a file cannot be read (permissions, a disk's fault)",
    "partly-unread": "a folder below cannot be listed, or there are too many files",
    "too-large": "a small file above its limit, which was not read",
    "broken-file": "a JSON or YAML file that is none",
    "broken-card": "the metadata of the card cannot be read",
    "pickle": "pickles, which can run code when they are loaded; a danger where they are all the weights there are",
    "code": "files of code, or a config that asks to run code or to download it",
    "link-out": "links that leave the folder; they are not followed",
    "path-out": "a path in a file that leaves the folder",
    "special-file": "pipes, sockets or devices; they are not opened",
    "missing-file": "a file that the others ask for: config, weights, a shard, a tokenizer, the target of a link",
    "header": "a safetensors header that is wrong: truncated, overlapping or unused ranges, unknown formats",
    "quantised": "weights in a quantised format; parameters that are packed into integers are not counted",
    "format": "weights only in formats that are not read here (GGUF, ONNX, TensorFlow, Flax)",
    "config-mismatch": "config and tensors disagree",
    "absurd-size": "a size in the config that no model has",
    "adapter-inside": "a model and an adapter in one folder: which of them is loaded depends on the library",
    "licence-conflict": "card, config and licence file state different licences",
    "licence-forbidden": "the licence breaks the terms of a parent's",
    "licence-unknown": "no licence is stated, or none whose terms are known",
    "claim-without-dataset": "results in the card that do not say on which data",
    "nan": "NaN or infinite weights",
    "dead-layer": "matrices that are all zero or constant",
    "dead-rows": "matrices with rows that are all zero",
    "duplicate-layer": "layers with equal weights",
    "duplicate-tensor": "matrices with equal weights under several names",
    "merge-protected": "weights moved far from the base where the function hardly changes: merging them will do harm",
}
CODE_FILES = (".py", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat")
MORE_PICKLES = (".joblib", ".dill")
OTHER_WEIGHTS = (".gguf", ".ggml", ".onnx", ".h5", ".msgpack", ".ot", ".tflite", ".keras", ".pb", ".mlmodel")


def is_pickle(name: str) -> bool:
    """Whether a file is a pickle by its name; OpenVINO's `.bin` files are plain numbers."""
    file = PurePosixPath(name).name
    return file.endswith((*safety.PICKLES, *MORE_PICKLES)) and not file.startswith("openvino_")


def grouped(folder: Folder, code: str, severity: Severity, names: list[str], problem: str) -> None:
    """One risk for all files of a kind: `{}` in the sentence is how many there are."""
    if names:
        files = f"{len(names)} files" if len(names) > 1 else "1 file"
        folder.risk(code, severity, sorted(names)[0], problem.format(files))


def listing_risks(folder: Folder, has_safetensors: bool) -> None:
    """Links, pickles, code and what cannot be read, by the names of files alone."""
    listing = folder.listing
    if listing.fault is not None:
        folder.risk("partly-unread", "warning", listing.denied, f"Not all of it was listed: {listing.fault}.")
    link_risks(folder)
    grouped(
        folder, "special-file", "warning", listing.special, "{} of a kind that is never opened: pipe, socket, device."
    )
    pickles = [name for name in listing.files if is_pickle(name)]
    if has_safetensors:
        grouped(
            folder,
            "pickle",
            "warning",
            pickles,
            "{} in pickle format beside the safetensors weights; never loaded here.",
        )
    else:
        grouped(
            folder, "pickle", "danger", pickles, "{} in pickle format and no safetensors: loading them can run code."
        )
    code = [name for name in listing.files if name.lower().endswith(CODE_FILES)]
    grouped(folder, "code", "warning", code, "{} of code, never run here.")


def link_risks(folder: Folder) -> None:
    """Links that leave the folder, and those that lead nowhere."""
    grouped(
        folder,
        "link-out",
        "danger",
        folder.listing.links_out,
        "{} linked to places outside of the folder, not followed.",
    )
    grouped(folder, "missing-file", "danger", folder.listing.dangling, "{} linked to nothing.")


def code_risks(folder: Folder, name: str, content: Mapping[str, Any]) -> None:
    """A config that asks to run code of the checkpoint, or to download a kernel and run it."""
    path = folder.path / name
    for check in (safety.check_no_code, safety.without_kernels):
        try:
            check(path, content)
        except RegraftError as error:
            folder.risk("code", "danger", name, error.problem.replace(f"{path}", "It"))
            return


def config_risks(
    folder: Folder, where: str, config: Mapping[str, Any], sizes: Sizes, tensors: Mapping[str, TensorInfo]
) -> None:
    """What config.json says of itself, and what its tensors say otherwise."""
    code_risks(folder, where, config)
    try:
        safety.check_quantisation(folder.path / where, config)
    except RegraftError as error:
        folder.risk("quantised", "warning", where, error.problem.split(": ", 1)[-1])
        return
    if not tensors or any(key in config for key in TOWERS):
        return
    hidden = sizes.hidden_size
    if hidden is not None and not any(hidden in tensor.shape for tensor in tensors.values()):
        folder.risk("config-mismatch", "danger", where, f"It says hidden size {hidden}, but no tensor has that size.")
    stored = blocks.count_blocks(tensors)
    more = config.get("is_encoder_decoder") or config.get("num_nextn_predict_layers")
    if sizes.layers is not None and stored and stored != sizes.layers and not more:
        folder.risk(
            "config-mismatch", "warning", where, f"It says {sizes.layers} layers, the tensors' names show {stored}."
        )


def claim_risks(folder: Folder, card: str, claims: tuple[Claim, ...]) -> None:
    """Results that cannot be checked, because the card does not say on which data."""
    silent = [claim for claim in claims if claim.dataset is None]
    if silent:
        folder.risk("claim-without-dataset", "note", card,
                    f"{len(silent)} of {len(claims)} results name no dataset (first: {silent[0].metric}).")  # fmt: skip


def licence_risks(record: Record, parents: Mapping[str, str | None]) -> tuple[Risk, ...]:
    """Where a checkpoint's stated licence breaks its parents' terms.

    Args:
        parents: The licence of each parent that is known, by the name under which the record states it.
    """
    stated = record.licence.stated
    if stated is None:
        return ()
    return tuple(
        Risk("licence-forbidden", "danger", parent, f"Parent {parent}: {reason}")
        for parent, licence in parents.items()
        if (reason := forbids(licence, stated)) is not None
    )
