"""The watch thread: every revision once and in order, whatever breaks."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from clusterkit.engine.watcher import Changed, Reread, WatchBroke, Watcher, WatchNews
from clusterkit.errors import StoreUnavailableError
from clusterkit.ports import Put, RangeResult, Txn
from clusterkit.testing.memory import MemoryServer, MemoryStore
from tests.support.bench import FaultyStore, raising

ROOT = b"/root/"


@pytest.fixture
def server() -> Iterator[MemoryServer]:
    with MemoryServer() as running:
        yield running


@pytest.fixture
def store(server: MemoryServer) -> FaultyStore:
    return FaultyStore(MemoryStore(server))


@pytest.fixture
def news() -> queue.SimpleQueue[WatchNews]:
    return queue.SimpleQueue()


Start = Callable[[], Watcher]


@pytest.fixture
def start(store: FaultyStore, news: queue.SimpleQueue[WatchNews]) -> Iterator[Start]:
    watchers: list[Watcher] = []

    def begin() -> Watcher:
        read = store.range(ROOT, timeout=1)
        watchers.append(Watcher(store, ROOT, read, news.put, read_timeout=1))
        return watchers[-1]

    yield begin
    for watcher in watchers:
        watcher.close(5.0)
        assert not watcher._thread.is_alive()


def put(server: MemoryServer, key: str) -> int:
    op = Put(ROOT + key.encode(), b"value")
    return MemoryStore(server).txn(Txn((), (op,)), timeout=1).revision


def keys(change: WatchNews) -> list[bytes]:
    assert isinstance(change, Changed)
    return [event.kv.key for event in change.batch.events]


def watched_from(store: FaultyStore) -> list[object]:
    return [about for name, about in store.calls if name == "watch"]


def test_it_follows_from_the_reading_on(
    server: MemoryServer, start: Start, news: queue.SimpleQueue[WatchNews]
) -> None:
    put(server, "before")
    start()
    revision = put(server, "one")
    put(server, "two")
    change = news.get(timeout=10)
    assert isinstance(change, Changed)
    assert (keys(change), change.batch.revision) == ([ROOT + b"one"], revision)
    assert keys(news.get(timeout=10)) == [ROOT + b"two"]


def test_after_a_break_it_resumes_after_the_last_revision_that_it_delivered(
    server: MemoryServer,
    store: FaultyStore,
    start: Start,
    news: queue.SimpleQueue[WatchNews],
) -> None:
    start()
    revision = put(server, "one")
    assert keys(news.get(timeout=10)) == [ROOT + b"one"]
    server.progress()  # what a progress notification names is no place to resume from
    inner = store.inner
    assert isinstance(inner, MemoryStore)
    inner.cut_off()
    broke = news.get(timeout=10)
    assert isinstance(broke, WatchBroke)
    assert isinstance(broke.error, StoreUnavailableError)
    put(server, "two")
    put(server, "three")
    inner.reconnect()
    found: list[WatchNews] = []
    while len(found) < 2:
        change = news.get(timeout=10)
        if not isinstance(change, WatchBroke):  # each attempt while it was cut off is one
            found.append(change)
    assert [keys(change) for change in found] == [[ROOT + b"two"], [ROOT + b"three"]]
    resumed = watched_from(store)
    assert set(resumed[1:]) == {revision + 1}
    assert len(resumed) >= 2


def test_what_is_compacted_is_read_again(
    server: MemoryServer,
    store: FaultyStore,
    start: Start,
    news: queue.SimpleQueue[WatchNews],
) -> None:
    inner = store.inner
    assert isinstance(inner, MemoryStore)
    start()
    put(server, "one")
    news.get(timeout=10)
    inner.cut_off()
    put(server, "two")
    revision = put(server, "three")
    server.compact(revision)
    inner.reconnect()
    reread = next(n for n in iter(lambda: news.get(timeout=10), None) if isinstance(n, Reread))
    assert reread.result.revision == revision
    assert [kv.key for kv in reread.result.kvs] == [ROOT + k for k in (b"one", b"three", b"two")]
    assert "compacted" in reread.reason
    put(server, "four")
    assert keys(news.get(timeout=10)) == [ROOT + b"four"]


def test_a_failed_reading_is_tried_again(
    server: MemoryServer,
    store: FaultyStore,
    start: Start,
    news: queue.SimpleQueue[WatchNews],
) -> None:
    inner = store.inner
    assert isinstance(inner, MemoryStore)
    start()
    store.next("range", raising(StoreUnavailableError("not now")))
    store.next("range", raising(ZeroDivisionError("a defect")))
    put(server, "one")
    news.get(timeout=10)
    inner.cut_off()
    put(server, "two")
    server.compact(put(server, "three"))
    inner.reconnect()
    while not isinstance(reread := news.get(timeout=10), Reread):
        pass
    assert len(reread.result.kvs) == 3


def test_another_etcd_cluster_is_read_anew(
    server: MemoryServer,
    store: FaultyStore,
    start: Start,
    news: queue.SimpleQueue[WatchNews],
) -> None:
    start()
    inner = store.inner
    assert isinstance(inner, MemoryStore)
    with MemoryServer(cluster_id=77) as other:
        put(other, "elsewhere")
        store.inner = MemoryStore(other)
        inner.cut_off()
        while not isinstance(reread := news.get(timeout=10), Reread):
            assert not isinstance(reread, Changed), "nothing of it may be taken for a change"
            put(other, "elsewhere")
        assert reread.result.cluster_id == 77
        assert [kv.key for kv in reread.result.kvs] == [ROOT + b"elsewhere"]
        put(other, "on")
        while not isinstance(change := news.get(timeout=10), Changed):
            pass
        assert change.batch.cluster_id == 77


def test_an_etcd_that_went_back_is_read_anew_as_soon_as_it_is_watched(
    server: MemoryServer,
    store: FaultyStore,
    start: Start,
    news: queue.SimpleQueue[WatchNews],
) -> None:
    start()
    for key in ("one", "two", "three"):
        put(server, key)
        assert keys(news.get(timeout=10)) == [ROOT + key.encode()]
    inner = store.inner
    assert isinstance(inner, MemoryStore)
    with MemoryServer(cluster_id=server.cluster_id) as restored:
        revision = put(restored, "one")
        store.inner = MemoryStore(restored)
        inner.cut_off()
        while not isinstance(reread := news.get(timeout=10), Reread):
            assert isinstance(reread, WatchBroke)
        assert (reread.result.revision, len(reread.result.kvs)) == (revision, 1)
        put(restored, "on")
        while not isinstance(change := news.get(timeout=10), Changed):
            pass
        assert (keys(change), change.batch.revision) == ([ROOT + b"on"], revision + 1)


def test_a_server_that_lags_behind_the_others_is_no_reason_to_read_again(
    server: MemoryServer,
    store: FaultyStore,
    news: queue.SimpleQueue[WatchNews],
    start: Start,
) -> None:
    put(server, "before")
    # Only its watch is behind: what is read linearizably is read of the whole cluster.
    with MemoryServer(cluster_id=server.cluster_id) as lagging:
        store.next("watch", lambda call: MemoryStore(lagging).watch(ROOT, server.revision + 1))
        start()
        put(lagging, "before")
        revision = put(lagging, "one")
        change = news.get(timeout=10)
        assert isinstance(change, Changed)
        assert (keys(change), change.batch.revision) == ([ROOT + b"one"], revision)
    # It was asked, once.
    assert [about for name, about in store.calls if name == "range"] == [ROOT, ROOT]


def test_a_defect_of_the_store_does_not_end_it(
    server: MemoryServer, store: FaultyStore, news: queue.SimpleQueue[WatchNews], start: Start
) -> None:
    store.next("watch", raising(ZeroDivisionError("a defect")))
    start()
    assert isinstance(news.get(timeout=10), Reread)
    put(server, "one")
    assert keys(news.get(timeout=10)) == [ROOT + b"one"]


def test_closing_is_prompt_and_can_be_done_twice(start: Start) -> None:
    watcher = start()
    begun = time.monotonic()
    watcher.close(5.0)
    watcher.close(5.0)
    assert not watcher._thread.is_alive()
    assert time.monotonic() - begun < 2.0


def test_closing_while_a_watch_is_being_opened_ends_that_watch(
    server: MemoryServer, store: FaultyStore, news: queue.SimpleQueue[WatchNews]
) -> None:
    opening, go_on = threading.Event(), threading.Event()

    def slow(call: Callable[[], object]) -> object:
        opening.set()
        assert go_on.wait(10)
        return call()

    store.next("watch", slow)
    read = store.range(ROOT, timeout=1)
    watcher = Watcher(store, ROOT, read, news.put, read_timeout=1)
    assert opening.wait(10)
    closing = threading.Thread(target=watcher.close, args=(10.0,))
    closing.start()
    go_on.set()
    closing.join(10)
    assert not watcher._thread.is_alive()
    assert server._watches == []


def test_what_is_already_known_is_not_delivered_again(
    server: MemoryServer, store: FaultyStore, news: queue.SimpleQueue[WatchNews]
) -> None:
    put(server, "one")
    put(server, "two")
    read = store.range(ROOT, timeout=1)
    # A server that ignores where the watch is to begin.
    store.next("watch", lambda call: MemoryStore(server).watch(ROOT, 2))
    watcher = Watcher(
        store, ROOT, RangeResult(read.kvs, read.revision, read.cluster_id), news.put, read_timeout=1
    )
    put(server, "three")
    assert keys(news.get(timeout=10)) == [ROOT + b"three"]
    watcher.close(5.0)
