"""``partition_for(key)`` beside a method that does nothing, and beside other libraries.

It gives the partition with all its holders, so the others are asked for three nodes too.
"""

from __future__ import annotations

import time
from statistics import median

from tooz.hashring import HashRing as ToozRing
from uhashring import HashRing as UhashRing

from clusterkit import ClusterHealth, ClusterKit, KitState
from clusterkit.core.ownership import rows_of
from clusterkit.engine.snapshot import Snapshots

from .common import Row, at_most, faster, tidy, untidied
from .state import cluster

KEYS = [f"user-{i}" for i in range(1000)]
EMPTY_RATIO, TOOZ, UHASHRING = 7.1, 13.0, 10.0
_NODES = 10
_HOLDERS = 3
_PARTITIONS = 1024


class _Empty:
    def method(self, key: str) -> None:
        pass


def rows(rounds: int) -> list[Row]:
    """Nanoseconds for one key of a thousand that are asked for in turn."""
    names = [f"node-{i}" for i in range(_NODES)]
    state = cluster(names, partitions=_PARTITIONS, replication=_HOLDERS)
    kit = ClusterKit(address="here:1")
    assigned = rows_of(state)
    snapshot = Snapshots("node-0").next(
        state,
        assigned,
        kit_state=KitState.JOINED,
        session=None,
        initial_copies_done=True,
        was_ready=True,
        health=ClusterHealth("healthy", _NODES, 0, _NODES, (), ()),
    )
    assert snapshot is not None
    kit._lookup.follow(snapshot)  # as after a start, without an etcd
    empty = _Empty()
    tooz, uhashring = ToozRing(names), UhashRing(names)

    def ours() -> None:
        for key in KEYS:
            kit.partition_for(key)

    def nothing() -> None:
        for key in KEYS:
            empty.method(key)

    def of_tooz() -> None:
        for key in KEYS:
            tooz.get_nodes(key.encode(), replicas=_HOLDERS - 1)

    def of_uhashring() -> None:
        for key in KEYS:
            list(uhashring.range(key, _HOLDERS))

    sides = ours, nothing, of_tooz, of_uhashring
    times: list[list[float]] = [[] for _ in sides]
    with untidied():
        for number in range(rounds + 1):
            tidy()
            for side, found in zip(sides, times, strict=True):
                began = time.perf_counter()
                side()
                if number:  # the first makes the partitions
                    found.append((time.perf_counter() - began) / len(KEYS) * 1e9)
    own, bare, by_tooz, by_uhashring = map(median, times)
    whole = "partition_for(key), 3 holders"
    return [
        at_most("partition_for(key) / an empty method", own, bare, "ns", EMPTY_RATIO),
        faster(f"{whole}, tooz / ours", own, by_tooz, "ns", TOOZ),
        faster(f"{whole}, uhashring / ours", own, by_uhashring, "ns", UHASHRING),
    ]
