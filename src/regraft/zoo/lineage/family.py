"""Families: checkpoints whose blocks' matrices have equal names and shapes and that the independence test calls related.

Every member's layers are matched to those of the family's reference (the member with the most layers), by the correlation of
the sampled matrices: cut and reordered layers are found so. Distances are of samples, by matrix products, layer by layer.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from regraft.checkpoint.ancestry import Ancestry, ancestry
from regraft.checkpoint.headers import TensorInfo
from regraft.progress import Progress
from regraft.zoo.lineage.model import OUTER, Model
from regraft.zoo.lineage.sample import Sample, roles_of, sample_of
from regraft.zoo.lineage.thresholds import CHANCE, LEVEL, MATCH


@dataclass(frozen=True)
class Member:
    """A model in a family.

    Args:
        model: Its tensors.
        sample: Its sample.
        layers: Which of its rows in `sample.layers` is the reference's layer: by the reference's number.
    """

    model: Model
    sample: Sample
    layers: dict[int, int]

    @property
    def kept(self) -> frozenset[int]:
        """The reference's layers that it has."""
        return frozenset(self.layers)

    def row(self, slot: int) -> np.ndarray:
        """The sample of the layer that stands for the reference's layer `slot`."""
        return np.asarray(self.sample.layers[self.layers[slot]])

    def tensor(self, slot: int, role: str) -> TensorInfo | None:
        """A tensor by the reference's layer."""
        if slot == OUTER:
            return self.model.tensors.get((OUTER, role))
        return self.model.tensors.get((self.model.layers[self.layers[slot]], role))

    def cut(self, kept: Iterable[int]) -> dict[str, TensorInfo]:
        """Tensors of the reference's layers `kept`, under names that mean the same in every member."""
        wanted = {self.model.layers[self.layers[slot]]: slot for slot in kept if slot in self.layers}
        return {
            role.replace("*", str(wanted[layer])) if layer != OUTER else role: info
            for (layer, role), info in self.model.tensors.items()
            if layer == OUTER or layer in wanted
        }


@dataclass
class Family:
    """Related checkpoints. `pairs` is the number of pairs in the whole zoo; `tests` keeps what was tested."""

    members: list[Member]
    roles: list[str]
    pairs: int
    tests: dict[tuple[str, str], Ancestry] = field(default_factory=dict)

    def test(self, first: Member, second: Member) -> Ancestry:
        """The independence test over the layers that both have."""
        key = (min(first.model.key, second.model.key), max(first.model.key, second.model.key))
        if key not in self.tests:
            both = first.kept & second.kept
            self.tests[key] = ancestry(first.cut(both), second.cut(both))
        return self.tests[key]

    def outer(self) -> list[str]:
        """Tensors outside the blocks that all members have in one shape."""
        shared = set.intersection(*(set(one.sample.outer) for one in self.members))
        first = self.members[0].model.tensors
        return sorted(
            role
            for role in shared
            if all(one.model.tensors[OUTER, role].shape == first[OUTER, role].shape for one in self.members)
        )


def families(models: list[Model], progress: Progress) -> list[Family]:
    """Sort models into families; what is related to nothing is a family of its own.

    n models of f families cost n samples and n f comparisons of samples; the independence test is made once for each model
    that joins a family, and its p-value is multiplied by the number of pairs.
    """
    pairs = max(1, len(models) * (len(models) - 1) // 2)
    groups: dict[frozenset[tuple[str, tuple[int, ...]]], list[Model]] = defaultdict(list)
    for model in models:
        groups[model.signature].append(model)
    found: list[Family] = []
    with progress.bar("reading samples", len(models)):
        for group in groups.values():
            if len(group) == 1:
                progress.advance()
                continue
            roles = sorted(set.intersection(*(set(roles_of(model)) for model in group)))
            deepest = max(len(model.layers) for model in group)
            found += _sorted_out(group, roles, deepest, pairs, progress)
    return found


def _sorted_out(group: list[Model], roles: list[str], deepest: int, pairs: int, progress: Progress) -> list[Family]:
    found: list[tuple[Family, np.ndarray]] = []
    for model in sorted(group, key=lambda model: (-len(model.layers), model.key)):
        progress.advance()
        sample = sample_of(model, roles, deepest) if roles else None
        if sample is None or not sample.finite or not sample.matrix.any():
            progress.say(f"lineage leaves out {model.key}: no comparable or not finite weights.")
            continue
        print_ = fingerprint(sample)
        for family, theirs in found:
            member = _joined(model, sample, print_, family, theirs)
            if member is not None:
                family.members.append(member)
                break
        else:
            own = Member(model, sample, {number: number for number in range(len(model.layers))})
            found.append((Family([own], roles, pairs), print_))
    return [family for family, _ in found if len(family.members) > 1]


def fingerprint(sample: Sample) -> np.ndarray:
    """float32 [layers, d]: sampled matrices, each centred, every layer of length 1: a product is a mean correlation."""
    values = sample.layers[:, sample.matrix].astype(np.float64)
    tensor = sample.tensor[sample.matrix]
    for number in np.unique(tensor):
        part = values[:, tensor == number]
        part = part - part.mean(axis=1, keepdims=True)
        length = np.sqrt(np.square(part).sum(axis=1, keepdims=True))
        values[:, tensor == number] = np.divide(part, length, out=np.zeros_like(part), where=length > 0)
    return np.asarray(values / np.sqrt(len(np.unique(tensor))), np.float32)


def _joined(model: Model, sample: Sample, mine: np.ndarray, family: Family, theirs: np.ndarray) -> Member | None:
    """The model as a member; None where it is unrelated, or a layer of it stands for two of the reference's."""
    found = mine @ theirs.T
    level = max(MATCH, CHANCE / np.sqrt(mine.shape[1]))
    best = found.argmax(axis=1)
    good = found[np.arange(len(best)), best] >= level
    layers = {int(best[row]): row for row in range(len(best)) if good[row]}
    if len(layers) < max(1, len(best) / 2) or len(layers) < good.sum():
        return None
    member = Member(model, sample, layers)
    tested = family.test(family.members[0], member)
    if tested.related is False or tested.p_value * family.pairs > LEVEL:
        # Too little to test (`related` is None) leaves the correlation of the samples, which is no test.
        return None
    return member


def squared_distances(family: Family, members: list[Member], slots: Sequence[int], outer: Sequence[str]) -> np.ndarray:
    """float64 [n, n]: estimated squared distances of all weights in the given layers and tensors that all members have.

    The differences to one member are taken first, so that small changes of large weights are not lost in rounding.
    """
    total = np.zeros((len(members), len(members)))
    for part in parts(family, members, slots, outer):
        delta = part - part[0]
        gram = delta @ delta.T
        lengths = np.diag(gram)
        total += np.maximum(lengths[:, None] + lengths[None, :] - 2 * gram, 0.0)
    np.fill_diagonal(total, 0.0)
    # Products of equal rows may differ in their last bit, and copies are told by a distance of exactly zero.
    same: dict[bytes, list[int]] = defaultdict(list)
    for number, one in enumerate(members):
        same[_bytes_of(one, slots, outer)].append(number)
    for group in same.values():
        total[np.ix_(group, group)] = 0.0
    return total


def _bytes_of(member: Member, slots: Sequence[int], outer: Sequence[str]) -> bytes:
    """A hash of the sampled bytes."""
    digest = hashlib.sha256()
    for slot in slots:
        digest.update(np.ascontiguousarray(member.row(slot)).data)
    for role in outer:
        digest.update(np.ascontiguousarray(member.sample.outer[role]).data)
    return digest.digest()


def parts(family: Family, members: list[Member], slots: Iterable[int], outer: Iterable[str]) -> Iterable[np.ndarray]:
    """float64 [n, d] for each layer and each outer tensor: samples times their scale."""
    scale = members[0].sample.scale
    for slot in slots:
        yield np.stack([one.row(slot) for one in members]).astype(np.float64) * scale
    for role in outer:
        found = np.stack([one.sample.outer[role] for one in members]).astype(np.float64)
        elements = members[0].model.tensors[OUTER, role].elements
        yield found * np.sqrt(elements / found.shape[1])


Pair = Callable[[int, int], float]
