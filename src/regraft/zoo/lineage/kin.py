"""The edges of one family; see `find` for the stages."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from regraft.checkpoint.identity import weights_id
from regraft.zoo.lineage.combine import Merge
from regraft.zoo.lineage.edge import Edge
from regraft.zoo.lineage.evidence import direction_in_words, edge_between, heads_in_words, kind_between
from regraft.zoo.lineage.family import Family, Member, squared_distances
from regraft.zoo.lineage.kinds import Kind
from regraft.zoo.lineage.links import Link, Sight, is_chain, joins, lost_parent, turn_of
from regraft.zoo.lineage.merges import find_merges, with_descendants
from regraft.zoo.lineage.model import OUTER, names_parent
from regraft.zoo.lineage.pairs import Pairs
from regraft.zoo.lineage.thresholds import LOST_SURE
from regraft.zoo.lineage.tree import forest

DETOUR = "nearer to another child of the parent, but in the direction of that one's change"


@dataclass
class Kin:
    """A family while its edges are found. Members are meant by their number in `family.members`."""

    family: Family
    parents: dict[int, tuple[int, ...]] = field(default_factory=dict)
    found: list[Edge] = field(default_factory=list)

    def edges(self) -> list[Edge]:
        """All edges of the family."""
        self.family.members.sort(key=lambda member: member.model.key)
        members = self.family.members
        self.pairs = Pairs(self.family)
        self.outer = self.pairs.outer
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
        self.pairs.find_degraded(nodes, distances, slots)
        merges = find_merges(self.pairs, [node for node in nodes if node not in self.pairs.degraded], distances, slots)
        merged = {merge.child for merge in merges}
        groups = with_descendants(self.pairs, self.turn, nodes, merges, distances, slots)
        for merge in merges:
            self._add_merge(merge, distances, slots)
        for root, group in groups:
            sight = Sight(
                distances,
                self._order(group, distances, slots),
                self.sampled,
                self.pairs.degraded,
                self.pairs.retrained(group, slots),
                lambda a, b: self.pairs.direction(a, b, slots),
                self.pairs.known,
                self.pairs.stated,
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

    # Copies

    def _without_copies(self, numbers: list[int], distances: np.ndarray, slots: list[int]) -> list[int]:
        """One of each set of checkpoints whose sampled weights are equal; the others are linked to it."""
        kept: list[int] = []
        members = self.family.members
        for number in sorted(numbers, key=lambda number: (len(members[number].model.heads), members[number].model.key)):
            twin = next((one for one in kept if distances[one, number] == 0), None)
            if twin is None or not self.pairs.equal(twin, number):
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
            words += (
                "" if same else f"; only the head differs ({heads_in_words(parent)} against {heads_in_words(child)})"
            )
            self._add(parent, child, Kind(relation, words), distances, slots)
            self.parents[number] = (twin,)
        return sorted(kept)

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

    def _order(self, nodes: list[int], distances: np.ndarray, slots: list[int]) -> np.ndarray:
        """What pairs are linked by: distances; of what was pruned and then trained, over the elements that it has left, for
        the zeros of two that were pruned are much alike. Where that is a tie, the whole distance decides."""
        found = distances.copy()
        sample = self.family.members[0].sample
        for child in sorted(self.pairs.retrained(nodes, slots)):
            theirs = self.pairs.matrices(child, slots)
            alive = theirs != 0
            scale = np.tile(sample.scale[sample.matrix], len(slots))[alive]
            for node in nodes:
                change = (self.pairs.matrices(node, slots)[alive] - theirs[alive]) * scale
                found[node, child] = found[child, node] = float(change @ change) + 1e-3 * distances[node, child]
        return found

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
            told = self.pairs.direction(parent, node, slots)
            forward, _, neither = told.likelihoods
            ends = joins(distances, parent, node, above, self.sampled)
            if lost_parent(ends, (forward, 0.0, neither)) > LOST_SURE:
                return
            words = f"; {direction_in_words(told)}"
        self._add(
            self.family.members[parent], self.family.members[node],
            kind_between(self.pairs, parent, node, slots), distances, slots, more=words,
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
                if above is None or link.stated or self.pairs.known(link.parent, link.child):
                    break
                if is_chain(distances, above.parent, link.parent, link.child, self.turn):
                    break
                if self.pairs.stated(link.parent, link.child) or self.pairs.shares_more(
                    above.parent, link.parent, link.child
                ):
                    break
                link = Link(above.parent, link.child, link.posterior, None, DETOUR)
            found.append(link)
        return found

    def _add_link(self, link: Link, distances: np.ndarray, slots: list[int]) -> None:
        if self._descends(link.parent, link.child):
            return
        members = self.family.members
        words = f"; {link.why}" if link.why else ""
        if link.direction is not None:
            told = self.pairs.direction(link.parent, link.child, slots)
            words += f"; {direction_in_words(told)}, posterior {link.posterior:.3f}"
        if link.stated:
            words += "; the weights leave the direction open, the card names the parent"
        self._add(
            members[link.parent], members[link.child], kind_between(self.pairs, link.parent, link.child, slots), distances, slots,
            more=words, stated=link.stated,
        )  # fmt: skip
        self.parents[link.child] = (link.parent,)

    # Edges

    def _add(
        self, parent: Member, child: Member, kind: Kind, distances: np.ndarray, slots: list[int],
        parents: list[Member] | None = None, more: str = "", stated: bool = False,
    ) -> None:  # fmt: skip
        self.found.append(
            edge_between(self.family, parent, child, kind, distances, slots, self.sampled, parents, more, stated)
        )
