"""A clock that stands still until a test moves it."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count

_EPOCH = datetime(2024, 1, 1, tzinfo=UTC)


class VirtualClock:
    """A :class:`clusterkit.ports.Clock` for tests: time passes in ``advance`` and nowhere else.

    Timers fire inside ``advance``, on the thread that called it, in the order of their times, and
    those of one time in the order in which they were set; each sees the clock at its own time.
    A timer may set further timers: those that fall due within the same ``advance`` fire in it.
    May be used from any thread; one ``advance`` at a time is carried out.
    """

    def __init__(self, start: datetime = _EPOCH) -> None:
        """Starts the wall clock at ``start``, which must be timezone-aware; monotonic at 0."""
        if start.tzinfo is None:
            raise ValueError("the start of a VirtualClock must be timezone-aware")
        self._start = start.astimezone(UTC)
        self._elapsed = 0.0
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._order = count()
        self._lock = threading.Lock()
        # Apart from the lock of the data, so that timers can read the clock and set timers.
        self._advancing = threading.Lock()

    def now(self) -> datetime:
        """The wall clock, timezone-aware, UTC."""
        with self._lock:
            return self._start + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        with self._lock:
            return self._elapsed

    def call_at(self, when: float, callback: Callable[[], object]) -> None:
        """Sets a timer for ``monotonic() == when``; one in the past fires in the next advance."""
        with self._lock:
            heapq.heappush(self._timers, (when, next(self._order), callback))

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Sets a timer for so many seconds from now."""
        self.call_at(self.monotonic() + seconds, callback)

    def advance(self, seconds: float) -> None:
        """Moves the time forward and fires the timers that fall due on the way.

        An exception of a timer goes to the caller; the clock then stands at that timer's time.

        Raises:
            ValueError: ``seconds`` is negative.
            RuntimeError: Called from a timer of an ``advance`` that still runs.
        """
        if seconds < 0:
            raise ValueError(f"time cannot go back: advance({seconds})")
        if not self._advancing.acquire(blocking=False):
            raise RuntimeError("VirtualClock.advance is already running, here or in another thread")
        try:
            target = self.monotonic() + seconds
            while (callback := self._step(target)) is not None:
                callback()
        finally:
            self._advancing.release()

    def _step(self, target: float) -> Callable[[], object] | None:
        """Goes to the next due timer and takes it out, or to the target if there is none."""
        with self._lock:
            if self._timers and self._timers[0][0] <= target:
                when, _, callback = heapq.heappop(self._timers)
                self._elapsed = max(self._elapsed, when)
                return callback
            self._elapsed = target
            return None
