"""The cluster as JSON: model objects and rows of the snapshot, as dicts of plain values. Pure.

Lengths of time are seconds, and their names say so. Of partitions only those are looked at that are
asked for, by their rows: no ``Partition`` is made for a list of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeAlias

from ..core.hashing import partition_id
from ..core.placement import Row
from ..core.spread import Balance
from ..engine.snapshot import Snapshot
from ..model import ClusterHealth, KitState, Node, Partition, Readiness, Stats

Document: TypeAlias = dict[str, Any]


def cluster_document(cluster: str, node_id: str, snapshot: Snapshot) -> Document:
    """``/cluster``: what does not change but by a revision."""
    config = snapshot.state.config
    return {
        "cluster": cluster,
        "node": node_id,
        "revision": snapshot.view.revision,
        "epoch": snapshot.epoch,
        "nodes": len(snapshot.view.nodes),
        "partitions": len(snapshot.rows),
        "replication_factor": snapshot.view.replication_factor,
        "key_hash": None if config is None else config.key_hash,
    }


def node_document(node: Node, balance: Balance, unhealthy: frozenset[str]) -> Document:
    """One entry of ``/nodes``."""
    return {
        "id": node.id,
        "address": node.address,
        "services": dict(node.services),
        "zone": node.zone,
        "weight": node.weight,
        "labels": dict(node.labels),
        "incarnation": node.incarnation,
        "state": node.state,
        "healthy": node.id not in unhealthy,
        "joined_at": node.joined_at.isoformat(),
        "primary_of": balance.primaries.get(node.id, 0),
        "replica_of": balance.replicas.get(node.id, 0),
    }


def row_document(index: int, row: Row) -> Document:
    """One entry of ``/partitions``."""
    return {
        "id": partition_id(index),
        "primary": row[0] if row else None,
        "replicas": list(row[1:]),
    }


def partition_document(partition: Partition, here: str, *, ready: bool) -> Document:
    """``/partitions/{id}``; ``here`` is the id of the node that answers."""
    primary, replicas = partition.primary, partition.replicas
    role = None
    if primary is not None and primary.id == here:
        role = "primary"
    elif any(node.id == here for node in replicas):
        role = "replica"
    return {
        "id": partition.id,
        "index": partition.index,
        "epoch": partition.epoch,
        "primary": None if primary is None else _reference(primary),
        "replicas": [_reference(node) for node in replicas],
        "here": {"node": here, "role": role, "ready": ready},
    }


def _reference(node: Node) -> Document:
    return {"id": node.id, "address": node.address}


def balance_document(snapshot: Snapshot, balance: Balance) -> Document:
    """``/partitions/stats``: how many partitions each member holds, and how even that is."""
    counts = [
        (node_id, balance.primaries.get(node_id, 0), balance.replicas.get(node_id, 0))
        for node_id in snapshot.view.nodes
    ]
    return {
        "revision": snapshot.view.revision,
        "epoch": snapshot.epoch,
        "partitions": balance.partitions,
        "replication_factor": snapshot.view.replication_factor,
        "unowned": balance.unowned,
        "spread": {
            "primary": _spread([primary for _, primary, _ in counts]),
            "replica": _spread([replica for _, _, replica in counts]),
            "total": _spread([primary + replica for _, primary, replica in counts]),
        },
        "nodes": [
            {"id": node_id, "primary": primary, "replica": replica, "total": primary + replica}
            for node_id, primary, replica in counts
        ],
    }


def _spread(counts: Sequence[int]) -> Document:
    if not counts:
        return {"min": 0, "mean": 0.0, "max": 0}
    mean = round(sum(counts) / len(counts), 3)
    return {"min": min(counts), "mean": mean, "max": max(counts)}


def readiness_document(node_id: str | None, state: KitState, found: Readiness) -> Document:
    """``/ready``."""
    return {
        "ready": found.ready,
        "reasons": list(found.reasons),
        "state": str(state),
        "node": node_id,
        "fencing_in_seconds": _seconds(found.fencing_in),
    }


def health_document(
    node_id: str, state: KitState, health: ClusterHealth, readiness: Readiness, stats: Stats
) -> Document:
    """``/health/detailed``."""
    return {
        "status": health.status,
        "healthy_nodes": health.healthy_nodes,
        "unhealthy_nodes": health.unhealthy_nodes,
        "total_nodes": health.total_nodes,
        "unhealthy_node_ids": list(health.unhealthy_node_ids),
        "reasons": list(health.reasons),
        "node": readiness_document(node_id, state, readiness),
        "stats": stats_document(stats),
    }


def stats_document(stats: Stats) -> Mapping[str, int | float | None]:
    """The figures of the node."""
    return {
        "revision": stats.revision,
        "view_age_seconds": _seconds(stats.view_age),
        "rebalances": stats.rebalances,
        "hooks_running": stats.hooks_running,
        "hooks_queued": stats.hooks_queued,
        "hook_queue_age_seconds": _seconds(stats.hook_queue_age),
        "hooks_stuck": stats.hooks_stuck,
        "hook_failures": stats.hook_failures,
        "owed": stats.owed,
        "watch_restarts": stats.watch_restarts,
        "divergences": stats.divergences,
        "keep_alive_seconds": None if stats.keep_alive is None else _seconds(stats.keep_alive),
        "primaries": stats.primaries,
        "replicas": stats.replicas,
    }


def _seconds(length: timedelta) -> float:
    return round(length.total_seconds(), 6)
