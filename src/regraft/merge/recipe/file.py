"""Read the recipe of a merge and check it before a checkpoint is opened; errors name the line.

    merge: ties
    base: ./base
    inputs:
      - {checkpoint: ./a, weight: 0.5}
      - {checkpoint: ./b+./lora, weight: [0.2, 0.8]}                            a gradient over depth
      - checkpoint: ./c
        weight: [{filter: mlp, value: 0.3}, {value: 0.6}]                       rules
    options: {density: 0.2, trim: tensor}
    output: {dtype: bfloat16, tokenizer: base, format: checkpoint}
    seed: 0

A recipe of mergekit is read, too (see `regraft.merge.recipe.mergekit`); its keys tell it apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from regraft.checkpoint.reference import parse
from regraft.errors import MethodError, RecipeError
from regraft.merge.options import Option, near, option_of, options_of
from regraft.merge.recipe import mergekit
from regraft.merge.recipe.lines import Lines, built_in, scalar
from regraft.merge.recipe.spec import Input, Output, Spec, check_base, check_count, input_option
from regraft.merge.settings import Rule, covers_all, rule_of

_KEYS = ("base", "options", "output", "seed", "layers")


def read_merge(path: Path | str) -> Spec:
    """Read a recipe, ours or mergekit's.

    Raises:
        RecipeError: No recipe of a merge; an unknown method, key or option; a value of another kind or out of its range; with
            the line.
    """
    lines = Lines.read(Path(path))
    content = lines.content
    if not isinstance(content, Mapping):
        raise RecipeError(f"{path}, line 1: no mapping.", "The recipe of a merge has the keys merge and inputs.")
    if "merge_method" in content:
        return mergekit.read(lines)
    if "merge" in content:
        return _read(lines, content)
    if "regraft" in content:
        raise RecipeError(f"{path}, line 1: a recipe of `reuse`, not of a merge.", "Replay it: regraft run.")
    for key in content:
        hint = near(key, ("merge", "merge_method"))
        if hint:
            raise lines.refuse(content, key, f"a recipe of a merge has no key {key!r}.", hint)
    raise RecipeError(f"{path}, line 1: not the recipe of a merge.", "Name the method: merge: ties.")


def _read(lines: Lines, content: Mapping[Any, Any]) -> Spec:
    lines.check_keys(content, "recipe", _KEYS, ("merge", "inputs"))
    method = lines.text(content, "merge", "merge")
    with lines.placed(content, "merge"):
        options_of(method)
    items = lines.items(content, "inputs", "inputs")
    inputs = tuple(_input(lines, items, number, method) for number in range(len(items)))
    base = None if content.get("base") is None else _reference(lines, content, "base")
    with lines.placed(content, "inputs"):
        check_count(method, len(inputs))
    with lines.placed(content, "merge" if base is None else "base"):
        check_base(method, base)
    given = lines.mapping(content, "options", "options")
    options, places = {}, {}
    for key in given:
        places[str(key)] = lines.at(given, key)
        with lines.placed(given, key):
            option = option_of(method, key)
        options[str(key)] = _value(lines, given, key, option)
    rest = {}
    for key, kind in (("seed", "a whole number"), ("layers", "a whole number of at least 1")):
        if content.get(key) is not None:
            rest[key] = scalar(content[key])
            if isinstance(rest[key], bool) or not isinstance(rest[key], int) or rest[key] < (key == "layers"):
                raise lines.refuse(content, key, f"{key} is {rest[key]!r}, expected {kind}.", "Correct it.")
    output = _output(lines, content, base)
    with lines.placed(content, "merge"):
        return Spec(method, base, inputs, options, output, places=places, **rest)


def _input(lines: Lines, items: Any, number: int, method: str) -> Input:
    item, where = items[number], lines.at(items, number)
    if isinstance(item, str):
        return Input(_reference(lines, items, number), {}, where)
    if not isinstance(item, Mapping):
        raise RecipeError(f"{where}: an input is no mapping.", "Write {checkpoint: ./a, weight: 0.5}.")
    if item.get("checkpoint") is None:
        hint = next((hint for key in item if (hint := near(key, ["checkpoint"]))), "Add checkpoint: ./a.")
        raise RecipeError(f"{where}: an input lacks checkpoint.", hint)
    options, places = {}, {}
    for key in item:
        if key == "checkpoint":
            continue
        places[str(key)] = lines.at(item, key)
        with lines.placed(item, key):
            option = _own_option(method, key)
        options[str(key)] = _value(lines, item, key, option)
    return Input(_reference(lines, item, "checkpoint"), options, where, places)


def _own_option(method: str, key: Any) -> Option:
    own = [name for name, option in options_of(method).items() if option.per_input]
    if key not in options_of(method):
        hint = near(key, ["checkpoint", *own]) or f"Known: checkpoint, {', '.join(own)}."
        raise MethodError(f"an input of {method} has no key {str(key)!r}.", hint)
    return input_option(method, str(key))


def _reference(lines: Lines, holder: Any, key: Any) -> str:
    text = lines.text(holder, key, "a checkpoint")
    with lines.placed(holder, key):
        parse(text)
    return text


def _value(lines: Lines, holder: Any, key: Any, option: Option) -> Any:
    """The value of an option; of rules, each is checked where it stands."""
    value = holder[key]
    if option.kind != "number" or not isinstance(value, list) or not any(isinstance(one, Mapping) for one in value):
        with lines.placed(holder, key):
            return option.check(built_in(value))
    rules = tuple(_rule(lines, value, number, option) for number in range(len(value)))
    if not covers_all(rules):
        raise lines.refuse(
            holder, key, f"no rule of {option.name} says what holds for all other tensors.",
            "End the rules with one without filter: {value: 1.0}.",
        )  # fmt: skip
    return rules


def _rule(lines: Lines, items: Any, number: int, option: Option) -> Rule:
    item = items[number]
    plain = {key: built_in(value) for key, value in item.items()} if isinstance(item, Mapping) else scalar(item)
    with lines.placed(items, number):
        rule = rule_of(plain)
        option.check((rule,))
    return rule


def _output(lines: Lines, content: Any, base: str | None) -> Output:
    given = lines.mapping(content, "output", "output")
    lines.check_keys(given, "output", [field.name for field in fields(Output)])
    values = {str(key): scalar(value) for key, value in given.items() if value is not None}
    for key in values:  # one by one, so that the error is about its line; a rank says nothing without its format
        with lines.placed(given, key):
            Output(**{key: values[key], **({"format": "lora"} if key == "rank" else {})})
    if values.get("tokenizer") == "base" and base is None:
        raise lines.refuse(given, "tokenizer", "tokenizer is base, but there is no base.", "Name a checkpoint.")
    with lines.placed(given):
        return Output(**values)
