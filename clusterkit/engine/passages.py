"""The passage from one assignment to the next: what it means for this node, and for its books.

Lookups and the hooks of nodes need the new assignment, and nothing else. What follows from it (who
gains what, what is owed to whom, this node's roles, copies to drop, partitions lost) takes longer
than all before, so it may come a moment later: ``note`` opens a passage, and ``settle`` ends it,
before the machine is told of anything else and ``SECONDS`` later at the latest. Until then no
rebalance begins, no receipt is given, and nothing that the passage brings counts as ready.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..core import local_events, plan
from ..core.hashing import partition_index
from ..core.holdings import Holdings
from ..core.membership import State
from ..core.motion import Gain
from ..core.placement import Row
from ..core.present import present_events
from ..core.wording import named
from ..events import Event
from ..hooks import HookKind
from .delivery import Delivery
from .effects import ERROR, Instant, Outbox
from .stay import Stay

SECONDS = 0.002
"""Long enough for a thread or a loop to be woken and to begin with a hook meanwhile."""


@dataclass(frozen=True, slots=True)
class _Passage:
    old: State
    new: State
    old_rows: Sequence[Row]
    rows: Sequence[Row]
    causes: Sequence[plan.Cause]
    seen: bool  # whether there was nothing in between
    due: float

    @property
    def assigned(self) -> bool:
        """Whether an input of the assignment changed, or somebody asks for a rebalance."""
        return self.new.epoch != self.old.epoch or bool(self.causes)


class Passages:
    """The passages of one node, one after another. Owned by one thread."""

    def __init__(self, delivery: Delivery, stay: Stay, out: Outbox, *, node_id: str) -> None:
        self._delivery = delivery
        self._stay = stay
        self._out = out
        self._me = node_id
        self._holdings = Holdings()
        self._told_rows: Sequence[Row] = ()  # with this process's newest roles that it was told of
        self._open: _Passage | None = None
        self._lost: frozenset[int] = frozenset()

    # -- what it is told ---------------------------------------------------------------------

    def begin(self, state: State, rows: Sequence[Row]) -> None:
        """The first assignment, which is state and no change."""
        nonces = {node_id: m.nonce for node_id, m in state.members.items()}
        self._holdings.assume(rows, nonces, state.receipts, state.epoch)
        self._delivery.ledger.start_from(rows, self._holdings)

    def restored(self, state: State) -> None:
        """etcd has gone back: the receipts to come are for smaller epochs than those awaited."""
        self._holdings.lower(state.epoch)

    def note(
        self,
        old: State,
        new: State,
        old_rows: Sequence[Row],
        rows: Sequence[Row],
        causes: Sequence[plan.Cause],
        at: Instant,
        *,
        seen: bool = True,
    ) -> None:
        """From one state and its assignment to the next; the one before must be settled.

        Not ``seen`` says that there may have been others in between.
        """
        assert self._open is None
        passage = _Passage(old, new, old_rows, rows, causes, seen, at.mono + SECONDS)
        if passage.assigned or new.receipts is not old.receipts:
            self._open = passage

    def settle(self, at: Instant) -> None:
        """Draws every consequence of the passage that is open, if one is."""
        passage, self._open = self._open, None
        if passage is None:
            return
        if passage.assigned:
            self._assigned(passage, at)
        if passage.new.receipts is not passage.old.receipts:
            self._proven(passage, at)
        if not all(map(self._holdings.is_anew, self._lost)):
            self._lost = frozenset(filter(self._holdings.is_anew, self._lost))

    def tell_roles(self, rows: Sequence[Row], state: State, at: Instant) -> None:
        """Tells how this process's roles differ from those that it was told last."""
        told, self._told_rows = self._told_rows, rows
        if not self._delivery.wants("partition_role"):
            return
        stay = self._me, str(self._stay.expected)
        for event in local_events.role_events(told, rows, state, stay, at.wall):
            self._delivery.news("partition_role", event, at)

    def due(self, state: State, rows: Sequence[Row], at: Instant) -> None:
        """Begins the rebalance whose time has come, if any."""
        self._delivery.due(rows, state, self._holdings, at)

    # -- what it tells -----------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """Whether the books are those of the newest state."""
        return self._open is None

    @property
    def lost(self) -> frozenset[int]:
        """The partitions whose data nobody alive has; the same object as long as it is so.

        Until one of the new holders has given its receipt: then that is the data.
        """
        return self._lost

    def wake_at(self) -> float | None:
        """When ``settle()`` is due; None if no passage is open."""
        return None if self._open is None else self._open.due

    def present(
        self, kind: HookKind, state: State, rows: Sequence[Row], at: Instant
    ) -> Iterator[Event]:
        """What is so already, for a hook that comes late."""
        return present_events(
            kind,
            state,
            rows,
            self._holdings,
            told_rows=self._told_rows,
            stay=(self._me, str(self._stay.expected)),
            now=at.wall,
        )

    def _assigned(self, passage: _Passage, at: Instant) -> None:
        old, new, rows = passage.old, passage.new, passage.rows
        reset = plan.reset_nodes({n: m.nonce for n, m in old.members.items()}, new)
        gone = [n for n in old.members if n not in new.members]
        gains = self._holdings.advance(
            passage.old_rows,
            rows,
            epoch=new.epoch,
            reset=reset,
            gone=gone,
            between=() if passage.seen else new.members,
        )
        if not self._stay.live:
            self._delivery.ledger.start_from(rows, self._holdings)
            return
        self._delivery.gained(gains, passage.causes, rows, new, at)
        self.tell_roles(rows if self._stay.is_mine(new) else (), new, at)
        if gone or reset:  # data goes with nodes
            self._tell_lost(gains, passage, at)

    def _tell_lost(self, gains: Sequence[Gain], passage: _Passage, at: Instant) -> None:
        new, rows = passage.new, passage.rows
        found: dict[int, str] = {}
        for lost in local_events.lost_events(
            gains, passage.old_rows, rows, new, self._holdings, at.wall
        ):
            index = partition_index(lost.partition_id)
            if index is not None:
                found[index] = lost.partition_id
            self._delivery.news("partition_lost", lost, at)
        if found:
            self._lost |= found.keys()
            self._out.note(
                ERROR,
                "no live node has the data of these partitions any more: %s",
                named([*found.values()]),
                ck_revision=new.revision,
            )

    def _proven(self, passage: _Passage, at: Instant) -> None:
        for node_id, receipt in passage.new.receipts.items():
            if receipt is not passage.old.receipts.get(node_id):
                for drop in local_events.drop_events(
                    self._me, node_id, receipt, passage.rows, passage.new, self._holdings, at.wall
                ):
                    # What a successor on this id may delete is not this process's to delete.
                    if self._stay.live and self._stay.is_mine(passage.new):
                        self._delivery.news("partition_drop", drop, at)
