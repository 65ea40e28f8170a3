"""How a merge method is registered: its source and claim as everywhere, and what the engine must know to run it.

    @merge_method("ties", source=Source(...), claim="...", traits=Traits(per_input=("density",)))
    def ties(stack, *, density): ...

A method sees one tensor at a time (`regraft.merge.stack.Stack`) and returns what `stack.map` or `stack.combine` gave, or
a float32 array of the tensor's shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from regraft.methods import Function, Source, method

INVARIANCES = frozenset({"identity", "zero weight", "permutation", "base"})


@dataclass(frozen=True)
class Range:
    """The numbers that an option may have, from `low` to `high`, the ends included unless they are open."""

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range; NaN never does."""
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


@dataclass(frozen=True)
class Traits:
    """What the engine must know of a method.

    Args:
        base: Whether the method needs a base, can use one, or takes none.
        per_input: Options that may differ by input; they arrive as float64 [n].
        inputs: The least and the most inputs (None: no limit).
        working: Bytes of working memory for a tensor of a shape and a number of inputs; None for elementwise methods,
            which work in blocks. With it, several tensors are merged at a time, each on one thread.
        flops: Operations of linear algebra for one tensor, as `regraft.merge.flops` counts them; None for methods that have none.
            Called with the tensor's name, shape, the number of inputs that have a weight, `low` (the rank that their changes
            have at most, where all are adapters over the base; else None), and the options that are given for the tensor.
        prepare: Called once with the stacks of all tensors, in the order of their names, and the options of the first. What it
            gives is the method's own affair: it arrives, for every tensor, as the keyword `prepared`, unless it is None, as it
            should be where the options ask for nothing of the whole model. A tensor that is merged without it (from Python, say)
            is a model by itself.
        whole: The words with which it looks at all tensors at once, by option: its numbers are then one for the whole model.
        wants: Facts of the model that arrive as keywords: `num_layers`.
        selects: Whether it looks for the largest magnitudes (`regraft.merge.select`), which takes memory.
        kin: Whether the inputs must share an ancestor; a method that carries changes over to another family needs none.
        options: The range of every option that is a number.
        choices: The words that an option may be.
    """

    base: Literal["required", "optional", "none"] = "required"
    per_input: tuple[str, ...] = ()
    inputs: tuple[int, int | None] = (1, None)
    working: Callable[[tuple[int, ...], int], int] | None = None
    flops: Callable[..., float] | None = None
    prepare: Callable[..., Any] | None = None
    whole: Mapping[str, str] = field(default_factory=dict)
    wants: tuple[str, ...] = ()
    selects: bool = False
    kin: bool = True
    options: Mapping[str, Range] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_traits: dict[str, Traits] = {}


def merge_method(
    name: str, *, source: Source, claim: str, traits: Traits, invariances: Iterable[str] = ()
) -> Callable[[Function], Function]:
    """Register a merge method; returns the function unchanged.

    Raises:
        MethodError: The name is taken.
        ValueError: An invariance that the contract suite does not know.
    """
    kept = frozenset(invariances)
    if not kept <= INVARIANCES:
        raise ValueError(f"merge method {name!r} declares {sorted(kept - INVARIANCES)}, known: {sorted(INVARIANCES)}")

    def register(function: Function) -> Function:
        _traits[name] = traits
        return method("merge", name, source=source, claim=claim, needs=("weights",), invariances=kept)(function)

    return register


def traits_of(name: str) -> Traits:
    """The traits of a registered method."""
    return _traits[name]
