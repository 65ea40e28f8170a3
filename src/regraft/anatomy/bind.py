"""Bind a checkpoint to its anatomy: every tensor to one line, every shape to its dimensions, every axis to a size.

Nothing is guessed: a tensor that no line names, a shape that the config does not say, and layers that are missing are refused,
with the tensor and the axis named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

from regraft.anatomy import arithmetic
from regraft.anatomy.anatomy import Anatomy, Line
from regraft.anatomy.grammar import Dim, Factor
from regraft.anatomy.settings import Settings
from regraft.errors import AnatomyError

Shapes = Mapping[str, tuple[int, ...]]
MEND = "Use the config.json that belongs to these weights, or complete the anatomy."


@dataclass(frozen=True)
class Bound:
    """A tensor and its line: `prefix` stands before the line's name, `units` are the units in it (layer 3)."""

    name: str
    line: Line
    prefix: str
    units: Mapping[str, int]


@dataclass(frozen=True)
class Tie:
    """A tensor that is tied to another: `prefix` and `line` as of a `Bound`; absent from most checkpoints."""

    name: str
    source: str
    line: Line
    prefix: str


@dataclass(frozen=True)
class Binding:
    """A checkpoint seen through its anatomy. Made by `bind`.

    Args:
        anatomy: Its architecture's.
        settings: Its config.
        sizes: Of every axis that its tensors carry, or that can be computed.
        same: Axes that are another one in this checkpoint (no pooler: its axis is `hidden`).
        tensors: By name.
        ties: What the class ties and the flag does not untie.
        ignored: Tensors that are dropped on writing.
        unread: Tensors of heads that this class does not have; stock code passes over them, and they are dropped too.
    """

    anatomy: Anatomy
    settings: Settings
    sizes: Mapping[str, int]
    same: Mapping[str, str]
    tensors: Mapping[str, Bound]
    ties: tuple[Tie, ...] = ()
    ignored: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    carried: frozenset[str] = field(default_factory=frozenset)

    def axis(self, name: str) -> str:
        """The axis itself, or the one that it is in this checkpoint."""
        return self.same.get(name, name)

    def size(self, dim: Dim) -> int:
        """Units of a dimension."""
        return sum(prod(map(self.units, term)) for term in dim.terms)

    def units(self, factor: Factor) -> int:
        """Units of a factor."""
        if factor.inner is not None:
            return self.size(factor.inner)
        return self.sizes[self.axis(factor.axis)] if factor.axis else factor.size

    def look(self, name: str) -> object:
        """The value of an axis or a config key, for arithmetic."""
        return self.sizes[self.axis(name)] if self.axis(name) in self.sizes else self.settings.get(name)


def bind(anatomy: Anatomy, settings: Settings, shapes: Shapes) -> Binding:
    """Bind tensors, given by their shapes.

    Raises:
        AnatomyError: See the head of this file.
    """
    found, ignored, unread = _match(anatomy, settings, shapes)
    locals_ = {anatomy.local(name) for name in shapes}
    same = {axis.name: axis.same for axis in anatomy.axes.values()
            if axis.same and axis.unless and anatomy.local(axis.unless) not in locals_}  # fmt: skip
    carried = {same.get(axis, axis) for one in found.values() for axis in (*one.units, *one.line.spec.axes)}
    sizes = _sizes(anatomy, settings, carried)
    binding = Binding(anatomy, settings, sizes, same, found, _ties(anatomy, settings, found), tuple(ignored), tuple(unread),
                      frozenset(carried))  # fmt: skip
    _check_same(binding)
    _check_covered(binding)
    for one in found.values():
        _check_shape(binding, one, shapes[one.name])
    return binding


def _match(anatomy: Anatomy, settings: Settings, shapes: Shapes) -> tuple[dict[str, Bound], list[str], list[str]]:
    """The line of each tensor: literal names before patterns, the body before heads."""
    mine = [line for line in anatomy.lines if line.belongs(settings.architecture)]
    others = [line for line in anatomy.lines if not line.belongs(settings.architecture)]
    order = sorted(mine, key=lambda line: bool(line.name.axes))
    found, ignored, unread = {}, [], []
    for name in shapes:
        bound = _find(anatomy, order, name)
        if bound is not None:
            found[name] = bound
        elif any(one.pattern.fullmatch(local) for one in anatomy.ignore for local in (name, anatomy.local(name))):
            ignored.append(name)
        elif _find(anatomy, others, name) is None:
            raise AnatomyError(
                f"No line of {anatomy.source} names the tensor {name!r} {shapes[name]}.",
                "Add a line for it, or list it under ignore when the class does not read it.",
            )
        elif not settings.architecture:
            raise AnatomyError(
                f"{settings.where} names no architectures, and the tensor {name!r} is of a head.",
                'Name the class that it was saved from: "architectures": ["BertForMaskedLM"].',
            )
        else:
            unread.append(name)
    return found, ignored, unread


def _find(anatomy: Anatomy, lines: Iterable[Line], name: str) -> Bound | None:
    local = anatomy.local(name)
    for line in lines:
        prefix, inner = ("", name) if line.head is not None else (name.removesuffix(local), local)
        match = line.name.pattern.fullmatch(inner)
        if match is not None:
            return Bound(name, line, prefix, {axis: int(unit) for axis, unit in match.groupdict().items()})
    return None


def _sizes(anatomy: Anatomy, settings: Settings, carried: set[str]) -> dict[str, int]:
    """The size of every axis; those that no tensor carries may be missing."""
    sizes: dict[str, int] = {}
    open_: list[str] = []

    def look(name: str) -> object:
        if name not in anatomy.axes or open_[-1:] == [name]:  # in its own size, an axis' name is a key
            return settings.get(name)
        if name not in sizes:
            if name in open_:
                raise arithmetic.Fault(f"the size of {name} is given by itself")
            open_.append(name)
            sizes[name] = arithmetic.whole(anatomy.axes[name].size, look)
            open_.remove(name)
        return sizes[name]

    for name, axis in anatomy.axes.items():
        try:
            look(name)
        except arithmetic.Fault as fault:
            open_.clear()
            if name in carried:
                raise AnatomyError(
                    f"The axis {name} has no size in {settings.where}: {fault} (its size is {axis.size}).", MEND
                ) from fault
    return sizes


def _check_same(binding: Binding) -> None:
    """An axis that is another one when a tensor is absent has its size."""
    for name, other in binding.same.items():
        own, size = binding.sizes.get(name), binding.sizes.get(other)
        tensor = next((one.name for one in binding.tensors.values() if name in one.line.spec.axes), None)
        if own != size and tensor is not None:
            axes = binding.anatomy.axes
            raise AnatomyError(
                f"The axis {name} of {tensor!r} has {own} units ({axes[name].size}) and {other} has {size}, but the tensor "
                f"{axes[name].unless!r} that would lie between them is missing.", MEND,
            )  # fmt: skip


def _check_covered(binding: Binding) -> None:
    """The units in names are all of 0 to size - 1."""
    groups: dict[tuple[str, str], list[Bound]] = {}
    for one in binding.tensors.values():
        if one.units:
            groups.setdefault((one.prefix, one.line.name.template), []).append(one)
    for members in groups.values():
        for axis in members[0].line.name.axes:
            size, units = binding.sizes[axis], {one.units[axis] for one in members}
            last = max(members, key=lambda one: one.units[axis])
            if len(units) != size or max(units) != size - 1:
                lacking = next((unit for unit in range(size) if unit not in units), None)
                fault = (
                    f"{last.name!r} is of {axis} {max(units)}"
                    if lacking is None
                    else f"there is none for {axis} {lacking}"
                )
                raise AnatomyError(
                    f"The axis {axis} has {size} units ({binding.anatomy.axes[axis].size}), and of the tensors "
                    f"{members[0].line.name.template!r} {fault}.", MEND,
                )  # fmt: skip
        if len(members) != prod(binding.sizes[axis] for axis in members[0].line.name.axes):
            raise AnatomyError(f"Of the tensors {members[0].line.name.template!r} some units are missing.", MEND)
    for line in binding.anatomy.lines:
        for axis in line.name.axes if line.head is None else ():
            if axis not in binding.carried and binding.sizes.get(axis) and _needed(binding, axis):
                raise AnatomyError(
                    f"The axis {axis} has {binding.sizes[axis]} units ({binding.anatomy.axes[axis].size}), and no tensor is of "
                    f"one of them: {line.name.template!r} is missing.", MEND,
                )  # fmt: skip


def _needed(binding: Binding, axis: str) -> bool:
    """Whether a tensor of the same stack is there, or none of any stack: an encoder alone has no decoder layers."""
    if not any(one.units for one in binding.tensors.values()):
        return True
    starts = {line.name.template.split(".")[0] for line in binding.anatomy.lines if axis in line.name.axes}
    return any(one.line.name.template.split(".")[0] in starts for one in binding.tensors.values())


def _check_shape(binding: Binding, one: Bound, shape: tuple[int, ...]) -> None:
    spec = one.line.spec
    if len(shape) != len(spec.dims):
        raise AnatomyError(
            f"The tensor {one.name!r} has the shape {shape}, expected {len(spec.dims)} dimensions ({spec}).", MEND
        )
    for number, (dim, size) in enumerate(zip(spec.dims, shape, strict=True)):
        expected = binding.size(dim)
        if expected != size:
            axes = ", ".join(
                f"{name} = {binding.sizes[binding.axis(name)]} ({binding.anatomy.axes[name].size})" for name in dim.axes
            )
            raise AnatomyError(
                f"The tensor {one.name!r} has the shape {shape}; dimension {number} is {dim}, and the config makes it "
                f"{expected}: {axes or dim}.",
                MEND,
            )


def _ties(anatomy: Anatomy, settings: Settings, found: Mapping[str, Bound]) -> tuple[Tie, ...]:
    """Every tied tensor of the class whose source is there; none when the flag unties."""
    if anatomy.untie is not None and not settings.get(anatomy.untie):
        return ()
    by_local = {anatomy.local(name): name for name in found}
    prefix = next((one.prefix for one in found.values() if one.line.head is None), "")
    stacks = {local.split(".")[0] for local in by_local}
    ties: dict[str, Tie] = {}
    texts: set[tuple[str, str]] = set()
    for line in anatomy.lines:
        source = by_local.get(anatomy.local(line.spec.tied)) if line.spec.tied else None
        if source is None or line.name.axes or not line.belongs(settings.architecture):
            continue
        if (
            line.head is None and line.name.template.split(".")[0] not in stacks
        ):  # an encoder alone has no decoder to tie
            continue
        before = "" if line.head is not None else prefix
        name = before + line.name.template
        # Alternatives of one name are one tensor: that of the file, or the first.
        key = (line.text, source) if line.head is not None else (name, source)
        if name in found:
            ties = {other: tie for other, tie in ties.items() if (tie.line.text, source) != key}
        elif key in texts:
            continue
        texts.add(key)
        ties[name] = Tie(name, source, line, before)
    return tuple(ties.values())
