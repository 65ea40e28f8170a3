"""The edges of one family; see `find` for the stages."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from regraft.checkpoint.headers import TensorInfo
from regraft.checkpoint.identity import weights_id
from regraft.zoo.lineage.combine import Merge, Sparse, linear_merges, sparse_merges
from regraft.zoo.lineage.direction import Direction, direction
from regraft.zoo.lineage.edge import Edge
from regraft.zoo.lineage.family import Family, Member, squared_distances
from regraft.zoo.lineage.kinds import (
    ZEROS,
    Kind,
    is_coarse,
    is_pruned,
    is_rounded,
    kind_of,
    on_grid,
    rounding,
    was_cut,
)
from regraft.zoo.lineage.model import OUTER, names_parent
from regraft.zoo.lineage.tree import AT_END, SHORT, Link, Sight, forest, is_chain, joins, lost_parent, turn_of

FROZEN = 0.02  # of the sampled elements, equal
NEAR = 16  # checkpoints that are looked at as the source of a rounded one
DETOUR = "nearer to another child of the parent, but in the direction of that one's change"


@dataclass
class Kin:
    """A family while its edges are found. Members are meant by their number in `family.members`."""

    family: Family
    parents: dict[int, tuple[int, ...]] = field(default_factory=dict)
    found: list[Edge] = field(default_factory=list)
    directions: dict[tuple[int, int], Direction] = field(default_factory=dict)
    degraded: dict[int, int] = field(default_factory=dict)
    cuts: dict[tuple[int, int], int] = field(default_factory=dict)
    grids: dict[int, bool] = field(default_factory=dict)

    def edges(self) -> list[Edge]:
        """All edges of the family."""
        self.family.members.sort(key=lambda member: member.model.key)
        members = self.family.members
        self.outer = self.family.outer()
        self.elements = sum(len(one.sample.outer[role]) for one in members[:1] for role in self.outer)
        classes: dict[frozenset[int], list[int]] = defaultdict(list)
        for number, member in enumerate(members):
            classes[member.kept].append(number)
        for kept in sorted(classes, key=lambda kept: (-len(kept), sorted(kept))):
            above = [
                number
                for other, numbers in classes.items()
                if kept < other
                for number in numbers
                if number in self.parents or number in self.tops
            ]
            self._class(kept, classes[kept], sorted(above))
        return self.found

    @property
    def tops(self) -> set[int]:
        """Members of classes that are done which have no parent; copies excepted."""
        return self._tops

    _tops: set[int] = field(default_factory=set)

    def _class(self, kept: frozenset[int], numbers: list[int], above: list[int]) -> None:
        """Edges among the members with the same layers, and from those with more."""
        slots = sorted(kept)
        everyone = sorted({*numbers, *above})
        distances = self._distances(everyone, slots)
        self.sampled = len(slots) * self.family.members[0].sample.layers.shape[1] + self.elements
        self.turn = turn_of(self._parameters(numbers[0]), self.sampled)
        nodes = self._without_copies(numbers, distances, slots)
        self._find_degraded(nodes, distances, slots)
        merges = self._merges([node for node in nodes if node not in self.degraded], distances, slots)
        merged = {merge.child for merge in merges}
        groups = self._groups(nodes, merges, distances, slots)
        for merge in merges:
            self._add_merge(merge, distances, slots)
        for root, group in groups:
            sight = Sight(
                distances,
                self._order(group, distances, slots),
                self.sampled,
                self.degraded,
                self._retrained(group, slots),
                lambda a, b: self.direction(a, b, slots),
                self.known,
                self._stated,
            )
            start = root if root is not None else self._outgroup(group, above, distances, slots)
            for link in self._nearest_sure(forest(group, sight, start), distances):
                self._add_link(link, distances, slots)
        tops = [node for node in nodes if node not in self.parents and node not in merged]
        for node in tops:
            self._hang(node, above, distances, slots)
        self._tops |= {node for node in nodes if node not in self.parents}

    def _parameters(self, number: int) -> int:
        tensors = self.family.members[number].model.tensors
        return sum(info.elements for (layer, _), info in tensors.items() if layer != OUTER)

    def _distances(self, numbers: list[int], slots: list[int]) -> np.ndarray:
        """Squared distances, [all members, all members]; not a number for those that were not asked for."""
        members = [self.family.members[number] for number in numbers]
        full = np.full((len(self.family.members),) * 2, np.nan)
        full[np.ix_(numbers, numbers)] = squared_distances(self.family, members, slots, self.outer)
        return full

    def _matrices(self, number: int, slots: list[int]) -> np.ndarray:
        """The sampled elements of matrices, float32 [d]."""
        member = self.family.members[number]
        return np.concatenate([member.row(slot)[member.sample.matrix] for slot in slots])

    # Copies

    def _without_copies(self, numbers: list[int], distances: np.ndarray, slots: list[int]) -> list[int]:
        """One of each set of checkpoints whose sampled weights are equal; the others are linked to it."""
        kept: list[int] = []
        members = self.family.members
        for number in sorted(numbers, key=lambda number: (len(members[number].model.heads), members[number].model.key)):
            twin = next((one for one in kept if distances[one, number] == 0), None)
            if twin is None or not self._equal(twin, number):
                kept.append(number)
                continue
            if names_parent(members[twin].model, members[number].model):
                kept[kept.index(twin)] = number
                number, twin = twin, number
                moved = [edge for edge in self.found if edge.parents == (members[number].model.key,)]
                for edge in moved:
                    self.found[self.found.index(edge)] = Edge(
                        edge.child, (members[twin].model.key,), *list(vars(edge).values())[2:]
                    )
            parent, child = members[twin], members[number]
            same = weights_id(parent.model.heads) == weights_id(child.model.heads)
            words = "all shared tensors are equal byte for byte"
            relation = "identical" if same else "finetuned"
            words += "" if same else f"; only the head differs ({_heads(parent)} against {_heads(child)})"
            self._add(parent, child, Kind(relation, words), distances, slots)
            self.parents[number] = (twin,)
        return sorted(kept)

    def _equal(self, first: int, second: int) -> bool:
        """Whether all tensors of the blocks and around them are equal, by their hashes."""
        one, other = (self.family.members[number].cut(self.family.members[number].kept) for number in (first, second))
        return one.keys() == other.keys() and weights_id(one) == weights_id(other)

    # Merges

    def _merges(self, nodes: list[int], distances: np.ndarray, slots: list[int]) -> list[Merge]:
        if len(nodes) < 3:
            return []
        members = [self.family.members[node] for node in nodes]
        inner = distances[np.ix_(nodes, nodes)]
        gram = (inner[0][None, :] + inner[0][:, None] - inner) / 2
        noise = np.array([self._noise(member, slots) for member in members])
        linear = linear_merges(gram, noise, lambda a, b: self.direction(nodes[a], nodes[b], slots))
        done = {merge.child for merge in linear}
        samples = np.stack([self._matrices(node, slots) for node in nodes])
        changed = ~(samples == samples[0]).all(axis=0)

        def unit(number: int) -> np.ndarray:
            dtype = next(iter(members[number].model.tensors.values())).dtype
            return rounding(samples[number][changed].astype(np.float64), dtype)

        sparse = sparse_merges(Sparse(samples[:, changed], unit), done) if changed.sum() >= 1024 else []
        return [
            Merge(nodes[one.child], tuple(nodes[source] for source in one.sources), one.weights, one.words)
            for one in [*linear, *sparse]
        ]

    def _noise(self, member: Member, slots: list[int]) -> float:
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

    def _groups(
        self, nodes: list[int], merges: list[Merge], distances: np.ndarray, slots: list[int]
    ) -> list[tuple[int | None, list[int]]]:
        """Nodes by the merge that they descend from (the merge first in its group), and the rest."""
        left = [node for node in nodes if node not in {merge.child for merge in merges}]
        found: list[tuple[int | None, list[int]]] = []
        for merge in merges:
            own = self._descendants(merge, left, distances, slots)
            left = [node for node in left if node not in own]
            found.append((merge.child, [merge.child, *own]))
        return [(None, left), *found]

    def _descendants(self, merge: Merge, left: list[int], distances: np.ndarray, slots: list[int]) -> list[int]:
        """What was trained from a merge m: y leaves it at a right angle to the directions of all its sources, and of all else
        that came before; it is nearer to m than to any source, and came later."""
        child = merge.child

        def cosine(node: int, other: int) -> float:
            near, far = distances[child, node], distances[child, other]
            return float((near + far - distances[node, other]) / (2 * math.sqrt(near * far)))

        def leaves(node: int) -> bool:
            near = distances[child, node]
            return (
                near > 0
                and near < min(distances[node, one] for one in merge.sources)
                and all(
                    abs(cosine(node, one)) * math.sqrt(near / distances[child, one]) <= AT_END for one in merge.sources
                )
                and self.direction(child, node, slots).tau > 0
            )

        later = [node for node in left if node not in merge.sources and leaves(node)]
        before = [
            node for node in left
            if node not in later and node not in merge.sources and self.degraded.get(node) not in merge.sources
            and distances[child, node] > 0
        ]  # fmt: skip
        found = []
        for node in later:
            forward, backward, neither = self.direction(child, node, slots).likelihoods
            if before:
                nearest = min(before, key=lambda one: (float(distances[child, one]), one))
                turned = any(abs(cosine(node, one)) > self.turn for one in before)
                # A way that is long against the merge's own change tells nothing.
                turned |= distances[child, nearest] < SHORT**2 * (distances[child, nearest] + distances[child, node])
                if turned and not self._shares_more(nearest, child, node):
                    continue
            elif forward <= max(backward, neither):
                continue  # nothing but the sources: a child of their base is at a right angle, too
            found.append(node)
        # A copy goes where its original goes.
        return [
            node for node in left
            if (node in found and self.degraded.get(node, node) in [*found, child]) or self.degraded.get(node) in [*found, child]
        ]  # fmt: skip

    def _add_merge(self, merge: Merge, distances: np.ndarray, slots: list[int]) -> None:
        if any(self._descends(source, merge.child) for source in merge.sources):
            return
        members = self.family.members
        child, parents = members[merge.child], [members[one] for one in merge.sources]
        terms = ", ".join(
            f"{weight:.4g} x {parent.model.key}" for weight, parent in zip(merge.weights, parents, strict=True)
        )
        words = f"{terms}: {merge.words}"
        self._add(parents[0], child, Kind("merged", words), distances, slots, parents)
        self.parents[merge.child] = merge.sources

    # Trees

    def direction(self, first: int, second: int, slots: list[int]) -> Direction:
        """tau of a pair; read once."""
        key = (first, second)
        if key not in self.directions:
            pairs = [(mine, theirs) for _, mine, theirs in self._shared(first, second, slots) if len(mine.shape) == 2]
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
            mine, theirs = self._matrices(first, slots), self._matrices(second, slots)
            self.cuts[key] = int(was_cut(mine, theirs)) - int(was_cut(theirs, mine))
            self.cuts[second, first] = -self.cuts[key]
        return self.cuts[key]

    def _retrained(self, nodes: list[int], slots: list[int]) -> frozenset[int]:
        """What was pruned and then trained with its zeros kept."""
        return frozenset(
            node for node in nodes if node not in self.degraded and (self._matrices(node, slots) == 0).mean() >= ZEROS
        )

    def _order(self, nodes: list[int], distances: np.ndarray, slots: list[int]) -> np.ndarray:
        """What pairs are linked by: distances; of what was pruned and then trained, over the elements that it has left, for
        the zeros of two that were pruned are much alike. Where that is a tie, the whole distance decides."""
        found = distances.copy()
        sample = self.family.members[0].sample
        for child in sorted(self._retrained(nodes, slots)):
            theirs = self._matrices(child, slots)
            alive = theirs != 0
            scale = np.tile(sample.scale[sample.matrix], len(slots))[alive]
            for node in nodes:
                change = (self._matrices(node, slots)[alive] - theirs[alive]) * scale
                found[node, child] = found[child, node] = float(change @ change) + 1e-3 * distances[node, child]
        return found

    def _find_degraded(self, nodes: list[int], distances: np.ndarray, slots: list[int]) -> None:
        """Find what is another checkpoint pruned, rounded or put on a grid, with nothing else done to it."""
        samples = {node: self._matrices(node, slots) for node in nodes}
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
        return kind_of(self._shared(parent, child, slots)).relation == "quantised"

    def _on_grid(self, number: int) -> bool:
        """Whether the matrices of a checkpoint lie on grids of few levels, from one of them."""
        if number not in self.grids:
            model = self.family.members[number].model
            roles = [role for role in self.family.roles if len(model.tensors[model.layers[0], role].shape) == 2]
            infos = [model.tensors[model.layers[0], role] for role in roles]
            self.grids[number] = any(on_grid(info) for info in infos)
        return self.grids[number]

    def _stated(self, parent: int, child: int) -> bool:
        return names_parent(self.family.members[child].model, self.family.members[parent].model)

    def _outgroup(self, group: list[int], above: list[int], distances: np.ndarray, slots: list[int]) -> int | None:
        """The root of a tree of cut checkpoints: the one that is nearest to those with more layers."""
        if not above or len(group) < 2:
            return None
        near = {node: min(float(distances[node, one]) for one in above) for node in group}
        return min(group, key=lambda node: (near[node], node))

    def _hang(self, node: int, above: list[int], distances: np.ndarray, slots: list[int]) -> None:
        """Find the parent of a cut checkpoint among those with more layers."""
        if not above:
            return
        parent = min(above, key=lambda one: (float(distances[one, node]), self._depth(one), one))
        words = ""
        if distances[parent, node] > 0:
            told = self.direction(parent, node, slots)
            forward, _, neither = told.likelihoods
            ends = joins(distances, parent, node, above, self.sampled)
            if lost_parent(ends, (forward, 0.0, neither)) > 0.5:
                return
            words = f"; {_said(told)}"
        self._add(
            self.family.members[parent], self.family.members[node],
            self._kind(parent, node, slots), distances, slots, more=words,
        )  # fmt: skip
        self.parents[node] = (parent,)

    def _depth(self, number: int) -> int:
        depth = 0
        while number in self.parents:
            number, depth = self.parents[number][0], depth + 1
        return depth

    def _descends(self, number: int, ancestor: int) -> bool:
        """Whether edges that were found lead from the ancestor to the number; what would close a circle is not added."""
        waiting, seen = [number], set[int]()
        while waiting:
            here = waiting.pop()
            if here == ancestor:
                return True
            if here not in seen:
                seen.add(here)
                waiting += self.parents.get(here, ())
        return False

    def _nearest_sure(self, links: list[Link], distances: np.ndarray) -> list[Link]:
        """Links with those undone that may be a detour: x -> y whose change goes on in the direction of x's own, which two
        separate trainings from x's parent on like data look like, too. The parent of x is y's ancestor in both cases."""
        parents = {link.child: link for link in links}
        found = []
        for link in links:
            while True:
                above = parents.get(link.parent)
                if above is None or link.stated or self.known(link.parent, link.child):
                    break
                if is_chain(distances, above.parent, link.parent, link.child, self.turn):
                    break
                if self._stated(link.parent, link.child) or self._shares_more(above.parent, link.parent, link.child):
                    break
                link = Link(above.parent, link.child, link.posterior, None, DETOUR)
            found.append(link)
        return found

    def _shares_more(self, first: int, middle: int, last: int) -> bool:
        """Whether structure says that the last was made from the middle one and not from the first: matrices that training
        left alone, or a change of low rank."""
        slots = sorted(
            self.family.members[last].kept & self.family.members[middle].kept & self.family.members[first].kept
        )
        one, two, three = (self._matrices(number, slots) for number in (first, middle, last))
        if float((three == two).mean()) > float((three == one).mean()) + FROZEN:
            return True
        return kind_of(self._shared(middle, last, slots)).relation == "lora-merged"

    def _add_link(self, link: Link, distances: np.ndarray, slots: list[int]) -> None:
        if self._descends(link.parent, link.child):
            return
        members = self.family.members
        words = f"; {link.why}" if link.why else ""
        if link.direction is not None:
            told = self.direction(link.parent, link.child, slots)
            words += f"; {_said(told)}, posterior {link.posterior:.3f}"
        if link.stated:
            words += "; the weights leave the direction open, the card names the parent"
        self._add(
            members[link.parent], members[link.child], self._kind(link.parent, link.child, slots), distances, slots,
            more=words, stated=link.stated,
        )  # fmt: skip
        self.parents[link.child] = (link.parent,)

    # Edges

    def _shared(self, parent: int, child: int, slots: list[int]) -> list[tuple[str, TensorInfo, TensorInfo]]:
        """Tensors inside the blocks that both have in one shape: name, the parent's, the child's."""
        one, other = self.family.members[parent], self.family.members[child]
        found = []
        for slot in slots:
            for role in self.family.roles:
                mine, theirs = one.tensor(slot, role), other.tensor(slot, role)
                if mine is not None and theirs is not None and mine.shape == theirs.shape:
                    found.append((f"{slot}.{role}", mine, theirs))
        return found

    def _kind(self, parent: int, child: int, slots: list[int]) -> Kind:
        one, other = self.family.members[parent], self.family.members[child]
        shared = self._shared(parent, child, slots)
        if other.kept == one.kept:
            return kind_of(shared)
        lost = sorted(one.kept - other.kept)
        words = f"{len(other.kept)} of {len(one.kept)} layers: without {', '.join(map(str, lost))}"
        equal = all(weights_id({"": mine}) == weights_id({"": theirs}) for _, mine, theirs in shared)
        if equal:
            return Kind("truncated", f"{words}; all tensors of the layers that are left are equal byte for byte")
        rest = kind_of(shared)
        return Kind(f"truncated+{rest.relation}", f"{words}; {rest.words}")

    def _add(
        self, parent: Member, child: Member, kind: Kind, distances: np.ndarray, slots: list[int],
        parents: list[Member] | None = None, more: str = "", stated: bool = False,
    ) -> None:  # fmt: skip
        tested = self.family.test(parent, child)
        one, other = (self.family.members.index(member) for member in (parent, child))
        length = sum(
            float(np.square(parent.row(slot).astype(np.float64) * parent.sample.scale).sum()) for slot in slots
        )
        distance = math.sqrt(max(0.0, float(distances[one, other])) / length)
        evidence = (
            f"{kind.words}{more}. Sampled: {self.sampled:,} elements for the distance ({distance:.3g} of the parent's "
            f"length), {tested.elements:,} for the independence test (correlation {tested.correlation:.3f}, "
            f"p = {tested.p_value:.1e})."
        )
        self.found.append(
            Edge(
                child.model.key,
                tuple(one.model.key for one in parents or [parent]),
                kind.relation,
                None if tested.related is None else tested.p_value,
                distance,
                evidence,
                stated,
            )
        )


def _said(told: Direction) -> str:
    if not math.isfinite(told.error):
        return "no direction in the weights"
    return (
        f"direction tau = {told.tau:+.2f} +- {told.error:.2f} from {told.rows:,} rows (1/2: the parent came first, "
        f"0: siblings), kurtosis lower in {told.flatter:.0%} of the matrices"
    )


def _heads(member: Member) -> str:
    return ", ".join(sorted(member.model.heads)[:4]) or "none"
