"""The story: what is done to the cluster, and what every live node must be told of it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .cluster import LEASE_TTL_SECONDS, DemoCluster
from .expect import Expect

FIRST: Final = ("node-1", "node-2", "node-3", "node-4")
FIVE: Final = frozenset({*FIRST, "node-5"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change to the cluster. ``name`` is for programs, ``title`` for people."""

    name: str
    title: str
    act: Callable[[DemoCluster], object]
    expected: tuple[Expect, ...]


def start() -> Step:
    """The first four nodes: their processes start together, and join one after the other."""

    def act(cluster: DemoCluster) -> None:
        for name in FIRST:
            cluster.spawn(name)
        for name in FIRST:
            cluster.join(name)
        cluster.watch()

    joins = [
        Expect(
            kind="node_join",
            about=name,
            seen_by=frozenset(FIRST[: position + 1]),
            fields={"is_bootstrap": position == 0, "cluster_size": position + 1},
        )
        for position, name in enumerate(FIRST)
    ]
    # Joins within the settle time are one rebalance, so how many there are depends on speed.
    moves = [
        Expect(kind=kind, seen_by=frozenset(FIRST), once=False)
        for kind in ("rebalance_start", "partition_change", "rebalance_complete")
    ]
    return Step(
        name="start",
        title=f"etcd and {len(FIRST)} node processes start; they join one after the other",
        act=act,
        expected=(*joins, *moves),
    )


def changes() -> tuple[Step, ...]:
    """What happens once there is data: a node more, a crash, a return, a stop, a rebalance."""
    without_2, without_3 = FIVE - {"node-2"}, FIVE - {"node-3"}

    def come(cluster: DemoCluster, name: str) -> None:
        cluster.spawn(name)
        cluster.join(name)

    return (
        Step(
            name="join",
            title="a fifth node joins",
            act=lambda cluster: come(cluster, "node-5"),
            expected=(
                Expect(
                    kind="node_join",
                    about="node-5",
                    seen_by=FIVE,
                    fields={"is_bootstrap": False, "cluster_size": 5},
                ),
                *_rebalance("node_join", "node-5", FIVE),
            ),
        ),
        Step(
            name="kill",
            title=f"node-2 is killed with SIGKILL; its lease of {LEASE_TTL_SECONDS} s runs out",
            act=lambda cluster: cluster.kill("node-2"),
            expected=(
                Expect(
                    kind="node_leave",
                    about="node-2",
                    seen_by=without_2,
                    fields={"reason": "health_check_failure"},
                ),
                *_rebalance("node_leave", "node-2", without_2),
                Expect(
                    kind="cluster_health_change",
                    seen_by=without_2,
                    fields={"status": "degraded", "unhealthy_node_ids": ["node-2"]},
                ),
            ),
        ),
        Step(
            name="rejoin",
            title="node-2 comes back, with no data",
            act=lambda cluster: come(cluster, "node-2"),
            expected=(
                Expect(kind="node_rejoin", about="node-2", seen_by=FIVE),
                *_rebalance("node_rejoin", "node-2", FIVE),
                Expect(
                    kind="cluster_health_change",
                    seen_by=FIVE,  # itself too: it found the cluster degraded, by its own absence
                    fields={"status": "healthy", "unhealthy_node_ids": []},
                ),
            ),
        ),
        Step(
            name="stop",
            title="node-3 stops gracefully",
            act=lambda cluster: cluster.stop("node-3"),
            expected=(
                Expect(
                    kind="node_leave",
                    about="node-3",
                    seen_by=without_3,
                    fields={"reason": "graceful_shutdown"},
                ),
                *_rebalance("node_leave", "node-3", without_3),
            ),
        ),
        Step(
            name="rebalance",
            title="node-1 asks for a rebalance; nothing is owed, so nothing moves",
            act=lambda cluster: cluster.rebalance("node-1"),
            expected=_rebalance("manual", "node-1", without_3, moves=False),
        ),
    )


def _rebalance(
    reason: str, node_id: str, seen_by: frozenset[str], *, moves: bool = True
) -> tuple[Expect, ...]:
    """The rebalance that follows from what one node did, on every live node alike."""
    cause = {"trigger": reason, "trigger_node_id": node_id}
    change = Expect(
        kind="partition_change",
        seen_by=seen_by,
        fields={"change_reason": reason},
        once=False,
        same_everywhere=True,
    )
    return (
        Expect(kind="rebalance_start", seen_by=seen_by, fields=cause),
        *((change,) if moves else ()),
        Expect(kind="rebalance_complete", seen_by=seen_by, fields=cause),
    )
