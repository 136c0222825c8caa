"""The nodes whose receipts are overdue: what they were to take over has taken too long."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..core.membership import State


@dataclass(frozen=True, slots=True)
class _Mark:
    """Every member as of ``revision`` should give a receipt for ``epoch`` until ``due``."""

    epoch: int
    revision: int
    due: float


class Overdue:
    """Follows who is behind. Owned by one thread.

    One assignment is marked at a time, whatever comes in between. So a node is found ``seconds``
    after the assignment that it cannot follow at the earliest, and twice that at the latest; and a
    node that always follows, but late, is not found.

    Args:
        seconds: The time that a node has; None for no limit.

    Attributes:
        nodes: Who is overdue, in the order of the ids.
    """

    def __init__(self, seconds: float | None) -> None:
        self.nodes: tuple[str, ...] = ()
        self._seconds = seconds
        self._mark: _Mark | None = None  # the newest
        self._missed: _Mark | None = None  # the newest whose time is over: what ``nodes`` owe
        self._of: State | None = None

    def wake_at(self) -> float | None:
        """When the time of the mark is over; None if none runs."""
        return None if self._mark is None or self._mark is self._missed else self._mark.due

    def follow(self, state: State, mono: float) -> None:
        """Looks at the newest state."""
        if self._seconds is None:
            return
        if self._mark is not None and state.epoch < self._mark.epoch:
            # etcd was restored from a backup.
            self.nodes, self._mark, self._missed = (), None, None
        due = self.wake_at()
        if due is not None and mono >= due:
            self._missed = self._mark
            self._find(state.members, state)
        elif self.nodes and not _alike(self._of, state):
            self._find(self.nodes, state)
        if self.wake_at() is None and (self._mark is None or state.epoch != self._mark.epoch):
            self._mark = _Mark(state.epoch, state.revision, mono + self._seconds)

    def _find(self, among: Iterable[str], state: State) -> None:
        self._of = state
        found = tuple(sorted(n for n in among if self._is_overdue(n, state)))
        if found != self.nodes:
            self.nodes = found

    def _is_overdue(self, node_id: str, state: State) -> bool:
        missed, member = self._missed, state.members.get(node_id)
        if missed is None or member is None or not state.is_alive(node_id):
            return False
        if state.stored[node_id].mod_revision > missed.revision:
            return False  # it came later, or another stay of it did
        receipt = state.receipts.get(node_id)
        return receipt is None or receipt.nonce != member.nonce or receipt.epoch < missed.epoch


def _alike(one: State | None, other: State) -> bool:
    # States share what has not changed.
    return (
        one is not None
        and one.members is other.members
        and one.receipts is other.receipts
        and one.alive is other.alive
    )
