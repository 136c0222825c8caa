"""Which nodes hold which partition: a pure function of the nodes and the cluster's settings.

Rendezvous hashing (D. Thaler, C. V. Ravishankar, "Using name-based mappings to increase hit rates",
IEEE/ACM Transactions on Networking 6(1), 1998): each partition ranks all nodes by a score of the
two names, and its holders are the first ones. A node that comes or goes moves only what it gains
or what it held, because the ranks of the others among themselves do not hang on it.

Integers only. No clock, no randomness, no order of a set or of input: two nodes with the same
inputs have the same answer, and the golden vectors in ``tests/golden`` hold it for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from typing import TypeAlias

from .hashing import SeedBlock, partition_id, seed64

MAX_WEIGHT = 1_000_000
LOG_BITS = 57

Row: TypeAlias = tuple[str, ...]
"""The ids of a partition's holders, the primary first."""

_BLOCK = 256  # partitions scored at a time: enough lanes to pay, few enough to stay in the cache
_TABLE_BITS = 10
_WIDE = 96


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
    if partitions < 1 or replication_factor < 1:
        raise ValueError(
            f"partitions is {partitions}, replication_factor is {replication_factor}; "
            "both must be at least 1"
        )
    nodes = sorted((c for c in candidates if c.weight), key=lambda c: c.id)
    for one, other in pairwise(nodes):
        if one.id == other.id:
            raise ValueError(f"node {one.id!r} is among the candidates twice")
    count = min(replication_factor, len(nodes))
    groups = _groups(nodes, count, cluster_seed)
    blocks = _seed_blocks(partitions, cluster_seed)
    if not groups:
        return ((),) * partitions
    if len(groups) == 1:
        only = groups[0]
        return tuple(chain.from_iterable(only.leading_ids(block) for block in blocks))
    weighted = len({g.weight for g in groups}) > 1
    rows: list[Row] = []
    for block in blocks:
        for leading in zip(*(g.leading(block) for g in groups), strict=True):
            ranking = sorted(
                (cost(score, g.weight) if weighted else 0, -score, node, g.zone)
                for g, best in zip(groups, leading, strict=True)
                for score, node in best
            )
            rows.append(spread(ranking, count))
    return tuple(rows)


def log2_fixed(x: int) -> int:
    """log2(x) for 1 <= ``x`` <= 2**64 in units of 2**-57, rounded down; it never decreases.

    With ``b`` as the leading 11 bits of ``x``, log2(x) is log2(b) from a table plus the fast series
    ln(x / b) = 2 artanh(s), s = (x - b) / (x + b) < 2**-11, up to its fifth power, in units of
    2**-96. Before the rounding the error is below 2**-77, while the logarithms of two neighbours
    differ by more than 2**-64: hence the order is exact, and the result is off by one unit at most
    (and that only where the true value is within 2**-77 of a unit).
    """
    table, scale = _log_table()
    exponent = x.bit_length() - 1
    x <<= 64 - exponent
    entry = x >> 64 - _TABLE_BITS
    base = entry << 64 - _TABLE_BITS
    s = (x - base << _WIDE) // (x + base)
    square = s * s >> _WIDE
    cube = s * square >> _WIDE
    artanh = s + cube // 3 + (cube * square >> _WIDE) // 5
    fraction = table[entry - (1 << _TABLE_BITS)] + (artanh * scale >> _WIDE)
    return (exponent << LOG_BITS) + (fraction >> _WIDE - LOG_BITS)


def cost(score: int, weight: int) -> int:
    """What weighted nodes are ranked by, the lowest first: -log2((score + 1) / 2**64) / weight.

    In units of 2**-97. Two different quotients are further apart than one unit, as weights are
    below 2**20, so rounding them down keeps their order exactly, and equal ones equal.
    """
    return ((64 << LOG_BITS) - log2_fixed(score + 1) << 40) // weight


@dataclass(frozen=True, slots=True)
class _Group:
    """Nodes of one weight and zone, by id: among them the score alone decides.

    Only the first ``depth`` of a group can be holders, so only those are ever compared with others.
    """

    weight: int
    zone: str | None
    ids: tuple[str, ...]
    seeds: tuple[int, ...]
    depth: int

    def leading_ids(self, block: SeedBlock) -> Iterator[Row]:
        """For each partition of the block the ids of the first ``depth`` nodes."""
        ids, stop = self.ids, -self.depth - 1
        if not self._sorting_pays():
            for best in self.leading(block):
                yield tuple([node for _, node in best])
            return
        for scores in self._scores(block):
            # The commonest case by far, hence spelt out: a comprehension is a call here (until
            # Python 3.12), and that takes an eighth of the time.
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


def _groups(nodes: Sequence[Candidate], count: int, cluster_seed: int) -> list[_Group]:
    zones = zone_sizes(nodes)
    alone = len(nodes) - sum(zones.values())
    rounds = 1
    while zones and alone + sum(min(size, rounds) for size in zones.values()) < count:
        rounds += 1
    members: dict[tuple[int, str | None], list[str]] = {}
    for node in nodes:
        members.setdefault((node.weight, node.zone if zones else None), []).append(node.id)
    return [
        _Group(
            weight,
            zone,
            tuple(ids),
            tuple(seed64(node, cluster_seed, "node") for node in ids),
            min(len(ids), count if zone is None else rounds),
        )
        for (weight, zone), ids in members.items()
    ]


def zone_sizes(nodes: Iterable[Candidate]) -> dict[str, int]:
    """How many nodes each zone has; empty if zones say nothing about where copies go."""
    zones: dict[str, int] = {}
    alone = 0
    for node in nodes:
        if node.zone is None:
            alone += 1
        else:
            zones[node.zone] = zones.get(node.zone, 0) + 1
    # One zone, or none with two nodes, says nothing about where to go.
    matter = len(zones) + alone > 1 and any(size > 1 for size in zones.values())
    return zones if matter else {}


def spread(ranking: Iterable[tuple[int, int, str, str | None]], count: int) -> Row:
    """The first ``count`` nodes, picked one by one from the zones used least; see ``assign``.

    Args:
        ranking: What a node is ranked by, its score negated, its id and its zone, best first.
        count: How many to pick.
    """
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


@lru_cache(maxsize=4)
def _seed_blocks(partitions: int, cluster_seed: int) -> tuple[SeedBlock, ...]:
    # These change never in a cluster's life, and cost as much as scoring ten nodes.
    return tuple(
        SeedBlock(
            seed64(partition_id(index), cluster_seed, "partition")
            for index in range(start, min(start + _BLOCK, partitions))
        )
        for start in range(0, partitions, _BLOCK)
    )


@lru_cache(maxsize=1)
def _log_table() -> tuple[tuple[int, ...], int]:
    """log2(1 + i / 1024) for i from 0 to 1024, and 2 / ln 2, in units of 2**-96.

    From artanh(1 / (2n + 1)) = ln((n + 1) / n) / 2, summed from n = 1024 up to 2047, which gives
    ln(2) / 2: no constant has to be trusted.
    """
    one = 1 << _WIDE + 32
    halves = [0]
    for n in range(1 << _TABLE_BITS, 2 << _TABLE_BITS):
        odd = 2 * n + 1
        artanh = sum(one // (power * odd**power) for power in (1, 3, 5, 7, 9))
        halves.append(halves[-1] + artanh)
    return tuple((h << _WIDE) // halves[-1] for h in halves), (one << _WIDE) // halves[-1]
