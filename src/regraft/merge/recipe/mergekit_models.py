"""The models, slices, number format and tokenizer of a mergekit recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regraft.checkpoint.reference import exists, parse
from regraft.errors import MethodError, RecipeError
from regraft.merge.recipe.lines import Lines, scalar
from regraft.merge.recipe.spec import DTYPES
from regraft.merge.settings import said

_PART = ("path", "revision")


@dataclass(frozen=True)
class Model:
    """A model that is merged.

    Args:
        reference: As ours.
        parameters: Its own settings.
        where: Its place in the file.
    """

    reference: str
    parameters: Mapping[str, Any]
    where: str


@dataclass(frozen=True)
class Models:
    """What a recipe merges.

    Args:
        base: The base's reference.
        listed: The models in their order, the base among them where it is listed.
        parameters: Settings of the slice.
        layers: The layers that the slice takes; None without a slice.
        whole: Whether models were listed, not slices: mergekit then adds a base that is not among them.
    """

    base: str | None
    listed: tuple[Model, ...]
    parameters: Mapping[str, Any]
    layers: int | None
    whole: bool


def read_models(lines: Lines) -> Models:
    """Read `models` or `slices`, and `base_model`.

    Raises:
        RecipeError: Neither or both, several slices, a part of the layers, a model twice.
    """
    content = lines.content
    forms = [key for key in ("models", "slices") if content.get(key) is not None]
    if len(forms) != 1:
        raise lines.refuse(
            content, (forms or ["merge_method"])[-1], "expected models or slices, one of them.", "Correct it."
        )
    base = _optional(lines, content, "base_model")
    if forms == ["models"]:
        items = lines.items(content, "models", "models")
        listed = tuple(_model(lines, items, number, ("model",)) for number in range(len(items)))
        return _checked(lines, Models(base, listed, {}, None, True))
    slices = lines.items(content, "slices", "slices")
    if len(slices) > 1:
        raise lines.refuse(
            slices,
            1,
            "several slices, which stack layers anew: not here.",
            "Merge whole models: give one slice, or models.",
        )
    if not isinstance(slices[0], Mapping):
        raise lines.refuse(slices, 0, f"a slice is {said(slices[0])}, expected a mapping.", "Correct it.")
    lines.check_keys(slices[0], "slice", ("base_model", "parameters"), ("sources",))
    sources = lines.items(slices[0], "sources", "sources")
    listed = tuple(_model(lines, sources, number, ("model", "layer_range")) for number in range(len(sources)))
    layers = {_layers(lines, one) for one in sources}
    if len(layers) > 1:
        raise lines.refuse(slices[0], "sources", "sources with different layer_range: not here.", "Merge whole models.")
    base = _optional(lines, slices[0], "base_model") or base
    parameters = lines.mapping(slices[0], "parameters", "parameters")
    return _checked(lines, Models(base, listed, parameters, layers.pop(), False))


def _checked(lines: Lines, models: Models) -> Models:
    seen: set[str] = set()
    for one in models.listed:
        if one.reference in seen:
            raise RecipeError(
                f"{one.where}: {one.reference} is listed twice.", "List it once, with the sum of weights."
            )
        seen.add(one.reference)
    return models


def _model(lines: Lines, items: Any, number: int, required: tuple[str, ...]) -> Model:
    item = items[number]
    if not isinstance(item, Mapping):
        raise lines.refuse(items, number, f"a model is {said(item)}, expected a mapping.", "Write model: org/name.")
    lines.check_keys(item, "model", ("parameters",), required)
    reference = reference_of(lines, item, "model")
    return Model(reference, lines.mapping(item, "parameters", "parameters"), lines.at(items, number))


def _layers(lines: Lines, source: Any) -> int:
    """The number of layers of a source that starts with the first."""
    found = source["layer_range"]
    good = isinstance(found, list) and len(found) == 2 and all(type(scalar(one)) is int for one in found)
    if not good or found[0] < 0 or found[1] <= found[0]:
        raise lines.refuse(source, "layer_range", "layer_range is no [first, end].", "Write layer_range: [0, 32].")
    if found[0] != 0:
        raise lines.refuse(
            source, "layer_range", f"layer_range starts with layer {found[0]}, a part of the model: not here.",
            "Merge whole models: layer_range: [0, number of layers].",
        )  # fmt: skip
    return int(found[1])


def _optional(lines: Lines, holder: Any, key: str) -> str | None:
    return None if holder.get(key) is None else reference_of(lines, holder, key)


def reference_of(lines: Lines, holder: Any, key: Any) -> str:
    """A model of mergekit as a reference of ours: `path`, `org/name@revision`, `model+lora`, or the same as a mapping.

    Raises:
        RecipeError: Another form.
    """
    value = holder[key]
    if isinstance(value, Mapping):
        lines.check_keys(value, "model", ("lora", "override_architecture"), ("model",))
        if value.get("override_architecture") is not None:
            raise lines.refuse(value, "override_architecture", "override_architecture: not here.", "Remove it.")
        parts = [_part(lines, value, one) for one in ("model", "lora") if value.get(one) is not None]
    else:
        text = lines.text(holder, key, str(key))
        parts = [text] if exists(text) else text.split("+")
        if len(parts) > 2:
            raise lines.refuse(holder, key, f"{text!r} has more than one lora.", "Write model+lora.")
    with lines.placed(holder, key):
        found = "+".join(map(_located, parts))
        parse(found)
    return found


def _part(lines: Lines, holder: Any, key: str) -> str:
    """`model` or `lora` of a reference that is written as a mapping."""
    value = holder[key]
    if not isinstance(value, Mapping):
        return lines.text(holder, key, key)
    lines.check_keys(value, key, ("revision",), ("path",))
    revision = value.get("revision")
    return lines.text(value, "path", "path") + ("" if revision is None else f"@{revision}")


def _located(text: str) -> str:
    """A folder as it is; what else has the form of a Hub name is one."""
    path, at, _ = text.partition("@")
    if exists(text) or text.startswith(("hf:", "pip:", "builtin:")):
        return text
    if at and exists(path):
        raise MethodError(f"{path} is a folder, which has no revision.", "Drop the @.")
    if re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?(@[^@]+)?", text) and not text.startswith("."):
        return f"hf:{text}"
    return text


def dtype_of(lines: Lines) -> str | None:
    """The number format that is written: `out_dtype`, else `dtype`.

    Raises:
        RecipeError: One that is not written here.
    """
    found = None
    for key in ("dtype", "out_dtype"):
        if lines.content.get(key) is not None:
            found = lines.text(lines.content, key, key).removeprefix("torch.")
            if found not in (*DTYPES, "float64") or (found == "float64" and key == "out_dtype"):
                raise lines.refuse(
                    lines.content, key, f"{key} is {found!r}, expected {', '.join(DTYPES)}.", "Choose one of them."
                )
    if found == "float64":
        raise lines.refuse(lines.content, "dtype", "float64 is not written here.", "Add out_dtype: float32.")
    return found


def tokenizer_of(lines: Lines, base: str | None) -> str | None:
    """The reference whose tokenizer is taken, None where the recipe does not say.

    Raises:
        RecipeError: A union of vocabularies, or other work on tokens.
    """
    content = lines.content
    for key in ("chat_template",):
        if content.get(key) is not None:
            raise lines.refuse(content, key, f"{key}: not here; the tokenizer's own is kept.", "Remove it.")
    if content.get("tokenizer") is not None and content.get("tokenizer_source") is not None:
        raise lines.refuse(content, "tokenizer", "tokenizer and tokenizer_source, expected one.", "Remove one.")
    holder, key = content, "tokenizer_source"
    if content.get("tokenizer") is not None:
        holder, key = lines.mapping(content, "tokenizer", "tokenizer"), "source"
        lines.check_keys(holder, "tokenizer", ("source", "tokens", "pad_to_multiple_of"))
        for other in ("tokens", "pad_to_multiple_of"):
            if holder.get(other) is not None:
                raise lines.refuse(holder, other, f"{other} changes the vocabulary: not here.", "Remove it.")
        if holder.get(key) is None:
            raise _union(lines, content, "tokenizer")
    if holder.get(key) is None:
        return None
    if holder[key] == "union":
        raise _union(lines, holder, key)
    if holder[key] != "base":
        return reference_of(lines, holder, key)
    if base is None:
        raise lines.refuse(holder, key, "the base's tokenizer, but there is no base_model.", "Name a model.")
    return base


def _union(lines: Lines, holder: Any, key: str) -> RecipeError:
    return lines.refuse(
        holder, key, "a union of vocabularies: not here; inputs must share one.", "Write tokenizer_source: base."
    )
