"""A cluster that nobody has to start: the state that a node would have read from etcd."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

from clusterkit import Node
from clusterkit.core.membership import State
from clusterkit.core.records import Alive, ClusterConfig, NodeRecord, Process, Receipt

AT = datetime(2026, 11, 25, tzinfo=UTC)
EPOCH = 10


def member(node_id: str) -> NodeRecord:
    """A node as etcd has it."""
    nothing = MappingProxyType[str, str]({})
    node = Node(
        node_id, f"{node_id}.test:1", nothing, None, 100, nothing, f"i-{node_id}", "active", AT
    )
    return NodeRecord(node, f"nonce-of-{node_id}", "memory", None, False, Process())


def cluster(nodes: Iterable[str], *, partitions: int, replication: int = 3) -> State:
    """Members that are alive and have given a receipt for the epoch before ``EPOCH``."""
    members = {node_id: member(node_id) for node_id in nodes}
    return State(
        revision=9,
        cluster_id=1,
        config=ClusterConfig(partitions, replication, "crc32", 1, 7),
        members=members,
        alive={(node_id, f"i-{node_id}"): Alive(m.nonce) for node_id, m in members.items()},
        receipts={node_id: Receipt(m.nonce, EPOCH - 1) for node_id, m in members.items()},
    )


def joined(state: State, node_id: str) -> State:
    """The next revision: one more member."""
    record = member(node_id)
    return replace(
        state,
        revision=state.revision + 1,
        membership_revision=state.revision + 1,
        members={**state.members, node_id: record},
        alive={**state.alive, (node_id, f"i-{node_id}"): Alive(record.nonce)},
    )


def left(state: State, node_id: str) -> State:
    """The next revision: one member less."""
    return replace(
        state,
        revision=state.revision + 1,
        membership_revision=state.revision + 1,
        members={n: m for n, m in state.members.items() if n != node_id},
        alive={pair: a for pair, a in state.alive.items() if pair[0] != node_id},
    )
