"""What hooks are called with: immutable events, with timezone-aware UTC timestamps.

Guarantees that hold for every event:

* ``event_id`` is the idempotency key: a retry or a second delivery of the same change carries
  the same id. Node and partition events have the same id on every node that applied the same
  revisions; ids of rebalance and health events are local to a node.
* ``revision`` is the etcd revision of the view that the event was found in.
* ``timestamp`` is the time recorded in etcd where there is one (a join, a graceful leave), else
  this node's clock when it learned of the change.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from .model import Node

ChangeReason: TypeAlias = Literal[
    "node_join", "node_rejoin", "node_leave", "rebalance", "manual", "config_change"
]
"""Why partitions move; ``rebalance`` where several causes were taken together."""

LeaveReason: TypeAlias = Literal["health_check_failure", "graceful_shutdown", "removed_by_admin"]
"""Why a node left; ``health_check_failure`` is the expiry of its lease."""

Status: TypeAlias = Literal["healthy", "degraded", "critical"]
Role: TypeAlias = Literal["primary", "replica"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What all events have in common; see the module for what each field promises."""

    timestamp: datetime
    revision: int
    event_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionChangeEvent(Event):
    """A node becomes a holder of a partition, or its primary.

    Attributes:
        partition_id: The partition, ``partition-0`` and so on.
        copy_from_nodes: The live nodes other than the target that have the data: the old primary
            first, then those whose receipt is newest. Empty if nobody has it.
        copy_to_node: The target.
        needs_data: False if the target held the partition already (a promotion).
        change_reason: Why.
        old_primary: The id of the primary before, None if there was none.
        new_primary: The id of the primary now, None if there is none.
    """

    partition_id: str
    copy_from_nodes: tuple[Node, ...]
    copy_to_node: Node
    needs_data: bool
    change_reason: ChangeReason
    old_primary: str | None
    new_primary: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionRoleEvent(Event):
    """This node's role for a partition changed; None is no role."""

    partition_id: str
    old_role: Role | None
    new_role: Role | None
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionDropEvent(Event):
    """Every present holder has its receipt: this node, no longer a holder, may delete its copy."""

    partition_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionLostEvent(Event):
    """No live node has the partition's data any more."""

    partition_id: str
    last_holders: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FencedEvent(Event):
    """This node can no longer prove that its lease is alive, and owns nothing."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfencedEvent(Event):
    """This node may own partitions again; ``rejoined`` if it had to join anew."""

    rejoined: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HookErrorEvent(Event):
    """A hook raised, or ran out of time."""

    hook: str
    error: BaseException
    failed_event: Event
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeJoinEvent(Event):
    """A node that the cluster's history does not know has joined.

    Attributes:
        node: The node.
        cluster_size: How many nodes are members, this one included.
        is_bootstrap: True for the first node of a cluster that has no history.
    """

    node: Node
    cluster_size: int
    is_bootstrap: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRejoinEvent(Event):
    """A node that was here before is back, possibly as a new process.

    Attributes:
        node: The node as it is now.
        offline_duration: From ``last_seen_at`` to its join, never negative; None if unknown.
        last_seen_at: When it left; None if nobody can know.
        partitions_before_leave: The ids of the partitions that it held then.
    """

    node: Node
    offline_duration: timedelta | None
    last_seen_at: datetime | None
    partitions_before_leave: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLeaveEvent(Event):
    """A node has left the cluster.

    Attributes:
        node: The node as it was last.
        reason: Why; never guessed.
        partitions_owned: The ids of the partitions that it was the primary of.
        partitions_replica: The ids of those that it was a replica of.
    """

    node: Node
    reason: LeaveReason
    partitions_owned: tuple[str, ...]
    partitions_replica: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RebalanceEvent(Event):
    """This node begins, or has completed, the passage from one assignment to the next.

    Attributes:
        trigger: Why; ``rebalance`` where several causes were taken together.
        trigger_node_id: The node that caused it, None if no single node did.
        partitions_to_move: How many partitions get a holder that has not got the data.
        nodes_affected: The sorted ids of the nodes that gain or lose a partition, or a primary.
    """

    trigger: ChangeReason
    trigger_node_id: str | None
    partitions_to_move: int
    nodes_affected: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterHealthEvent(Event):
    """The cluster's status, or the set of its unhealthy nodes, changed."""

    healthy_nodes: int
    unhealthy_nodes: int
    total_nodes: int
    status: Status
    unhealthy_node_ids: tuple[str, ...]
