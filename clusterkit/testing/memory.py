"""An etcd in memory: the same rules, no server, and time that a test can move.

``MemoryServer`` is the cluster, ``MemoryStore`` one client of it. Tests with several nodes give
each node a store of its own on one server, as they would have with etcd::

    clock = VirtualClock()
    server = MemoryServer(clock)
    a, b = MemoryStore(server), MemoryStore(server)
    lease = a.grant(10, timeout=1)
    clock.advance(10)          # the lease expires in here, and b's watches are told

What it does not imitate: limits on the size of requests, members and elections, authentication,
and time-outs, since nothing here takes time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Self

from clusterkit.engine.clock import SystemClock
from clusterkit.errors import CompactedError, StoreError, StoreUnavailableError
from clusterkit.ports import Clock, LeaseGrant, RangeResult, Txn, TxnResult, WatchBatch

from ._mvcc import Mvcc, narrow
from .clock import VirtualClock

MIN_TTL_SECONDS = 2
"""The shortest lease that etcd gives with its default settings."""

MAX_TTL_SECONDS = 9_000_000_000


@dataclass(slots=True)
class _Lease:
    id: int
    ttl_seconds: int
    deadline: float


class MemoryServer:
    """The state that stores share: keys, history, leases and watches. Safe for threads.

    With a :class:`VirtualClock` leases expire inside its ``advance``, each at its own time. With
    any other clock a thread sees to them; it ends with the last lease, or with ``close``.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        cluster_id: int = 1,
        version: str = "3.5.13",
    ) -> None:
        self.cluster_id = cluster_id
        self.version = version
        self._clock: Clock = SystemClock() if clock is None else clock
        self._mvcc = Mvcc(cluster_id)
        self._leases: dict[int, _Lease] = {}
        self._lease_ids = count(1)
        self._watches: list[MemoryWatch] = []
        # One condition for all: it guards the state, wakes watches, and wakes the expiry thread.
        self._changed = threading.Condition()
        self._expiry: threading.Thread | None = None
        self._closed = False

    @property
    def revision(self) -> int:
        """The newest revision."""
        with self._changed:
            return self._mvcc.revision

    def compact(self, revision: int) -> None:
        """Forgets the history before a revision; watches that are open already lose nothing.

        Raises:
            CompactedError: It was compacted before.
            StoreError: The revision does not exist yet.
        """
        with self._changed:
            self._mvcc.compact(revision)

    def progress(self) -> None:
        """Sends a batch without events to every watch: it has now seen all there is."""
        with self._changed:
            batch = WatchBatch(self._mvcc.revision, (), self.cluster_id)
            for watch in self._watches:
                watch._batches.append(batch)
            self._changed.notify_all()

    def close(self) -> None:
        """Ends every watch and the expiry thread; idempotent."""
        with self._changed:
            self._closed = True
            self._end_watches(lambda watch: True, None)
            expiry = self._expiry
        if expiry is not None:
            expiry.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # What follows is for the stores.

    def _range(self, prefix: bytes) -> RangeResult:
        with self._changed:
            mvcc = self._mvcc
            return RangeResult(mvcc.read_prefix(prefix), mvcc.revision, self.cluster_id)

    def _txn(self, txn: Txn) -> TxnResult:
        with self._changed:
            before = self._mvcc.revision
            result = self._mvcc.txn(txn, self._leases.__contains__)
            self._tell_watches(before)
            return result

    def _grant(self, ttl_seconds: int) -> LeaseGrant:
        if ttl_seconds > MAX_TTL_SECONDS:
            raise StoreError(f"a lease of {ttl_seconds} s is too long; {MAX_TTL_SECONDS} s at most")
        with self._changed:
            lease = _Lease(next(self._lease_ids), max(ttl_seconds, MIN_TTL_SECONDS), 0.0)
            self._leases[lease.id] = lease
            self._renew(lease)
            return LeaseGrant(lease.id, lease.ttl_seconds)

    def _revoke(self, lease_id: int) -> None:
        with self._changed:
            before = self._mvcc.revision
            if self._leases.pop(lease_id, None) is not None:
                self._mvcc.delete_all(self._mvcc.keys_of_lease(lease_id))
                self._tell_watches(before)
                self._changed.notify_all()  # the expiry thread, which ends with the last lease

    def _keep_alive(self, lease_id: int) -> int:
        with self._changed:
            lease = self._leases.get(lease_id)
            if lease is None:
                return 0
            self._renew(lease)
            return lease.ttl_seconds

    def _watch(self, store: MemoryStore, prefix: bytes, start_revision: int) -> MemoryWatch:
        with self._changed:
            start = start_revision if start_revision > 0 else self._mvcc.revision + 1
            watch = MemoryWatch(self, store, prefix, start)
            if self._mvcc.revision < start - 1:
                watch._batches.append(WatchBatch(self._mvcc.revision, (), self.cluster_id))
            try:
                watch._batches.extend(self._mvcc.since(start, prefix))
            except CompactedError as e:
                watch._end(e)
            else:
                self._watches.append(watch)
            return watch

    def _end_watches(self, which: Callable[[MemoryWatch], bool], error: StoreError | None) -> None:
        with self._changed:
            for watch in [w for w in self._watches if which(w)]:
                self._watches.remove(watch)
                watch._end(error)
            self._changed.notify_all()

    def _tell_watches(self, before: int) -> None:
        batch = self._mvcc.newest
        if batch is None or batch.revision <= before:
            return
        for watch in self._watches:
            watch._offer(batch)
        self._changed.notify_all()

    def _renew(self, lease: _Lease) -> None:
        lease.deadline = self._clock.monotonic() + lease.ttl_seconds
        if isinstance(self._clock, VirtualClock):
            # A timer that a later renewal has made idle finds nothing due: no need to cancel it.
            self._clock.call_at(lease.deadline, self._expire)
        elif self._expiry is None and not self._closed:
            self._expiry = threading.Thread(
                target=self._expire_forever, name="clusterkit-memory-leases", daemon=True
            )
            self._expiry.start()
        else:
            self._changed.notify_all()

    def _expire(self) -> float | None:
        """Ends the leases that are due; the time until the next one, None if there is none."""
        with self._changed:
            now = self._clock.monotonic()
            for lease in sorted(self._leases.values(), key=lambda lease: lease.deadline):
                if lease.deadline > now:
                    return lease.deadline - now
                self._revoke(lease.id)
            return None

    def _expire_forever(self) -> None:
        with self._changed:
            while not self._closed:
                pause = self._expire()
                if not self._leases:
                    break  # the next lease starts another one
                self._changed.wait(pause)
            self._expiry = None


class MemoryWatch:
    """A watch of a :class:`MemoryStore`; see :class:`clusterkit.ports.Watch`."""

    def __init__(
        self, server: MemoryServer, store: MemoryStore, prefix: bytes, start_revision: int
    ) -> None:
        self._server = server
        self._store = store
        self._prefix = prefix
        self._start_revision = start_revision
        self._batches: deque[WatchBatch] = deque()
        self._error: StoreError | None = None
        self._ended = False
        self._awaited = False  # whether its reader waits for a batch, and is done with all before

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WatchBatch:
        changed = self._server._changed
        with changed:
            if not self._batches:
                self._awaited = True
                changed.notify_all()
            changed.wait_for(lambda: self._batches or self._ended)
            self._awaited = False
            if self._batches:
                return self._batches.popleft()
        if self._error is not None:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        """Ends the watch; what has not been read yet is dropped."""
        self._server._end_watches(lambda watch: watch is self, None)
        with self._server._changed:
            self._end(None)

    def _offer(self, batch: WatchBatch) -> None:
        if batch.revision >= self._start_revision:
            seen = narrow(batch, self._prefix)
            if seen.events:
                self._batches.append(seen)

    def _end(self, error: StoreError | None) -> None:
        self._ended = True
        self._error = error
        if error is None:
            self._batches.clear()


class MemoryStore:
    """A :class:`clusterkit.ports.Store` in memory: one client of a :class:`MemoryServer`.

    Without a server it makes one of its own, which ends with it.
    """

    def __init__(self, server: MemoryServer | None = None, *, clock: Clock | None = None) -> None:
        """Connects to ``server``, or makes one that goes by ``clock`` (the machine's if None).

        Raises:
            ValueError: Both are given: a server has its clock already.
        """
        if server is not None and clock is not None:
            raise ValueError("give MemoryStore a server, which has a clock, or a clock; not both")
        self.server = MemoryServer(clock) if server is None else server
        self._owns_server = server is None
        self._refusal: StoreError | None = None
        self._closed = False

    def cut_off(self) -> None:
        """From now on no call of this store gets through, and its watches break.

        The server and its other stores go on, and so do the leases: keep-alives from here fail.
        """
        self._refusal = StoreUnavailableError(
            "this store is cut off from its server (cut_off was called)", retryable=True
        )
        broken = StoreUnavailableError("the watch broke: its store was cut off", retryable=True)
        self.server._end_watches(lambda watch: watch._store is self, broken)

    def wait_seen(self, timeout: float) -> bool:
        """Waits until who reads this store's watches is done with all that there is to see.

        Returns:
            Whether that was so within ``timeout`` seconds of the machine's time.
        """
        server = self.server
        with server._changed:
            return server._changed.wait_for(
                lambda: all(
                    watch._awaited and not watch._batches
                    for watch in server._watches
                    if watch._store is self
                ),
                timeout,
            )

    def reconnect(self) -> None:
        """Ends what ``cut_off`` began; watches that broke stay broken."""
        self._refusal = None

    def range(self, prefix: bytes, *, timeout: float) -> RangeResult:
        """All keys that begin with ``prefix``, sorted."""
        return self._reach()._range(prefix)

    def txn(self, txn: Txn, *, timeout: float) -> TxnResult:
        """Carries out a transaction."""
        return self._reach()._txn(txn)

    def grant(self, ttl_seconds: int, *, timeout: float) -> LeaseGrant:
        """Makes a lease of ``ttl_seconds``, or of etcd's least if that is less."""
        return self._reach()._grant(ttl_seconds)

    def revoke(self, lease_id: int, *, timeout: float) -> None:
        """Ends a lease, and its keys in one revision."""
        self._reach()._revoke(lease_id)

    def keep_alive(self, lease_id: int, *, timeout: float) -> int:
        """Renews a lease; its TTL in seconds, 0 if it is gone."""
        return self._reach()._keep_alive(lease_id)

    def watch(self, prefix: bytes, start_revision: int) -> MemoryWatch:
        """Watches a prefix from a revision on; from the next one if that is 0."""
        return self._reach()._watch(self, prefix, start_revision)

    def server_version(self, *, timeout: float) -> str:
        """The version that the server claims to be."""
        return self._reach().version

    def close(self) -> None:
        """Ends this store's watches, and the server if it made it; idempotent."""
        self._closed = True
        self.server._end_watches(lambda watch: watch._store is self, None)
        if self._owns_server:
            self.server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _reach(self) -> MemoryServer:
        if self._closed:
            raise StoreError("this store is closed")
        if self._refusal is not None:
            raise self._refusal
        return self.server
