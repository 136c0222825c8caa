"""The node's small errands to etcd, on a thread of their own, so that the runner never waits."""

from __future__ import annotations

import logging
import queue
import random
import re
import threading
from collections.abc import Callable
from functools import partial

from ..core import codec
from ..core.keys import Keys
from ..core.records import Alive
from ..errors import StoreError
from ..ports import Compare, Delete, Put, RangeResult, Store, Txn
from .departures import CloseHistory
from .effects import WriteAlive, WriteReceipt
from .pruning import PruneHistory
from .session import Session

logger = logging.getLogger(__name__)

_FIRST_RETRY = 0.1
_LAST_RETRY = 5.0


class Errands:
    """Carries out errands one after another. What fails for good is logged, never raised."""

    def __init__(self, store: Store, keys: Keys, node_id: str, call_timeout: float) -> None:
        self._store = store
        self._keys = keys
        self._node_id = node_id
        self._timeout = call_timeout
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        # Each is set by one thread: the newest receipt by the runner, what is done with it by this.
        self._newest: WriteReceipt | None = None
        self._done: WriteReceipt | None = None
        self._sent: WriteReceipt | None = None  # what etcd may have, though its answer was lost
        self._retry = _FIRST_RETRY
        self._thread = threading.Thread(target=self._run, name="clusterkit-errands", daemon=True)
        self._thread.start()

    def receipt(self, write: WriteReceipt) -> None:
        """Writes a receipt, however often that takes, unless a newer comes or the lease is lost."""
        self._newest = write
        self._queue.put(self._write_receipt)

    def close_history(self, write: CloseHistory) -> None:
        """Writes the end of a stay once; whoever asks repeats it until it is seen to be done."""
        self._queue.put(lambda: self._write_history(write))

    def prune_history(self, prune: PruneHistory) -> None:
        """Deletes a history once; if that fails, a later check finds it again."""
        self._queue.put(lambda: self._prune_history(prune))

    def alive(self, write: WriteAlive) -> None:
        """Writes the sign of life once; whoever asks repeats it until it is seen to be done."""
        txn = alive_txn(self._keys, self._node_id, write)
        self._queue.put(lambda: self._store.txn(txn, timeout=self._timeout))

    def read_view(self, report: Callable[[RangeResult], None]) -> None:
        """Reads the whole prefix once, and reports it unless that fails."""
        self._queue.put(lambda: report(self._store.range(self._keys.root, timeout=self._timeout)))

    def revoke(self, session: Session, *, slot: bool) -> None:
        """Revokes what is not wanted any more; if that fails it expires by itself.

        Args:
            session: The session that is over.
            slot: Whether to give up the slot as well, where it has a lease of its own.
        """
        for lease_id in {session.lease_id, *([session.slot_lease_id] if slot else [])}:
            self._queue.put(partial(self._store.revoke, lease_id, timeout=self._timeout))

    def check_server(self) -> None:
        """Asks the server for its version once, and warns if it may end leases too early."""
        self._queue.put(self._check_server)

    def close(self, timeout: float) -> None:
        """Ends the thread after what it is doing now."""
        self._closed.set()
        self._queue.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        failures = 0
        while True:
            pause = None if self._newest is self._done else self._retry * random.uniform(0.5, 1.5)
            errand: Callable[[], object] | None
            try:
                errand = self._queue.get(timeout=pause)
            except queue.Empty:
                errand = self._write_receipt
            if errand is None:
                return
            try:
                errand()
                failures = 0
            except StoreError as e:
                if not self._closed.is_set():
                    # Once an outage: whoever asked asks again.
                    level = logging.DEBUG if failures else logging.WARNING
                    logger.log(level, "an errand to etcd failed: %s", e)
                failures += 1
            except Exception:
                logger.exception("an errand to etcd failed in a way that is a defect")

    def _write_receipt(self) -> None:
        """Writes the newest receipt; if that fails it is tried again when there is time for it."""
        write = self._newest
        if write is None or write is self._done:
            return
        if not write.session.lost:
            try:
                # To write again what is there would be news to every node, when etcd is slow enough
                # for answers to be lost.
                if self._sent is not write or not self._is_written(write):
                    self._sent = write
                    self._store.txn(
                        receipt_txn(self._keys, self._node_id, write), timeout=self._timeout
                    )
            except StoreError as e:
                logger.info("writing the receipt failed and will be retried: %s", e)
                self._retry = min(self._retry * 2, _LAST_RETRY)
                return
        self._done, self._retry = write, _FIRST_RETRY

    def _is_written(self, write: WriteReceipt) -> bool:
        key = self._keys.applied(self._node_id)
        wanted = codec.encode_receipt(write.receipt), write.session.lease_id
        read = self._store.range(key, timeout=self._timeout)  # of all keys that begin with it
        return any(kv.key == key and (kv.value, kv.lease) == wanted for kv in read.kvs)

    def _check_server(self) -> None:
        try:
            version = self._store.server_version(timeout=self._timeout)
        except StoreError as e:
            logger.debug("etcd did not tell its version: %s", e)
            return
        if ends_leases_early(version):
            logger.warning(
                "etcd %s can end a lease too early after a change of its leader: no matter on a "
                "single server for trials; for production upgrade etcd to 3.4.31, 3.5.13 or newer",
                version,
                extra={"ck_etcd_version": version},
            )

    def _write_history(self, write: CloseHistory) -> None:
        self._store.txn(history_txn(self._keys, write), timeout=self._timeout)

    def _prune_history(self, prune: PruneHistory) -> None:
        result = self._store.txn(prune_txn(self._keys, prune), timeout=self._timeout)
        if result.succeeded:
            logger.info(
                "forgot node %s, which has been gone for long",
                prune.node_id,
                extra={"ck_node": prune.node_id, "ck_revision": result.revision},
            )


def receipt_txn(keys: Keys, node_id: str, write: WriteReceipt) -> Txn:
    """Writes a receipt; not for a stay that is over: its key is compared."""
    own = Compare(keys.node(node_id), "lease", "==", write.session.slot_lease_id)
    put = Put(keys.applied(node_id), codec.encode_receipt(write.receipt), write.session.lease_id)
    return Txn((own,), (put,))


def alive_txn(keys: Keys, node_id: str, write: WriteAlive) -> Txn:
    """Writes a sign of life; not for a stay that is over: its key is compared."""
    session = write.session
    own = Compare(keys.node(node_id), "lease", "==", session.slot_lease_id)
    value = codec.encode_alive(Alive(session.nonce, write.failing))
    put = Put(keys.alive(node_id, write.incarnation), value, session.lease_id)
    return Txn((own,), (put,))


def history_txn(keys: Keys, write: CloseHistory) -> Txn:
    """Writes a history, if it is still the one that the write was made from."""
    key = keys.history(write.node_id)
    return Txn((Compare(key, "mod", "==", write.revision),), (Put(key, write.value),))


def prune_txn(keys: Keys, prune: PruneHistory) -> Txn:
    """Deletes a history, if it is still the one that was judged, and the node no member."""
    key = keys.history(prune.node_id)
    return Txn(
        (
            Compare(key, "mod", "==", prune.revision),
            Compare(keys.node(prune.node_id), "version", "==", 0),
        ),
        (Delete(key),),
    )


# The first releases in which a leader that was stalled, and is no longer the leader, cannot revoke
# leases any more; by etcd's changelog.
_REPAIRED = ((3, 4, 31), (3, 5, 13))


def ends_leases_early(version: str) -> bool:
    """Whether a server of this version may end a lease early; False if it cannot be told."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if found is None:
        return False
    major, minor, patch = (int(part) for part in found.groups())
    return (
        any((major, minor) == repaired[:2] and patch < repaired[2] for repaired in _REPAIRED)
        or (major, minor) < _REPAIRED[0][:2]
    )
