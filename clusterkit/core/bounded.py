"""Placement under caps: what a full node turns away goes on to the next one of the ranking.

The idea is that of V. Mirrokni, M. Thorup, M. Zadimoghaddam, "Consistent Hashing with Bounded
Loads" (SODA 2018, arXiv:1608.01350). There a full node keeps what came first, so the result hangs
on an order of arrival. Here it is deferred acceptance (D. Gale, L. S. Shapley, "College Admissions
and the Stability of Marriage", American Mathematical Monthly 69, 1962): each partition asks nodes
in the order of its ranking, and a full node keeps the partitions that score highest with it and
turns away the others, also those that it had accepted. Of all placements in which no partition and
node would rather have each other than what they have, this finds the one that is best for every
partition. There is one such, so the order of asking does not matter, and a change of the cluster
reaches only as far as the copies that nodes turn away or take back because of it.

What a full node prefers hardly matters for how much moves: highest scores, lowest indexes of
partitions, and first places in their rankings were within one percent of each other. Turning away
whole ranges of scores, so that small changes need no reaction, moved more.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Sequence
from heapq import heapify, heappop, heappush
from typing import TypeAlias

from .costs import cost
from .hashing import SeedBlock, fmix64, partition_id, seed64, seeds64
from .placement import Candidate, Row, spread

Rank: TypeAlias = tuple[int, int, int]
"""What a partition ranks a node by, the lowest first: cost, score negated, the node's index."""


class Copies:
    """Who holds what, as indexes of nodes and partitions, while it differs from ``assign``'s rows.

    Attributes:
        nodes: The nodes with weight, sorted by id; elsewhere a node is its index here.
        zones: The zone of each, or None for one that is alone in its own.
        count: How many holders each partition is to have.
        changed: The holders of the partitions that nodes have turned away.
    """

    __slots__ = ("_index", "_rows", "_seeds", "_weighted", "changed", "count", "nodes", "zones")

    def __init__(
        self,
        rows: Sequence[Row],
        nodes: Sequence[Candidate],
        zones: Collection[str],
        cluster_seed: int,
    ) -> None:
        self.nodes = nodes
        self.zones = [node.zone if node.zone in zones else None for node in nodes]
        self.count = len(rows[0])
        self.changed: dict[int, set[int]] = {}
        self._rows = rows
        self._index = {node.id: index for index, node in enumerate(nodes)}
        self._seeds = _Seeds([node.id for node in nodes], cluster_seed)
        self._weighted = len({node.weight for node in nodes}) > 1

    def holders(self, partition: int) -> set[int]:
        """The partition's holders."""
        holders = self.changed.get(partition)
        if holders is None:
            holders = {self._index[node] for node in self._rows[partition]}
        return holders

    def change(self, partition: int) -> set[int]:
        """The partition's holders, to be changed."""
        return self.changed.setdefault(partition, self.holders(partition))

    def held(self) -> list[list[int]]:
        """The partitions that each node holds, in rising order."""
        held: list[list[int]] = [[] for _ in self.nodes]
        index, changed = self._index, self.changed
        for partition, row in enumerate(self._rows):
            if partition in changed:
                for node in changed[partition]:
                    held[node].append(partition)
            else:
                for name in row:
                    held[index[name]].append(partition)
        return held

    def score(self, partition: int, node: int) -> int:
        """The score of the two, as in ``assign``."""
        return self._seeds.score(partition, node)

    def rank(self, partition: int, node: int) -> Rank:
        """The node's place in the partition's ranking."""
        score = self.score(partition, node)
        return (cost(score, self.nodes[node].weight) if self._weighted else 0, -score, node)

    def scores(self, partition: int) -> tuple[int, ...]:
        """The scores of all nodes for the partition."""
        return self._seeds.scores(partition)

    def rows(self) -> tuple[Row, ...]:
        """The rows, in each the order that ``assign`` would give to these holders."""
        rows = list(self._rows)
        for partition, holders in self.changed.items():
            ranking = sorted(self.rank(partition, node) for node in holders)
            rows[partition] = spread(
                ((c, s, self.nodes[node].id, self.zones[node]) for c, s, node in ranking),
                self.count,
            )
        return tuple(rows)


def settle(copies: Copies, caps: Sequence[int]) -> None:
    """Moves copies until no node holds more than its cap.

    A partition asks as ``assign`` picks: next comes the first node, of those that it has not asked,
    in the zones that its holders use least. A partition that all nodes have turned away is left
    with fewer holders, and one that all nodes of a zone have turned away with a less even spread.
    """
    nodes = [_Node(copies, index, held) for index, held in enumerate(copies.held())]
    seekers: dict[int, _Seeker] = {}
    groups = _groups(copies)
    for start, cap in enumerate(caps):
        while len(nodes[start].held) > cap:
            at: int | None = start
            while at is not None and len(nodes[at].held) > caps[at]:
                partition = nodes[at].turn_away()
                holders = copies.change(partition)
                seeker = seekers.get(partition)
                if seeker is None:
                    seeker = seekers[partition] = _Seeker(copies, groups, partition)
                holders.remove(at)
                at = seeker.next_after(at)
                if at is not None:
                    holders.add(at)
                    nodes[at].accept(partition)


class _Node:
    """A node's partitions; once it had to turn one away, as a heap with the worst on top."""

    __slots__ = ("_copies", "_index", "_ordered", "held")

    def __init__(self, copies: Copies, index: int, held: list[int]) -> None:
        self._copies = copies
        self._index = index
        self._ordered = False
        self.held: list[tuple[int, int]] = [(0, -partition) for partition in held]

    def accept(self, partition: int) -> None:
        if self._ordered:
            heappush(self.held, self._entry(partition))
        else:
            self.held.append((0, -partition))

    def turn_away(self) -> int:
        if not self._ordered:
            self.held = [self._entry(-partition) for _, partition in self.held]
            heapify(self.held)
            self._ordered = True
        return -heappop(self.held)[1]

    def _entry(self, partition: int) -> tuple[int, int]:
        return self._copies.score(partition, self._index), -partition


_Group: TypeAlias = tuple[str | None, Sequence[int]]


def _groups(copies: Copies) -> list[_Group]:
    """The zones and the nodes of those of one weight and zone: there the score alone decides."""
    members: dict[tuple[int, str | None], list[int]] = {}
    for index, (node, zone) in enumerate(zip(copies.nodes, copies.zones, strict=True)):
        members.setdefault((node.weight, zone), []).append(index)
    return [(zone, inside) for (_, zone), inside in members.items()]


class _Seeker:
    """A partition that looks for other holders: whom it asks next."""

    __slots__ = ("_copies", "_heads", "_partition", "_used", "_waiting")

    def __init__(self, copies: Copies, groups: Sequence[_Group], partition: int) -> None:
        self._copies = copies
        self._partition = partition
        self._used: dict[str | None, int] = {}
        self._waiting: list[tuple[str | None, Iterator[int]]] = []
        scores = copies.scores(partition)
        holders = copies.holders(partition)
        for zone, inside in groups:
            # A stable sort: of equal scores the lower index, and so the lower id, stays the first.
            order = sorted(inside, key=scores.__getitem__, reverse=True)
            asked = sum(node in holders for node in inside)  # those that lead, as `assign` picks
            self._waiting.append((zone, iter(array("I", order[asked:]))))
            if zone is not None:
                self._used[zone] = self._used.get(zone, 0) + asked
        self._heads = [self._head(waiting) for _, waiting in self._waiting]

    def next_after(self, node: int) -> int | None:
        """Whom to ask when ``node`` has turned the partition away; None if nobody is left."""
        used, zones = self._used, self._copies.zones
        if zones[node] is not None:
            used[zones[node]] -= 1
        first: tuple[int, Rank, int] | None = None
        for group, ((zone, _), head) in enumerate(zip(self._waiting, self._heads, strict=True)):
            if head is not None:
                key = (used.get(zone, 0), head, group)
                if first is None or key < first:
                    first = key
        if first is None:
            return None
        _, (_, _, chosen), group = first
        zone, waiting = self._waiting[group]
        self._heads[group] = self._head(waiting)
        if zone is not None:
            used[zone] += 1
        return chosen

    def _head(self, waiting: Iterator[int]) -> Rank | None:
        node = next(waiting, None)
        return None if node is None else self._copies.rank(self._partition, node)


class _Seeds:
    """The scores of partitions and nodes, of any pair or of a partition with all nodes."""

    __slots__ = ("_block", "_cluster_seed", "_nodes", "_partitions")

    def __init__(self, ids: Sequence[str], cluster_seed: int) -> None:
        self._cluster_seed = cluster_seed
        self._nodes = seeds64(ids, cluster_seed, "node")
        self._block = SeedBlock(self._nodes)
        self._partitions: dict[int, int] = {}

    def score(self, partition: int, node: int) -> int:
        return fmix64(self._partition(partition) ^ self._nodes[node])

    def scores(self, partition: int) -> tuple[int, ...]:
        return self._block.scores(self._partition(partition))

    def _partition(self, partition: int) -> int:
        seed = self._partitions.get(partition)
        if seed is None:
            seed = seed64(partition_id(partition), self._cluster_seed, "partition")
            self._partitions[partition] = seed
        return seed
