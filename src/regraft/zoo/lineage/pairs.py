"""What the weights of two checkpoints of a family say of each other; each pair is read once.

Members are meant by their number in `family.members`, layers by their `slots`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.identity import weights_id
from regraft.zoo.lineage.direction import Direction, direction
from regraft.zoo.lineage.family import Family, Member
from regraft.zoo.lineage.kinds import is_coarse, is_pruned, is_rounded, kind_of, on_grid, rounding, was_cut
from regraft.zoo.lineage.model import OUTER, names_parent
from regraft.zoo.lineage.thresholds import FROZEN, NEAR, ZEROS


@dataclass
class Pairs:
    """A family's members, two by two.

    Attributes:
        family: The members.
        degraded: By member the one that it is pruned, rounded or put on a grid, and nothing else; see `find_degraded`.
    """

    family: Family
    degraded: dict[int, int] = field(default_factory=dict)
    directions: dict[tuple[int, int], Direction] = field(default_factory=dict)
    cuts: dict[tuple[int, int], int] = field(default_factory=dict)
    grids: dict[int, bool] = field(default_factory=dict)

    @cached_property
    def outer(self) -> list[str]:
        """Tensors around the blocks that all members have."""
        return self.family.outer()

    def matrices(self, number: int, slots: list[int]) -> np.ndarray:
        """The sampled elements of matrices, float32 [d]."""
        member = self.family.members[number]
        return np.concatenate([member.row(slot)[member.sample.matrix] for slot in slots])

    def shared(self, parent: int, child: int, slots: list[int]) -> list[tuple[str, TensorInfo, TensorInfo]]:
        """Tensors inside the blocks that both have in one shape: name, the parent's, the child's."""
        one, other = self.family.members[parent], self.family.members[child]
        found = []
        for slot in slots:
            for role in self.family.roles:
                mine, theirs = one.tensor(slot, role), other.tensor(slot, role)
                if mine is not None and theirs is not None and mine.shape == theirs.shape:
                    found.append((f"{slot}.{role}", mine, theirs))
        return found

    def equal(self, first: int, second: int) -> bool:
        """Whether all tensors of the blocks and around them are equal, by their hashes."""
        one, other = (self.family.members[number].cut(self.family.members[number].kept) for number in (first, second))
        return one.keys() == other.keys() and weights_id(one) == weights_id(other)

    def noise(self, member: Member, slots: list[int]) -> float:
        """The expected squared length of the rounding error, scaled as distances are; sums rounded twice."""
        total = 0.0
        first = member.model.tensors[member.model.layers[0], self.family.roles[0]].dtype
        for slot in slots:
            unit = rounding(member.row(slot).astype(np.float64), first)
            total += float(np.square(unit * member.sample.scale).sum()) / 12
        for role in self.outer:
            values = member.sample.outer[role].astype(np.float64)
            info = member.model.tensors[OUTER, role]
            total += float(np.square(rounding(values, info.dtype)).sum()) / 12 * info.elements / len(values)
        return 2 * total

    def direction(self, first: int, second: int, slots: list[int]) -> Direction:
        """tau of a pair; read once."""
        key = (first, second)
        if key not in self.directions:
            pairs = [(mine, theirs) for _, mine, theirs in self.shared(first, second, slots) if len(mine.shape) == 2]
            found = direction(pairs)
            self.directions[key] = found
            self.directions[second, first] = Direction(-found.tau, found.error, found.rows, 1 - found.flatter)
        return self.directions[key]

    def known(self, first: int, second: int) -> int:
        """1 where structure says that the first is the parent of the second (pruned, rounded, put on a grid); -1 the other
        way; 0 where it says nothing."""
        if self.degraded.get(second) == first:
            return 1
        if self.degraded.get(first) == second:
            return -1
        return self._cut(first, second)

    def _cut(self, first: int, second: int) -> int:
        """The same for weights that were pruned and then trained."""
        if not self.degraded.keys().isdisjoint((first, second)) or self._on_grid(first) or self._on_grid(second):
            return 0
        key = (first, second)
        if key not in self.cuts:
            members = self.family.members
            slots = sorted(members[first].kept & members[second].kept)
            mine, theirs = self.matrices(first, slots), self.matrices(second, slots)
            self.cuts[key] = int(was_cut(mine, theirs)) - int(was_cut(theirs, mine))
            self.cuts[second, first] = -self.cuts[key]
        return self.cuts[key]

    def stated(self, parent: int, child: int) -> bool:
        return names_parent(self.family.members[child].model, self.family.members[parent].model)

    def shares_more(self, first: int, middle: int, last: int) -> bool:
        """Whether structure says that the last was made from the middle one and not from the first: matrices that training
        left alone, or a change of low rank."""
        slots = sorted(
            self.family.members[last].kept & self.family.members[middle].kept & self.family.members[first].kept
        )
        one, two, three = (self.matrices(number, slots) for number in (first, middle, last))
        if float((three == two).mean()) > float((three == one).mean()) + FROZEN:
            return True
        return kind_of(self.shared(middle, last, slots)).relation == "lora-merged"

    def retrained(self, nodes: list[int], slots: list[int]) -> frozenset[int]:
        """What was pruned and then trained with its zeros kept."""
        return frozenset(
            node for node in nodes if node not in self.degraded and (self.matrices(node, slots) == 0).mean() >= ZEROS
        )

    def find_degraded(self, nodes: list[int], distances: np.ndarray, slots: list[int]) -> None:
        """Find what is another checkpoint pruned, rounded or put on a grid, with nothing else done to it."""
        samples = {node: self.matrices(node, slots) for node in nodes}
        for child in nodes:
            theirs = samples[child]
            near = sorted((one for one in nodes if one != child), key=lambda one: (float(distances[one, child]), one))
            source = None
            if (theirs == 0).mean() >= ZEROS:
                source = next((one for one in near if is_pruned(samples[one], theirs)), None)
            if source is None and is_coarse(theirs):
                source = next((one for one in near[:NEAR] if is_rounded(samples[one], theirs)), None)
            if source is None and self._on_grid(child):
                sources = (one for one in near[:NEAR] if not self._on_grid(one))
                source = next((one for one in sources if self._quantised(one, child, slots)), None)
            if source is not None:
                self.degraded[child] = source

    def _quantised(self, parent: int, child: int, slots: list[int]) -> bool:
        return kind_of(self.shared(parent, child, slots)).relation == "quantised"

    def _on_grid(self, number: int) -> bool:
        """Whether the matrices of a checkpoint lie on grids of few levels, from one of them."""
        if number not in self.grids:
            model = self.family.members[number].model
            roles = [role for role in self.family.roles if len(model.tensors[model.layers[0], role].shape) == 2]
            infos = [model.tensors[model.layers[0], role] for role in roles]
            self.grids[number] = any(on_grid(info) for info in infos)
        return self.grids[number]
