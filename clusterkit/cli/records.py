"""Events as flat records that JSON can carry; the form of ``watch --json`` and ``demo --json``.

A record has ``event`` (the hook's name without ``on_``), ``seen_by``, ``revision``, ``event_id``
and the event's own fields: nodes as their ids, timestamps in ISO 8601, durations in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from clusterkit.events import Event, RebalanceEvent
from clusterkit.hooks import Hooks
from clusterkit.model import Node

Record: TypeAlias = Mapping[str, Any]

HOOK_KINDS = (
    "node_join",
    "node_rejoin",
    "node_leave",
    "rebalance_start",
    "partition_change",
    "rebalance_complete",
    "cluster_health_change",
)
"""The seven hooks, in the order in which one change fires them."""


def to_record(
    kind: str, event: Event, *, seen_by: str, duration: timedelta | None = None
) -> dict[str, Any]:
    """The record of one event; ``duration`` is what ``rebalance_complete`` hooks get beside it."""
    record: dict[str, Any] = {
        "event": kind,
        "seen_by": seen_by,
        "revision": event.revision,
        "event_id": event.event_id,
    }
    for field in fields(event):
        record.setdefault(field.name, plain(getattr(event, field.name)))
    if duration is not None:
        record["duration"] = plain(duration)
    return record


def plain(value: object) -> Any:
    """A field's value as JSON has it."""
    if isinstance(value, Node):
        return value.id
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


def record_all(hooks: Hooks, seen_by: str, sink: Callable[[dict[str, Any]], object]) -> None:
    """Registers all seven hooks so that ``sink`` gets the record of every event.

    ``sink`` is called from several threads at once.
    """

    def simple(kind: str) -> Callable[[Event], None]:
        def hook(event: Event) -> None:
            sink(to_record(kind, event, seen_by=seen_by))

        return hook

    def complete(event: RebalanceEvent, duration: timedelta) -> None:
        sink(to_record("rebalance_complete", event, seen_by=seen_by, duration=duration))

    hooks.on_node_join(simple("node_join"))
    hooks.on_node_rejoin(simple("node_rejoin"))
    hooks.on_node_leave(simple("node_leave"))
    hooks.on_rebalance_start(simple("rebalance_start"))
    hooks.on_partition_change(simple("partition_change"))
    hooks.on_rebalance_complete(complete)
    hooks.on_cluster_health_change(simple("cluster_health_change"))


def describe(record: Record) -> str:
    """One event in words for people, without who saw it."""
    match record["event"]:
        case "node_join":
            first = ", the first of a new cluster" if record["is_bootstrap"] else ""
            return f"{record['node']} joined ({record['cluster_size']} in the cluster{first})"
        case "node_rejoin":
            away = record["offline_duration"]
            after = "" if away is None else f" after {away:.1f} s away"
            held = len(record["partitions_before_leave"])
            return f"{record['node']} is back{after}, held {held} partitions before"
        case "node_leave":
            owned, replica = record["partitions_owned"], record["partitions_replica"]
            return (
                f"{record['node']} left: {record['reason']}, was primary of {len(owned)} "
                f"and replica of {len(replica)} partitions"
            )
        case "rebalance_start" | "rebalance_complete":
            cause = f" of {record['trigger_node_id']}" if record["trigger_node_id"] else ""
            text = f"{record['trigger']}{cause}, {record['partitions_to_move']} partitions to move"
            return text if "duration" not in record else f"{text}, took {record['duration']:.3f} s"
        case "partition_change":
            sources = ", ".join(record["copy_from_nodes"]) or "nobody"
            what = f"copy from {sources}" if record["needs_data"] else "has it already"
            return (
                f"{record['partition_id']} to {record['copy_to_node']} ({what}), "
                f"{record['change_reason']}, primary {record['old_primary']} "
                f"then {record['new_primary']}"
            )
        case "cluster_health_change":
            ids = ", ".join(record["unhealthy_node_ids"])
            counts = f"{record['healthy_nodes']} of {record['total_nodes']} nodes healthy"
            return f"{record['status']}, {counts}" + (f", not: {ids}" if ids else "")
    return str(record["event"])
