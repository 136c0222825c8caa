"""The ledger: what is owed to a node's partition-change hooks, and the rebalances made of it.

It holds every gain whose hooks have not all succeeded on this node yet. A plan is made from all of
it, so it starts from what really succeeded here: what failed, or was superseded before its turn, is
in the next plan again, with its first ``event_id`` and with today's sources.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from ..events import PartitionChangeEvent, RebalanceEvent
from ..model import OwedMove
from .hashing import partition_id, partition_index
from .holdings import Holdings
from .membership import State
from .motion import Gain
from .placement import Row
from .plan import Cause, merge
from .rows import differences


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
    told: PartitionChangeEvent | None = None  # the event that was made of it last

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
        self._known: Sequence[Row] = ()
        self._pruned: Sequence[Row] = ()  # not ``_known``, which goes on while nothing is pruned
        self._nonces: dict[str, str] = {}  # of the stays that something is owed to
        self._untold = False  # whether there are gains of nodes that no hook asks for

    def add(
        self,
        gains: Iterable[Gain],
        state: State,
        cause: Cause,
        since: datetime,
        *,
        only: str | None = None,
    ) -> None:
        """Takes in new gains. One for a pair that is still owed keeps that it needs data.

        Args:
            gains: What nodes have gained.
            state: The cluster as of then.
            cause: Why.
            since: When.
            only: The one node whose changes any hook wants; None for all. Nothing is made of the
                gains of others: the next rebalance counts them by what the holdings say.
        """
        if only is not None:
            gains = list(gains)
            mine = [gain for gain in gains if gain.node_id == only]
            self._untold = self._untold or len(mine) < len(gains)
            gains = mine
        merged: dict[Cause, Cause] = {}
        for gain in gains:
            pair = gain.index, gain.node_id
            owed = self.entries.get(pair)
            nonce = state.members[gain.node_id].nonce
            old_row = self._planned[gain.index] if gain.index < len(self._planned) else ()
            entry = Entry(gain, nonce, cause, since, old_primary=next(iter(old_row), None))
            if owed is not None and owed.nonce == nonce:
                if owed.gain.needs_data and not gain.needs_data:
                    entry.gain = replace(gain, needs_data=True)
                if owed.cause not in merged:
                    merged[owed.cause] = merge((owed.cause, cause))
                entry.cause = merged[owed.cause]
                entry.old_primary = owed.old_primary
            self._remove(pair)
            self.entries[pair] = entry
            self._nonces[gain.node_id] = nonce
            self._owed_to[gain.node_id] += 1

    def prune(self, rows: Sequence[Row], state: State) -> set[str]:
        """Forgets what no longer concerns anybody: the node no longer holds the partition.

        Returns:
            The event ids of what was forgotten.
        """
        void = {
            node_id
            for node_id, owed in self._owed_to.items()
            if owed and not self._is_same(node_id, state)
        }
        pairs = [pair for pair in self.entries if pair[1] in void] if void else []
        # Of all that is owed, each change of a burst concerns little.
        for index, before, row in differences(self._pruned, rows) if self.entries else ():
            pairs += [(index, n) for n in before if n not in row and (index, n) in self.entries]
        self._pruned = rows
        forgotten: set[str] = set()
        for pair in pairs:
            if (entry := self.entries.get(pair)) is not None:
                forgotten.add(entry.event_id)
                self._remove(pair)
        return forgotten

    def _is_same(self, node_id: str, state: State) -> bool:
        member = state.members.get(node_id)
        return member is not None and member.nonce == self._nonces[node_id]

    def start_from(self, rows: Sequence[Row], holdings: Holdings) -> None:
        """Takes an assignment as given: what was there before this node is state, not change."""
        self._planned = rows
        self._untold = False
        holdings.mark()
        self.known(rows)

    def known(self, rows: Sequence[Row]) -> None:
        """All gains up to this assignment have been taken in."""
        self._known = rows

    def settled(self, event: PartitionChangeEvent, error: str | None, attempts: int) -> None:
        """The hooks of an event have ended: all well, or with the newest of their errors."""
        index = partition_index(event.partition_id)
        if index is None:
            return
        pair = index, event.copy_to_node.id
        entry = self.entries.get(pair)
        if entry is None or (entry.told is not event and entry.event_id != event.event_id):
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

    @property
    def empty(self) -> bool:
        """Whether nothing is owed, and the next rebalance would tell of nothing."""
        return not self.entries and not self._untold

    def failing(self) -> bool:
        """Whether anything was tried and failed."""
        return bool(self._failing)

    def owes(self, node_id: str) -> bool:
        """Whether the node has yet to succeed with any partition."""
        return self._owed_to[node_id] > 0

    def pending_for(self, index: int, node_id: str, row: Row) -> bool:
        """Whether the node has yet to succeed with the partition, whose holders are now ``row``.

        Also where those are news to the ledger, and it will have to. For any thread.
        """
        # First what it knows, then what it has: the other way round the row might come in between.
        known = self._known[index] if index < len(self._known) else ()
        if known != row and (node_id not in known or row[0] == node_id != known[0]):
            return True
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
        """Everything that is owed, as one rebalance from the rows planned last to ``rows``.

        Its changes come in the order in which they are to be taken: what the fewest live nodes
        have a copy of first, then by partition.
        """
        before = self._planned
        self._planned = rows
        affected: set[str] = set()
        # Many partitions pass from the same holders to the same.
        for old, row in {(old, row) for _, old, row in differences(before, rows)}:
            affected.update(set(old).symmetric_difference(row))
            affected.update(old[:1], row[:1])
        order = {pair: rows[pair[0]].index(pair[1]) for pair in self.entries}
        found: list[tuple[int, PartitionChangeEvent]] = []
        moving = self._count(before, rows, state, holdings, affected)
        holdings.mark()
        up = _up(state) if self.entries else set()
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
            # If nobody else has it, what the target has kept is the best copy there is.
            needs_data = entry.gain.needs_data and (bool(sources) or not holdings.keeps(entry.gain))
            if needs_data:
                moving.add(index)
            event = PartitionChangeEvent(
                timestamp=entry.since,
                revision=state.revision,
                event_id=entry.event_id,
                partition_id=partition_id(index),
                copy_from_nodes=tuple(state.members[n].node for n in sources),
                copy_to_node=state.members[node_id].node,
                needs_data=needs_data,
                change_reason=entry.cause.reason,
                old_primary=entry.old_primary,
                new_primary=rows[index][0],
            )
            entry.told = event
            found.append((len(sources), event))
        found.sort(key=lambda pair: pair[0])
        start = RebalanceEvent(
            timestamp=now,
            revision=state.revision,
            event_id=event_id,
            trigger=cause.reason,
            trigger_node_id=cause.node_id,
            partitions_to_move=len(moving),
            nodes_affected=tuple(sorted(affected)),
        )
        return start, [event for _, event in found]

    def _count(
        self,
        before: Sequence[Row],
        rows: Sequence[Row],
        state: State,
        holdings: Holdings,
        affected: set[str],
    ) -> set[int]:
        """The partitions that move to nodes which no hook asks for; adds the nodes to others."""
        if not self._untold:
            return set()
        self._untold = False
        moving, nodes, kept = holdings.moved(rows)
        affected |= nodes
        up = _up(state) if kept else set()
        for gain in kept:
            old = before[gain.index] if gain.index < len(before) else ()
            affected.add(gain.node_id)
            if holdings.sources(
                gain,
                rows[gain.index],
                old_primary=next(iter(old), None),
                receipts=state.receipts,
                members=up,
            ):
                moving.add(gain.index)
        return moving


def _up(state: State) -> set[str]:
    """The members that can give data. During its grace one that is down keeps its place only."""
    return {node_id for node_id in state.members if state.is_alive(node_id)}
