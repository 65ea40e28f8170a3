"""What a checkpoint may not ask for: code, pickles, paths outside its folder, formats that are not computed here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from regraft.checkpoint.files import read_json, read_json_object
from regraft.checkpoint.headers import INDEX, SINGLE
from regraft.errors import CheckpointError, UnsafeCheckpointError
from regraft.paths import resolved

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines")
# The stock modules of sentence-transformers that only compute; Router and Asym name further classes to import.
STOCK_MODULES = frozenset({
    "CNN", "Dense", "Dropout", "LSTM", "LayerNorm", "Normalize", "Pooling", "Transformer", "WeightedLayerPooling",
})  # fmt: skip
TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
    "spm.model", "source.spm", "bpe.codes",
)  # fmt: skip
# Files and folders that a checkpoint's folder may hold: a training run that kept every state stays far below.
MOST_ENTRIES = 20_000


def check_links(folder: Path) -> None:
    """Refuse links that leave the folder, and pipes, sockets and devices, which reading could wait for without end; the Hub
    cache's own links into `blobs/` stay within their repository.

    Every folder below is looked through, links to folders excepted: where they lead is inside, and so seen anyway.

    Raises:
        UnsafeCheckpointError: Names the link, or what is no file.
        CheckpointError: There is more below the folder than `MOST_ENTRIES`, or a link that leads in a circle.
    """
    root = resolved(folder)
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    for path in _walk(root):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UnsafeCheckpointError(
                f"{path} is no regular file but a pipe, a socket or a device.",
                "Take it out of the checkpoint's folder.",
            )
        if path.is_symlink():
            target = resolved(path)
            if not any(target.is_relative_to(place) for place in allowed):
                raise UnsafeCheckpointError(
                    f"{path} is a link that leaves the folder of the checkpoint.",
                    "Put the file itself there; do not use a copy that you do not trust.",
                )


def _walk(root: Path) -> Iterator[Path]:
    """Every file, link and folder below `root`, in a fixed order."""
    waiting, seen = [root], 0
    while waiting:
        for path in sorted(waiting.pop().iterdir()):
            seen += 1
            if seen > MOST_ENTRIES:
                raise CheckpointError(
                    f"{root} holds more than {MOST_ENTRIES:,} files and folders, too many to check for links out of it.",
                    "Give a folder with the checkpoint's files alone.",
                )
            yield path
            if path.is_dir() and not path.is_symlink():
                waiting.append(path)


def check_no_code(path: Path, content: Any) -> None:
    """Refuse JSON that asks to run code of the checkpoint, at any depth.

    Raises:
        UnsafeCheckpointError: Names the file and the entry.
    """
    stack = [content]
    while stack:
        value = stack.pop()
        if isinstance(value, Mapping):
            for key in CODE_KEYS:
                if value.get(key):
                    raise UnsafeCheckpointError(
                        f"{path} asks to run code from the checkpoint ({key}).",
                        "Code from a checkpoint is never run: use a model of a stock transformers architecture.",
                    )
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)


def without_kernels(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without its choice of attention kernels: that is the machine's, and may name code on the Hub.

    Raises:
        UnsafeCheckpointError: It names a kernel to download (`org/name`).
    """
    chosen = {key for key in config if key.lstrip("_").startswith(("attn_implementation", "experts_implementation"))}
    for key in sorted(chosen):
        if "/" in str(config[key]):
            raise UnsafeCheckpointError(
                f"{path} asks to download and run a kernel ({key}).", "Remove the entry: stock kernels are used here."
            )
    return {key: value for key, value in config.items() if key not in chosen and key != "use_kernels"}


def check_quantisation(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse quantised checkpoints.

    Raises:
        CheckpointError: Names the method.
    """
    settings = config.get("quantization_config") or config.get("compression_config")
    if settings:
        method = settings.get("quant_method", "unknown") if isinstance(settings, Mapping) else "unknown"
        raise CheckpointError(
            f"{path}: the checkpoint is quantised (quantization_config: {str(method)[:40]}), "
            "a format that cannot be computed here.",
            "Use the checkpoint that it was made from, in float32, float16 or bfloat16.",
        )


def no_weights(folder: Path) -> CheckpointError:
    """The error for a folder without safetensors weights; pickles get their own words, and so do weights without a tensor."""
    for name in (SINGLE, INDEX):
        if (folder / name).exists():
            return CheckpointError(f"{folder / name} holds no tensor.", "Download or save the checkpoint again.")
    names = sorted(path.name for path in folder.iterdir())
    if "adapter_model.safetensors" in names:
        return CheckpointError(f"{folder} holds an adapter, but no base model.", "Write BASE+ADAPTER.")
    pickles = [name for name in names if name.endswith(PICKLES) and name != "training_args.bin"]
    if pickles:
        return UnsafeCheckpointError(
            f"{folder} holds its weights only as a pickle ({pickles[0]}), which can run code when it is read.",
            "Convert it to safetensors: load it where you trust it, then save_pretrained(folder).",
        )
    others = [name for name in names if name.endswith(".safetensors")]
    hint = f" (found {', '.join(others[:3])})" if others else ""
    return CheckpointError(
        f"{folder} holds no model.safetensors and no model.safetensors.index.json{hint}.",
        "Give a folder with safetensors weights; pickles such as pytorch_model.bin are not read.",
    )


def check_tokenizer(folder: Path) -> None:
    """Refuse a folder without the files of a tokenizer.

    Raises:
        CheckpointError: Names what was looked for.
    """
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise CheckpointError(
            f"{folder} holds no tokenizer (none of {', '.join(TOKENIZER_FILES[:5])}).",
            "Put the tokenizer's files beside config.json: tokenizer.save_pretrained(folder).",
        )


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """(class name, path below the folder) of every sentence-transformers module; empty for other checkpoints.

    Raises:
        CheckpointError: modules.json does not say what it must, or does not begin with a Transformer.
        UnsafeCheckpointError: A class that is not stock, or a path that leaves the folder.
    """
    path = folder / "modules.json"
    if not path.exists():
        return []
    content = read_json(path)
    check_no_code(path, content)
    if not isinstance(content, list) or not content or not all(isinstance(entry, Mapping) for entry in content):
        raise CheckpointError(f"{path} is not a list of modules.", "Save the model again with sentence-transformers.")
    modules = [_module(folder, path, entry) for entry in content]
    if modules[0][0] != "Transformer":
        raise CheckpointError(
            f"{path} begins with a {modules[0][0]}, expected a Transformer.", "Use a model with a transformer encoder."
        )
    return modules


def _module(folder: Path, path: Path, entry: Mapping[str, Any]) -> tuple[str, str]:
    kind, where = str(entry.get("type", "")), entry.get("path", "")
    name = kind.rsplit(".", 1)[-1]
    if not re.fullmatch(r"sentence_transformers(\.[a-z_]+)*\.[A-Za-z]+", kind) or name not in STOCK_MODULES:
        raise UnsafeCheckpointError(
            f"{path} names the module {kind[:80]!a}, which is not one of the stock modules "
            f"({', '.join(sorted(STOCK_MODULES))}).",
            "Code from a checkpoint is never run: use a model of stock modules.",
        )
    if not isinstance(where, str) or PurePosixPath(where).is_absolute() or ".." in PurePosixPath(where).parts:
        raise UnsafeCheckpointError(
            f"{path} names the path {str(where)[:80]!a}, which leaves the folder.", "Do not use this copy."
        )
    config_path = folder / where / "config.json"
    if where and config_path.exists():
        config = read_json_object(config_path)
        check_no_code(config_path, config)
        activation = config.get("activation_function")
        if activation is not None and not re.fullmatch(r"torch\.nn\.[A-Za-z_.]+", str(activation)):
            raise UnsafeCheckpointError(
                f"{config_path} names the activation {str(activation)[:80]!a}, expected a class of torch.nn.",
                "Code from a checkpoint is never run: use a stock activation.",
            )
    return name, where
