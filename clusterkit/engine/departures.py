"""Writing down the ends of stays that nobody ended on purpose.

When a lease expires, etcd deletes the node's key and says nothing more. The survivors agree without
talking: rendezvous hashing ranks them for the node that left, the first writes the departure at
once, each further one a second later if it is still missing. Every write compares the history that
it was made from, so exactly one wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ..core import codec
from ..core.hashing import fmix64, seed64
from ..core.membership import Left, State
from ..core.placement import Row
from ..core.plan import last_held
from ..core.records import Departure, Registration

_RANK_SECONDS = 1.0
_LAST_RANK = 10
_UNSEEN_SECONDS = 2.0
_FIRST_RETRY, _LAST_RETRY = 2.0, 30.0


@dataclass(frozen=True, slots=True)
class CloseHistory:
    """Write the end of a stay, if the history is still the one of ``revision``."""

    node_id: str
    revision: int
    value: bytes


@dataclass(slots=True)
class _Pending:
    departure: Departure
    due: float
    retry: float = _FIRST_RETRY


class Departures:
    """What this node has to write down if nobody else does. Owned by one thread."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._pending: dict[str, _Pending] = {}

    def saw(
        self,
        left: Left,
        state: State,
        rows: tuple[Sequence[Row], Sequence[Row]],
        now: float,
        wall: datetime,
    ) -> None:
        """A stay was seen to end by expiry in this very revision; ``rows`` before it and since."""
        node_id = left.record.node.id
        owned, replica = last_held(node_id, *rows, state)
        departure = Departure(
            left.record.registration,
            "health_check_failure",
            wall,
            state.revision,
            tuple(sorted((*owned, *replica))),
        )
        self._pending[node_id] = _Pending(departure, now + self._rank(node_id, state))

    def found(self, state: State, now: float) -> None:
        """Looks for stays that ended unseen: after a start, or a reading instead of a watch."""
        for node_id, past in state.history.items():
            if past.open is not None and node_id not in state.members:
                known = self._pending.get(node_id)
                if known is None or known.departure.registration.nonce != past.open.nonce:
                    due = now + _UNSEEN_SECONDS + self._rank(node_id, state)
                    self._pending[node_id] = _Pending(_unseen(past.open), due)

    def due(self, state: State, now: float) -> list[CloseHistory]:
        """What is to be written now. Each is repeated until the history is seen to be closed."""
        writes: list[CloseHistory] = []
        for node_id, pending in list(self._pending.items()):
            past = state.history.get(node_id)
            nonce = pending.departure.registration.nonce
            if past is None or past.open is None or past.open.nonce != nonce:
                del self._pending[node_id]
            elif pending.due <= now:
                # An etcd that refuses writes must not be asked by all survivors in step.
                pending.due = now + pending.retry * self._spread(node_id)
                pending.retry = min(pending.retry * 2, _LAST_RETRY)
                value = codec.history_with(past.raw, ended=pending.departure)
                writes.append(CloseHistory(node_id, state.history_revisions[node_id], value))
        return writes

    def wake_at(self) -> float | None:
        """When ``due`` is to be asked next."""
        return min((p.due for p in self._pending.values()), default=None)

    def _rank(self, left: str, state: State) -> float:
        """How long to leave it to those before this node, in seconds."""
        if self._node_id not in state.members:
            return _LAST_RANK * _RANK_SECONDS
        mine = score(left, self._node_id)
        before = sum(score(left, node_id) > mine for node_id in state.members)
        return min(before, _LAST_RANK) * _RANK_SECONDS

    def _spread(self, left: str) -> float:
        """From 0.5 to 1.5, another for each survivor."""
        return 0.5 + score(left, self._node_id) / 2**64


def score(left: str, survivor: str) -> int:
    """How high rendezvous hashing ranks a survivor for what a node has left behind: 64 bits."""
    return fmix64(seed64(left, 0, "node") ^ seed64(survivor, 0, "node"))


def _unseen(registration: Registration) -> Departure:
    return Departure(registration, "health_check_failure", None, 0)
