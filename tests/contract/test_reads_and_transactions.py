"""What ``Store.range`` and ``Store.txn`` promise, on both stores."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from clusterkit.errors import StoreError
from clusterkit.ports import Compare, Delete, Get, KeyValue, Op, Put, RangeResult, Store, Txn

if TYPE_CHECKING:
    from tests.contract.conftest import Bench

TIMEOUT = 10.0


def read(bench: Bench, prefix: bytes | None = None) -> RangeResult:
    return bench.store.range(prefix or bench.prefix, timeout=TIMEOUT)


def values(bench: Bench) -> dict[bytes, bytes]:
    return {kv.key[len(bench.prefix) :]: kv.value for kv in read(bench).kvs}


def test_range_of_nothing_has_a_revision_and_a_cluster_id(bench: Bench) -> None:
    result = read(bench)
    assert result.kvs == ()
    assert result.revision >= 1
    assert result.cluster_id != 0


def test_range_is_sorted_and_keeps_to_its_prefix(bench: Bench) -> None:
    inside = [b"a/b/", b"a/", b"a/\x00", b"a/\xff\xff", b"a/c"]
    outside = [b"a", b"a.", b"a0", b"b/", b""]
    bench.txn(*(Put(bench.prefix + k, b"v") for k in inside + outside))
    found = [kv.key for kv in read(bench, bench.prefix + b"a/").kvs]
    assert found == sorted(bench.prefix + k for k in inside)


def test_range_of_a_prefix_that_ends_in_the_highest_byte(bench: Bench) -> None:
    prefix = bench.prefix + b"\xff"
    bench.txn(Put(prefix, b"1"), Put(prefix + b"\xff", b"2"), Put(bench.prefix + b"\xfe", b"3"))
    assert [kv.value for kv in read(bench, prefix).kvs] == [b"1", b"2"]


def test_range_sees_what_another_client_wrote_before(bench: Bench) -> None:
    other = bench.connect()
    for i in range(20):
        revision = bench.txn(Put(bench.key("x"), b"%d" % i), store=other)
        result = read(bench)
        assert result.kvs[0].value == b"%d" % i
        assert result.revision >= revision


def test_a_new_key_and_its_overwriting(bench: Bench) -> None:
    key = bench.key()
    first = bench.txn(Put(key, b"1"))
    assert read(bench).kvs == (KeyValue(key, b"1", first, first, 1, 0),)
    second = bench.txn(Put(key, b"2"))
    assert second == first + 1
    result = read(bench)
    assert result.kvs == (KeyValue(key, b"2", first, second, 2, 0),)
    assert result.revision == second


def test_a_deleted_key_begins_anew(bench: Bench) -> None:
    key = bench.key()
    bench.txn(Put(key, b"1"))
    bench.txn(Delete(key))
    assert read(bench).kvs == ()
    revision = bench.txn(Put(key, b""))
    assert read(bench).kvs == (KeyValue(key, b"", revision, revision, 1, 0),)


def test_all_operations_of_a_transaction_have_one_revision(bench: Bench) -> None:
    before = bench.revision()
    keys = sorted(bench.key() for _ in range(20))
    revision = bench.txn(*(Put(k, b"v") for k in keys))
    assert revision == before + 1
    assert read(bench).kvs == tuple(KeyValue(k, b"v", revision, revision, 1) for k in keys)


def test_a_transaction_that_writes_nothing_raises_no_revision(bench: Bench) -> None:
    revision = bench.txn(Put(bench.key("a"), b"1"))
    assert bench.txn() == revision
    assert bench.txn(Get(bench.key("a"))) == revision
    assert bench.txn(Delete(bench.key("nothing"))) == revision
    assert bench.txn(Delete(bench.key("n"), bench.key("o"))) == revision
    assert bench.revision() == revision


def test_a_put_of_the_same_value_is_a_write(bench: Bench) -> None:
    first = bench.txn(Put(bench.key("a"), b"1"))
    assert bench.txn(Put(bench.key("a"), b"1")) == first + 1


def test_delete_of_a_range_leaves_out_its_end(bench: Bench) -> None:
    names = ["a", "b", "b1", "c", "d"]
    bench.txn(*(Put(bench.key(n), b"") for n in names))
    bench.txn(Delete(bench.key("b"), bench.key("c")))
    assert set(values(bench)) == {b"a", b"c", b"d"}


@pytest.mark.parametrize("holds", [True, False])
def test_compares_choose_the_branch(bench: Bench, holds: bool) -> None:
    key, other = bench.key("a"), bench.key("b")
    bench.txn(Put(key, b"1"))
    txn = Txn(
        compares=(
            Compare(key, "version", "==", 1),
            Compare(other, "version", "==" if holds else "!=", 0),
        ),
        success=(Put(key, b"yes"), Get(key)),
        failure=(Get(other), Put(other, b"no"), Get(other), Get(key)),
    )
    result = bench.store.txn(txn, timeout=TIMEOUT)
    assert result.succeeded is holds
    found = [[kv.value for kv in kvs] for kvs in result.reads]
    assert found == ([[b"yes"]] if holds else [[], [b"no"], [b"1"]])
    assert values(bench) == ({b"a": b"yes"} if holds else {b"a": b"1", b"b": b"no"})


def test_without_compares_the_transaction_succeeds(bench: Bench) -> None:
    result = bench.store.txn(Txn((), (), (Put(bench.key("a"), b""),)), timeout=TIMEOUT)
    assert result.succeeded
    assert values(bench) == {}


def test_reads_see_the_state_inside_the_transaction(bench: Bench) -> None:
    a, b, c = (bench.key(n) for n in "abc")
    bench.txn(Put(a, b"1"), Put(b, b"1"))
    all_of_it = Get(bench.prefix, bench.key("\x7f"))
    txn = Txn((), (all_of_it, Put(c, b"2"), Delete(a), all_of_it, Put(b, b"2"), Get(b), Get(a)))
    result = bench.store.txn(txn, timeout=TIMEOUT)
    found = [[(kv.key, kv.value) for kv in kvs] for kvs in result.reads]
    assert found == [[(a, b"1"), (b, b"1")], [(b, b"1"), (c, b"2")], [(b, b"2")], []]
    assert result.reads[2][0].mod_revision == result.revision


OPS: dict[str, Any] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("target", ["version", "create", "mod", "lease", "value"])
def test_each_compare_of_a_key(bench: Bench, target: Any, op: Any) -> None:
    key = bench.key()
    lease = bench.store.grant(60, timeout=TIMEOUT).id
    create = bench.txn(Put(key, b"a"))
    mod = bench.txn(Put(key, b"m", lease))
    numbers = {"version": 2, "create": create, "mod": mod, "lease": lease}
    actual = numbers.get(target, b"m")
    values: tuple[int | bytes, ...] = (b"", b"l", b"m", b"mm", b"n")
    if isinstance(actual, int):
        values = (0, actual - 1, actual, actual + 1)
    for value in values:
        txn = Txn((Compare(key, target, op, value),), ())
        assert bench.store.txn(txn, timeout=TIMEOUT).succeeded is OPS[op](actual, value), value
    bench.store.revoke(lease, timeout=TIMEOUT)


@pytest.mark.parametrize("ranged", [False, True])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("target", ["version", "create", "mod", "lease", "value"])
def test_each_compare_of_a_missing_key(bench: Bench, target: Any, op: Any, ranged: bool) -> None:
    range_end = bench.key("b") if ranged else None
    for value in [b"", b"x"] if target == "value" else [0, 1]:
        compare = Compare(bench.key("a"), target, op, value, range_end)
        expected = False if target == "value" else OPS[op](0, value)
        assert bench.store.txn(Txn((compare,), ()), timeout=TIMEOUT).succeeded is expected, value


def test_a_compare_of_a_range_must_hold_for_every_key(bench: Bench) -> None:
    first = bench.txn(Put(bench.key("a"), b"1"), Put(bench.key("b"), b"1"))
    bench.txn(Put(bench.key("b"), b"2"), Put(bench.key("z"), b"1"))

    def holds(target: Any, op: Any, value: Any) -> bool:
        compare = Compare(bench.key("a"), target, op, value, bench.key("c"))
        return bench.store.txn(Txn((compare,), ()), timeout=TIMEOUT).succeeded

    assert holds("create", "==", first)
    assert holds("mod", "<", first + 2)
    assert not holds("mod", "<", first + 1)
    assert not holds("version", "==", 1)
    assert holds("value", ">", b"0")
    assert not holds("value", "==", b"1")


@pytest.mark.parametrize("branch", ["success", "failure"])
@pytest.mark.parametrize(
    "ops",
    [
        [("put", "a"), ("put", "a")],
        [("put", "a"), ("delete", "a")],
        [("delete", "a"), ("put", "a")],
        [("delete range", "a"), ("put", "ab")],
    ],
    ids=["put put", "put delete", "delete put", "delete range put"],
)
def test_a_key_written_twice_is_rejected(
    bench: Bench, branch: str, ops: list[tuple[str, str]]
) -> None:
    made: dict[str, Callable[[str], Op]] = {
        "put": lambda name: Put(bench.key(name), b"new"),
        "delete": lambda name: Delete(bench.key(name)),
        "delete range": lambda name: Delete(bench.key(name), bench.key("b")),
    }
    before = bench.txn(Put(bench.key("a"), b"old"))
    writes: tuple[Op, ...] = (
        Put(bench.key("other"), b"x"),
        *(made[kind](name) for kind, name in ops),
    )
    txn = Txn((), writes) if branch == "success" else Txn((), (), writes)
    with pytest.raises(StoreError) as caught:
        bench.store.txn(txn, timeout=TIMEOUT)
    assert not caught.value.retryable
    assert bench.revision() == before
    assert values(bench) == {b"a": b"old"}


def test_a_key_deleted_twice_is_not_rejected(bench: Bench) -> None:
    bench.txn(Put(bench.key("a"), b""), Put(bench.key("b"), b""))
    revision = bench.txn(Delete(bench.key("a")), Delete(bench.key("a"), bench.key("c")))
    assert values(bench) == {}
    assert bench.revision() == revision


@pytest.mark.parametrize(
    "txn",
    [
        Txn((), (Put(b"", b"x"),)),
        Txn((), (Delete(b""),)),
        Txn((), (Get(b""),)),
        Txn((Compare(b"", "version", "==", 0),), ()),
    ],
    ids=["put", "delete", "get", "compare"],
)
def test_an_empty_key_is_rejected(bench: Bench, txn: Txn) -> None:
    before = bench.revision()
    with pytest.raises(StoreError):
        bench.store.txn(txn, timeout=TIMEOUT)
    assert bench.revision() == before


@pytest.mark.parametrize("where", ["compares", "success", "failure"])
def test_a_transaction_has_128_operations_at_most(bench: Bench, where: str) -> None:
    def of(n: int) -> Txn:
        compares = [Compare(bench.key(str(i)), "version", "==", 0) for i in range(n)]
        puts = [Put(bench.key(str(i)), b"") for i in range(n)]
        return Txn(
            tuple(compares) if where == "compares" else (),
            tuple(puts) if where == "success" else (),
            tuple(puts) if where == "failure" else (),
        )

    assert bench.store.txn(of(128), timeout=TIMEOUT).succeeded
    before = bench.revision()
    with pytest.raises(StoreError):
        bench.store.txn(of(129), timeout=TIMEOUT)
    assert bench.revision() == before


def test_compare_and_swap_from_many_threads_loses_nothing(bench: Bench) -> None:
    key = bench.key("counter")
    bench.txn(Put(key, b"0"))
    stores = [bench.store, bench.connect()]

    def add(store: Store, times: int) -> None:
        while times:
            kv = store.range(key, timeout=TIMEOUT).kvs[0]
            txn = Txn(
                (Compare(key, "mod", "==", kv.mod_revision),),
                (Put(key, b"%d" % (int(kv.value) + 1)),),
            )
            times -= store.txn(txn, timeout=TIMEOUT).succeeded

    threads = [threading.Thread(target=add, args=(stores[i % 2], 10)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    kv = read(bench).kvs[0]
    assert (kv.value, kv.version) == (b"40", 41)


def test_the_cluster_id_is_the_same_for_all_clients(bench: Bench) -> None:
    other = bench.connect().range(bench.prefix, timeout=TIMEOUT)
    assert other.cluster_id == read(bench).cluster_id


def test_server_version(bench: Bench) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(-.*)?", bench.store.server_version(timeout=TIMEOUT))


def test_close_is_idempotent_and_ends_every_call(bench: Bench) -> None:
    store, other = bench.connect(), bench.connect()
    key = bench.key()
    bench.txn(Put(key, b"1"), store=store)
    store.close()
    store.close()
    calls: list[Callable[[], object]] = [
        lambda: store.range(bench.prefix, timeout=TIMEOUT),
        lambda: store.txn(Txn((), (Put(key, b"2"),)), timeout=TIMEOUT),
        lambda: store.grant(10, timeout=TIMEOUT),
        lambda: store.revoke(1, timeout=TIMEOUT),
        lambda: store.keep_alive(1, timeout=TIMEOUT),
        lambda: store.server_version(timeout=TIMEOUT),
    ]
    for call in calls:
        with pytest.raises(StoreError):
            call()
    kvs = other.range(bench.prefix, timeout=TIMEOUT).kvs
    assert [kv.value for kv in kvs] == [b"1"]
