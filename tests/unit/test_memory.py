"""What the store in memory has beyond the contract: clocks, several clients, cuts, compaction."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from clusterkit.errors import CompactedError, StoreError, StoreUnavailableError
from clusterkit.ports import Put, Store, Txn, WatchBatch
from clusterkit.testing.clock import VirtualClock
from clusterkit.testing.memory import MemoryServer, MemoryStore

TIMEOUT = 10.0


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def server(clock: VirtualClock) -> Iterator[MemoryServer]:
    with MemoryServer(clock) as server:
        yield server


def put(store: Store, key: bytes, lease: int = 0) -> int:
    return store.txn(Txn((), (Put(key, b"", lease),)), timeout=TIMEOUT).revision


def keys(store: Store) -> list[bytes]:
    return [kv.key for kv in store.range(b"/", timeout=TIMEOUT).kvs]


def drain(watch: Iterator[WatchBatch], n: int) -> list[tuple[int, list[bytes]]]:
    batches = [next(watch) for _ in range(n)]
    return [(batch.revision, [event.kv.key for event in batch.events]) for batch in batches]


def test_leases_expire_inside_advance_in_order_each_in_its_own_revision(
    server: MemoryServer, clock: VirtualClock
) -> None:
    store = MemoryStore(server)
    for ttl in (5, 3, 4):
        put(store, b"/%d" % ttl, store.grant(ttl, timeout=TIMEOUT).id)
    watch = store.watch(b"/", server.revision + 1)
    clock.advance(2.9)
    assert keys(store) == [b"/3", b"/4", b"/5"]
    clock.advance(10)
    assert keys(store) == []
    assert drain(iter(watch), 3) == [(5, [b"/3"]), (6, [b"/4"]), (7, [b"/5"])]


def test_a_renewed_lease_outlives_its_first_timer(
    server: MemoryServer, clock: VirtualClock
) -> None:
    store = MemoryStore(server)
    lease = store.grant(10, timeout=TIMEOUT).id
    put(store, b"/a", lease)
    clock.advance(9)
    assert store.keep_alive(lease, timeout=TIMEOUT) == 10
    clock.advance(9.9)
    assert keys(store) == [b"/a"]
    clock.advance(0.1)
    assert keys(store) == []


def test_with_the_machines_clock_leases_expire_by_themselves() -> None:
    with MemoryStore() as store:
        revision = put(store, b"/a", store.grant(2, timeout=TIMEOUT).id)
        (batch,) = drain(iter(store.watch(b"/", revision + 1)), 1)
        assert batch == (revision + 1, [b"/a"])


def test_close_ends_the_thread_that_expires_leases() -> None:
    before = set(threading.enumerate())
    store = MemoryStore()
    assert set(threading.enumerate()) == before
    store.grant(1000, timeout=TIMEOUT)
    (expiry,) = set(threading.enumerate()) - before
    store.close()
    assert not expiry.is_alive()


def test_stores_of_one_server_share_it_and_close_apart(server: MemoryServer) -> None:
    a, b = MemoryStore(server), MemoryStore(server)
    watch = b.watch(b"/", server.revision + 1)
    put(a, b"/1")
    a.close()
    put(b, b"/2")
    assert keys(b) == [b"/1", b"/2"]
    assert drain(iter(watch), 2) == [(2, [b"/1"]), (3, [b"/2"])]


def test_a_store_that_is_cut_off_fails_its_calls_and_its_watches_alone(
    server: MemoryServer,
) -> None:
    cut, other = MemoryStore(server), MemoryStore(server)
    watch = cut.watch(b"/", server.revision + 1)
    untouched = other.watch(b"/", server.revision + 1)
    put(other, b"/1")
    cut.cut_off()
    with pytest.raises(StoreUnavailableError):
        put(cut, b"/never")
    assert drain(watch, 1) == [(2, [b"/1"])]  # what had arrived is not taken back
    for _ in range(2):  # a broken watch stays broken, and says so each time
        with pytest.raises(StoreUnavailableError):
            next(watch)
    watch.close()
    assert list(watch) == []
    put(other, b"/2")
    assert drain(untouched, 2) == [(2, [b"/1"]), (3, [b"/2"])]

    cut.reconnect()
    assert drain(cut.watch(b"/", 3), 1) == [(3, [b"/2"])]


def test_leases_run_on_while_their_owner_is_cut_off(
    server: MemoryServer, clock: VirtualClock
) -> None:
    cut, other = MemoryStore(server), MemoryStore(server)
    lease = cut.grant(10, timeout=TIMEOUT).id
    put(cut, b"/a", lease)
    cut.cut_off()
    with pytest.raises(StoreUnavailableError):
        cut.keep_alive(lease, timeout=TIMEOUT)
    clock.advance(10)
    assert keys(other) == []
    cut.reconnect()
    assert cut.keep_alive(lease, timeout=TIMEOUT) == 0


def test_progress_comes_after_what_it_speaks_of(server: MemoryServer) -> None:
    store = MemoryStore(server)
    watch = store.watch(b"/a", server.revision + 1)
    put(store, b"/a")
    revision = put(store, b"/b")
    server.progress()
    assert drain(watch, 2) == [(revision - 1, [b"/a"]), (revision, [])]


def test_compaction_of_the_future_or_the_past_is_refused(server: MemoryServer) -> None:
    store = MemoryStore(server)
    for _ in range(3):
        put(store, b"/a")
    with pytest.raises(StoreError, match="future"):
        server.compact(5)
    server.compact(3)
    with pytest.raises(CompactedError):
        server.compact(2)
    assert drain(store.watch(b"/", 3), 2) == [(3, [b"/a"]), (4, [b"/a"])]
    with pytest.raises(CompactedError):
        next(store.watch(b"/", 2))


def test_servers_are_different_clusters_only_if_they_are_told_to_be() -> None:
    ids = [
        MemoryStore(server).range(b"/", timeout=TIMEOUT).cluster_id
        for server in (MemoryServer(cluster_id=7), MemoryServer(cluster_id=8))
    ]
    assert ids == [7, 8]


def test_a_server_and_a_clock_together_are_refused(server: MemoryServer) -> None:
    with pytest.raises(ValueError, match="not both"):
        MemoryStore(server, clock=VirtualClock())


def test_a_watch_is_seen_when_its_reader_asks_for_more(server: MemoryServer) -> None:
    store, other = MemoryStore(server), MemoryStore(server)
    assert store.wait_seen(0.0), "nobody watches"
    watch = store.watch(b"/", 0)
    put(store, b"/a")
    assert not store.wait_seen(0.0)
    go_on, read = threading.Event(), threading.Event()

    def follow() -> None:
        for _ in watch:
            read.set()
            go_on.wait(TIMEOUT)

    reader = threading.Thread(target=follow)
    reader.start()
    try:
        assert read.wait(TIMEOUT)
        assert not store.wait_seen(0.0), "it is at work on what it has read"
        assert other.wait_seen(0.0), "that concerns its own store alone"
        go_on.set()
        assert store.wait_seen(TIMEOUT)
    finally:
        go_on.set()
        watch.close()
        reader.join(TIMEOUT)
    assert store.wait_seen(0.0)
