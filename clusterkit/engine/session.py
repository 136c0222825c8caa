"""A node's session with etcd: its lease, and until when it is certainly alive.

The deadline of a lease is the moment at which the newest answered keep-alive was *sent*, plus the
TTL that it granted, less a safety margin: etcd counts from later than that, so the deadline passes
here before the lease can end there. Times are the clock's ``monotonic()``, which goes on while the
machine sleeps. The keep-alive thread alone moves the deadline, any thread may lose the session, and
nothing makes a loss undone: each is one assignment, and needs no lock.

::

    PROVEN ──deadline passes──► IN DOUBT ──a keep-alive is answered──► PROVEN
       └────────────┬────────────────┘
           etcd says that the lease is gone, or its keys are seen to go
                    ▼
                  LOST (for good: a new session needs a new join)
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import StoreError
from ..ports import Clock, Store

logger = logging.getLogger(__name__)


class Session:
    """One registration and the leases that it hangs on.

    With a restart grace there are two: the live lease, which tells that the process is alive, and
    the slot lease, on which the node's place in the cluster outlives it by the grace. All that is
    said of "the lease" here is about the live one, since ownership hangs on that.

    Attributes:
        lease_id: The live lease.
        slot_lease_id: The lease of the slot, the same one without a grace.
        revision: Where the session began: no view from before it says anything of it.
        deadline: Until when the lease is certainly alive, unless it is lost.
        lost: Whether the lease is known to be gone, or not to be ours any more.
        answered_in: Seconds that etcd took for the newest renewal; None before the first.
    """

    __slots__ = (
        "answered_in",
        "deadline",
        "lease_id",
        "lost",
        "margin",
        "nonce",
        "revision",
        "slot_lease_id",
        "ttl_seconds",
    )

    def __init__(
        self,
        nonce: str,
        lease_id: int,
        ttl_seconds: int,
        margin: float,
        granted_at: float,
        slot_lease_id: int | None = None,
        revision: int = 0,
    ) -> None:
        self.nonce = nonce
        self.lease_id = lease_id
        self.revision = revision
        self.slot_lease_id = lease_id if slot_lease_id is None else slot_lease_id
        self.ttl_seconds = ttl_seconds
        self.margin = margin
        self.deadline = granted_at + ttl_seconds - margin
        self.lost = False
        self.answered_in: float | None = None

    @property
    def renewed_at(self) -> float:
        """When the newest answered renewal was sent, or else the grant."""
        return self.deadline + self.margin - self.ttl_seconds

    def proven(self, now: float) -> bool:
        """Whether the lease is certainly alive."""
        return not self.lost and now < self.deadline

    def remaining(self, now: float) -> float:
        """Seconds for which the lease is certainly alive, never negative."""
        return 0.0 if self.lost else max(0.0, self.deadline - now)

    def renewed(self, sent_at: float, ttl_seconds: int) -> None:
        """A keep-alive sent at ``sent_at`` was answered with a TTL."""
        self.deadline = sent_at + ttl_seconds - self.margin

    def lose(self) -> None:
        """The lease is gone."""
        self.lost = True


@dataclass(frozen=True, slots=True)
class LeaseDoubted:
    """The deadline has passed without an answer."""

    session: Session
    reason: str


@dataclass(frozen=True, slots=True)
class LeaseProven:
    """A lease that was in doubt is alive after all."""

    session: Session


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """etcd says that the lease is gone."""

    session: Session
    reason: str


LeaseNews: TypeAlias = LeaseDoubted | LeaseProven | LeaseLost

_FIRST_RETRY = 0.1
_LAST_RETRY = 1.0


class KeepAlive:
    """The thread that renews the lease, and does nothing else, every third of the TTL."""

    def __init__(self, store: Store, clock: Clock, report: Callable[[LeaseNews], None]) -> None:
        self._store = store
        self._clock = clock
        self._report = report
        self._changed = threading.Condition()
        self._session: Session | None = None
        self._resting_until: float | None = None  # by the clock; None while something is done
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="clusterkit-keepalive", daemon=True)
        self._thread.start()

    def attach(self, session: Session) -> None:
        """Renews this session's lease from now on, and no other."""
        with self._changed:
            self._session = session
            self._changed.notify_all()

    def detach(self, session: Session) -> None:
        """Renews this session's lease no longer."""
        with self._changed:
            if self._session is session:
                self._session = None
                self._changed.notify_all()

    def catch_up(self, timeout: float) -> bool:
        """Looks at the clock at once, for one that a test has moved: nothing wakes up by it.

        Returns:
            Whether nothing was due any more within ``timeout`` seconds.
        """

        def nothing_due() -> bool:
            rest = self._resting_until
            return self._closed or (
                rest > self._clock.monotonic() if rest is not None else self._session is None
            )

        with self._changed:
            self._changed.notify_all()
            return self._changed.wait_for(nothing_due, timeout)

    def close(self, timeout: float) -> None:
        """Ends the thread. The lease lives on until it expires or is revoked."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)

    def _run(self) -> None:
        while (session := self._next()) is not None:
            self._keep(session)

    def _next(self) -> Session | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._session is not None)
            return None if self._closed else self._session

    def _pause(self, session: Session, seconds: float) -> bool:
        """Waits; False if the session is not the one to be kept any more."""
        seconds = max(0.0, seconds)
        due = self._clock.monotonic() + seconds

        def over() -> bool:
            gone = self._closed or self._session is not session
            return gone or self._clock.monotonic() >= due

        with self._changed:
            self._resting_until = due
            self._changed.notify_all()  # whoever waits in catch_up()
            self._changed.wait_for(over, seconds)
            self._resting_until = None
            return not self._closed and self._session is session

    def _keep(self, session: Session) -> None:
        interval = session.ttl_seconds / 3
        doubted = False
        retry = _FIRST_RETRY
        # A join can take long: its own time counts.
        due = session.renewed_at + interval - self._clock.monotonic()
        while self._pause(session, due):
            sent_at = self._clock.monotonic()
            left = session.remaining(sent_at)
            try:
                # While the lease is proven an attempt ends by its deadline, so that doubt is
                # reported when it begins and not when the attempt ends.
                timeout = min(interval, left) if left else interval
                ttl = self._store.keep_alive(session.lease_id, timeout=max(0.05, timeout))
                answered_at = self._clock.monotonic()
                if ttl > 0 and session.slot_lease_id != session.lease_id:
                    # It outlives the other by the grace, so its answer is not urgent, but for one:
                    # without the slot the node is no member.
                    slot = self._store.keep_alive(session.slot_lease_id, timeout=interval)
                    ttl = min(ttl, slot)
            except Exception as e:
                # This thread must survive whatever a store does: without it the node is fenced.
                if not isinstance(e, StoreError):
                    logger.exception("renewing the lease failed in a way that is a defect")
                left = session.remaining(self._clock.monotonic())
                if not doubted and not left:
                    doubted = True
                    self._report(LeaseDoubted(session, str(e)))
                due = min(retry * random.uniform(0.5, 1.5), left or retry)
                retry = min(retry * 2, _LAST_RETRY, interval)
                continue
            if ttl <= 0:
                session.lose()
                self.detach(session)
                self._report(
                    LeaseLost(session, "etcd says that the lease has expired or was revoked")
                )
                return
            session.renewed(sent_at, ttl)
            session.answered_in = answered_at - sent_at
            if doubted:
                doubted = False
                self._report(LeaseProven(session))
            retry = _FIRST_RETRY
            due = interval - (self._clock.monotonic() - sent_at)
