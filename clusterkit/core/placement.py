"""Which nodes hold which partition: a pure function of the nodes and the cluster's settings.

Rendezvous hashing (D. Thaler, C. V. Ravishankar, "Using name-based mappings to increase hit rates",
IEEE/ACM Transactions on Networking 6(1), 1998): each partition ranks all nodes by a score of the
two names, and its holders are the first ones. A node that comes or goes moves only what it gains
or what it held, because the ranks of the others among themselves do not hang on it.

Integers only. No clock, no randomness, no order of a set or of input: two nodes with the same
inputs have the same answer, and the golden vectors in ``tests/golden`` hold it for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise, repeat
from operator import attrgetter
from typing import TypeAlias

from .costs import cost
from .hashing import SeedBlock, seeds64
from .shape import PartitionSeeds, Shape

MAX_WEIGHT = 1_000_000

Row: TypeAlias = tuple[str, ...]
"""The ids of a partition's holders, the primary first."""

VECTOR_PAYS = 100_000  # pairs, from which numpy is used; importing it takes as long as 600,000


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that may hold partitions.

    Attributes:
        id: The node id.
        weight: Its share relative to the other nodes, 0 to ``MAX_WEIGHT``; with 0 it holds nothing.
        zone: The failure zone; a node with None is a zone of its own.

    Raises:
        ValueError: ``weight`` is out of its range.
    """

    id: str
    weight: int
    zone: str | None

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= MAX_WEIGHT:
            raise ValueError(
                f"node {self.id!r} has weight {self.weight}; it must be within 0 and {MAX_WEIGHT}"
            )


def assign(
    candidates: Iterable[Candidate],
    *,
    partitions: int,
    replication_factor: int,
    cluster_seed: int,
) -> tuple[Row, ...]:
    """The holders of every partition, in the order of the partitions' indexes.

    Each partition has min(``replication_factor``, nodes with weight) distinct holders.

    Order: the score of a node for a partition is ``fmix64(partition's seed XOR node's seed)``. With
    all weights equal the highest score ranks first. Else the lowest ``-log2((score + 1) / 2**64) /
    weight`` does (weighted rendezvous hashing; the logarithm is ``log2_fixed``, and the quotients
    are compared exactly, so only the ratios of weights matter), then the higher score. Equal scores
    rank by node id.

    Zones: the holders are picked from that ranking one by one, each time the first node among those
    in the zones used least so far. So replicas are in distinct zones as long as there are zones,
    and else spread as evenly as the zones' sizes allow. The primary is the first of the ranking,
    zones or none.

    Movement, with weights and zones alike, when one node joins, leaves, or changes its weight: a
    row changes by at most one holder, the joiner or the heavier node is the only one that gains,
    and the leaver or the lighter node the only one that loses. Without zones the other holders keep
    their order; with zones they keep it within a zone, and the primary stays unless that node
    takes its place or was it. When a node changes its zone, a row changes by at most one holder.

    Raises:
        ValueError: Two candidates with one id, or a number out of its range.
    """
    shape = Shape(partitions, replication_factor, cluster_seed)
    return tuple(Ranking.of(candidates, shape).all_rows(shape.seeds))


@dataclass(frozen=True, slots=True)
class Ranking:
    """The nodes of an assignment, made ready to rank for any of its partitions.

    Attributes:
        count: How many holders each partition has.
        groups: The nodes that may hold any, those alike together.
        weighted: Whether their weights differ.
        rounds: How often a zone is gone through at most until a row is full.
    """

    count: int
    groups: Sequence[Group]
    weighted: bool
    rounds: int

    @classmethod
    def of(cls, candidates: Iterable[Candidate], shape: Shape) -> Ranking:
        """Of any candidates, in any order.

        Raises:
            ValueError: Two candidates with one id, or the cluster's seed is out of its range.
        """
        nodes = sorted([c for c in candidates if c.weight], key=attrgetter("id"))
        ids = [node.id for node in nodes]
        if len(set(ids)) < len(ids):
            twice = next(one for one, other in pairwise(ids) if one == other)
            raise ValueError(f"node {twice!r} is among the candidates twice")
        count = min(shape.replication_factor, len(nodes))
        zones = zone_sizes(nodes)
        rounds = rounds_to_fill(zones, len(nodes), count)
        seeds64((), shape.cluster_seed, "node")  # says so if that is out of its range
        members: dict[tuple[int, str | None], list[str]] = {}
        if not zones and len({node.weight for node in nodes}) == 1:
            members[nodes[0].weight, None] = ids
        else:
            for node in nodes:
                # A zone of one node is as none. One that has all nodes says nothing of where to go.
                matters = node.zone is not None and 1 < zones[node.zone] < len(nodes)
                group = node.weight, node.zone if matters else None
                members.setdefault(group, []).append(node.id)
        groups = [
            Group(
                weight,
                zone,
                tuple(ids),
                tuple(seeds64(ids, shape.cluster_seed, "node")),
                min(len(ids), count if zone is None else rounds),
            )
            for (weight, zone), ids in members.items()
        ]
        return cls(count, groups, len({g.weight for g in groups}) > 1, rounds)

    def all_rows(self, seeds: PartitionSeeds) -> list[Row]:
        """The holders of all partitions, by numpy if it is there and pays."""
        if vector_pays(len(seeds.each) * sum(len(g.ids) for g in self.groups)):
            from . import _vector

            return _vector.all_rows(self, seeds)
        return list(self.rows(seeds.blocks))

    def rows(self, blocks: Iterable[SeedBlock]) -> Iterator[Row]:
        """The holders of the partitions of these seeds."""
        if len(self.groups) == 1:
            return chain.from_iterable(self.groups[0].rows(blocks))
        of_block = self._merged if self.groups else _nobody
        return chain.from_iterable(map(of_block, blocks))

    def _merged(self, block: SeedBlock) -> Iterator[Row]:
        for leading in zip(*(g.leading(block) for g in self.groups), strict=True):
            ranks = sorted(
                (cost(score, g.weight) if self.weighted else 0, -score, node, g.zone)
                for g, best in zip(self.groups, leading, strict=True)
                for score, node in best
            )
            yield spread(ranks, self.count)


def vector_pays(pairs: int) -> bool:
    """Whether to score so many pairs of partition and node with numpy.

    Only who asks for so many ever imports it: a small cluster does not wait for that.
    """
    return pairs >= VECTOR_PAYS and _numpy_loads()


@lru_cache(maxsize=1)
def _numpy_loads() -> bool:
    try:
        import numpy  # noqa: F401
    except ImportError:
        return False  # the extra `fast` is not installed
    return True


def _nobody(block: SeedBlock) -> Iterator[Row]:
    return repeat((), len(block))


def zone_sizes(nodes: Iterable[Candidate]) -> dict[str, int]:
    """How many nodes each zone has. Those without a zone are not counted."""
    sizes: dict[str, int] = {}
    for node in nodes:
        if node.zone is not None:
            sizes[node.zone] = sizes.get(node.zone, 0) + 1
    return sizes


def rounds_to_fill(zones: Mapping[str, int], nodes: int, count: int) -> int:
    """How many rounds through the zones, one node of each a time, it takes to find ``count``."""
    if len(zones) == nodes:
        return 1
    alone, rounds = nodes - sum(zones.values()), 1
    while alone + sum(min(size, rounds) for size in zones.values()) < count:
        rounds += 1
    return rounds


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes of one weight and zone, by id: among them the score alone decides.

    Only the first ``depth`` of a group can be holders, so only those are ever compared with others.
    """

    weight: int
    zone: str | None
    ids: tuple[str, ...]
    seeds: tuple[int, ...]
    depth: int

    def rows(self, blocks: Iterable[SeedBlock]) -> Iterator[Iterable[Row]]:
        """For each partition of each block the ids of the first ``depth`` nodes."""
        if len(self.ids) == 1:
            for block in blocks:
                yield repeat(self.ids, len(block))
        elif len(self.ids) == self.depth == 2:
            ids, reverse = self.ids, self.ids[::-1]
            for block in blocks:
                first, second = map(block.scores, self.seeds)
                yield [ids if x >= y else reverse for x, y in zip(first, second, strict=True)]
        elif not self._sorting_pays():
            for block in blocks:
                yield [tuple([node for _, node in best]) for best in self.leading(block)]
        elif self.depth == 3 and len(self.ids) > 3:
            repeated: dict[int, list[int]] = {}  # by length, which is that of all but the last
            for block in blocks:
                if len(block) not in repeated:
                    repeated[len(block)] = [block.repeated(seed) for seed in self.seeds]
                yield self._first_three(block, repeated[len(block)])
        else:
            yield from map(self._sorted_ids, blocks)

    def _first_three(self, block: SeedBlock, repeated: Sequence[int]) -> Iterable[Row]:
        # The commonest case by far, hence spelt out: a comprehension is a call here (until Python
        # 3.12), which takes an eighth of the time, and three of everything as much again.
        ids, start = self.ids, len(self.ids) - 4
        rows: list[Row] = []
        append = rows.append
        for keys in zip(*map(block.keys, repeated), strict=True):
            fourth, third, second, first = sorted(keys)[start:]
            if not first > second > third > fourth:
                return self._sorted_ids(block)  # whole scores decide
            index = keys.index
            append((ids[index(first)], ids[index(second)], ids[index(third)]))
        return rows

    def _sorted_ids(self, block: SeedBlock) -> Iterator[Row]:
        ids, stop = self.ids, -self.depth - 1
        for scores in self._scores(block):
            index = scores.index
            row = []
            for score in sorted(scores)[:stop:-1]:
                row.append(ids[index(score)])  # noqa: PERF401
            yield tuple(row)

    def leading(self, block: SeedBlock) -> Iterator[list[tuple[int, str]]]:
        """For each partition of the block the scores and ids of the first ``depth`` nodes."""
        ids, stop = self.ids, -self.depth - 1
        if self._sorting_pays():
            for scores in self._scores(block):
                yield [(score, ids[scores.index(score)]) for score in sorted(scores)[:stop:-1]]
            return
        for scores in self._scores(block):
            left = list(scores)
            best = []
            for _ in range(self.depth):
                score = max(left)
                index = left.index(score)  # of equal scores the first, which has the lower id
                left[index] = -1
                best.append((score, ids[index]))
            yield best

    def _scores(self, block: SeedBlock) -> Iterator[tuple[int, ...]]:
        return zip(*map(block.scores, self.seeds), strict=True)

    def _sorting_pays(self) -> bool:
        # Sorting finds the places of scores by their values, which must differ then. (They are
        # equal only for nodes whose seeds are, and then for every partition.)
        return 12 * self.depth > len(self.ids) and len(set(self.seeds)) == len(self.seeds)


def spread(ranking: Iterable[tuple[int, int, str, str | None]], count: int) -> Row:
    """The first ``count`` that the zones allow of a ranking: (cost, -score, id, zone) in order."""
    # To take each time the first of the least used zones is to take the first of every zone in
    # the order of the ranking, then the second of every zone, and so on.
    used: dict[str, int] = {}
    rounds: list[list[str]] = [[]]
    for _, _, node, zone in ranking:
        turn = 0
        if zone is not None:
            turn = used.get(zone, 0)
            used[zone] = turn + 1
            if turn == len(rounds):
                rounds.append([])
        rounds[turn].append(node)
    return tuple(chain.from_iterable(rounds))[:count]
