"""Placing partitions: all of them, after a join or a leave, and how evenly."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice, permutations
from statistics import fmean, median

import hrw
from tooz.hashring import HashRing

from clusterkit.core.hashing import seed64
from clusterkit.core.incremental import Incremental
from clusterkit.core.placement import Candidate, Ranking, assign
from clusterkit.core.shape import Shape

from . import native
from .common import Row, at_most, duel, faster, tidy, untidied
from .md5_port import place

COUNT = 3
STDLIB, NUMPY, RING, NATIVE, JOIN, LEAVE = 4.0, 130.0, 10.0, 4.0, 500.0, 200.0
SEEDS = 50


def rows(rounds: int) -> list[Row]:
    """All rows of this module; ``rounds`` of each duel."""
    return [*_full(rounds), *_native(rounds), *_changes(rounds), *_balance()]


def _nodes(count: int) -> list[Candidate]:
    return [Candidate(f"node-{i}", 100, None) for i in range(count)]


def _seconds(partitions: int, nodes: Sequence[Candidate]) -> float:
    tidy()
    began = time.perf_counter()
    assign(nodes, partitions=partitions, replication_factor=COUNT, cluster_seed=1)
    return time.perf_counter() - began


def _stdlib(partitions: int, nodes: Sequence[Candidate]) -> float:
    """What ``assign`` does where numpy is not installed."""
    tidy()
    began = time.perf_counter()
    shape = Shape(partitions, COUNT, 1)
    tuple(Ranking.of(nodes, shape).rows(shape.seeds.blocks))
    return time.perf_counter() - began


def _by_md5(partitions: int, nodes: Sequence[Candidate]) -> float:
    names = [node.id for node in nodes]
    tidy()
    began = time.perf_counter()
    place(names, partitions, COUNT)
    return time.perf_counter() - began


def _by_ring(partitions: int, nodes: Sequence[Candidate]) -> float:
    ring = HashRing([node.id for node in nodes])
    tidy()
    began = time.perf_counter()
    for partition in range(partitions):
        ring.get_nodes(str(partition).encode(), replicas=COUNT - 1)
    return time.perf_counter() - began


def _by_hrw(partitions: int, nodes: Sequence[Candidate]) -> float:
    names = [node.id.encode() for node in nodes]
    tidy()
    began = time.perf_counter()
    for partition in range(partitions):
        hrw.sort(str(partition).encode(), names)
    return time.perf_counter() - began


def _full(rounds: int) -> list[Row]:
    few, many = _nodes(10), _nodes(100)
    small, large = 1024, 4096
    found: list[Row] = []
    for work, ours, peer, target in (
        (
            "full 1,024 x 10, an MD5 port / stdlib",
            lambda: _stdlib(small, few),
            lambda: _by_md5(small, few),
            STDLIB,
        ),
        (
            "full 1,024 x 10, hrw / stdlib",
            lambda: _stdlib(small, few),
            lambda: _by_hrw(small, few),
            None,
        ),
        (
            "full 4,096 x 100, an MD5 port / stdlib",
            lambda: _stdlib(large, many),
            lambda: _by_md5(large, many),
            None,
        ),
        (
            "full 4,096 x 100, an MD5 port / numpy",
            lambda: _seconds(large, many),
            lambda: _by_md5(large, many),
            NUMPY,
        ),
        (
            "full 4,096 x 100, tooz's ring / numpy",
            lambda: _seconds(large, many),
            lambda: _by_ring(large, many),
            RING,
        ),
    ):
        mine, theirs = duel(ours, peer, rounds)
        found.append(faster(work, mine * 1e3, theirs * 1e3, "ms", target))
    return found


def _native(rounds: int) -> list[Row]:
    nodes, partitions = _nodes(1000), 65_536
    work = "full 65,536 x 1,000, numpy / the same loop in C, -O3"
    with native.library() as compiled:
        if compiled is None:
            print(f"{work}: left out, since there is no C compiler (cc, gcc or clang)")
            return []
        seeds = Shape(partitions, COUNT, 1).seeds.each
        loop = native.Native(compiled, seeds, [seed64(n.id, 1, "node") for n in nodes])
        ours, peer = duel(lambda: _seconds(partitions, nodes), loop.run, rounds)
        placed = assign(nodes, partitions=partitions, replication_factor=COUNT, cluster_seed=1)
        same = [nodes[i].id for i in loop.found] == [node for row in placed for node in row]
        if not same:
            raise AssertionError("the loop in C places otherwise")
    return [at_most(work, ours * 1e3, peer * 1e3, "ms", NATIVE)]


def _changes(rounds: int) -> list[Row]:
    """A join and a leave of one node of a thousand, beside placing all anew.

    A node that came after the full pass is known to have pushed others out of rows; one that was
    there from the start is not, and its first leave has to look for who comes next.
    """
    nodes, partitions = _nodes(1000), 65_536
    followed = Incremental()
    followed.assign(nodes, partitions=partitions, replication_factor=COUNT, cluster_seed=1)
    times: dict[str, list[float]] = {"full": [], "join": [], "leave": [], "first": []}
    old = iter(nodes)
    with untidied():
        for number in range(rounds + 1):
            full = _seconds(partitions, nodes)
            tidy()
            for each in range(10):
                newcomer = Candidate(f"newcomer-{number}-{each}", 100, None)
                began = time.perf_counter()
                followed.change([newcomer])
                joined = time.perf_counter()
                followed.change([], [newcomer.id])
                left = time.perf_counter()
                if number:
                    times["join"].append(joined - began)
                    times["leave"].append(left - joined)
            tidy()
            for leaver in islice(old, 10):
                began = time.perf_counter()
                followed.change([], [leaver.id])
                left = time.perf_counter()
                followed.change([leaver])
                if number:
                    times["first"].append(left - began)
            if number:
                times["full"].append(full)
    if followed.full_passes != 1:
        raise AssertionError("a join or leave placed all partitions anew")
    full, join, leave, first = (median(times[name]) * 1e3 for name in times)
    return [
        faster("join at 65,536 x 1,000, full / join, numpy", join, full, "ms", JOIN),
        faster("leave at 65,536 x 1,000, full / leave, numpy", leave, full, "ms", LEAVE),
        faster("the same, of one that was there from the start", first, full, "ms", LEAVE),
    ]


def _balance() -> list[Row]:
    """Chi-squared over its degrees of freedom, about 1 for a fair draw: a mean over seeds."""
    nodes, partitions = _nodes(10), 65_536
    primaries: list[float] = []
    pairs: list[float] = []
    for seed in range(SEEDS):
        placed = assign(nodes, partitions=partitions, replication_factor=2, cluster_seed=seed)
        primaries.append(_excess(Counter(row[:1] for row in placed), len(nodes), partitions))
        count = len(list(permutations(nodes, 2)))
        pairs.append(_excess(Counter(placed), count, partitions))
    return [
        _within(f"balance 65,536 x 10, primaries, mean of {SEEDS} seeds", fmean(primaries)),
        _within(f"balance 65,536 x 10, pairs, mean of {SEEDS} seeds", fmean(pairs)),
    ]


def _excess(counts: Counter[tuple[str, ...]], cells: int, total: int) -> float:
    even = total / cells
    missing = (cells - len(counts)) * even
    return (missing + sum((n - even) ** 2 / even for n in counts.values())) / (cells - 1)


def _within(work: str, value: float) -> Row:
    return Row(work, value, 1.0, "chi2/df", value, "within 0.9 and 1.1", 0.9 <= value <= 1.1)
