"""The failing health checks in this node's sign of life, written until etcd has them."""

from __future__ import annotations

from ..core.membership import State
from .effects import Instant, Outbox, WriteAlive
from .session import Session

_FIRST, _LAST = 1.0, 30.0  # seconds; the first is also the least between two writes


class SignOfLife:
    """What others are told of the application's health checks. Owned by one thread.

    Attributes:
        failing: The checks that fail now.
    """

    def __init__(self, node_id: str, incarnation: str) -> None:
        self.failing: tuple[str, ...] = ()
        self._me = node_id
        self._incarnation = incarnation
        self._not_before = 0.0
        self._retry = _FIRST
        self._due: float | None = None

    def wake_at(self) -> float | None:
        """When ``publish()`` is to be called next."""
        return self._due

    def publish(self, session: Session, state: State, out: Outbox, at: Instant) -> None:
        """Writes them if etcd has others, at most once a second, and less often in vain."""
        seen = state.alive.get((self._me, self._incarnation))
        self._due = None
        if seen is None:
            return
        if seen.failing_checks == self.failing:
            self._retry = _FIRST
            return
        if self._not_before <= at.mono:
            out.add(WriteAlive(session, self._incarnation, self.failing))
            self._not_before = at.mono + self._retry
            self._retry = min(self._retry * 2, _LAST)
        self._due = self._not_before
