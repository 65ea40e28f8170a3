"""The small files of a merged checkpoint: config and tokenizer as they were, byte for byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regraft.checkpoint import reference, safety
from regraft.checkpoint.files import read_json_object
from regraft.checkpoint.headers import INDEX, SINGLE, read_header
from regraft.checkpoint.weights import Weights
from regraft.merge.recipe.spec import Output

TOKENIZER = (
    *safety.TOKENIZER_FILES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_MODEL = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "modules.json",
    "sentence_bert_config.json", "config_sentence_transformers.json",
)  # fmt: skip
_LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")
_MODULE_FILES = (".json", ".txt", ".model")
# What config.json calls the number format of the weights, in new files and in old ones.
_FORMAT_KEYS = ("dtype", "torch_dtype")


def tokenizer_folder(template: Weights, output: Output) -> Path:
    """Where the tokenizer that is written comes from.

    Raises:
        BadReferenceError: It names no checkpoint.
    """
    if output.tokenizer in (None, "base"):
        return template.encoder_folder
    return reference.locate(reference.parse(str(output.tokenizer)).base)


def small_files(template: Weights, output: Output) -> dict[str, Path]:
    """The files that a merged checkpoint takes over, by their place in it: where each comes from."""
    root, encoder, tokenizer = template.folder, template.encoder_folder, tokenizer_folder(template, output)
    found = {path.relative_to(root): path for place in (root, encoder) for path in _named(place, _MODEL)}
    found |= {path.relative_to(root): path for pattern in _LICENCES for path in root.glob(pattern) if path.is_file()}
    found |= {encoder.relative_to(root) / path.name: path for path in _named(tokenizer, TOKENIZER)}
    for _, where in safety.read_modules(root)[1:]:
        if where and (root / where).is_dir():
            for path in (root / where).rglob("*"):
                if path.is_file() and path.suffix in _MODULE_FILES and not path.name.endswith(".index.json"):
                    found[path.relative_to(root)] = path
    return {place.as_posix(): path for place, path in sorted(found.items())}


def copy_small_files(template: Weights, folder: Path, output: Output) -> None:
    """Copy them beside the weights, and write the index where these lie in shards.

    Only the config's number format is rewritten where the weights get another one.

    Raises:
        BadReferenceError: The tokenizer's checkpoint cannot be found.
        OSError: A file cannot be read or written.
    """
    for name, source in small_files(template, output).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)
    _write_index(folder / template.encoder_folder.relative_to(template.folder))
    changed = config_changes(template, output)
    if changed:
        path = folder / config_name(template)
        path.write_text(json.dumps(read_json_object(path) | changed, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _write_index(folder: Path) -> None:
    """The index of weights that lie in shards."""
    shards = sorted(folder.glob("model-*.safetensors"))
    if not shards or (folder / SINGLE).exists():
        return
    found = {name: info for shard in shards for name, info in read_header(shard).items()}
    content = {
        "metadata": {"total_size": sum(info.nbytes for info in found.values())},
        "weight_map": {name: found[name].file.name for name in sorted(found)},
    }
    (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def config_name(template: Weights) -> str:
    """Where config.json lies in the folder."""
    return (template.encoder_folder / "config.json").relative_to(template.folder).as_posix()


def config_changes(template: Weights, output: Output) -> dict[str, Any]:
    """The entries of config.json that must say another number format."""
    stated = {key: template.config[key] for key in _FORMAT_KEYS if template.config.get(key) is not None}
    return {key: output.dtype for key, value in stated.items() if output.dtype not in (None, value)}


def _named(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    return (folder / name for name in names if (folder / name).is_file())
