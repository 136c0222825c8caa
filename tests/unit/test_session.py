"""The session's deadline, and the keep-alive thread."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator

import pytest

from clusterkit.engine.clock import SystemClock
from clusterkit.engine.session import (
    KeepAlive,
    LeaseDoubted,
    LeaseLost,
    LeaseNews,
    LeaseProven,
    Session,
)
from clusterkit.errors import StoreTimeoutError, StoreUnavailableError
from clusterkit.testing.memory import MemoryStore
from tests.support.bench import FaultyStore, eventually, raising

CLOCK = SystemClock()


def session(
    lease_id: int = 1, *, ttl: int = 1, margin: float = 0.1, granted: float = 0.0
) -> Session:
    return Session("nonce", lease_id, ttl, margin, granted)


def test_the_deadline_counts_from_the_sending_of_the_grant() -> None:
    s = session(ttl=10, margin=1.0, granted=100.0)
    assert s.proven(108.999)
    assert not s.proven(109.0)
    assert s.remaining(100.0) == 9.0
    assert s.remaining(200.0) == 0.0


def test_a_renewal_counts_from_its_sending_with_the_ttl_that_it_granted() -> None:
    s = session(ttl=10, margin=1.0, granted=100.0)
    s.renewed(105.0, 20)
    assert s.deadline == 124.0


def test_a_lost_session_stays_lost() -> None:
    s = session(ttl=10, granted=100.0)
    s.lose()
    s.renewed(100.0, 10)
    assert s.lost
    assert not s.proven(0.0)
    assert s.remaining(0.0) == 0.0


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    faulty = FaultyStore(MemoryStore())
    yield faulty
    faulty.close()


@pytest.fixture
def news() -> queue.SimpleQueue[LeaseNews]:
    return queue.SimpleQueue()


@pytest.fixture
def keeper(store: FaultyStore, news: queue.SimpleQueue[LeaseNews]) -> Iterator[KeepAlive]:
    thread = KeepAlive(store, CLOCK, news.put)
    yield thread
    thread.close(5.0)
    assert not thread._thread.is_alive()


def keep_alives(store: FaultyStore) -> int:
    return sum(name == "keep_alive" for name, _ in store.calls)


def test_it_renews_what_is_attached(store: FaultyStore, keeper: KeepAlive) -> None:
    lease = store.grant(10, timeout=1)
    kept = session(lease.id, granted=CLOCK.monotonic())
    before = kept.deadline
    keeper.attach(kept)
    eventually(lambda: kept.deadline > before + 5, "the lease's own TTL of 10 counts")
    assert kept.deadline <= CLOCK.monotonic() + 10 - 0.1


def test_the_first_renewal_does_not_wait_for_a_slow_join(
    store: FaultyStore, keeper: KeepAlive
) -> None:
    lease = store.grant(60, timeout=1)
    # The grant was sent 50 of 60 seconds ago: a third of the TTL is over long since.
    kept = session(lease.id, ttl=60, granted=CLOCK.monotonic() - 50)
    keeper.attach(kept)
    eventually(lambda: keep_alives(store), "the first renewal", seconds=5)


def test_doubt_is_reported_when_it_begins_and_again_when_it_ends(
    store: FaultyStore, keeper: KeepAlive, news: queue.SimpleQueue[LeaseNews]
) -> None:
    lease = store.grant(60, timeout=1)
    store.always("keep_alive", raising(StoreUnavailableError("nobody there")))
    kept = session(lease.id, granted=CLOCK.monotonic())
    keeper.attach(kept)
    doubted = news.get(timeout=10)
    late = CLOCK.monotonic() - kept.deadline
    assert isinstance(doubted, LeaseDoubted)
    assert doubted.session is kept
    assert "nobody there" in doubted.reason
    assert 0 <= late < 0.3
    store.always("keep_alive", None)
    proven = news.get(timeout=10)
    assert isinstance(proven, LeaseProven)
    assert kept.proven(CLOCK.monotonic())
    assert news.empty()


def test_doubt_is_reported_by_the_deadline_though_a_call_hangs(
    store: FaultyStore, keeper: KeepAlive, news: queue.SimpleQueue[LeaseNews]
) -> None:
    lease = store.grant(60, timeout=1)
    allowed: list[float] = []
    inner = store.inner

    class Hangs(MemoryStore):
        def keep_alive(self, lease_id: int, *, timeout: float) -> int:
            allowed.append(timeout)
            time.sleep(timeout)  # an endpoint that swallows packets
            raise StoreTimeoutError("no answer")

    assert isinstance(inner, MemoryStore)
    store.inner = Hangs(inner.server)
    kept = session(lease.id, granted=CLOCK.monotonic())
    keeper.attach(kept)
    assert isinstance(news.get(timeout=10), LeaseDoubted)
    assert CLOCK.monotonic() - kept.deadline < 0.3
    assert max(allowed) <= 1 / 3 + 0.001
    store.inner = inner


def test_a_defect_of_the_store_is_doubt_too(
    store: FaultyStore, keeper: KeepAlive, news: queue.SimpleQueue[LeaseNews]
) -> None:
    lease = store.grant(60, timeout=1)
    store.always("keep_alive", raising(ZeroDivisionError("a defect")))
    keeper.attach(session(lease.id, granted=CLOCK.monotonic()))
    assert isinstance(news.get(timeout=10), LeaseDoubted)
    store.always("keep_alive", None)
    assert isinstance(news.get(timeout=10), LeaseProven)


def test_a_lease_that_is_gone_is_lost_and_no_more_renewed(
    store: FaultyStore, keeper: KeepAlive, news: queue.SimpleQueue[LeaseNews]
) -> None:
    lease = store.grant(60, timeout=1)
    store.revoke(lease.id, timeout=1)
    kept = session(lease.id, granted=CLOCK.monotonic())
    keeper.attach(kept)
    lost = news.get(timeout=10)
    assert isinstance(lost, LeaseLost)
    assert kept.lost
    # It is free for the next session.
    lease = store.grant(60, timeout=1)
    following = session(lease.id, granted=CLOCK.monotonic() - 0.5)
    keeper.attach(following)
    eventually(lambda: following.remaining(CLOCK.monotonic()) > 30, "the next one is renewed")
    assert news.empty()


def test_what_is_detached_is_no_more_renewed(store: FaultyStore, keeper: KeepAlive) -> None:
    first, second = store.grant(60, timeout=1), store.grant(60, timeout=1)
    old = session(first.id, granted=CLOCK.monotonic())
    keeper.attach(old)
    keeper.detach(old)
    kept = session(second.id, granted=CLOCK.monotonic())
    keeper.attach(kept)
    eventually(lambda: keep_alives(store) >= 2, "two renewals")
    assert {about for name, about in store.calls if name == "keep_alive"} == {second.id}


def test_closing_is_prompt_and_can_be_done_twice(store: FaultyStore) -> None:
    keeper = KeepAlive(store, CLOCK, lambda news: None)
    lease = store.grant(60, timeout=1)
    keeper.attach(session(lease.id, ttl=60, granted=CLOCK.monotonic()))
    begun = time.monotonic()
    keeper.close(5.0)
    keeper.close(5.0)
    assert not keeper._thread.is_alive()
    assert time.monotonic() - begun < 2.0
