"""Forgetting those who never come back: a Deployment's pods have a new name each time.

The history of a node that has been gone for longer than a week is deleted. The survivors agree
without talking: the one that rendezvous hashing ranks first for the node deletes it. It looks at
most once an hour, and deletes only what is still as it was judged. A member's history is never
touched: a join writes it, so a join that comes first makes the deletion fail.

How long a node has been gone is told by the newest end of its history. Where nobody can know when
that was, a survivor counts from when it first saw that very history itself, by its own clock; so
such a history goes in the end as well, and never too early.

Whoever comes back after that is new to the cluster: ``on_node_join`` and no ``on_node_rejoin``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ..core.membership import State
from .departures import score

RETENTION = timedelta(days=7)
CHECK_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class PruneHistory:
    """Delete a history, if it is still the one of ``revision``."""

    node_id: str
    revision: int


class Pruning:
    """Which histories this node has to delete. Owned by one thread."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        # From one to one and a half hours, another for each node.
        self._every = CHECK_SECONDS * (1 + score("pruning", node_id) / 2**65)
        self._due: float | None = None
        self._first_seen: dict[tuple[str, int], float] = {}

    def begin(self, now: float) -> None:
        """From now on there is something to look after."""
        self._due = now + self._every

    def due(self, state: State, now: float, wall: datetime) -> list[PruneHistory]:
        """What is to be deleted now; what fails is found again at a later check."""
        if self._due is None or now < self._due:
            return []
        self._due = now + self._every
        seen = {
            (node_id, state.history_revisions[node_id]): now
            for node_id, past in state.history.items()
            if node_id not in state.members and past.open is None
        }
        self._first_seen = {known: self._first_seen.get(known, at) for known, at in seen.items()}
        return [
            PruneHistory(node_id, revision)
            for (node_id, revision), since in self._first_seen.items()
            if self._gone_for(state, node_id, now - since, wall) > RETENTION
            and self._is_first(node_id, state)
        ]

    def wake_at(self) -> float | None:
        """When ``due`` is to be asked next."""
        return self._due

    def _gone_for(self, state: State, node_id: str, seen_for: float, wall: datetime) -> timedelta:
        ends = state.history[node_id].departures
        left_at = ends[-1].left_at if ends else None
        return timedelta(seconds=seen_for) if left_at is None else wall - left_at

    def _is_first(self, node_id: str, state: State) -> bool:
        first = max(state.members, key=lambda survivor: score(node_id, survivor), default=None)
        return first == self._node_id
