"""How the cluster is: a function of what etcd holds, and of what this node knows of itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime, timedelta

from ..events import Status
from ..model import ClusterHealth
from .hashing import partition_id
from .membership import State
from .wording import named

UNHEALTHY_RETENTION = timedelta(minutes=10)
"""How long a node whose lease expired is missed: a Deployment's old pods never come back."""


def _missed(state: State) -> Iterator[tuple[str, datetime | None]]:
    """The nodes whose lease expired and that are not back, with when it did, if written."""
    for node_id, past in state.history.items():
        if node_id in state.members:
            continue
        if past.open is not None:
            yield node_id, None
        elif past.departures:
            last = past.departures[-1]
            if last.reason == "health_check_failure" and last.left_at is not None:
                yield node_id, last.left_at


def unhealthy_nodes(state: State, now: datetime) -> dict[str, str]:
    """The nodes that should be well and are not, with the reason in words."""
    found: dict[str, str] = {}
    for node_id, left_at in _missed(state):
        if left_at is None or now - left_at < UNHEALTHY_RETENTION:
            found[node_id] = "its lease expired"
    for node_id, member in state.members.items():
        alive = state.alive.get((node_id, member.node.incarnation))
        if alive is None:
            found[node_id] = "it shows no sign of life"
        elif alive.failing_checks:
            found[node_id] = "its health checks fail: " + ", ".join(alive.failing_checks)
    return dict(sorted(found.items()))


def retention_ends(state: State, now: datetime) -> timedelta | None:
    """When the set of unhealthy nodes next changes by the passing of time alone; None for never."""
    ages = (now - left_at for _, left_at in _missed(state) if left_at is not None)
    return min((UNHEALTHY_RETENTION - a for a in ages if a < UNHEALTHY_RETENTION), default=None)


def assess(
    state: State,
    *,
    now: datetime,
    fenced: bool,
    owed_failing: bool,
    lost: Collection[int] = (),
    overdue: Collection[str] = (),
) -> ClusterHealth:
    """The health of the cluster, seen from one node.

    ``critical``: no majority of the known nodes is healthy; or no live node has the data of some
    partition; or this node is fenced. ``degraded``: a node is unhealthy; or partitions have fewer
    holders than they should although nodes enough are known; or hooks of this node have failed and
    are owed; or a node's receipt is overdue. Else ``healthy``.

    Args:
        state: The cluster.
        now: The time.
        fenced: Whether this node is fenced.
        owed_failing: Whether hooks of this node have failed and are owed.
        lost: The indexes of the partitions whose data nobody alive has.
        overdue: The nodes whose receipts are overdue.
    """
    unhealthy = unhealthy_nodes(state, now)
    total = len(state.members.keys() | unhealthy.keys())
    healthy = total - len(unhealthy)
    reasons = [f"{node_id}: {why}" for node_id, why in unhealthy.items()]
    wanted = state.config.replication_factor if state.config else 0
    status: Status = "healthy"
    if unhealthy:
        status = "degraded"
    if len(state.members) < wanted <= total:
        status = "degraded"
        reasons.append(f"{len(state.members)} nodes for {wanted} holders a partition")
    if owed_failing:
        status = "degraded"
        reasons.append("partition-change hooks of this node have failed and are owed")
    if overdue:
        status = "degraded"
        reasons.append(f"partition-change hooks are overdue on {named(sorted(overdue))}")
    if lost:
        status = "critical"
        names = [partition_id(index) for index in sorted(lost)]
        reasons.append(f"no live node has the data of {named(names)}")
    if 2 * healthy <= total and total:
        status = "critical"
        reasons.append(f"only {healthy} of {total} nodes are healthy")
    if fenced:
        status = "critical"
        reasons.append("this node is fenced: it cannot prove that its lease is alive")
    return ClusterHealth(status, healthy, len(unhealthy), total, tuple(unhealthy), tuple(reasons))
