"""Whether the view is what etcd has: what differs, and what a difference means."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from clusterkit.core import membership
from clusterkit.core.divergence import differences
from clusterkit.core.membership import State
from clusterkit.engine.comparison import (
    EVERY_SECONDS,
    PATIENCE_SECONDS,
    Comparison,
    ReadView,
)
from clusterkit.engine.join import Joiner
from clusterkit.ports import Delete, Op, Put, RangeResult, Txn, WatchBatch
from clusterkit.testing.clock import VirtualClock
from clusterkit.testing.memory import MemoryServer, MemoryStore
from tests.support.bench import KEYS, profile, state_of


class World:
    """A store, a state that follows it or does not, and a comparison that has begun."""

    def __init__(self, server: MemoryServer) -> None:
        self.store = MemoryStore(server)
        self.server = server
        self.comparison = Comparison(KEYS, "a")
        self.comparison.begin(0.0)
        self.now = 0.0
        self.number = 0
        for node_id in ("a", "b"):
            self.join(node_id)
        self.state = state_of(self.store)
        self.watch = self.store.watch(KEYS.root, self.state.revision + 1)

    def join(self, node_id: str) -> None:
        joiner = Joiner(self.store, KEYS, VirtualClock(), profile(node_id), 1.0)
        joiner.join(f"n-{node_id}", after=None, cancelled=threading.Event())

    def write(self, *ops: Op) -> None:
        self.store.txn(Txn((), ops), timeout=1)

    def read(self) -> RangeResult:
        return self.store.range(KEYS.root, timeout=1)

    def ask(self) -> None:
        """The time of the next comparison comes."""
        at = self.comparison.wake_at()
        assert at is not None
        self.now = at
        (asked,) = self.comparison.due(at)
        self.number = asked.number

    def follow(self) -> None:
        """The state applies what the watch brings."""
        for batch in self.pending():
            self.state, _ = membership.step(KEYS, self.state, batch)
            self.comparison.changed(batch.events)

    def pending(self) -> Iterator[WatchBatch]:
        self.server.progress()
        for batch in self.watch:
            if not batch.events:
                return
            yield batch

    def judge(self, read: RangeResult) -> tuple[bytes, ...]:
        return self.comparison.judge(self.state, read, self.number, self.now)


@pytest.fixture
def world() -> Iterator[World]:
    with MemoryServer(VirtualClock()) as server:
        yield World(server)


def without(state: State, node_id: str) -> State:
    members = {n: m for n, m in state.members.items() if n != node_id}
    return replace(state, members=members)


def test_every_kind_of_key_is_compared(world: World) -> None:
    before = world.state
    assert differences(KEYS, before, world.read()) == {}
    inc = KEYS.alive("c", "inc-c")
    world.join("c")
    world.write(Put(KEYS.applied("a"), b"\xff"), Put(KEYS.root + b"strange", b""))
    world.write(Put(KEYS.rebalance, b""), Delete(KEYS.alive("b", "inc-b")))
    revision = world.read().revision
    assert differences(KEYS, before, world.read()) == {
        inc: revision - 2,
        KEYS.alive("b", "inc-b"): 0,
        KEYS.applied("a"): revision - 1,
        KEYS.history("c"): revision - 2,
        KEYS.membership: revision - 2,
        KEYS.node("c"): revision - 2,
        KEYS.rebalance: revision,
        KEYS.root + b"strange": revision - 1,
    }
    world.follow()
    assert differences(KEYS, world.state, world.read()) == {}


def test_what_was_agreed_on_stays_in_force(world: World) -> None:
    world.write(Delete(KEYS.config), Delete(KEYS.membership))
    world.follow()
    assert differences(KEYS, world.state, world.read()) == {}
    world.write(Put(KEYS.config, b"\xff"))
    world.follow()
    assert differences(KEYS, world.state, world.read()) == {}


def test_a_wrong_state_is_certain_where_the_revision_was_applied(world: World) -> None:
    world.state = without(world.state, "b")
    world.ask()
    assert world.judge(world.read()) == (KEYS.node("b"),)


def test_a_key_that_ought_to_have_gone_is_certain_once_the_revision_was_applied(
    world: World,
) -> None:
    stays = world.state.alive
    world.write(Delete(KEYS.alive("b", "inc-b")))
    world.follow()
    world.state = replace(world.state, alive=stays)
    world.ask()
    assert world.judge(world.read()) == (KEYS.alive("b", "inc-b"),)


def test_what_is_on_its_way_is_no_divergence(world: World) -> None:
    world.ask()
    world.join("c")
    world.write(Delete(KEYS.alive("b", "inc-b")))
    read = world.read()
    assert world.judge(read) == ()
    again = world.comparison.wake_at()
    assert again is not None
    assert again - world.now < 10  # it looks again soon
    world.follow()
    world.ask()
    assert world.judge(world.read()) == ()
    later = world.comparison.wake_at()
    assert later is not None
    assert later - world.now > 100  # and is content


def test_a_state_that_is_ahead_of_the_reading_is_no_divergence(world: World) -> None:
    world.ask()
    read = world.read()
    world.join("c")
    world.write(Delete(KEYS.alive("b", "inc-b")))
    world.follow()
    assert world.judge(read) == ()


@pytest.mark.parametrize("then", ["silence", "more news"])
@pytest.mark.parametrize("lost", [Put(KEYS.rebalance, b""), Delete(KEYS.alive("b", "inc-b"))])
def test_what_was_lost_is_found_at_the_latest_when_patience_ends(
    world: World, lost: Op, then: str
) -> None:
    world.write(lost)
    assert len(list(world.pending())) == 1  # and nobody applies it
    world.ask()
    first = world.now
    assert world.judge(world.read()) == ()
    if then == "more news":
        world.write(Put(KEYS.root + b"news", b""))
        world.follow()
        world.ask()
        assert world.judge(world.read()) == (lost.key,)
        assert world.now - first < 10
        return
    wrong: tuple[bytes, ...] = ()
    while not wrong:
        world.ask()
        wrong = world.judge(world.read())
        assert bool(wrong) == (world.now - first >= PATIENCE_SECONDS)
    assert wrong == (lost.key,)
    assert world.now - first < 3 * PATIENCE_SECONDS


def test_a_node_that_is_behind_has_lost_nothing(world: World) -> None:
    for i in range(100):
        world.write(Put(KEYS.root + b"news", str(i).encode()), Put(KEYS.applied("a"), b"1"))
    world.write(Put(KEYS.rebalance, b""))
    pauses = []
    for batch in world.pending():  # one a comparison: it is behind for longer than any patience
        before = world.now
        world.ask()
        assert world.judge(world.read()) == ()
        pauses.append(world.now - before)
        world.state, _ = membership.step(KEYS, world.state, batch)
        world.comparison.changed(batch.events)
    # And it does not read all keys every few seconds, which would leave it further behind.
    assert max(pauses[1:]) == EVERY_SECONDS
    assert sum(pauses[1:8]) > EVERY_SECONDS


def test_a_process_that_was_frozen_has_lost_nothing(world: World) -> None:
    world.ask()
    world.write(Put(KEYS.rebalance, b""))
    assert world.judge(world.read()) == ()
    world.ask()
    world.now += 1000.0  # and what came meanwhile is only being read
    assert world.judge(world.read()) == ()
    world.follow()
    world.ask()
    assert world.judge(world.read()) == ()


def test_what_changes_all_the_time_is_not_suspected(world: World) -> None:
    world.ask()
    for i in range(60):
        world.write(Put(KEYS.root + b"busy", str(i).encode()))
        read = world.read()
        # The state is always one behind.
        assert world.judge(read) == ()
        world.follow()
        world.ask()


def test_a_reading_that_is_late_or_void_is_not_judged(world: World) -> None:
    world.state = without(world.state, "b")
    world.ask()
    old = world.number
    world.ask()
    assert world.comparison.judge(world.state, world.read(), old, world.now) == ()
    world.comparison.reread()
    assert world.judge(world.read()) == ()
    world.ask()
    assert world.judge(world.read()) == (KEYS.node("b"),)


def test_each_node_asks_at_times_of_its_own() -> None:
    times = {}
    for node_id in "abc":
        comparison, now = Comparison(KEYS, node_id), 0.0
        comparison.begin(now)
        pauses = []
        for _ in range(20):
            at = comparison.wake_at()
            assert at is not None
            assert comparison.due(at - 0.1) == []
            assert [type(asked) for asked in comparison.due(at)] == [ReadView]
            pauses.append(at - now)
            now = at
        assert all(0.75 * EVERY_SECONDS <= pause <= 1.25 * EVERY_SECONDS for pause in pauses)
        assert len(set(pauses)) == 20
        times[node_id] = now
    assert len(set(times.values())) == 3
