"""Plan a change: the output tensors, each from one input tensor, the new config, the ties.

    plan = plan_change(binding, {"ffn": [0, 2, 5], "layer": [0, 1, 1]})
    new = {one.name: compute(one, old[one.source]) for one in plan.outputs}

Nothing is read: a plan holds names and index arrays, so that a checkpoint is changed as a stream (`apply`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from regraft.anatomy import arithmetic
from regraft.anatomy.anatomy import Constant, Line
from regraft.anatomy.bind import Binding, Tie
from regraft.anatomy.grammar import Name
from regraft.anatomy.maps import Choice, DimMap, Maps
from regraft.anatomy.rewrite import rewrite
from regraft.anatomy.settings import Settings
from regraft.errors import AnatomyError


@dataclass(frozen=True)
class Output:
    """A tensor to be written.

    Args:
        name: Of the output.
        source: The input tensor that it is made of.
        dims: What each dimension becomes; None where it stays.
        factor: Everything is multiplied by this.
        shape: Of the output.
    """

    name: str
    source: str
    dims: tuple[DimMap | None, ...]
    factor: float
    shape: tuple[int, ...]

    @property
    def untouched(self) -> bool:
        """It is its source, element by element."""
        return self.factor == 1.0 and all(one is None for one in self.dims)

    @property
    def scaled(self) -> bool:
        """Its elements are not only moved."""
        return self.factor != 1.0 or any(one is not None and one.scale is not None for one in self.dims)

    def equals(self, other: Output) -> bool:
        """Whether both make the same of the same values."""
        return self.factor == other.factor and all(
            (one is None) == (two is None) and (one is None or two is None or one.equals(two))
            for one, two in zip(self.dims, other.dims, strict=True)
        )


@dataclass(frozen=True)
class Plan:
    """A change of a checkpoint. Made by `plan_change`.

    Args:
        binding: The checkpoint.
        outputs: In the order of the checkpoint's tensors.
        settings: The new config.
        whole: The map of each axis that has one for the whole model; files with ids follow it.
        notes: What a user should know, in sentences.
    """

    binding: Binding
    outputs: tuple[Output, ...]
    settings: Settings
    whole: Mapping[str, np.ndarray]
    notes: tuple[str, ...] = ()

    @property
    def renumbers_tokens(self) -> bool:
        """Whether tokens have other ids than before: the tokenizer's files are of the old ones."""
        return any(_is_vocabulary(self.binding, name, indices) for name, indices in self.whole.items())


def plan_change(binding: Binding, choices: Mapping[str, Choice]) -> Plan:
    """Plan index maps on axes.

    Args:
        choices: Axis -> indices, or a function of the enclosing units (see `maps.Choice`).

    Raises:
        AnatomyError: A map that an axis does not allow, or a size that the class cannot say; with the axis named.
    """
    anatomy, maps = binding.anatomy, Maps(binding, choices)
    whole = {}
    for name in choices:
        if not anatomy.axes[name].per:
            found = maps.units(name, {})
            assert found is not None
            whole[name] = found
    plain = _Outputs(binding, maps, {}, {})
    list(plain.every())  # asks for every map, and so finds every size
    settings = rewrite(binding, whole, maps.sizes, {})
    slices, tensors = _folds(binding, maps.sizes, settings)
    made = _Outputs(binding, maps, slices, tensors)
    outputs = list(made.every())
    written, flag = _untied(binding, made, outputs)
    if flag is not None:
        settings = rewrite(binding, whole, maps.sizes, {flag: False})
    notes = [f"{name!r} is left out: {binding.settings.architecture} does not read it." for name in binding.unread]
    notes += [f"{name!r} is not tied any more: it is written." for name in written]
    notes += _lost(binding, settings)
    if any(_is_vocabulary(binding, name, indices) for name, indices in whole.items()):
        notes.append("Tokens have other ids now: the files of the tokenizer are of the old ones, and are not copied.")
    return Plan(binding, tuple(outputs), settings, whole, tuple(notes))


def compute(output: Output, array: np.ndarray) -> np.ndarray:
    """The output tensor from its source, both whole and of a floating-point type that numpy knows."""
    for number, one in enumerate(output.dims):
        if one is None:
            continue
        array = np.take(array, one.index, axis=number)
        if one.scale is not None:
            array = array * one.scale.astype(array.dtype).reshape(
                [-1 if at == number else 1 for at in range(array.ndim)]
            )
    return array if output.factor == 1.0 else array * array.dtype.type(output.factor)


@dataclass(frozen=True)
class _Outputs:
    """Makes outputs of lines, with constants folded in: `slices` by axis, `tensors` by name without base."""

    binding: Binding
    maps: Maps
    slices: Mapping[str, float]
    tensors: Mapping[str, float]

    def every(self) -> Iterator[Output]:
        """The outputs of all tensors of the checkpoint: each line's renamed, dropped or copied units."""
        seen = set()
        for one in self.binding.tensors.values():
            key = (one.prefix, one.line.name.template)
            if key in seen:
                continue
            seen.add(key)
            for new, old in self._units(one.line.name, {}, {}):
                yield self.output(one.line, one.prefix, one.prefix + one.line.name.filled(old), new, old)

    def _units(
        self, name: Name, new: dict[str, int], old: dict[str, int]
    ) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
        """(new units, old units) of each output of a name."""
        if len(old) == len(name.axes):
            yield new, old
            return
        axis = name.axes[len(old)]
        indices = self.maps.units(axis, old)
        units = range(self.binding.sizes[axis]) if indices is None else indices.tolist()
        for number, unit in enumerate(units):
            yield from self._units(name, {**new, axis: number}, {**old, axis: int(unit)})

    def output(self, line: Line, prefix: str, source: str, new: dict[str, int], old: dict[str, int]) -> Output:
        """One output of a line, made of `source`."""
        spec = line.spec
        dims = tuple(
            self.maps.dim(dim, old, summed, self.slices) for dim, summed in zip(spec.dims, spec.summed, strict=True)
        )
        name = prefix + line.name.filled(new)
        shape = tuple(
            self.binding.size(dim) if one is None else len(one.index) for dim, one in zip(spec.dims, dims, strict=True)
        )
        # Dimensions that are only named anew, element by element, are not moved.
        dims = tuple(None if one is not None and one.scale is None and one.identical and len(one.index) == self.binding.size(dim)
                     else one for dim, one in zip(spec.dims, dims, strict=True))  # fmt: skip
        factor = prod(value for fold, value in self.tensors.items()
                      if self.binding.anatomy.local(fold) == self.binding.anatomy.local(prefix + line.name.template))  # fmt: skip
        return Output(name, source, dims, float(factor), shape)

    def of_tie(self, tie: Tie) -> Output:
        """The output of an absent tied tensor, made of a copy of its source."""
        return self.output(tie.line, tie.prefix, tie.source, {}, {})


def _folds(binding: Binding, sizes: Mapping[str, int], settings: Settings) -> tuple[dict[str, float], dict[str, float]]:
    """What output slices of each axis, and each tensor, are multiplied by because a constant of the forward changes."""
    slices: dict[str, float] = {}
    tensors: dict[str, float] = {}
    for one in binding.anatomy.constants:
        ratio = _ratio(binding, one, sizes, settings)
        for fold in one.fold if ratio != 1.0 else ():
            if fold in binding.anatomy.axes:
                slices[fold] = slices.get(fold, 1.0) * ratio**0.5
            else:
                tensors[fold] = tensors.get(fold, 1.0) * ratio
    return slices, tensors


def _ratio(binding: Binding, one: Constant, sizes: Mapping[str, int], settings: Settings) -> float:
    """old / new of a constant; 1 where it does not hold."""

    def new(name: str) -> Any:
        axis = binding.axis(name)
        return sizes.get(axis, binding.sizes.get(axis)) if name in binding.anatomy.axes else settings.get(name)

    try:
        if one.when is not None and not arithmetic.evaluate(one.when, binding.look):
            return 1.0
        before, after = (
            float(arithmetic.evaluate(one.factor, binding.look)),
            float(arithmetic.evaluate(one.factor, new)),
        )
    except arithmetic.Absent:
        return 1.0
    except arithmetic.Fault as fault:
        raise AnatomyError(f"The constant {one.factor} cannot be computed: {fault}.", "Mend the anatomy.") from fault
    return before / after


def _untied(binding: Binding, made: _Outputs, outputs: list[Output]) -> tuple[list[str], str | None]:
    """Tied tensors whose output would differ from their source's: those are written, and the flag that ties is cleared.

    Appends them to `outputs`; the flag ties all or none, so all absent ones are written then.
    """
    by_name = {one.name: one for one in outputs}
    ties = {tie.name: made.of_tie(tie) for tie in binding.ties}
    differ = {name for name, tie in zip(ties, binding.ties, strict=True) if not ties[name].equals(by_name[tie.source])}
    if not differ:
        return [], None
    flag = binding.anatomy.untie
    written = [name for name in ties if name not in by_name and (flag is not None or name in differ)]
    outputs += [ties[name] for name in written]
    return written, flag


def _lost(binding: Binding, settings: Settings) -> list[str]:
    """Ids of the config whose unit was cut."""
    return [
        f"{key} was {binding.settings.get(key)}, and that unit is cut: it is null now."
        for axis in binding.anatomy.axes.values() for key in axis.keys
        if key in settings.raw and settings.raw[key] is None and binding.settings.get(key) is not None
    ]  # fmt: skip


def _is_vocabulary(binding: Binding, name: str, indices: np.ndarray) -> bool:
    """Whether a map renumbers the tokens."""
    moved = not np.array_equal(indices, np.arange(binding.sizes[name]))
    return moved and "vocab_size" in binding.anatomy.axes[name].size.names()
