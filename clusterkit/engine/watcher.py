"""The watch thread: every revision under the prefix, in order, each once, whatever breaks.

A broken stream is resumed at the revision after the last one delivered, never at one that a
progress notification named. When etcd has compacted that away, or another etcd answers, or etcd has
gone back behind it, the whole prefix is read again, and the state machine derives what was missed.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import CompactedError, StoreError
from ..ports import RangeResult, Store, Watch, WatchBatch

logger = logging.getLogger(__name__)

_FIRST_RETRY = 0.05
_LAST_RETRY = 2.0
_SOUND_SECONDS = 30.0  # a stream that lived this long was no failed attempt


@dataclass(frozen=True, slots=True)
class Changed:
    """One whole revision."""

    batch: WatchBatch


@dataclass(frozen=True, slots=True)
class Reread:
    """The prefix was read again, because revisions in between can no longer be had."""

    result: RangeResult
    reason: str


@dataclass(frozen=True, slots=True)
class WatchBroke:
    """The stream ended and is being opened again."""

    error: StoreError


WatchNews: TypeAlias = Changed | Reread | WatchBroke


class Watcher:
    """Follows a prefix from the revision after ``read`` on."""

    def __init__(
        self,
        store: Store,
        prefix: bytes,
        read: RangeResult,
        report: Callable[[WatchNews], None],
        *,
        read_timeout: float,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._report = report
        self._read_timeout = read_timeout
        self._revision = read.revision
        self._cluster_id = read.cluster_id
        self._lock = threading.Lock()
        self._watch: Watch | None = None
        self._doubt: str | None = None  # why somebody else wants the prefix to be read again
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="clusterkit-watch", daemon=True)
        self._thread.start()

    def read_again(self, reason: str) -> None:
        """Reads the prefix again, reports it, and opens the watch anew behind it."""
        with self._lock:
            self._doubt = reason
            if self._watch is not None:
                self._watch.close()

    def close(self, timeout: float) -> None:
        """Ends the watch and its thread."""
        with self._lock:
            self._closed.set()
            if self._watch is not None:
                self._watch.close()
        self._thread.join(timeout)

    def _run(self) -> None:
        retry = _FIRST_RETRY
        failures = 0
        doubt: str | None = None  # why the prefix has to be read again before anything else
        while not self._closed.is_set():
            before, opened = self._revision, time.monotonic()
            try:
                if doubt is not None:
                    self._reread(doubt)
                    doubt = None
                doubt = self._follow()
            except CompactedError as e:
                doubt = f"revision {self._revision + 1} is compacted: {e}"
            except StoreError as e:
                if self._closed.is_set():
                    return
                logger.log(
                    # Once an outage; the fencing of this node tells the rest.
                    logging.DEBUG if failures else logging.WARNING,
                    "the watch broke and is being opened again: %s",
                    e,
                    extra={"ck_revision": self._revision},
                )
                failures += 1
                self._report(WatchBroke(e))
            except Exception:
                logger.exception("the watch failed in a way that is a defect; reading again")
                doubt = "the watch failed"
            if self._revision != before or time.monotonic() - opened > _SOUND_SECONDS:
                retry, failures = _FIRST_RETRY, 0
            # Jitter: a thousand nodes that lost the same server must not come back as one.
            self._closed.wait(retry * random.uniform(0.5, 1.5))
            retry = min(retry * 2, _LAST_RETRY)

    def _follow(self) -> str | None:
        """Delivers revisions until the stream ends; why what follows cannot be trusted, or None."""
        watch = self._store.watch(self._prefix, self._revision + 1)
        with self._lock:
            if self._closed.is_set():
                watch.close()
                return None
            if self._doubt is not None:
                watch.close()
                return self._take_doubt()
            self._watch = watch
        try:
            for batch in watch:
                if batch.cluster_id != self._cluster_id:
                    return "another etcd cluster answers"
                if not batch.events and batch.revision < self._revision and self._went_back():
                    return None
                if batch.events and batch.revision > self._revision:
                    self._report(Changed(batch))
                    self._revision = batch.revision
        finally:
            watch.close()
        with self._lock:
            return self._take_doubt()

    def _take_doubt(self) -> str | None:
        doubt, self._doubt = self._doubt, None
        return doubt

    def _went_back(self) -> bool:
        """Whether all of etcd is behind, and not just the server that said so; reads anew if so."""
        result = self._store.range(self._prefix, timeout=self._read_timeout)
        if result.cluster_id == self._cluster_id and result.revision >= self._revision:
            return False
        self._start_from(result, f"etcd is behind revision {self._revision}")
        return True

    def _reread(self, reason: str) -> None:
        logger.warning("reading the whole prefix again: %s", reason)
        self._start_from(self._store.range(self._prefix, timeout=self._read_timeout), reason)

    def _start_from(self, result: RangeResult, reason: str) -> None:
        self._revision = result.revision
        self._cluster_id = result.cluster_id
        self._report(Reread(result, reason))
