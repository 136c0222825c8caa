"""What the engine needs from the outside world, in neutral terms.

``clusterkit.etcd`` implements :class:`Store` with gRPC, ``clusterkit.testing`` in memory; one
contract suite holds both to the words below. Nothing here knows gRPC, threads or protobuf.
Keys and values are bytes; revisions, leases and versions are etcd's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as etcd keeps it. ``lease`` is 0 for none."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of a transaction. A missing key has version, create, mod and lease 0.

    With ``range_end`` the condition must hold for every key of the range; for an empty range it
    is evaluated once, against a missing key.
    """

    key: bytes
    target: Literal["version", "create", "mod", "lease", "value"]
    op: Literal["==", "!=", "<", ">"]
    value: int | bytes
    range_end: bytes | None = None


@dataclass(frozen=True, slots=True)
class Put:
    """Writes a key, on a lease unless ``lease`` is 0."""

    key: bytes
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletes a key, or the range from ``key`` up to ``range_end``, which is not included."""

    key: bytes
    range_end: bytes | None = None


@dataclass(frozen=True, slots=True)
class Get:
    """Reads a key, or a range, inside a transaction."""

    key: bytes
    range_end: bytes | None = None


Op: TypeAlias = Put | Delete | Get


@dataclass(frozen=True, slots=True)
class Txn:
    """``success`` is carried out if every compare holds, else ``failure``; all in one revision."""

    compares: tuple[Compare, ...]
    success: tuple[Op, ...]
    failure: tuple[Op, ...] = ()


@dataclass(frozen=True, slots=True)
class TxnResult:
    """``reads`` has one tuple of key-values for each ``Get`` that was carried out, in order.

    ``revision`` is the store's revision after the transaction; for one that wrote, its own.
    """

    succeeded: bool
    revision: int
    reads: tuple[tuple[KeyValue, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class RangeResult:
    """All keys of a prefix as of one revision. ``cluster_id`` names the etcd cluster."""

    kvs: tuple[KeyValue, ...]
    revision: int
    cluster_id: int


@dataclass(frozen=True, slots=True)
class LeaseGrant:
    """A new lease, with the TTL that etcd granted (not what was asked for)."""

    id: int
    ttl_seconds: int


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One key put or deleted. For a delete, ``kv`` has the key and the revision of the delete."""

    kind: Literal["put", "delete"]
    kv: KeyValue


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """All changes of one revision under the watched prefix; without events it is progress only.

    Batches come in the order of their revisions, each revision whole and once. A progress batch
    with revision R says that everything up to R has been delivered. A watch that starts in the
    future begins with one, which tells how far the server is: it may lag behind the other members,
    or all of them may have been restored from a backup.
    """

    revision: int
    events: tuple[WatchEvent, ...]
    cluster_id: int


class Watch(Protocol):
    """A running watch. Iterating blocks; it is done from one thread.

    The iterator ends only by ``close()`` (StopIteration); else it raises: ``CompactedError``,
    ``StoreUnavailableError``, ``StoreAuthError``, ``StoreError``. After these the watch is over.
    """

    def __iter__(self) -> Iterator[WatchBatch]: ...

    def close(self) -> None:
        """Ends the watch from any thread; idempotent; wakes the iterating thread."""
        ...


class Store(Protocol):
    """An etcd-like store. Every method blocks, may be called from any thread, and has a deadline.

    ``timeout`` is in seconds and covers the whole call, tries on other endpoints included.

    All methods raise ``StoreUnavailableError``, ``StoreTimeoutError``, ``StoreAuthError`` or
    ``StoreError``, whose ``retryable`` says whether the same call may be sent again.
    """

    def range(self, prefix: bytes, *, timeout: float) -> RangeResult:
        """Reads all keys that begin with ``prefix``, linearizably, at one revision, in order."""
        ...

    def txn(self, txn: Txn, *, timeout: float) -> TxnResult:
        """Carries out a transaction. It is never sent twice unless the first was never received."""
        ...

    def grant(self, ttl_seconds: int, *, timeout: float) -> LeaseGrant:
        """Makes a lease."""
        ...

    def revoke(self, lease_id: int, *, timeout: float) -> None:
        """Ends a lease, and its keys in one revision. A lease that is gone is no error."""
        ...

    def keep_alive(self, lease_id: int, *, timeout: float) -> int:
        """Renews a lease once; the TTL in seconds that etcd gives it from now, 0 if it is gone."""
        ...

    def watch(self, prefix: bytes, start_revision: int) -> Watch:
        """Watches a prefix from ``start_revision`` on, which is included. Returns at once."""
        ...

    def server_version(self, *, timeout: float) -> str:
        """The version of the server that answers, such as ``3.5.13``."""
        ...

    def close(self) -> None:
        """Ends every call and watch and lets go of connections; idempotent."""
        ...


class Clock(Protocol):
    """Time. Tests use a virtual one."""

    def now(self) -> datetime:
        """The wall clock, timezone-aware, UTC. Used for what people read, never for decisions."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards and go on while the machine sleeps."""
        ...
