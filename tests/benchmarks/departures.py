"""How long it takes until the others are told that a node is gone: killed, or gracefully."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from statistics import median

from clusterkit import NodeLeaveEvent
from clusterkit.core.keys import Keys
from clusterkit.ports import Put, Txn
from clusterkit.sync import ClusterKit

from .common import (
    BareWatch,
    Figure,
    NodeProcess,
    new_prefix,
    options,
    quantile,
    rest,
    start_all,
    stop_all,
    until,
)

SURVIVORS = 3
ALLOWANCE = 1.5
GRACEFUL_MEDIAN = 0.050


def killed(endpoint: str, ttls: Sequence[int], rounds: int) -> list[Figure]:
    """SIGKILL to ``on_node_leave`` on every survivor, at each TTL; all TTLs at once."""
    found: dict[int, Figure] = {}

    def measure(ttl: int) -> None:
        found[ttl] = _killed(endpoint, ttl, rounds)

    threads = [threading.Thread(target=measure, args=(ttl,)) for ttl in ttls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[ttl] for ttl in ttls]


def _killed(endpoint: str, ttl: int, rounds: int) -> Figure:
    prefix = new_prefix()
    told: list[float] = []
    kits = [
        ClusterKit(**options(endpoint, prefix, f"survivor-{i}", lease_ttl=ttl))
        for i in range(SURVIVORS)
    ]

    def note(event: NodeLeaveEvent) -> None:
        told.append(time.monotonic())

    for kit in kits:
        kit.on_node_leave(note)
    start_all(kits)
    watch = BareWatch(endpoint, prefix.encode())
    key = Keys.of(prefix, "c").node("victim")
    bare = f"{prefix}/bare".encode()
    took: list[float] = []
    etcds: list[float] = []
    ours: list[float] = []
    try:
        for i in range(rounds):
            told.clear()
            watch.deleted.clear()
            with NodeProcess(options(endpoint, prefix, "victim", lease_ttl=ttl)) as victim:
                victim.start()
                # At another point between two keep-alives each time.
                rest(ttl / 3 * (1 + i / rounds))
                lease = watch.store.grant(ttl, timeout=5.0)
                watch.store.txn(Txn((), (Put(bare, b"", lease.id),)), timeout=5.0)
                kept = time.monotonic()
                watch.store.keep_alive(lease.id, timeout=5.0)
                at = victim.kill()
            until(
                lambda: len(told) == SURVIVORS and bare in watch.deleted, "everybody is told", 90.0
            )
            took.append(max(told) - at)
            etcds.append(watch.deleted[bare] - kept)
            ours.append(max(told) - watch.deleted[key])
    finally:
        watch.close()
        stop_all(kits)
    worst = max(took)
    return Figure(
        f"SIGKILL -> on_node_leave, TTL {ttl} s",
        f"max {worst:.2f} s, median {median(took):.2f} s; etcd alone: max {max(etcds):.2f} s; "
        f"behind the delete event: max {max(ours) * 1000:.0f} ms ({rounds} rounds)",
        f"max {ttl + ALLOWANCE:g} s",
        worst <= ttl + ALLOWANCE,
    )


def graceful(endpoint: str, rounds: int) -> Figure:
    """``stop()`` in another process to ``on_node_leave`` here."""
    prefix = new_prefix()
    told: list[float] = []
    kit = ClusterKit(**options(endpoint, prefix, "stays"))
    kit.on_node_leave(lambda _: told.append(time.monotonic()))
    took: list[float] = []
    with kit, NodeProcess(options(endpoint, prefix, "goes")) as node:
        for _ in range(rounds):
            told.clear()
            node.start()
            until(lambda: len(kit.cluster.nodes) == 2, "both are there")
            rest(0.2)  # the join's hooks and receipts are not what is measured
            node.tell("stop")
            at = node.when("stopping")
            until(lambda: told, "the one that stays is told")
            took.append(told[0] - at)
            node.when("stopped")
    middle = median(took)
    return Figure(
        "stop() -> on_node_leave elsewhere",
        f"median {middle * 1000:.0f} ms, p99 {quantile(took, 0.99) * 1000:.0f} ms "
        f"({rounds} rounds)",
        f"median {GRACEFUL_MEDIAN * 1000:.0f} ms",
        middle <= GRACEFUL_MEDIAN,
    )
