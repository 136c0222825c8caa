"""One node against all partitions: the rows that it is in or would reach, and their next holders.

This is the plain Python of ``incremental``, which says why it is right; ``_vector_columns`` does
the same with numpy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice

from .costs import SLACK, cost, estimate
from .hashing import SeedBlock, fmix64, seed64
from .placement import Candidate, Ranking, Row, rounds_to_fill, spread
from .rows import Rows
from .shape import Shape


class Members:
    """The nodes that may hold partitions, and what follows from them for every row.

    Attributes:
        shape: What the assignment is made from beside them.
        nodes: The nodes by id, all with a weight.
        seeds: Their seeds by id.
        zones: How many nodes each zone has.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.nodes: dict[str, Candidate] = {}
        self.seeds: dict[str, int] = {}
        self.zones: dict[str, int] = {}
        self._weights: Counter[int] = Counter()

    @property
    def count(self) -> int:
        """How many holders each partition has."""
        return min(self.shape.replication_factor, len(self.nodes))

    @property
    def weighted(self) -> bool:
        """Whether weights differ."""
        return len(self._weights) > 1

    def alike(self, others: Sequence[Candidate]) -> bool:
        """Whether the scores alone decide, with these nodes too: no zones, and one weight."""
        weights = {*self._weights, *(node.weight for node in others)}
        return not self.zones and len(weights) < 2 and all(node.zone is None for node in others)

    def add(self, node: Candidate) -> None:
        """A node that is not there yet."""
        self.nodes[node.id] = node
        self.seeds[node.id] = seed64(node.id, self.shape.cluster_seed, "node")
        self._weights[node.weight] += 1
        if node.zone is not None:
            self.zones[node.zone] = self.zones.get(node.zone, 0) + 1

    def remove(self, node_id: str) -> None:
        """A node that is there."""
        node = self.nodes.pop(node_id)
        del self.seeds[node_id]
        self._weights[node.weight] -= 1
        if not self._weights[node.weight]:
            del self._weights[node.weight]
        if node.zone is not None:
            self.zones[node.zone] -= 1
            if not self.zones[node.zone]:
                del self.zones[node.zone]

    def has_place_for(self, newcomer: Candidate) -> bool:
        """Whether it can enter a row only by ranking before one of the holders."""
        if self.count < self.shape.replication_factor:
            return False  # every row takes it in
        rounds = rounds_to_fill(self.zones, len(self.nodes), self.count)
        size = 0 if newcomer.zone is None else self.zones.get(newcomer.zone, 0)
        return size >= rounds - 1

    def ranking(self) -> Ranking:
        """All of them, ready to rank."""
        return Ranking.of(self.nodes.values(), self.shape)


class Columns:
    """The rows of some members, as they come and go. All rows have their full number of holders.

    Attributes:
        rows: The rows as of now.
    """

    def __init__(self, members: Members, rows: Rows) -> None:
        self.rows = rows
        self._members = members
        self._seeds = members.shape.seeds
        # Of each row what a node must reach to enter it: a score, or if weights differ an estimate
        # of its cost, which must not be greater.
        self._floors: list[float] = []
        self._weighted: bool | None = None  # which of the two

    def leave(self, nodes: Collection[str]) -> list[int]:
        """The members have gone: makes the rows that they were in anew, and returns which."""
        gone = frozenset(nodes)
        touched = [i for i, row in enumerate(self.rows) if not gone.isdisjoint(row)]
        return self._replace(self._anew(touched))

    def enter(self, node: Candidate) -> list[int]:
        """The member has come: gives it its place in the rows that it reaches; returns which."""
        if self._weighted is not self._members.weighted:
            self._measure()
        return self._replace({index: self._with(node, index) for index in self._reached(node)})

    def _anew(self, indexes: Sequence[int]) -> dict[int, Row]:
        rows = self._members.ranking().rows(self._seeds.some(indexes))
        return dict(zip(indexes, rows, strict=True))

    def _with(self, node: Candidate, index: int) -> Row:
        seed, row = self._seeds.each[index], self.rows[index]
        ranks = sorted(self._rank(n, seed) for n in (*row, node.id))
        return spread(ranks, len(row))

    def _rank(self, node_id: str, seed: int) -> tuple[int, int, str, str | None]:
        node, score = self._members.nodes[node_id], fmix64(seed ^ self._members.seeds[node_id])
        return (
            cost(score, node.weight) if self._members.weighted else 0,
            -score,
            node_id,
            node.zone,
        )

    def _reached(self, node: Candidate) -> list[int]:
        seed = self._members.seeds[node.id]
        column = (score for block in self._seeds.blocks for score in block.scores(seed))
        pairs = enumerate(zip(column, self._floors, strict=True))
        if self._weighted:
            weight = node.weight
            return [i for i, (score, floor) in pairs if estimate(score, weight) <= floor + SLACK]
        return [i for i, (score, floor) in pairs if score >= floor]

    def _replace(self, rows: Mapping[int, Row]) -> list[int]:
        rows = {index: row for index, row in rows.items() if row != self.rows[index]}
        self.rows = self.rows.replaced(rows)
        if self._weighted is not None:
            floors = self._floors_of(self._seeds.some(list(rows)), iter(rows.values()))
            for index, floor in zip(rows, floors, strict=True):
                self._floors[index] = floor
        return list(rows)

    def _measure(self) -> None:
        self._weighted = self._members.weighted
        self._floors = list(self._floors_of(iter(self._seeds.blocks), iter(self.rows)))

    def _floors_of(self, blocks: Iterator[SeedBlock], rows: Iterator[Row]) -> Iterator[float]:
        nodes, seeds = self._members.nodes, self._members.seeds
        for block in blocks:
            lines = list(zip(*islice(rows, len(block)), strict=True))
            scores = [block.pairs([seeds[node] for node in line]) for line in lines]
            if self._weighted:
                costs = [
                    [estimate(s, nodes[n].weight) for s, n in zip(of_line, line, strict=True)]
                    for of_line, line in zip(scores, lines, strict=True)
                ]
                yield from map(max, zip(*costs, strict=True))
            else:
                yield from map(min, zip(*scores, strict=True))
