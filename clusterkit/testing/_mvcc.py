"""What etcd does with keys and revisions, as plain state: no clock, no threads, no leases' time.

:mod:`clusterkit.testing.memory` makes a store of it. The rules are etcd's (its v3 API as 3.5
carries it out); the contract suite compares them with a real server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from clusterkit.errors import CompactedError, StoreError
from clusterkit.ports import (
    Compare,
    Delete,
    Get,
    KeyValue,
    Op,
    Put,
    Txn,
    TxnResult,
    WatchBatch,
    WatchEvent,
)

MAX_OPS = 128
"""How many compares, and how many operations a branch, etcd takes in one transaction."""

_TO_THE_END = b"\x00"
"""As a range's end it means that there is none."""


class Mvcc:
    """Keys with revisions, transactions, and the history that watches read."""

    def __init__(self, cluster_id: int) -> None:
        self.cluster_id = cluster_id
        self.revision = 1  # an empty etcd begins with 1
        self.compact_revision = 0
        self._kvs: dict[bytes, KeyValue] = {}
        self._history: list[WatchBatch] = []

    def read(self, key: bytes, range_end: bytes | None = None) -> tuple[KeyValue, ...]:
        """One key or a range, sorted by key."""
        if not range_end:
            return (self._kvs[key],) if key in self._kvs else ()
        return tuple(self._kvs[k] for k in sorted(self._kvs) if _in_range(k, key, range_end))

    def read_prefix(self, prefix: bytes) -> tuple[KeyValue, ...]:
        """All keys that begin with the prefix, sorted."""
        return tuple(self._kvs[k] for k in sorted(self._kvs) if k.startswith(prefix))

    def keys_of_lease(self, lease: int) -> list[bytes]:
        """The keys that end with the lease, sorted."""
        return sorted(kv.key for kv in self._kvs.values() if kv.lease == lease)

    def txn(self, txn: Txn, lease_exists: Callable[[int], bool]) -> TxnResult:
        """Carries out a transaction, whole or not at all.

        Raises:
            StoreError: etcd would reject it; nothing was changed.
        """
        _check(txn)
        succeeded = all(self._holds(compare) for compare in txn.compares)
        ops = txn.success if succeeded else txn.failure
        for op in ops:
            if isinstance(op, Put) and op.lease and not lease_exists(op.lease):
                raise StoreError(f"put {op.key!r}: lease {op.lease:x} does not exist")
        reads = self._carry_out(ops)
        return TxnResult(succeeded, self.revision, reads)

    def delete_all(self, keys: Iterable[bytes]) -> None:
        """Deletes keys in one revision."""
        self._carry_out([Delete(key) for key in keys])

    def since(self, start_revision: int, prefix: bytes) -> list[WatchBatch]:
        """The batches of a prefix from a revision on, which is included.

        Raises:
            CompactedError: That revision is no longer kept.
        """
        if start_revision < self.compact_revision:
            raise CompactedError(
                f"revision {start_revision} has been compacted; "
                f"the oldest that is kept is {self.compact_revision}",
                compact_revision=self.compact_revision,
            )
        found = (narrow(batch, prefix) for batch in self._history)
        return [batch for batch in found if batch.revision >= start_revision and batch.events]

    @property
    def newest(self) -> WatchBatch | None:
        """The batch of the newest change that history keeps."""
        return self._history[-1] if self._history else None

    def compact(self, revision: int) -> None:
        """Forgets the history before a revision.

        Raises:
            CompactedError: It was forgotten already.
            StoreError: The revision does not exist yet.
        """
        if revision <= self.compact_revision:
            raise CompactedError(
                f"revision {revision} has been compacted already",
                compact_revision=self.compact_revision,
            )
        if revision > self.revision:
            raise StoreError(f"revision {revision} is in the future: now is {self.revision}")
        self.compact_revision = revision
        self._history = [batch for batch in self._history if batch.revision >= revision]

    def _carry_out(self, ops: Iterable[Op]) -> tuple[tuple[KeyValue, ...], ...]:
        # All writes carry the next revision, but it comes about only if there is one: a delete
        # that finds nothing is none.
        revision = self.revision + 1
        reads: list[tuple[KeyValue, ...]] = []
        events: list[WatchEvent] = []
        for op in ops:
            match op:
                case Get(key, range_end):
                    reads.append(self.read(key, range_end))
                case Put(key, value, lease):
                    old = self._kvs.get(key)
                    created, version = (old.create_revision, old.version) if old else (revision, 0)
                    kv = KeyValue(key, value, created, revision, version + 1, lease)
                    self._kvs[key] = kv
                    events.append(WatchEvent("put", kv))
                case Delete(key, range_end):
                    for kv in self.read(key, range_end):
                        del self._kvs[kv.key]
                        events.append(WatchEvent("delete", _tombstone(kv.key, revision)))
        if events:
            self.revision = revision
            self._history.append(WatchBatch(revision, tuple(events), self.cluster_id))
        return tuple(reads)

    def _holds(self, compare: Compare) -> bool:
        found = self.read(compare.key, compare.range_end)
        if not found:
            # Nothing, and no value, cannot be told apart on the wire: etcd says no to both.
            return compare.target != "value" and _compare_one(compare, _tombstone(compare.key, 0))
        return all(_compare_one(compare, kv) for kv in found)


def narrow(batch: WatchBatch, prefix: bytes) -> WatchBatch:
    """The part of a batch that a watch of the prefix sees; maybe without events."""
    events = tuple(event for event in batch.events if event.kv.key.startswith(prefix))
    return WatchBatch(batch.revision, events, batch.cluster_id)


def _tombstone(key: bytes, revision: int) -> KeyValue:
    return KeyValue(key, b"", create_revision=0, mod_revision=revision, version=0)


def _in_range(key: bytes, first: bytes, range_end: bytes) -> bool:
    return key >= first and (range_end == _TO_THE_END or key < range_end)


def _compare_one(compare: Compare, kv: KeyValue) -> bool:
    actual: int | bytes
    match compare.target:
        case "version":
            actual = kv.version
        case "create":
            actual = kv.create_revision
        case "mod":
            actual = kv.mod_revision
        case "lease":
            actual = kv.lease
        case "value":
            actual = kv.value
    wanted = compare.value
    if compare.op in ("==", "!="):
        return (actual == wanted) == (compare.op == "==")
    if isinstance(actual, bytes) and isinstance(wanted, bytes):
        return actual < wanted if compare.op == "<" else actual > wanted
    if isinstance(actual, int) and isinstance(wanted, int):
        return actual < wanted if compare.op == "<" else actual > wanted
    raise TypeError(f"{compare.target} cannot be compared with {wanted!r}")


def _check(txn: Txn) -> None:
    """What etcd checks before it looks at any key, in both branches."""
    for part in (txn.compares, txn.success, txn.failure):
        if len(part) > MAX_OPS:
            raise StoreError(f"transaction too large: {len(part)} operations, {MAX_OPS} at most")
        if any(not item.key for item in part):
            raise StoreError("transaction with an empty key")
    for branch in (txn.success, txn.failure):
        deletes = [op for op in branch if isinstance(op, Delete)]
        puts: set[bytes] = set()
        for op in branch:
            if not isinstance(op, Put):
                continue
            if op.key in puts or any(_deletes(delete, op.key) for delete in deletes):
                raise StoreError(f"transaction that writes {op.key!r} twice")
            puts.add(op.key)


def _deletes(delete: Delete, key: bytes) -> bool:
    if not delete.range_end:
        return key == delete.key
    return _in_range(key, delete.key, delete.range_end)
