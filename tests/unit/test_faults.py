"""The public fault plan: what goes wrong, how often, and what is left of it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import pytest

from clusterkit.errors import (
    CompactedError,
    StoreAuthError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from clusterkit.ports import Put, Txn, WatchBatch
from clusterkit.testing import FaultPlan, FaultyStore, MemoryServer, MemoryStore, VirtualClock
from tests.support.bench import eventually

A = Txn((), (Put(b"/a", b"1"),))


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def store(clock: VirtualClock) -> Iterator[FaultyStore]:
    with MemoryServer(clock) as server, FaultyStore(MemoryStore(server), clock=clock) as faulty:
        yield faulty


def keys(store: FaultyStore) -> int:
    return len(store.inner.range(b"/", timeout=1).kvs)


def test_without_faults_everything_gets_through(store: FaultyStore) -> None:
    assert store.txn(A, timeout=1).succeeded
    assert store.range(b"/", timeout=1).kvs[0].value == b"1"
    lease = store.grant(5, timeout=1)
    assert store.keep_alive(lease.id, timeout=1) == 5
    store.revoke(lease.id, timeout=1)
    assert store.keep_alive(lease.id, timeout=1) == 0
    assert store.server_version(timeout=1) == "3.5.13"
    assert store.plan.calls == {
        "txn": 1, "range": 1, "grant": 1, "keep_alive": 2, "revoke": 1, "server_version": 1
    }  # fmt: skip


def test_a_call_fails_as_often_and_as_late_as_was_said(store: FaultyStore) -> None:
    store.plan.fail("txn", times=2, after=1)
    store.txn(A, timeout=1)
    for _ in range(2):
        with pytest.raises(StoreUnavailableError) as caught:
            store.txn(A, timeout=1)
        assert caught.value.retryable
    assert store.plan.pending == 0
    assert store.txn(A, timeout=1).revision == 3  # those that failed had no effect
    assert store.plan.calls["txn"] == 4


def test_faults_of_one_call_take_turns_and_leave_others_alone(store: FaultyStore) -> None:
    store.plan.fail("txn", error=StoreAuthError("first"))
    store.plan.fail("txn", times=None, error=StoreError("then"))
    store.range(b"/", timeout=1)
    for text in ("first", "then", "then"):
        with pytest.raises(StoreError, match=text):
            store.txn(A, timeout=1)
    store.plan.clear("range")
    assert store.plan.pending == 1
    store.plan.clear("txn")
    store.txn(A, timeout=1)


def test_an_answer_is_lost_and_the_call_was_applied(store: FaultyStore) -> None:
    store.plan.lose_answer("txn")
    with pytest.raises(StoreTimeoutError):
        store.txn(A, timeout=1)
    assert keys(store) == 1
    store.plan.lose_answer("grant", error=StoreUnavailableError("gone"))
    with pytest.raises(StoreUnavailableError, match="gone"):
        store.grant(5, timeout=1)


def in_thread(store: FaultyStore, timeout: float) -> queue.SimpleQueue[BaseException | None]:
    """Sends a transaction on a thread of its own, and waits until it hangs."""
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def call() -> None:
        try:
            store.txn(A, timeout=timeout)
        except StoreError as e:
            ended.put(e)
        else:
            ended.put(None)

    threading.Thread(target=call).start()
    eventually(lambda: store.plan.hanging, "it hangs")
    return ended


def test_a_call_that_hangs_ends_when_its_time_is_up_by_the_clock(
    store: FaultyStore, clock: VirtualClock
) -> None:
    store.plan.hang("txn")
    ended = in_thread(store, 600)
    clock.advance(599)
    assert store.plan.hanging == 1
    clock.advance(1)
    assert isinstance(ended.get(timeout=10), StoreTimeoutError)
    assert (store.plan.hanging, keys(store)) == (0, 0)


@pytest.mark.parametrize("how", ["clear", "heal", "cut_off"])
def test_what_hangs_can_be_ended(store: FaultyStore, how: str) -> None:
    store.plan.hang("txn")
    ended = in_thread(store, 600)
    getattr(store.plan, how)()
    assert isinstance(ended.get(timeout=10), StoreTimeoutError)


def test_without_a_clock_of_its_own_it_goes_by_the_machines() -> None:
    with FaultyStore(MemoryStore()) as store:
        store.plan.hang("range")
        with pytest.raises(StoreTimeoutError, match=r"within 0\.01 s"):
            store.range(b"/", timeout=0.01)


def test_a_node_that_is_cut_off_reaches_nothing_until_it_is_healed(store: FaultyStore) -> None:
    watch = store.watch(b"/", 0)
    store.plan.cut_off()
    with pytest.raises(StoreUnavailableError, match="broke"):
        next(iter(watch))
    with pytest.raises(StoreUnavailableError, match="cut off"):
        store.txn(A, timeout=1)
    with pytest.raises(StoreUnavailableError, match="cut off"):
        store.watch(b"/", 0)
    assert store.plan.is_cut_off
    store.plan.heal()
    assert store.txn(A, timeout=1).succeeded


def test_a_watch_breaks_in_the_middle_with_the_error_that_was_given(store: FaultyStore) -> None:
    seen: queue.SimpleQueue[WatchBatch | BaseException] = queue.SimpleQueue()
    watch = store.watch(b"/", 0)

    def read() -> None:
        try:
            for batch in watch:
                seen.put(batch)
        except StoreError as e:
            seen.put(e)

    threading.Thread(target=read).start()
    store.txn(A, timeout=1)
    assert isinstance(seen.get(timeout=10), WatchBatch)
    store.plan.break_watches(CompactedError("too old", compact_revision=7))
    assert isinstance(seen.get(timeout=10), CompactedError)
    store.plan.fail("watch")
    with pytest.raises(StoreUnavailableError):
        store.watch(b"/", 0)
    store.watch(b"/", 0).close()


def test_two_stores_of_one_plan_share_its_faults() -> None:
    plan = FaultPlan()
    with MemoryServer() as server:
        first, second = (FaultyStore(MemoryStore(server), plan) for _ in range(2))
        plan.fail("range", after=1)
        first.range(b"/", timeout=1)
        with pytest.raises(StoreUnavailableError):
            second.range(b"/", timeout=1)


@pytest.mark.parametrize("numbers", [{"times": 0}, {"after": -1}])
def test_numbers_that_cannot_be_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least one call"):
        FaultPlan().fail("txn", **numbers)  # type: ignore[arg-type]  # one of them is missing
