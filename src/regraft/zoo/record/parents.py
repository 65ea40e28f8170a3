"""The parents that a folder names, wherever it names them, in one list.

README.md             base_model, base_model_relation
adapter_config.json   base_model_name_or_path (peft)
mergekit_config.yml   every `model`, `base_model` and source of a slice (mergekit; "model+adapter" is the model)
regraft.json          parents of a merge, by reference
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from regraft.zoo.record.card import Card, decoded, parents_of
from regraft.zoo.record.folder import Folder, clean
from regraft.zoo.record.record import Parent
from regraft.zoo.record.yaml_text import YamlFault, load

MERGEKIT = ("mergekit_config.yml", "mergekit_config.yaml")
ABOUT = "regraft.json"
RECIPE_LIMIT = 2**20  # bytes
MOST_PARENTS = 1000
_MODEL_KEYS = frozenset({"model", "base_model"})
_BUILTIN = {"builtin:minilm": "sentence-transformers/all-MiniLM-L6-v2"}


def all_parents(folder: Folder, card: Card, adapter: Mapping[str, Any], about: Mapping[str, Any]) -> tuple[Parent, ...]:
    """Every parent once; the first place that states its relation counts.

    Args:
        adapter: The content of adapter_config.json.
        about: The content of regraft.json.
    """
    base = clean(adapter.get("base_model_name_or_path"))
    named = [
        *parents_of(card.metadata), *([] if base is None else [Parent(base, "adapter")]),
        *(Parent(name, "merge") for name in _of_mergekit(folder)), *(Parent(name, "merge") for name in _of_merge(about)),
    ]  # fmt: skip
    found: dict[str, str | None] = {}
    for parent in named[:MOST_PARENTS]:
        found[parent.name] = found.get(parent.name) or parent.relation
    return tuple(Parent(name, relation) for name, relation in found.items())


def _of_mergekit(folder: Folder) -> list[str]:
    name = next((name for name in MERGEKIT if name in folder), None)
    data = folder.read(name, RECIPE_LIMIT) if name is not None else None
    if name is None or data is None:
        return []
    try:
        return list(dict.fromkeys(_models(load(decoded(data)))))
    except YamlFault as error:
        folder.risk("broken-file", "warning", name, f"It cannot be read: {error}.")
        return []


def _models(content: Any) -> Iterator[str]:
    """Every model that a recipe names, in the order of the file."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(reversed(value))
        elif isinstance(value, dict):
            below = []
            for key, one in value.items():
                text = (
                    clean(one["path"] if isinstance(one, dict) and "path" in one else one)
                    if key in _MODEL_KEYS
                    else None
                )
                if isinstance(one, dict) and isinstance(one.get("model"), dict) and key in _MODEL_KEYS:
                    text = clean(one["model"].get("path"))
                if text is not None:
                    yield text.split("+")[0].split("@")[0]
                else:
                    below.append(one)
            waiting.extend(reversed(below))


def _of_merge(about: Mapping[str, Any]) -> Iterator[str]:
    parents = about.get("parents")
    for parent in parents if isinstance(parents, list) else ():
        text = clean(parent.get("reference")) if isinstance(parent, dict) else None
        if text is not None:
            whole = text.split("#")[0].split("+")[0]
            yield _BUILTIN.get(whole) or whole.removeprefix("hf:").split("@")[0]
