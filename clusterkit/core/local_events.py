"""What a change means for the one node that looks at it: roles, copies to drop, partitions lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from ..events import PartitionDropEvent, PartitionLostEvent, PartitionRoleEvent
from .hashing import partition_id
from .holdings import Holdings
from .membership import State
from .motion import Gain
from .ownership import role_changes
from .placement import Row
from .records import Receipt


def role_events(
    told: Sequence[Row], rows: Sequence[Row], state: State, stay: tuple[str, str], now: datetime
) -> Iterator[PartitionRoleEvent]:
    """How a node's roles differ from those that it was told last; ``stay`` is its id and nonce."""
    node_id, nonce = stay
    epoch = state.epoch
    for change in role_changes(told, rows, node_id):
        name = partition_id(change.index)
        # The end of a stay takes the roles away in the epoch that gave them.
        of_role = f"{epoch}/{change.new or 'none'}"
        yield PartitionRoleEvent(
            timestamp=now,
            revision=state.revision,
            event_id=f"partition_role/{name}/{node_id}/{nonce}/{of_role}",
            partition_id=name,
            old_role=change.old,
            new_role=change.new,
            epoch=epoch,
        )


def lost_events(
    gains: Sequence[Gain],
    old_rows: Sequence[Row],
    rows: Sequence[Row],
    state: State,
    holdings: Holdings,
    now: datetime,
) -> Iterator[PartitionLostEvent]:
    """The partitions that had holders, and whose data no live node has any more."""
    for gain in gains:
        last = old_rows[gain.index] if gain.index < len(old_rows) else ()
        if not gain.needs_data or not last or holdings.keeps(gain):
            continue
        # The first question is cheap, and answers nearly all.
        if holdings.surely_has_source(gain, rows[gain.index], state.members) or holdings.sources(
            gain,
            rows[gain.index],
            old_primary=None,
            receipts=state.receipts,
            members=state.members,
        ):
            continue
        name = partition_id(gain.index)
        yield PartitionLostEvent(
            timestamp=now,
            revision=state.revision,
            event_id=f"partition_lost/{name}/{gain.epoch}",
            partition_id=name,
            last_holders=last,
        )


def drop_events(
    node_id: str,
    giver: str,
    receipt: Receipt,
    rows: Sequence[Row],
    state: State,
    holdings: Holdings,
    now: datetime,
) -> Iterator[PartitionDropEvent]:
    """The copies that a node may delete since another has given this receipt."""
    member = state.members.get(giver)
    if member is None or member.nonce != receipt.nonce:
        return
    for index, keepers in holdings.prove(giver, receipt.epoch):
        if node_id in keepers and node_id not in rows[index]:
            name = partition_id(index)
            yield PartitionDropEvent(
                timestamp=now,
                revision=state.revision,
                event_id=f"partition_drop/{name}/{node_id}/{state.epoch}",
                partition_id=name,
            )
