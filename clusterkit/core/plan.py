"""What follows from a change for a node: its event, and the rebalance that it makes necessary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ..events import (
    ChangeReason,
    NodeJoinEvent,
    NodeLeaveEvent,
    NodeRejoinEvent,
)
from .hashing import partition_id
from .membership import (
    Change,
    ConfigChanged,
    CordonChanged,
    Joined,
    Left,
    RebalanceRequested,
    Rejoined,
    State,
    Updated,
)
from .placement import Row
from .rows import differences


@dataclass(frozen=True, slots=True)
class Cause:
    """What makes a rebalance necessary."""

    reason: ChangeReason
    node_id: str | None


def cause_of(change: Change) -> Cause | None:
    """The rebalance that a change calls for; None if it calls for none."""
    match change:
        case Joined(record):
            return Cause("node_join", record.node.id)
        case Rejoined(record):
            return Cause("node_rejoin", record.node.id)
        case Left(record):
            return Cause("node_leave", record.node.id)
        case Updated(record, placement=True):
            return Cause("config_change", record.node.id)
        case ConfigChanged():
            return Cause("config_change", None)
        case CordonChanged(node_id):
            return Cause("config_change", node_id)
        case RebalanceRequested(request):
            return Cause("manual", request.node_id)
        case _:
            return None


def merge(causes: Iterable[Cause]) -> Cause:
    """Several causes as one: of the same reason that reason, else ``rebalance``."""
    found = list(dict.fromkeys(causes))
    reasons = {c.reason for c in found}
    nodes = {c.node_id for c in found}
    return Cause(
        reasons.pop() if len(reasons) == 1 else "rebalance",
        nodes.pop() if len(nodes) == 1 else None,
    )


def node_event(
    change: Change,
    old_rows: Sequence[Row],
    state: State,
    now: datetime,
    *,
    rows: Sequence[Row] | None = None,
) -> NodeJoinEvent | NodeRejoinEvent | NodeLeaveEvent | None:
    """The event of a node's join, rejoin or leave; None for any other change.

    With the present ``rows`` a leave need not look through all of those before.
    """
    match change:
        case Joined(record):
            return NodeJoinEvent(
                timestamp=record.node.joined_at,
                revision=state.revision,
                event_id=f"node_join/{record.node.id}/{record.nonce}",
                node=record.node,
                cluster_size=len(state.members),
                is_bootstrap=record.bootstrap,
            )
        case Rejoined(record):
            # A slot that was taken over was never seen to be lost: since when is not known.
            past = record.previous
            seen = past.left_at if past is not None else None
            offline = None if seen is None else max(record.node.joined_at - seen, timedelta(0))
            return NodeRejoinEvent(
                timestamp=record.node.joined_at,
                revision=state.revision,
                event_id=f"node_rejoin/{record.node.id}/{record.nonce}",
                node=record.node,
                offline_duration=offline,
                last_seen_at=seen,
                partitions_before_leave=tuple(map(partition_id, past.partitions if past else ())),
            )
        case Left(record, reason, at):
            owned, replica = last_held(record.node.id, old_rows, rows, state)
            return NodeLeaveEvent(
                timestamp=at or now,
                revision=state.revision,
                event_id=f"node_leave/{record.node.id}/{record.nonce}",
                node=record.node,
                reason=reason,
                partitions_owned=tuple(map(partition_id, owned)),
                partitions_replica=tuple(map(partition_id, replica)),
            )
        case _:
            return None


def held_by(node_id: str, rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """The indexes of the partitions that a node is the primary, and a replica, of."""
    return _roles(node_id, enumerate(rows))


def last_held(
    node_id: str, old_rows: Sequence[Row], rows: Sequence[Row] | None, state: State
) -> tuple[list[int], list[int]]:
    """The same of the rows before, for a node that has left; with those since if they are there.

    All that it held are others now, so that it is enough to look through what differs. But who left
    and joined again in one revision may hold the same as before.
    """
    if rows is None or node_id in state.members:
        return held_by(node_id, old_rows)
    return _roles(node_id, ((index, old) for index, old, _ in differences(old_rows, rows)))


def _roles(node_id: str, rows: Iterable[tuple[int, Row]]) -> tuple[list[int], list[int]]:
    owned: list[int] = []
    replica: list[int] = []
    for index, row in rows:
        if node_id in row:
            (owned if row[0] == node_id else replica).append(index)
    return owned, replica


def reset_nodes(old: Mapping[str, str], state: State) -> set[str]:
    """The members whose copies are worthless, given the nonces of the view before.

    They have a new registration: their slot was lost and they missed writes, or another process
    that starts without data has taken it over. One that has the data on its disk, and whose slot
    was held for it, has lost nothing.
    """
    reset: set[str] = set()
    for node_id, record in state.members.items():
        nonce = old.get(node_id)
        if nonce is not None and nonce != record.nonce:
            end = record.previous
            held = end is not None and end.reason == "replaced" and end.registration.nonce == nonce
            if not (held and record.storage == "disk"):
                reset.add(node_id)
    return reset
