"""The steps of a recipe in an order in which each comes after its inputs, and what must hold between a step and its inputs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from regraft.errors import RecipeError

# The key under which inputs are named, and the operations that make them.
INPUTS = {"features": ("features",), "model": ("adapt", "merge", "resize"), "models": ("adapt",)}


@dataclass(frozen=True)
class Step:
    """A named operation; `values` holds its parameters, inputs included."""

    name: str
    op: str
    values: Mapping[str, Any]
    line: int


def ordered(path: Path, steps: Mapping[str, Step]) -> list[Step]:
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
    if step.op == "resize":
        _check_resize(path, step, steps[step.values["model"]])
    if step.op == "merge":
        _check_merge(path, step, [steps[name] for name in _inputs(step, "models")])


def _check_resize(path: Path, step: Step, model: Step) -> None:
    """An encoder and a head that reads its last layer alone are what can be cut."""
    where = f"{path}, line {step.line}: step {step.name!r}"
    if model.op == "resize":
        raise RecipeError(f"{where} cuts {model.name!r}, which is cut already.", "Cut it to its sizes in one step.")
    if model.values["method"] == "as-is" or (model.op == "adapt" and _view(model) == "mean"):
        raise RecipeError(
            f"{where} cuts {model.name!r}, which is as it came, or has a weight for each layer.",
            "Name an adaptation with a head on the last layer.",
        )


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
