"""Index maps: which old unit each new unit of an axis is, applied to every dimension that carries the axis.

    new unit j of the axis = old unit m[j]:    subset [0, 2], permutation [2, 0, 1], repetition [0, 0, 1]

A unit with c copies is divided by c where it is summed over, so that the copies together contribute what the unit did; in output
slices of a `dot` axis (query and key, summed over between two activations) each copy takes c**-0.5. Units of `ids` and
`sequence` axes are looked up one at a time and not summed over: those are copied as they are. Other shares than 1/c do as well as
long as they sum to 1 (`Shares`): copies with equal shares receive equal gradients, and training never tells them apart.

Source: the function-preserving widening of Chen, Goodfellow, Shlens (2015), arXiv:1511.05641 (Net2WiderNet: copy the units'
outputs, divide what reads them by the number of copies).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from regraft.anatomy.anatomy import Axis
from regraft.anatomy.bind import Binding
from regraft.anatomy.grammar import Dim, Factor
from regraft.errors import AnatomyError

Indices = Sequence[int] | np.ndarray
# One map for the model, or one for each unit of the enclosing axes (`per`): {"layer": 3, "heads": 0} -> indices.
# Units are the old ones.


@dataclass(frozen=True)
class Shares:
    """Indices, and the share of what an old unit contributes that each new one takes: 0.7 and 0.3 for two copies.

    Args:
        indices: The old unit of each new one.
        shares: As many numbers; those of the copies of one unit sum to 1.
    """

    indices: Indices
    shares: Sequence[float] | np.ndarray


Choice = Indices | Shares | Callable[[Mapping[str, int]], Indices | Shares]


@dataclass(frozen=True)
class DimMap:
    """What a dimension becomes: `index` into the old one, and what each slice is multiplied by (None: 1)."""

    index: np.ndarray
    scale: np.ndarray | None = None

    @cached_property
    def identical(self) -> bool:
        """It gathers 0, 1, 2, ... (of a dimension that may be longer)."""
        return bool((self.index == np.arange(len(self.index))).all())

    def equals(self, other: DimMap) -> bool:
        """Whether both make the same of a dimension."""
        mine, others = (np.ones(1) if one.scale is None else one.scale for one in (self, other))
        return np.array_equal(self.index, other.index) and bool(np.all(mine == others))


class Maps:
    """The index maps of one change, checked when they are asked for.

    Args:
        binding: The checkpoint.
        choices: Axis -> indices, or a function of the enclosing units.

    Raises:
        AnatomyError: An axis that is not there, or that allows no such map; or one axis with different sizes in different places.
    """

    def __init__(self, binding: Binding, choices: Mapping[str, Choice]) -> None:
        self.binding, self.choices = binding, dict(choices)
        self._made: dict[tuple[str, tuple[tuple[str, int], ...]], tuple[np.ndarray, np.ndarray]] = {}
        self._dims: dict[tuple[object, ...], DimMap | None] = {}
        self._sizes: dict[str, tuple[int, str]] = {}
        for name in choices:
            if name not in binding.anatomy.axes:
                raise AnatomyError(
                    f"There is no axis {name!r} in {binding.anatomy.source}.",
                    f"Choose among {', '.join(binding.anatomy.axes)}.",
                )
            if name in binding.same:
                raise AnatomyError(
                    f"The axis {name!r} is {binding.axis(name)!r} in this checkpoint.",
                    f"Give a map of {binding.axis(name)!r}.",
                )
            if name not in binding.carried:
                raise AnatomyError(f"No tensor of this checkpoint carries the axis {name!r}.", "Leave it out.")

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each mapped axis that was asked for."""
        return {axis: size for axis, (size, _) in self._sizes.items()}

    def units(self, name: str, scope: Mapping[str, int]) -> np.ndarray | None:
        """The map of an axis within the enclosing units `scope`; None where it has none."""
        made = self.made(name, scope)
        return None if made is None else made[0]

    def made(self, name: str, scope: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray] | None:
        """The map of an axis within the enclosing units `scope`, and the share of each unit; None where it has none.

        Raises:
            AnatomyError: See the class.
        """
        axis = self.binding.anatomy.axes[self.binding.axis(name)]
        if axis.name not in self.choices:
            return None
        at = {one: scope[one] for one in axis.per if one in scope}
        key = (axis.name, tuple(at.items()))
        if key not in self._made:
            choice = self.choices[axis.name]
            given = choice(at) if callable(choice) else choice
            where = ", ".join(f"{one} {unit}" for one, unit in at.items())
            found = self._checked(axis, np.asarray(given.indices if isinstance(given, Shares) else given), where)
            equal = 1.0 / np.bincount(found)[found]
            self._made[key] = found, self._shares(axis, found, given.shares) if isinstance(given, Shares) else equal
        return self._made[key]

    def _shares(self, axis: Axis, found: np.ndarray, given: Sequence[float] | np.ndarray) -> np.ndarray:
        shares = np.asarray(given, dtype=np.float64)
        sums = np.bincount(found, shares)[found] if shares.shape == found.shape else np.zeros(1)
        if not np.allclose(sums, 1.0, rtol=0.0, atol=1e-9) or (axis.dot and shares.min() < 0) or axis.order != "free":
            raise AnatomyError(
                f"The shares of the axis {axis.name} are not one number for each unit of which those of one unit's copies sum "
                "to 1 (none negative for queries and keys), or it has nothing to share out.",
                "Give such shares, or none.",
            )
        return shares

    def _checked(self, axis: Axis, found: np.ndarray, where: str) -> np.ndarray:
        size = self.binding.sizes[axis.name]
        if found.ndim != 1 or not len(found) or found.dtype.kind not in "iu":
            raise AnatomyError(
                f"The map of the axis {axis.name} is no list of unit numbers.", "Give one number or more."
            )
        if found.min() < 0 or found.max() >= size:
            wrong = int(found.max() if found.max() >= size else found.min())
            raise AnatomyError(
                f"The map of the axis {axis.name} names the unit {wrong}; it has {size} ({axis.size}).",
                f"Units are 0 to {size - 1}.",
            )
        if axis.order == "fixed" and not np.array_equal(found, np.arange(size)):
            raise AnatomyError(
                f"The axis {axis.name} is fixed: moving, cutting or copying its units would change what the rest computes.",
                "Choose another axis.",
            )
        known, place = self._sizes.setdefault(axis.name, (len(found), where))
        if known != len(found):
            raise AnatomyError(
                f"The axis {axis.name} would have {known} units in {place or 'the model'} and {len(found)} in "
                f"{where or 'the model'}; the config holds one size for all.",
                "Give every place as many units.",
            )
        return found.astype(np.int64)

    def dim(self, dim: Dim, scope: Mapping[str, int], summed: bool, factors: Mapping[str, float]) -> DimMap | None:
        """What a dimension becomes; None where nothing changes.

        Args:
            scope: The old units in the tensor's name.
            summed: It is summed over.
            factors: Multiplied into output slices that carry the axis (constants of `dot` axes).
        """
        touched = [
            axis for axis in dim.axes if self.binding.axis(axis) in self.choices or (not summed and axis in factors)
        ]
        if not touched:
            return None
        axes = self.binding.anatomy.axes
        outer = {one for axis in dim.axes for one in axes[self.binding.axis(axis)].per}
        inside = tuple((one, unit) for one, unit in sorted(scope.items()) if one in outer)
        key = (dim, summed, inside, tuple(sorted(factors.items())))
        if key not in self._dims:
            index, scale = _Gather(self, summed, factors).dim(dim, scope)
            self._dims[key] = DimMap(index, None if bool(np.all(scale == 1.0)) else scale)
        return self._dims[key]


@dataclass(frozen=True)
class _Gather:
    """The index and the scale of a dimension, term by term, outermost factor first."""

    maps: Maps
    summed: bool
    factors: Mapping[str, float]

    def dim(self, dim: Dim, scope: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
        start, parts = 0, []
        for term in dim.terms:
            index, scale = self.term(term, scope)
            parts.append((index + start, scale))
            start += self.length(term)
        return np.concatenate([index for index, _ in parts]), np.concatenate([scale for _, scale in parts])

    def length(self, term: tuple[Factor, ...]) -> int:
        found = 1
        for factor in term:
            found *= self.maps.binding.units(factor)
        return found

    def term(self, term: tuple[Factor, ...], scope: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
        if not term:
            return np.zeros(1, np.int64), np.ones(1)
        factor, rest = term[0], term[1:]
        if factor.inner is not None:
            return self.dim(factor.inner, scope)
        units, scale = self.factor(factor, scope)
        if not rest:
            return units, scale
        length = self.length(rest)
        axis = self.maps.binding.axis(factor.axis)
        parts = []
        for unit, one in zip(units.tolist(), scale.tolist(), strict=True):
            index, inner = self.term(rest, {**scope, axis: unit} if axis else scope)
            parts.append((unit * length + index, one * inner))
        return np.concatenate([index for index, _ in parts]), np.concatenate([inner for _, inner in parts])

    def factor(self, factor: Factor, scope: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
        """The units of one factor, and what their copies are multiplied by."""
        made = self.maps.made(factor.axis, scope) if factor.axis else None
        found = np.arange(self.maps.binding.units(factor)) if made is None else made[0]
        scale = np.ones(len(found))
        if not factor.axis:
            return found, scale
        axis = self.maps.binding.anatomy.axes[self.maps.binding.axis(factor.axis)]
        if made is not None and axis.order == "free":
            if self.summed:
                scale = made[1]
            elif axis.dot:
                scale = made[1] ** 0.5
        if not self.summed and axis.name in self.factors:
            scale = scale * self.factors[axis.name]
        return found, scale
