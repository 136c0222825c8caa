"""What is so already, told as events to a hook that is registered while the kit runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from ..events import Event, PartitionChangeEvent
from ..hooks import HookKind
from .hashing import partition_id
from .holdings import Holdings
from .local_events import role_events
from .membership import Joined, State
from .motion import Gain
from .placement import Row
from .plan import node_event


def present_events(
    kind: HookKind,
    state: State,
    rows: Sequence[Row],
    holdings: Holdings,
    *,
    told_rows: Sequence[Row],
    stay: tuple[str, str],
    now: datetime,
) -> Iterator[Event]:
    """The events by which all of a kind's news so far could have led to here.

    Every member has joined, every holder has become one, and this node has got its roles. Of what
    is over (leaves, rebalances, errors) there is nothing to tell.

    Args:
        kind: The kind of hook.
        state: The cluster.
        rows: Its assignment.
        holdings: Who has which data.
        told_rows: The assignment whose roles this node was told of last.
        stay: This node's id and the nonce of its stay.
        now: The time, for what has no time of its own.
    """
    match kind:
        case "node_join":
            for node_id in sorted(state.members):
                event = node_event(Joined(state.members[node_id]), rows, state, now)
                assert event is not None
                yield event
        case "partition_change":
            yield from _changes(state, rows, holdings, now)
        case "partition_role":
            yield from role_events((), told_rows, state, stay, now)
        case _:
            return


def _changes(
    state: State, rows: Sequence[Row], holdings: Holdings, now: datetime
) -> Iterator[PartitionChangeEvent]:
    up = {node_id for node_id in state.members if state.is_alive(node_id)}
    for index, row in enumerate(rows):
        for node_id in row:
            record = state.members[node_id]
            name = partition_id(index)
            sources = holdings.sources(
                Gain(index, node_id, state.epoch, needs_data=True),
                row,
                old_primary=row[0],
                receipts=state.receipts,
                members=up,
            )
            yield PartitionChangeEvent(
                timestamp=now,
                revision=state.revision,
                event_id=f"partition_change/{name}/{node_id}/{record.nonce}/{state.epoch}",
                partition_id=name,
                copy_from_nodes=tuple(state.members[n].node for n in sources),
                copy_to_node=record.node,
                # Whatever the hook keeps, it has nothing of it yet.
                needs_data=True,
                change_reason="manual",
                old_primary=row[0],
                new_primary=row[0],
            )
