"""This process in the cluster: how it joins, joins again, and leaves.

All of it asks etcd and waits for the answer, so none of it is done by the runner thread: it runs on
the thread that calls, or on one of its own, and tells the runner by messages.
"""

from __future__ import annotations

import contextlib
import logging
import random
import secrets
import threading
from collections.abc import Callable, Iterator

from ..core.keys import Keys
from ..errors import ClusterKitError, KitStateError, StoreError
from ..model import KitState
from ..ports import Clock, Store
from . import effects as fx
from .identity import abandon
from .join import Joiner, Profile
from .messages import Expect, Message, Registered, RegisterFailed
from .session import KeepAlive, Session

logger = logging.getLogger(__name__)


class Presence:
    """The stays of one process in the cluster, one after another.

    Args:
        store: etcd.
        clock: Time.
        keys: The cluster's keys.
        profile: What the node joins with; None for an observer, which never does.
        timeout: Seconds for a join and for a leave.
        tell: Puts a message into the runner's queue.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        keys: Keys,
        profile: Profile | None,
        timeout: float,
        tell: Callable[[Message], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._keys = keys
        self._profile = profile
        self._timeout = timeout
        self._tell = tell
        self._cancelled = threading.Event()
        self._busy = threading.Lock()  # held while a join is under way, which a leave awaits
        self._lock = threading.Lock()  # over the session
        self._session: Session | None = None
        self._joiner: Joiner | None = None
        self._keep_alive: KeepAlive | None = None

    # -- for any thread ----------------------------------------------------------------------

    def cancel(self) -> None:
        """No join begins from here on, and what waits for one gives up. Safe in a signal."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether a stop was asked for."""
        return self._cancelled.is_set()

    @property
    def present(self) -> bool:
        """Whether there is a session that nobody has ended yet."""
        return self._session is not None

    def lose(self) -> None:
        """Owns nothing from here on, whatever etcd says."""
        with self._lock:
            if self._session is not None:
                self._session.lose()

    def catch_up(self, timeout: float) -> bool:
        """Renews what is due by the clock; whether that was done within ``timeout`` seconds."""
        return self._keep_alive is None or self._keep_alive.catch_up(timeout)

    def drop(self, session: Session) -> None:
        """Stops renewing a session's leases."""
        with self._lock:
            if self._session is session:
                self._session = None
        if self._keep_alive is not None:
            self._keep_alive.detach(session)

    # -- joining -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def joining(self) -> Iterator[None]:
        """A join is under way: a leave, which may come at any moment, awaits its end.

        Raises:
            KitStateError: The kit was stopped meanwhile.
        """
        with self._busy:
            if self.cancelled:
                raise KitStateError(
                    "the kit was stopped while it was starting", state=KitState.STOPPED
                )
            yield

    def open(self) -> None:
        """Joins for the first time; within ``joining()``.

        Raises:
            ClusterKitError: It could not.
        """
        if self._profile is not None:
            self._keep_alive = KeepAlive(self._store, self._clock, self._tell)
            self._joiner = Joiner(
                self._store, self._keys, self._clock, self._profile, self._timeout
            )
            self._join(None)

    def rejoin(self, out: Callable[[], bool]) -> Session | None:
        """Joins again if the node is still ``out``; the session, which another may have made.

        Raises:
            ClusterKitError: It could not.
        """
        with self.joining():
            with self._lock:
                session = self._session
            # Another caller may have joined while this one waited.
            if out() and (session is None or session.lost):
                session = self._join(None)
        return session

    def register(self, effect: fx.Register) -> None:
        """Joins again on a thread of its own, a while after the stay before has been lost."""
        threading.Thread(
            target=self._register, args=(effect,), name="clusterkit-rejoin", daemon=True
        ).start()

    def _register(self, effect: fx.Register) -> None:
        # Jitter: the nodes that an outage has fenced must not come back as one.
        if self._cancelled.wait(effect.delay * random.uniform(0.5, 1.0)):
            return
        try:
            with self.joining():
                self._join(effect.after)
        except ClusterKitError as e:
            self._tell(RegisterFailed(effect.after, e))
        except Exception as e:
            logger.exception("joining again failed in a way that is a defect")
            self._tell(RegisterFailed(effect.after, ClusterKitError(str(e))))

    def _join(self, after: str | None) -> Session:
        assert self._joiner is not None
        assert self._keep_alive is not None
        nonce = secrets.token_hex(16)
        self._tell(Expect(nonce))
        session = self._joiner.join(nonce, after=after, cancelled=self._cancelled)
        with self._lock:
            self._session = session
        self._keep_alive.attach(session)
        self._tell(Registered(session))
        return session

    # -- leaving -----------------------------------------------------------------------------

    def leave(self, held: tuple[int, ...]) -> None:
        """Leaves, once a join that is under way has ended; ``held`` goes into the history."""
        with self._busy:
            session = self._take()
        self._end_stay(session, held, self._timeout)

    @contextlib.contextmanager
    def at_rest(self, timeout: float) -> Iterator[bool]:
        """Holds off joins; gives whether that was reached within ``timeout`` seconds."""
        reached = self._busy.acquire(timeout=timeout)
        try:
            yield reached
        finally:
            if reached:
                self._busy.release()

    def leave_at_exit(self, held: tuple[int, ...], timeout: float) -> None:
        """Leaves if it certainly may, since nobody will try again; while ``at_rest()``."""
        session = self._take()
        if session is not None and session.proven(self._clock.monotonic()):
            self._end_stay(session, held, timeout)

    def close(self, timeout: float) -> None:
        """There is nothing more to keep alive."""
        if self._keep_alive is not None:
            self._keep_alive.close(timeout)

    def _take(self) -> Session | None:
        with self._lock:
            session, self._session = self._session, None
        return session

    def _end_stay(self, session: Session | None, held: tuple[int, ...], timeout: float) -> None:
        if self._profile is None or self._joiner is None:
            return
        try:
            if session is not None and not session.lost:
                self._joiner.leave(session, held, timeout=timeout)
        except StoreError as e:
            logger.warning("leaving failed, so the lease will have to expire: %s", e)
        except Exception:
            logger.exception("leaving failed in a way that is a defect")
        # Its slot may be held for a while yet, or again: by an etcd restored from a backup.
        abandon(self._profile.incarnation)
