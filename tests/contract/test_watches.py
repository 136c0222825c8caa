"""What ``Store.watch`` promises, on both stores."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from clusterkit.errors import CompactedError, StoreError
from clusterkit.ports import Delete, KeyValue, Put, WatchBatch, WatchEvent

if TYPE_CHECKING:
    from tests.contract.conftest import Bench

TIMEOUT = 10.0


def changes(batches: list[WatchBatch]) -> list[list[tuple[str, bytes]]]:
    return [[(e.kind, e.kv.value) for e in batch.events] for batch in batches]


def test_a_watch_delivers_what_happens_after_it_was_made(bench: Bench) -> None:
    tail = bench.watch(bench.revision() + 1)
    revisions = [bench.txn(Put(bench.key("a"), b"%d" % i)) for i in range(5)]
    batches = tail.take(5)
    assert [batch.revision for batch in batches] == revisions
    assert changes(batches) == [[("put", b"%d" % i)] for i in range(5)]


def test_a_watch_delivers_the_past_from_its_start_which_is_included(bench: Bench) -> None:
    revisions = [bench.txn(Put(bench.key("a"), b"%d" % i)) for i in range(5)]
    tail = bench.watch(revisions[2])
    revisions.append(bench.txn(Put(bench.key("a"), b"5")))
    batches = tail.take(4)
    assert [batch.revision for batch in batches] == revisions[2:]
    assert changes(batches) == [[("put", b"%d" % i)] for i in range(2, 6)]


def test_a_watch_that_starts_in_the_future_waits_for_it(bench: Bench) -> None:
    tail = bench.watch(bench.revision() + 3)
    for i in range(4):
        bench.txn(Put(bench.key("a"), b"%d" % i))
    assert changes(tail.take(2)) == [[("put", b"2")], [("put", b"3")]]


def test_a_watch_that_starts_in_the_future_says_first_how_far_the_store_is(bench: Bench) -> None:
    with closing(bench.store.watch(bench.prefix, bench.revision() + 1_000_000)) as watch:
        begun = next(iter(watch))
    assert begun.events == ()
    read = bench.store.range(bench.prefix, timeout=TIMEOUT)
    assert begun.revision <= read.revision
    assert begun.cluster_id == read.cluster_id


def test_a_put_event_is_the_key_as_it_then_was(bench: Bench) -> None:
    key = bench.key("a")
    lease = bench.store.grant(60, timeout=TIMEOUT).id
    first = bench.txn(Put(key, b"1"))
    second = bench.txn(Put(key, b"2", lease))
    bench.txn(Put(key, b"3"))
    batches = bench.watch(first).take(2)
    assert batches[0].events == (WatchEvent("put", KeyValue(key, b"1", first, first, 1, 0)),)
    assert batches[1].events == (WatchEvent("put", KeyValue(key, b"2", first, second, 2, lease)),)


def test_a_delete_event_has_the_key_and_the_revision_of_the_delete(bench: Bench) -> None:
    first = bench.txn(Put(bench.key("a"), b"1"))
    revision = bench.txn(Delete(bench.key("a")))
    (event,) = bench.watch(first + 1).next().events
    assert event.kind == "delete"
    assert event.kv == KeyValue(bench.key("a"), b"", 0, revision, 0, 0)


def test_a_revision_is_one_batch_in_the_order_of_its_operations(bench: Bench) -> None:
    bench.txn(Put(bench.key("x"), b"old"), Put(bench.key("y"), b"old"))
    start = bench.revision() + 1
    tail = bench.watch(start)
    revision = bench.txn(
        Put(bench.key("c"), b"1"),
        Delete(bench.key("x"), bench.key("z")),
        Put(bench.key("a"), b"2"),
        Delete(bench.key("nothing")),
    )
    for batch in (tail.next(), bench.watch(start).next()):  # as it happens, and from the past
        assert batch.revision == revision
        assert [(e.kind, e.kv.key) for e in batch.events] == [
            ("put", bench.key("c")),
            ("delete", bench.key("x")),
            ("delete", bench.key("y")),
            ("put", bench.key("a")),
        ]
        assert {e.kv.mod_revision for e in batch.events} == {revision}


def test_a_watch_sees_only_its_prefix(bench: Bench) -> None:
    inside, outside = bench.prefix + b"in/", bench.prefix + b"in0"
    tail = bench.watch(bench.revision() + 1, inside)
    bench.txn(Put(outside, b"no"))
    first = bench.txn(Put(inside, b"1"), Put(outside, b"no"))
    bench.txn(Delete(outside))
    second = bench.txn(Put(inside + b"\xff", b"2"))
    batches = tail.take(2)
    assert [batch.revision for batch in batches] == [first, second]
    assert changes(batches) == [[("put", b"1")], [("put", b"2")]]


def test_two_watches_do_not_take_from_each_other(bench: Bench) -> None:
    start = bench.revision() + 1
    tails = [bench.watch(start), bench.watch(start), bench.watch(start, bench.prefix + b"b")]
    bench.txn(Put(bench.key("a"), b"1"))
    tails[0].close()
    bench.txn(Put(bench.key("b"), b"2"))
    assert changes(tails[1].take(2)) == [[("put", b"1")], [("put", b"2")]]
    assert changes(tails[2].take(1)) == [[("put", b"2")]]


def test_a_batch_names_the_cluster(bench: Bench) -> None:
    revision = bench.txn(Put(bench.key("a"), b"1"))
    cluster_id = bench.store.range(bench.prefix, timeout=TIMEOUT).cluster_id
    assert bench.watch(revision).next().cluster_id == cluster_id


def test_a_large_past_arrives_whole_and_in_order(bench: Bench) -> None:
    """More than gRPC lets through in one message, so that etcd has to cut it into pieces."""
    start = bench.revision() + 1
    value = b"x" * 10_000
    for _ in range(6):
        bench.txn(*(Put(bench.key(str(i)), value) for i in range(100)))
    batches = bench.watch(start).take(6)
    assert [batch.revision for batch in batches] == list(range(start, start + 6))
    for batch in batches:
        assert [e.kv.key for e in batch.events] == [bench.key(str(i)) for i in range(100)]


def test_close_from_another_thread_ends_the_iteration(bench: Bench) -> None:
    tail = bench.watch(bench.revision() + 1)
    bench.txn(Put(bench.key("a"), b"1"))
    tail.next()
    tail.watch.close()
    assert tail.end() is None
    tail.watch.close()
    assert list(tail.watch) == []


def test_a_watch_closed_before_it_is_read_is_empty(bench: Bench) -> None:
    revision = bench.txn(Put(bench.key("a"), b"1"))
    watch = bench.store.watch(bench.prefix, revision)
    watch.close()
    assert list(watch) == []


def test_close_of_the_store_ends_its_watches(bench: Bench) -> None:
    store = bench.connect()
    watches = [store.watch(bench.prefix, bench.revision() + 1) for _ in range(2)]
    tail = bench.tail(watches[0])
    store.close()
    assert tail.end() is None
    assert list(watches[1]) == []
    with pytest.raises(StoreError):
        next(iter(store.watch(bench.prefix, 1)))


def test_a_compacted_start_is_an_error_that_says_where_history_begins(bench: Bench) -> None:
    first = bench.txn(Put(bench.key("a"), b"1"))
    bench.txn(Put(bench.key("a"), b"2"))
    third = bench.txn(Put(bench.key("a"), b"3"))
    bench.compact(third)
    tail = bench.watch(first)
    error = tail.end()
    assert isinstance(error, CompactedError)
    assert error.compact_revision == third
    assert not error.retryable
    with pytest.raises(CompactedError):  # it stays over, and still says why
        next(iter(tail.watch))
    assert changes(bench.watch(third).take(1)) == [[("put", b"3")]]


def test_a_watch_that_is_up_to_date_survives_compaction(bench: Bench) -> None:
    tail = bench.watch(bench.revision() + 1)
    bench.txn(Put(bench.key("a"), b"1"))
    last = bench.txn(Put(bench.key("a"), b"2"))
    assert changes(tail.take(2)) == [[("put", b"1")], [("put", b"2")]]
    bench.compact(last)
    bench.txn(Put(bench.key("a"), b"3"))
    assert changes(tail.take(1)) == [[("put", b"3")]]
