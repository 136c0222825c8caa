"""What really was in etcd: every revision of the prefix, watched from the first one on."""

from __future__ import annotations

import base64
import threading
from pathlib import Path

from clusterkit.errors import StoreError
from clusterkit.etcd import EtcdStore
from clusterkit.ports import KeyValue, Watch, WatchBatch, WatchEvent

from .records import Record, Recorder
from .stays import Stays

_RETRY_SECONDS = 0.1


class Truth:
    """Records until ``close``. Nothing may have been written under the prefix before.

    Attributes:
        revision: The newest revision that has been recorded: etcd may compact up to here.
        stays: What the revisions so far say of the nodes.
        failure: What ended the recording too early.
    """

    def __init__(self, path: Path, endpoints: list[str], prefix: bytes) -> None:
        self._record = Recorder(path)
        self._store = EtcdStore(endpoints, connect_timeout=2.0)
        self._prefix = prefix
        self._over = threading.Event()
        self._watch: Watch | None = None
        self.revision = 0
        self.stays = Stays()
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="chaos-truth")
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self._follow()
            except StoreError as e:
                if getattr(e, "compact_revision", 0):
                    self.failure = e  # the run compacted what had not been read: its own defect
                    return
            self._over.wait(_RETRY_SECONDS)

    def _follow(self) -> None:
        self._watch = watch = self._store.watch(self._prefix, self.revision + 1)
        try:
            for batch in watch:
                if batch.events and batch.revision > self.revision:
                    self._record("revision", **encode(batch))
                    self.stays.feed(batch)
                    self.revision = batch.revision
                if self._over.is_set():
                    return
        finally:
            watch.close()

    def close(self) -> None:
        self._over.set()
        if self._watch is not None:
            self._watch.close()
        self._thread.join(10)
        self._store.close()


def encode(batch: WatchBatch) -> Record:
    """A batch as the fields of a record."""
    return {
        "rev": batch.revision,
        "cluster": batch.cluster_id,
        "events": [
            {
                "kind": e.kind,
                "key": e.kv.key.decode(),
                "value": base64.b64encode(e.kv.value).decode(),
                "numbers": [e.kv.create_revision, e.kv.mod_revision, e.kv.version, e.kv.lease],
            }
            for e in batch.events
        ],
    }


def decode(record: Record) -> WatchBatch:
    """The reverse of ``encode``."""
    return WatchBatch(
        record["rev"],
        tuple(
            WatchEvent(
                e["kind"],
                KeyValue(e["key"].encode(), base64.b64decode(e["value"]), *e["numbers"]),
            )
            for e in record["events"]
        ),
        record["cluster"],
    )
