"""How many copies each node should hold, and how many it may: exact numbers, no rounding errors.

A node's fair share is the copies of all partitions split by weight, as far as the other rules let
it: a node holds a partition once at most, and zones hold of each partition what an even spread
gives them. What a limit takes from one node or gives to it is split among the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

from .hashing import fmix64, seed64
from .placement import Candidate, zone_sizes

# Keeps the hash that rounds a node's cap apart from its scores: the next 64 bits of pi.
_ROUNDING = 0x313198A2E0370734


@dataclass(frozen=True, slots=True)
class Cap:
    """How many copies a node may hold.

    Attributes:
        soft: The exact number, rounded up or down by the node's hash. Rounded up at all nodes, it
            would fall by one at all of them when one certain node joins, and all full nodes would
            move a copy at once. So each cap falls at another size of the cluster.
        hard: The exact number rounded up; never below ``soft``.
    """

    soft: int
    hard: int


def zones_that_matter(nodes: Sequence[Candidate]) -> dict[str, int]:
    """How many nodes each zone has; empty if zones say nothing about where copies go."""
    zones = zone_sizes(nodes)
    alone = len(nodes) - sum(zones.values())
    # One zone, or none with two nodes, says nothing about where to go.
    matter = len(zones) + alone > 1 and any(size > 1 for size in zones.values())
    return zones if matter else {}


def zone_limits(
    nodes: Sequence[Candidate], zones: dict[str, int], count: int
) -> dict[str | None, tuple[int, int]]:
    """How many of a partition's ``count`` holders each zone has in an even spread: from, to.

    The entry None is for each of the nodes that are a zone of their own.
    """
    alone = len(nodes) - sum(zones.values())

    def within(rounds: int) -> int:
        return sum(min(size, rounds) for size in zones.values()) + alone * min(rounds, 1)

    last = 1
    while within(last) < count:
        last += 1
    complete = within(last) == count

    def limits(size: int) -> tuple[int, int]:
        return (size, size) if size < last else (last if complete else last - 1, last)

    return {None: limits(1), **{zone: limits(size) for zone, size in zones.items()}}


def copy_shares(
    nodes: Sequence[Candidate], zones: dict[str, int], *, partitions: int, count: int
) -> list[Fraction]:
    """Each node's fair share of the copies, in the order of ``nodes``.

    Args:
        nodes: Those with weight.
        zones: The zones' sizes; empty if zones do not matter.
        partitions: How many there are.
        count: The holders of each partition, not more than ``nodes``.
    """
    limits = zone_limits(nodes, zones, count)
    members: dict[str | int, list[int]] = {}
    for index, node in enumerate(nodes):
        zone = node.zone if node.zone in zones else None
        members.setdefault(index if zone is None else zone, []).append(index)
    ranges = [limits[zone if isinstance(zone, str) else None] for zone in members]
    of_zones = _divide(
        Fraction(partitions * count),
        [sum(nodes[i].weight for i in inside) for inside in members.values()],
        [(partitions * low, partitions * high) for low, high in ranges],
    )
    shares = [Fraction()] * len(nodes)
    for inside, share in zip(members.values(), of_zones, strict=True):
        weights = [nodes[i].weight for i in inside]
        split = _divide(share, weights, [(0, partitions)] * len(inside))
        for index, part in zip(inside, split, strict=True):
            shares[index] = part
    return shares


def caps(
    nodes: Sequence[Candidate],
    zones: dict[str, int],
    shares: Sequence[Fraction],
    *,
    partitions: int,
    cluster_seed: int,
    balance_percent: int,
) -> list[Cap]:
    """Each node's cap: ``balance_percent`` of its share, but not more than ``partitions``.

    The soft caps of each zone, and those of all nodes that are in none, leave room for the copies
    that are theirs.
    """
    exact = [min(share * balance_percent / 100, Fraction(partitions)) for share in shares]
    hard = [ceil(x) for x in exact]
    rounding = [
        Fraction(fmix64(seed64(n.id, cluster_seed, "node") ^ _ROUNDING), 1 << 64) for n in nodes
    ]
    soft = [max(1, floor(x + up)) for x, up in zip(exact, rounding, strict=True)]
    pools: dict[str | None, list[int]] = {}
    for index, node in enumerate(nodes):
        pools.setdefault(node.zone if node.zone in zones else None, []).append(index)
    for pool in pools.values():
        short = ceil(sum(shares[i] for i in pool)) - sum(soft[i] for i in pool)
        if short > 0:
            raisable = [i for i in pool if soft[i] < hard[i]]
            raisable.sort(key=lambda i: (soft[i] - exact[i] - rounding[i], nodes[i].id))
            for index in raisable[:short]:
                soft[index] += 1
    return [Cap(s, h) for s, h in zip(soft, hard, strict=True)]


def _divide(
    total: Fraction, weights: Sequence[int], ranges: Sequence[tuple[int, int]]
) -> list[Fraction]:
    """Splits ``total`` by weight, each part within its range.

    Parts out of their ranges are fixed at the border, and what is left is split anew. Of those
    too small and those too large only the side with more to correct is fixed at a time, as its
    correction may bring the other side back into range.
    """
    parts = [Fraction()] * len(weights)
    free = list(range(len(weights)))
    while free:
        rate = total / sum(weights[i] for i in free)
        fixed: dict[int, int] = {}
        low = {i: ranges[i][0] for i in free if weights[i] * rate < ranges[i][0]}
        high = {i: ranges[i][1] for i in free if weights[i] * rate > ranges[i][1]}
        missing = sum(low.values()) - rate * sum(weights[i] for i in low)
        excess = rate * sum(weights[i] for i in high) - sum(high.values())
        if missing >= excess:
            fixed |= low
        if excess >= missing:
            fixed |= high
        for index in free:
            parts[index] = Fraction(fixed[index]) if index in fixed else weights[index] * rate
        if not fixed:
            break
        free = [i for i in free if i not in fixed]
        total -= sum(fixed.values())
    return parts
