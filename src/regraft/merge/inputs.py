"""The opened base and inputs of a merge, and their tensors as sources."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from regraft import methods
from regraft.checkpoint import identity
from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.lora import Changes, changes
from regraft.checkpoint.weights import Weights, open_weights, raw_values
from regraft.merge.recipe.spec import Spec
from regraft.merge.sources import FileSource, LoraSource
from regraft.merge.stack import Source


@dataclass(frozen=True)
class Opened:
    """The checkpoints of a merge.

    Args:
        base: The base, or None.
        inputs: In the order of the spec.
        first: Which of them the user gave first.
        copies: Tensors that are stored twice, and the name of the one that they are a copy of.
    """

    base: Weights | None
    inputs: tuple[Weights, ...]
    first: int = 0
    copies: Mapping[str, str] = field(default_factory=dict)

    @property
    def template(self) -> Weights:
        """The checkpoint whose tensors, files and config the output has: the base, else the input that was given first."""
        return self.base if self.base is not None else self.inputs[self.first]

    @property
    def all(self) -> tuple[Weights, ...]:
        """The base, where there is one, and the inputs."""
        return self.inputs if self.base is None else (self.base, *self.inputs)

    @property
    def own_tensors(self) -> dict[str, TensorInfo]:
        """The template's tensors without those that are copies of others."""
        return {name: info for name, info in self.template.tensors.items() if name not in self.copies}

    @cached_property
    def changes(self) -> dict[str, Changes]:
        """What every adapter does, by the reference of its checkpoint."""
        return {one.reference: changes(one.adapter, one.tensors) for one in self.all if one.adapter is not None}

    def source(self, one: Weights, name: str) -> Source:
        """A tensor of one of the checkpoints, its adapter's change added."""
        if one.adapter is None:
            return FileSource(one.tensors[name])
        made = self.changes[one.reference]
        tensor = made.replaced.get(name, one.tensors[name])
        return LoraSource(FileSource(tensor), made.factors.get(name), made.offsets.get(name))


def open_inputs(spec: Spec) -> tuple[Spec, Opened]:
    """Open the checkpoints of a spec.

    The inputs of a method whose result does not depend on their order are put into an order of their own, by their content:
    what is added up in another order is rounded differently. The spec comes back in that order; which input was the first is
    kept, because without a base it is the template.

    Raises:
        RegraftError: A reference cannot be opened; names it.
    """
    base = None if spec.base is None else open_weights(spec.base)
    inputs = [(one, open_weights(one.reference)) for one in spec.inputs]
    order = list(range(len(inputs)))
    if "permutation" in methods.get("merge", spec.method).invariances:
        ranks = _by_content([weights for _, weights in inputs])
        order.sort(key=lambda at: (ranks[at], repr(inputs[at][0].options), at))
        inputs = [inputs[at] for at in order]
    ordered = replace(spec, inputs=tuple(one for one, _ in inputs))
    return ordered, Opened(base, tuple(weights for _, weights in inputs), order.index(0))


def template_first(spec: Spec, opened: Opened) -> tuple[Spec, tuple[Weights, ...]]:
    """The spec and its checkpoints with the template in front: opened again, they have the same one."""
    if opened.base is not None:
        return spec, opened.all
    order = sorted(range(len(spec.inputs)), key=lambda at: at != opened.first)
    return replace(spec, inputs=tuple(spec.inputs[at] for at in order)), tuple(opened.inputs[at] for at in order)


def _by_content(inputs: Sequence[Weights]) -> list[str]:
    """Keys to sort by: a few bytes of every tensor, and all bytes of other files of which these are the same."""
    prints = [_fingerprint(one) for one in inputs]
    alike = {
        one for one in prints if len({frozenset(w.files) for w, p in zip(inputs, prints, strict=True) if p == one}) > 1
    }
    return [
        one + (identity.weights_id(weights.tensors) + _adapter_id(weights) if one in alike else "")
        for one, weights in zip(prints, inputs, strict=True)
    ]


def _adapter_id(weights: Weights) -> str:
    return "" if weights.adapter is None else weights.adapter.adapter_id()


def _fingerprint(weights: Weights) -> str:
    """A hash of a few bytes from the middle of every tensor, and of what scales an adapter: the same wherever they lie."""
    adapted = {} if weights.adapter is None else weights.adapter.tensors
    digest = hashlib.sha256(b"" if weights.adapter is None else weights.adapter.function.encode())
    for tensors in (weights.tensors, adapted):
        for name in sorted(tensors):
            raw = raw_values(tensors[name])
            middle = raw.size // 2
            digest.update(raw[max(0, middle - 8) : middle + 8].tobytes())
    return digest.hexdigest()
