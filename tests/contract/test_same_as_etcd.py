"""Random histories, carried out on the store in memory and on a real etcd: all answers agree."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clusterkit.errors import StoreError
from clusterkit.ports import Compare, Delete, Get, KeyValue, Op, Put, Store, Txn, WatchBatch
from clusterkit.testing.clock import VirtualClock
from clusterkit.testing.memory import MemoryServer, MemoryStore

if TYPE_CHECKING:
    from tests.contract.conftest import Bench

TIMEOUT = 10.0

# Few names and values, so that operations meet. Leases and revisions cannot be the same on both
# sides, so they are written as small numbers: the n-th lease (3 is one that never existed), and
# revisions counted from where the history began.
NAMES = st.sampled_from([b"a", b"ab", b"b", b"c", b"\xff"])
VALUES = st.sampled_from([b"", b"x", b"y"])
LEASES = st.sampled_from([0, 0, 1, 2, 3])
ENDS = st.one_of(st.none(), st.none(), NAMES)

OPS: st.SearchStrategy[Op] = st.one_of(
    st.builds(Put, NAMES, VALUES, LEASES),
    st.builds(Delete, NAMES, ENDS),
    st.builds(Get, NAMES, ENDS),
)
COMPARISONS: st.SearchStrategy[Any] = st.sampled_from(["==", "!=", "<", ">"])
COMPARES = st.one_of(
    st.builds(Compare, NAMES, st.just("version"), COMPARISONS, st.integers(0, 3), ENDS),
    st.builds(Compare, NAMES, st.just("create"), COMPARISONS, st.integers(0, 8), ENDS),
    st.builds(Compare, NAMES, st.just("mod"), COMPARISONS, st.integers(0, 8), ENDS),
    st.builds(Compare, NAMES, st.just("value"), COMPARISONS, VALUES, ENDS),
    st.builds(
        Compare, NAMES, st.just("lease"), st.sampled_from(["==", "!="]), st.integers(0, 2), ENDS
    ),
)
BRANCHES = st.lists(OPS, max_size=4).map(tuple)


@dataclass(frozen=True)
class Revoke:
    lease: int


@dataclass(frozen=True)
class KeepAlive:
    lease: int


STEPS = st.one_of(
    st.builds(Txn, st.lists(COMPARES, max_size=2).map(tuple), BRANCHES, BRANCHES),
    st.builds(lambda op: Txn((), (op,)), OPS),
    st.builds(lambda op: Txn((), (op,)), st.builds(Put, NAMES, VALUES, LEASES)),
    st.builds(Revoke, st.integers(1, 2)),
    st.builds(KeepAlive, st.integers(1, 3)),
)


class Side:
    """One of the two stores, spoken to and answering in the small numbers."""

    def __init__(self, store: Store, prefix: bytes) -> None:
        self._store = store
        self._prefix = prefix
        granted = [store.grant(60, timeout=TIMEOUT) for _ in range(2)]
        self._leases = [0, *(grant.id for grant in granted), 0x7E57]
        self._base = store.range(prefix, timeout=TIMEOUT).revision

    def do(self, step: Txn | Revoke | KeepAlive) -> object:
        """Carries out a step; what came of it, a refusal too."""
        try:
            match step:
                case Txn():
                    result = self._store.txn(self._txn_out(step), timeout=TIMEOUT)
                    reads = [[self._kv_in(kv) for kv in kvs] for kvs in result.reads]
                    return result.succeeded, result.revision - self._base, reads
                case Revoke(lease):
                    self._store.revoke(self._leases[lease], timeout=TIMEOUT)
                    return "revoked"
                case KeepAlive(lease):
                    return self._store.keep_alive(self._leases[lease], timeout=TIMEOUT)
        except StoreError as e:
            return "refused", e.retryable

    def state(self) -> object:
        found = self._store.range(self._prefix, timeout=TIMEOUT)
        return found.revision - self._base, [self._kv_in(kv) for kv in found.kvs]

    def history(self) -> object:
        """All that a watch says of it; an own last write tells where it ends."""
        end = self._prefix + b"end"
        last = self._store.txn(Txn((), (Put(end, b""),)), timeout=TIMEOUT).revision
        batches: list[WatchBatch] = []
        with closing(self._store.watch(self._prefix, self._base + 1)) as watch:
            for batch in watch:
                if batch.events:
                    batches.append(batch)
                if batch.revision >= last:
                    break
        return [
            (batch.revision - self._base, [(e.kind, self._kv_in(e.kv)) for e in batch.events])
            for batch in batches
        ]

    def _txn_out(self, txn: Txn) -> Txn:
        return Txn(
            tuple(self._compare_out(compare) for compare in txn.compares),
            tuple(self._op_out(op) for op in txn.success),
            tuple(self._op_out(op) for op in txn.failure),
        )

    def _compare_out(self, compare: Compare) -> Compare:
        value = compare.value
        if isinstance(value, int) and compare.target == "lease":
            value = self._leases[value]
        elif isinstance(value, int) and compare.target in ("create", "mod") and value > 0:
            value += self._base
        return replace(
            compare,
            key=self._prefix + compare.key,
            range_end=self._end_out(compare.range_end),
            value=value,
        )

    def _op_out(self, op: Op) -> Op:
        if isinstance(op, Put):
            return Put(self._prefix + op.key, op.value, self._leases[op.lease])
        return replace(op, key=self._prefix + op.key, range_end=self._end_out(op.range_end))

    def _end_out(self, range_end: bytes | None) -> bytes | None:
        return None if range_end is None else self._prefix + range_end

    def _kv_in(self, kv: KeyValue) -> KeyValue:
        return replace(
            kv,
            key=kv.key.removeprefix(self._prefix),
            create_revision=kv.create_revision and kv.create_revision - self._base,
            mod_revision=kv.mod_revision - self._base,
            lease=self._leases.index(kv.lease),
        )

    def clean(self) -> None:
        self._store.txn(Txn((), (Delete(self._prefix, self._prefix + b"\xff\xff"),)), timeout=10)
        for lease in self._leases[1:3]:
            self._store.revoke(lease, timeout=TIMEOUT)


@settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each example cleans up
)
@given(steps=st.lists(STEPS, min_size=1, max_size=10))
def test_random_histories_agree(real_bench: Bench, steps: list[Txn | Revoke | KeepAlive]) -> None:
    with MemoryServer(VirtualClock()) as server, MemoryStore(server) as store:
        etcd = Side(real_bench.store, real_bench.prefix)
        memory = Side(store, b"/memory/")
        try:
            for step in steps:
                assert memory.do(step) == etcd.do(step), step
                assert memory.state() == etcd.state(), step
            assert memory.history() == etcd.history()
        finally:
            etcd.clean()
