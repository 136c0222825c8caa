"""The watch on a real server: it loses nothing silently, and its end always says why."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from clusterkit.errors import StoreError, StoreTimeoutError, StoreUnavailableError
from clusterkit.etcd import EtcdStore
from clusterkit.ports import Delete, Put, Txn, Watch, WatchBatch
from clusterkit.testing import EmbeddedEtcd

TIMEOUT = 10.0


@pytest.fixture(scope="module")
def etcd() -> Iterator[EmbeddedEtcd]:
    args = ["--experimental-watch-progress-notify-interval=200ms"]
    with EmbeddedEtcd(args=args) as etcd:
        yield etcd


@pytest.fixture
def store(etcd: EmbeddedEtcd) -> Iterator[EtcdStore]:
    with closing(EtcdStore([etcd.endpoint])) as store:
        yield store


def in_thread(watch: Watch) -> tuple[threading.Thread, queue.SimpleQueue[WatchBatch | StoreError]]:
    """Iterates on another thread; what it yields or raises comes through the queue."""
    seen: queue.SimpleQueue[WatchBatch | StoreError] = queue.SimpleQueue()

    def run() -> None:
        try:
            for batch in watch:
                seen.put(batch)
        except StoreError as e:
            seen.put(e)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, seen


def put_many(store: EtcdStore, prefix: bytes, count: int, value: bytes = b"v") -> int:
    ops = tuple(Put(b"%s%03d" % (prefix, n), value) for n in range(count))
    return store.txn(Txn((), ops), timeout=TIMEOUT).revision


def test_many_events_of_one_transaction_are_one_batch(store: EtcdStore) -> None:
    first = put_many(store, b"/many/", 100)
    deleted = store.txn(Txn((), (Delete(b"/many/", b"/many0"),)), timeout=TIMEOUT).revision
    with closing(store.watch(b"/many/", first)) as watch:
        batches = iter(watch)
        assert [(b.revision, len(b.events)) for b in (next(batches), next(batches))] == [
            (first, 100),
            (deleted, 100),
        ]


def test_catching_up_gives_each_revision_whole_and_once_also_when_etcd_cuts(
    store: EtcdStore,
) -> None:
    """24 MB in revisions of 0.8 MB: etcd sends several at once, and splits what is too large."""
    revisions = [put_many(store, b"/big/", 8, bytes(100_000)) for _ in range(30)]
    with closing(store.watch(b"/big/", revisions[0])) as watch:
        batches = iter(watch)
        seen = [next(batches) for _ in revisions]
    assert [batch.revision for batch in seen] == revisions
    keys = [b"/big/%03d" % n for n in range(8)]
    for batch in seen:
        assert [event.kv.key for event in batch.events] == keys


def test_progress_comes_as_batches_without_events(store: EtcdStore) -> None:
    revision = put_many(store, b"/elsewhere/", 1)
    with closing(store.watch(b"/quiet/", revision)) as watch:
        batch = next(iter(watch))
    assert batch.events == ()
    assert batch.revision >= revision
    assert batch.cluster_id == store.range(b"/quiet/", timeout=TIMEOUT).cluster_id


@pytest.mark.parametrize("end", [EmbeddedEtcd.kill, EmbeddedEtcd.stop])
def test_the_end_of_the_server_ends_the_watch_with_an_error(
    end: Callable[[EmbeddedEtcd], None],
) -> None:
    with EmbeddedEtcd() as own, closing(EtcdStore([own.endpoint])) as store:
        revision = put_many(store, b"/w/", 1)
        watch = store.watch(b"/w/", revision)
        thread, seen = in_thread(watch)
        assert isinstance(seen.get(timeout=TIMEOUT), WatchBatch)
        end(own)
        error = seen.get(timeout=TIMEOUT)
        thread.join(TIMEOUT)
        assert isinstance(error, StoreUnavailableError)
        assert own.endpoint in str(error)
        # It stays over and still says so: only close() ends it quietly.
        with pytest.raises(StoreUnavailableError):
            next(iter(watch))


def test_a_server_that_freezes_before_it_has_created_the_watch(etcd: EmbeddedEtcd) -> None:
    with (
        EmbeddedEtcd() as own,
        closing(EtcdStore([own.endpoint], connect_timeout=0.5)) as store,
    ):
        store.range(b"/", timeout=TIMEOUT)
        own.pause()
        begin = time.monotonic()
        with pytest.raises(StoreTimeoutError):
            next(iter(store.watch(b"/", 1)))
        assert time.monotonic() - begin < 2


def test_close_wakes_the_iterating_thread_at_once(store: EtcdStore) -> None:
    watch = store.watch(b"/close/", put_many(store, b"/close/", 1))
    thread, seen = in_thread(watch)
    assert isinstance(seen.get(timeout=TIMEOUT), WatchBatch)
    begin = time.monotonic()
    watch.close()
    thread.join(TIMEOUT)
    assert time.monotonic() - begin < 0.5
    watch.close()
    assert list(watch) == []


def test_close_wakes_a_thread_that_is_still_connecting(etcd: EmbeddedEtcd) -> None:
    with EmbeddedEtcd() as own, closing(EtcdStore([own.endpoint])) as store:
        store.range(b"/", timeout=TIMEOUT)
        own.pause()
        watch = store.watch(b"/", 1)
        thread, seen = in_thread(watch)
        begin = time.monotonic()
        watch.close()
        thread.join(TIMEOUT)
        assert time.monotonic() - begin < 1
        assert seen.empty()


def test_many_watches_leave_no_thread_behind(store: EtcdStore) -> None:
    revision = put_many(store, b"/threads/", 1)
    before = threading.active_count()
    for _ in range(20):
        with closing(store.watch(b"/threads/", revision)) as watch:
            assert next(iter(watch)).revision == revision
    deadline = time.monotonic() + TIMEOUT
    while threading.active_count() > before:
        assert time.monotonic() < deadline, threading.enumerate()
