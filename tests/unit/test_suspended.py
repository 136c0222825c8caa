"""A machine that slept: its clock leaps, and whoever asks next is told the truth."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import pytest

from clusterkit import FencedError, KitState, StoreUnavailableError, _compose
from clusterkit._compose import Run
from clusterkit.config import Options
from clusterkit.engine.clock import SystemClock
from clusterkit.engine.session import Session
from clusterkit.sync import ClusterKit
from clusterkit.testing.memory import MemoryStore
from tests.support.bench import FaultyStore, eventually, raising, remove_by_admin

P0 = "partition-0"


class LeapingClock:
    """The machine's clock, and what it slept."""

    def __init__(self) -> None:
        self._inner = SystemClock()
        self.slept = 0.0

    def now(self) -> datetime:
        return self._inner.now() + timedelta(seconds=self.slept)

    def monotonic(self) -> float:
        return self._inner.monotonic() + self.slept


class Kit(ClusterKit):
    """A kit on a store in memory and on a clock that can leap."""

    def _assemble(self, options: Options, loop: asyncio.AbstractEventLoop | None) -> Run:
        self.clock = LeapingClock()
        self.store = FaultyStore(MemoryStore())
        return _compose.node(options, self._specs(), loop, store=self.store, clock=self.clock)

    def session(self) -> Session:
        run = self._running()
        assert run.runner.snapshot is not None
        session = run.runner.snapshot.session
        assert session is not None
        return session


@pytest.fixture
def kit() -> Iterator[Kit]:
    with started() as kit:
        yield kit


@contextmanager
def started(*, ready_when_fenced: bool = False) -> Iterator[Kit]:
    kit = Kit(
        endpoints="127.0.0.1:1",
        cluster="test",
        node_id="a",
        address="a:1",
        partitions=8,
        replication_factor=1,
        lease_ttl=2,
        settle_time=0.05,
        environ={},
        ready_when_fenced=ready_when_fenced,
    )
    with kit:
        kit.wait_ready(10)
        yield kit
        kit.store.always("keep_alive", None)


def test_an_hour_of_sleep_ends_ownership_at_once(kit: Kit) -> None:
    guard = kit.guard(P0)
    # Nothing can be proven until a keep-alive is answered again.
    kit.store.always("keep_alive", raising(StoreUnavailableError("no network yet")))
    kit.clock.slept = 3600.0
    assert not kit.is_primary(P0)
    assert not guard.valid
    assert guard.remaining == timedelta(0)
    with pytest.raises(FencedError, match="cannot prove"):
        kit.guard(P0)
    with pytest.raises(FencedError):
        guard.check()
    assert not kit.readiness().ready
    eventually(lambda: kit.state is KitState.FENCED, "its hooks are told too")


def test_a_lease_that_outlived_the_sleep_is_carried_on(kit: Kit) -> None:
    before = kit.session()
    kit.store.always("keep_alive", raising(StoreUnavailableError("no network yet")))
    kit.clock.slept = 3600.0
    eventually(lambda: kit.state is KitState.FENCED, "fenced")
    kit.store.always("keep_alive", None)
    eventually(lambda: kit.is_primary(P0), "an owner again")
    assert kit.session() is before


def test_a_lease_that_ended_in_the_sleep_needs_a_new_join(kit: Kit) -> None:
    before = kit.session()
    kit.store.always("keep_alive", raising(StoreUnavailableError("no network yet")))
    kit.clock.slept = 3600.0
    kit.store.revoke(before.lease_id, timeout=1)
    assert not kit.is_primary(P0)
    kit.store.always("keep_alive", None)
    eventually(lambda: kit.is_primary(P0), "an owner again")
    assert kit.session() is not before


def test_a_node_may_stay_ready_while_it_is_fenced_and_owns_nothing() -> None:
    with started(ready_when_fenced=True) as kit:
        before = kit.session()
        kit.store.always("keep_alive", raising(StoreUnavailableError("no network yet")))
        kit.clock.slept = 3600.0
        assert kit.readiness().ready, "before anybody has noticed"
        eventually(lambda: kit.state is KitState.FENCED, "fenced")
        assert kit.readiness().ready
        assert kit.readiness().fencing_in == timedelta(0)
        assert not kit.is_primary(P0)
        # The lease is lost for certain, and no new one is to be had: still so.
        kit.store.always("grant", raising(StoreUnavailableError("no network yet")))
        kit.store.revoke(before.lease_id, timeout=1)
        kit.store.always("keep_alive", None)
        eventually(lambda: before.lost, "the session has ended")
        assert kit.readiness().ready
        kit.store.always("grant", None)
        eventually(lambda: kit.is_primary(P0), "an owner again")
        kit.wait_ready(10)
    assert not kit.readiness().ready, "stopped"


def test_who_was_removed_is_not_ready_whatever_the_policy() -> None:
    with started(ready_when_fenced=True) as kit:
        remove_by_admin(kit.store, "a")
        eventually(lambda: kit.state is KitState.REMOVED, "removed")
        assert not kit.readiness().ready, "an administrator wants it out"
