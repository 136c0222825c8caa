"""Which events follow from a change: node events at once, partition events by way of a ledger.

The ledger holds every gain whose hooks have not all succeeded on this node yet. A plan is made from
all of it, so it starts from what really succeeded here: what failed, or was superseded before its
turn, is in the next plan again, with its first ``event_id`` and with today's sources.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ..events import (
    ChangeReason,
    NodeJoinEvent,
    NodeLeaveEvent,
    NodeRejoinEvent,
    PartitionChangeEvent,
    RebalanceEvent,
)
from ..model import OwedMove
from .hashing import partition_id, partition_index
from .holdings import Gain, Holdings
from .membership import (
    Change,
    ConfigChanged,
    Joined,
    Left,
    RebalanceRequested,
    Rejoined,
    State,
    Updated,
)
from .placement import Row


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


@dataclass(slots=True)
class Entry:
    """One gain that this node's hooks have still to be told of."""

    gain: Gain
    nonce: str
    cause: Cause
    since: datetime
    old_primary: str | None
    attempts: int = 0
    error: str | None = None
    delivered: bool = False

    @property
    def event_id(self) -> str:
        g = self.gain
        return f"partition_change/{partition_id(g.index)}/{g.node_id}/{self.nonce}/{g.epoch}"


class Ledger:
    """What is owed to this node's partition-change hooks. Owned by one thread."""

    def __init__(self) -> None:
        self.entries: dict[tuple[int, str], Entry] = {}
        self._owed_to: Counter[str] = Counter()
        self._failing: set[tuple[int, str]] = set()
        self._planned: Sequence[Row] = ()

    def add(self, gains: Iterable[Gain], state: State, cause: Cause, since: datetime) -> None:
        """Takes in new gains. One for a pair that is still owed keeps that it needs data."""
        for gain in gains:
            pair = gain.index, gain.node_id
            owed = self.entries.get(pair)
            nonce = state.members[gain.node_id].nonce
            old_row = self._planned[gain.index] if gain.index < len(self._planned) else ()
            entry = Entry(gain, nonce, cause, since, old_primary=next(iter(old_row), None))
            if owed is not None and owed.nonce == nonce:
                entry.gain = replace(gain, needs_data=gain.needs_data or owed.gain.needs_data)
                entry.cause = merge((owed.cause, cause))
                entry.old_primary = owed.old_primary
            self._remove(pair)
            self.entries[pair] = entry
            self._owed_to[gain.node_id] += 1

    def prune(self, rows: Sequence[Row], state: State) -> set[str]:
        """Forgets what no longer concerns anybody: the node no longer holds the partition.

        Returns:
            The event ids of what was forgotten.
        """
        forgotten: set[str] = set()
        for pair, entry in list(self.entries.items()):
            index, node_id = pair
            member = state.members.get(node_id)
            if member is None or member.nonce != entry.nonce or node_id not in rows[index]:
                forgotten.add(entry.event_id)
                self._remove(pair)
        return forgotten

    def start_from(self, rows: Sequence[Row]) -> None:
        """Takes an assignment as given: what was there before this node is state, not change."""
        self._planned = rows

    def settled(self, event: PartitionChangeEvent, error: str | None, attempts: int) -> None:
        """The hooks of an event have ended: all well, or with the newest of their errors."""
        index = partition_index(event.partition_id)
        if index is None:
            return
        pair = index, event.copy_to_node.id
        entry = self.entries.get(pair)
        if entry is None or entry.event_id != event.event_id:
            return  # a newer change of the pair has taken its place
        if error is None:
            self._remove(pair)
        else:
            entry.attempts += attempts
            entry.error = error
            entry.delivered = True
            self._failing.add(pair)

    def interrupted(self, event: PartitionChangeEvent) -> None:
        """A newer rebalance ended the hooks of an event early, which were told of it."""
        index = partition_index(event.partition_id)
        entry = None if index is None else self.entries.get((index, event.copy_to_node.id))
        if entry is not None and entry.event_id == event.event_id:
            entry.delivered = True

    def _remove(self, pair: tuple[int, str]) -> None:
        if self.entries.pop(pair, None) is not None:
            self._owed_to[pair[1]] -= 1
            self._failing.discard(pair)

    def owed(self) -> tuple[OwedMove, ...]:
        """What has not succeeded yet, in the order of the partitions."""
        return tuple(
            OwedMove(partition_id(index), e.since, e.attempts, e.error)
            # A copy in one step, since any thread may ask.
            for (index, _), e in sorted(self.entries.copy().items())
        )

    def failing(self) -> bool:
        """Whether anything was tried and failed."""
        return bool(self._failing)

    def owes(self, node_id: str) -> bool:
        """Whether the node has yet to succeed with any partition."""
        return self._owed_to[node_id] > 0

    def pending_for(self, index: int, node_id: str) -> bool:
        """Whether the node has yet to succeed with the partition."""
        return (index, node_id) in self.entries

    def plan(
        self,
        rows: Sequence[Row],
        state: State,
        holdings: Holdings,
        cause: Cause,
        event_id: str,
        now: datetime,
    ) -> tuple[RebalanceEvent, list[PartitionChangeEvent]]:
        """Everything that is owed, as one rebalance from the rows planned last to ``rows``."""
        before = self._planned
        self._planned = rows
        affected: set[str] = set()
        for index, row in enumerate(rows):
            old = before[index] if index < len(before) else ()
            if old != row:
                affected.update(set(old).symmetric_difference(row))
                affected.update(old[:1], row[:1])
        order = {pair: rows[pair[0]].index(pair[1]) for pair in self.entries}
        # During its grace a node that is down keeps its place, and can give nothing.
        up = {node_id for node_id in state.members if state.is_alive(node_id)}
        events: list[PartitionChangeEvent] = []
        for pair in sorted(self.entries, key=lambda p: (p[0], order[p])):
            entry = self.entries[pair]
            index, node_id = pair
            affected.add(node_id)
            sources = holdings.sources(
                entry.gain,
                rows[index],
                old_primary=entry.old_primary,
                receipts=state.receipts,
                members=up,
                again=entry.attempts > 0,
            )
            events.append(
                PartitionChangeEvent(
                    timestamp=entry.since,
                    revision=state.revision,
                    event_id=entry.event_id,
                    partition_id=partition_id(index),
                    copy_from_nodes=tuple(state.members[n].node for n in sources),
                    copy_to_node=state.members[node_id].node,
                    # If nobody else has it, what the target has kept is the best copy there is.
                    needs_data=entry.gain.needs_data
                    and (bool(sources) or not holdings.keeps(entry.gain)),
                    change_reason=entry.cause.reason,
                    old_primary=entry.old_primary,
                    new_primary=rows[index][0],
                )
            )
        start = RebalanceEvent(
            timestamp=now,
            revision=state.revision,
            event_id=event_id,
            trigger=cause.reason,
            trigger_node_id=cause.node_id,
            partitions_to_move=len({e.partition_id for e in events if e.needs_data}),
            nodes_affected=tuple(sorted(affected)),
        )
        return start, events


def node_event(
    change: Change, old_rows: Sequence[Row], state: State, now: datetime
) -> NodeJoinEvent | NodeRejoinEvent | NodeLeaveEvent | None:
    """The event of a node's join, rejoin or leave; None for any other change."""
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
            owned, replica = held_by(record.node.id, old_rows)
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
    owned: list[int] = []
    replica: list[int] = []
    for index, row in enumerate(rows):
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
