"""What ``Store.grant``, ``revoke`` and ``keep_alive`` promise, on both stores.

Time passes by ``bench.pass_time``: in memory it moves the virtual clock, with etcd it lets real
time go by. What a lease's end does is waited for on a watch.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from clusterkit.errors import StoreError
from clusterkit.ports import Compare, Delete, Put, Txn, WatchBatch

if TYPE_CHECKING:
    from tests.contract.conftest import Bench

TIMEOUT = 10.0
TTL = 2
"""The shortest that etcd gives, in seconds."""


def grant(bench: Bench, ttl: int = 60) -> int:
    return bench.store.grant(ttl, timeout=TIMEOUT).id


def names(bench: Bench) -> list[str]:
    kvs = bench.store.range(bench.prefix, timeout=TIMEOUT).kvs
    return [kv.key[len(bench.prefix) :].decode() for kv in kvs]


def test_a_lease_has_an_id_of_its_own_and_no_revision(bench: Bench) -> None:
    before = bench.revision()
    grants = [bench.store.grant(60, timeout=TIMEOUT) for _ in range(3)]
    assert len({g.id for g in grants}) == 3
    assert all(g.id != 0 for g in grants)
    assert [g.ttl_seconds for g in grants] == [60] * 3
    assert bench.revision() == before


def test_the_granted_ttl_is_told_not_the_one_asked_for(bench: Bench) -> None:
    assert bench.store.grant(1, timeout=TIMEOUT).ttl_seconds == TTL


def test_a_lease_that_is_too_long_is_refused(bench: Bench) -> None:
    with pytest.raises(StoreError):
        bench.store.grant(9_000_000_001, timeout=TIMEOUT)


def test_a_key_names_its_lease(bench: Bench) -> None:
    lease = grant(bench)
    bench.txn(Put(bench.key("a"), b"", lease))
    assert bench.store.range(bench.prefix, timeout=TIMEOUT).kvs[0].lease == lease


def test_revoke_ends_all_keys_in_one_revision(bench: Bench) -> None:
    lease = grant(bench)
    bench.txn(Put(bench.key("a"), b"", lease), Put(bench.key("other"), b""))
    last = bench.txn(Put(bench.key("b"), b"", lease))
    tail = bench.watch(last + 1)
    bench.store.revoke(lease, timeout=TIMEOUT)
    batch = tail.next()
    assert batch.revision == last + 1
    assert {(e.kind, e.kv.key, e.kv.mod_revision) for e in batch.events} == {
        ("delete", bench.key("a"), last + 1),
        ("delete", bench.key("b"), last + 1),
    }
    assert names(bench) == ["other"]


def test_revoking_a_lease_that_is_gone_is_no_error(bench: Bench) -> None:
    lease = grant(bench)
    bench.store.revoke(lease, timeout=TIMEOUT)
    before = bench.revision()
    bench.store.revoke(lease, timeout=TIMEOUT)
    bench.store.revoke(0x7E57, timeout=TIMEOUT)
    assert bench.revision() == before


def test_revoking_a_lease_without_keys_raises_no_revision(bench: Bench) -> None:
    lease = grant(bench)
    bench.txn(Put(bench.key("a"), b"", lease))
    before = bench.txn(Delete(bench.key("a")))
    bench.store.revoke(lease, timeout=TIMEOUT)
    assert bench.revision() == before


def test_a_key_written_again_belongs_to_its_newest_lease(bench: Bench) -> None:
    first, second = grant(bench), grant(bench)
    bench.txn(*(Put(bench.key(n), b"", first) for n in "abc"))
    bench.txn(Put(bench.key("a"), b""), Put(bench.key("b"), b"", second))
    bench.store.revoke(first, timeout=TIMEOUT)
    assert names(bench) == ["a", "b"]
    bench.store.revoke(second, timeout=TIMEOUT)
    assert names(bench) == ["a"]


@pytest.mark.parametrize("revoked", [True, False])
def test_a_put_on_a_missing_lease_fails_whole(bench: Bench, revoked: bool) -> None:
    lease = 0x7E57
    if revoked:
        lease = grant(bench)
        bench.store.revoke(lease, timeout=TIMEOUT)
    before = bench.revision()
    with pytest.raises(StoreError) as caught:
        bench.txn(Put(bench.key("a"), b""), Put(bench.key("b"), b"", lease))
    assert not caught.value.retryable
    assert names(bench) == []
    assert bench.revision() == before


def test_a_missing_lease_in_the_branch_not_taken_is_no_error(bench: Bench) -> None:
    compare = Compare(bench.key("a"), "version", "==", 0)
    put = Put(bench.key("a"), b"", 0x7E57)
    assert bench.store.txn(Txn((compare,), (), (put,)), timeout=TIMEOUT).succeeded


def test_keep_alive_tells_the_ttl_and_zero_for_a_lease_that_is_gone(bench: Bench) -> None:
    lease = grant(bench, 60)
    before = bench.revision()
    assert bench.store.keep_alive(lease, timeout=TIMEOUT) == 60
    bench.store.revoke(lease, timeout=TIMEOUT)
    assert bench.store.keep_alive(lease, timeout=TIMEOUT) == 0
    assert bench.store.keep_alive(0x7E57, timeout=TIMEOUT) == 0
    assert bench.revision() == before


def test_expiry_ends_all_keys_in_one_revision_and_not_before_the_ttl(bench: Bench) -> None:
    began = time.monotonic()
    lease = grant(bench, TTL)
    last = bench.txn(Put(bench.key("a"), b"", lease), Put(bench.key("b"), b"", lease))
    bench.txn(Put(bench.key("other"), b"", grant(bench, 60)))
    tail = bench.watch(last + 2)
    if bench.kind == "memory":
        bench.pass_time(TTL - 0.001)
        assert names(bench) == ["a", "b", "other"]
        bench.pass_time(0.001)
    batch: WatchBatch = tail.next()
    assert bench.kind == "memory" or time.monotonic() - began >= TTL
    assert batch.revision == last + 2
    assert {(e.kind, e.kv.key) for e in batch.events} == {
        ("delete", bench.key("a")),
        ("delete", bench.key("b")),
    }
    assert names(bench) == ["other"]
    assert bench.store.keep_alive(lease, timeout=TIMEOUT) == 0
    with pytest.raises(StoreError):
        bench.txn(Put(bench.key("c"), b"", lease))


def test_keep_alive_counts_the_ttl_anew(bench: Bench) -> None:
    kept, left = grant(bench, TTL), grant(bench, TTL)
    revision = bench.txn(Put(bench.key("kept"), b"", kept), Put(bench.key("left"), b"", left))
    tail = bench.watch(revision + 1)
    for _ in range(8):
        bench.pass_time(TTL / 4)
        assert bench.store.keep_alive(kept, timeout=TIMEOUT) == TTL
    # By now twice the TTL has gone by: one lease had to end, in a revision of its own.
    assert [e.kv.key for e in tail.next().events] == [bench.key("left")]
    assert names(bench) == ["kept"]
    bench.pass_time(TTL)
    assert [e.kv.key for e in tail.next().events] == [bench.key("kept")]
