"""The running node with its real threads, on a store in memory."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from clusterkit.engine import comparison
from clusterkit.engine.clock import SystemClock
from clusterkit.engine.dispatcher import Dispatcher
from clusterkit.engine.executors import Executors
from clusterkit.engine.join import Profile
from clusterkit.engine.machine import Machine
from clusterkit.engine.runner import Runner
from clusterkit.errors import KitStateError, NodeIdConflictError, StoreUnavailableError
from clusterkit.hooks import Hooks
from clusterkit.model import KitState
from clusterkit.ports import Watch, WatchBatch
from clusterkit.testing.memory import MemoryServer, MemoryStore
from tests.support.bench import (
    KEYS,
    FaultyStore,
    eventually,
    first,
    our_threads,
    profile,
    raising,
    refusing,
    remove_by_admin,
    state_of,
)


class World:
    def __init__(self) -> None:
        self.server = MemoryServer()
        self.plain = MemoryStore(self.server)
        self.stores: list[FaultyStore] = []
        self.runners: list[Runner] = []

    def runner(self, who: Profile | None = None, hooks: Hooks | None = None) -> Runner:
        who = profile("a") if who is None else who
        store = FaultyStore(MemoryStore(self.server))
        self.stores.append(store)
        dispatcher = Dispatcher((hooks or Hooks())._specs(), incarnation=who.incarnation)
        runner = Runner(
            store=store,
            clock=SystemClock(),
            keys=KEYS,
            machine=Machine(
                keys=KEYS,
                node_id=who.node_id,
                incarnation=who.incarnation,
                dispatcher=dispatcher,
                settle_seconds=0.01,
            ),
            profile=who,
            executors=lambda report: Executors(
                report, loop=None, context=contextvars.copy_context(), idle_seconds=0.1
            ),
            connect_timeout=1.0,
            call_timeout=1.0,
        )
        self.runners.append(runner)
        return runner


@pytest.fixture
def world() -> Iterator[World]:
    """Whatever a test does, no thread may be left behind."""
    before = our_threads()
    made = World()
    yield made
    for runner in made.runners:
        runner.request_stop(0.0)
        runner.ended.result(10)
    made.server.close()
    eventually(lambda: our_threads() <= before, f"threads are left: {our_threads() - before}")


def threads_of(world: World) -> set[str]:
    return {t.name for t in our_threads()} - {"clusterkit-memory-leases"}


def state(runner: Runner) -> KitState | None:
    return None if runner.snapshot is None else runner.snapshot.kit_state


def test_a_start_joins_and_a_stop_leaves(world: World) -> None:
    runner = world.runner()
    runner.start()
    assert runner.snapshot is not None
    assert runner.snapshot.kit_state is KitState.JOINED
    assert set(runner.snapshot.view.nodes) == {"a"}
    assert runner.snapshot.session is not None
    runner.request_stop(1.0)
    runner.ended.result(10)
    assert state(runner) is KitState.STOPPED
    assert runner.snapshot.session is None
    assert runner.failure is None
    left = state_of(world.plain)
    assert not left.members
    assert not left.alive
    (end,) = left.history["a"].departures
    assert (end.reason, end.partitions) == ("graceful_shutdown", tuple(range(8)))


def test_nodes_tell_each_other_and_give_their_receipts(world: World) -> None:
    joins: list[str] = []
    moves: list[str] = []
    hooks = Hooks()
    hooks.on_node_join(lambda e: joins.append(e.node.id))
    hooks.on_partition_change(mine=True)(lambda e: moves.append(e.partition_id))
    a, b = world.runner(profile("a"), hooks), world.runner(profile("b"))
    a.start()
    b.start()
    a.when(lambda s: len(s.view.nodes) == 2).result(10)
    a.when(
        lambda s: {n: r.epoch for n, r in s.state.receipts.items()} == dict.fromkeys("ab", s.epoch)
    ).result(10)
    assert joins == ["a", "b"]
    assert sorted(moves) == [f"partition-{i}" for i in range(8)]
    assert a.snapshot is not None
    b.when(lambda s: s.view.revision >= a.snapshot.view.revision).result(10)  # type: ignore[union-attr]  # it was there a line ago
    assert b.snapshot is not None
    assert a.snapshot.rows == b.snapshot.rows


def test_stopping_twice_is_stopping_once(world: World) -> None:
    runner = world.runner()
    runner.start()
    for _ in range(3):
        runner.request_stop(1.0)
    runner.ended.result(10)
    runner.request_stop(1.0)
    assert runner.ended.result(0) is None
    assert len(state_of(world.plain).history["a"].departures) == 1


def test_a_first_reading_that_fails_leaves_nothing_behind(world: World) -> None:
    runner = world.runner()
    world.stores[0].always("range", raising(StoreUnavailableError("nobody there")))
    with pytest.raises(StoreUnavailableError):
        runner.start()
    assert runner.ended.done()
    assert threads_of(world) == set()


def test_a_join_that_is_refused_leaves_nothing_behind(world: World) -> None:
    world.runner().start()
    other = world.runner(profile("a", incarnation="inc-2", on_conflict="fail"))
    with pytest.raises(NodeIdConflictError):
        other.start()
    assert other.ended.done()
    assert state_of(world.plain).members["a"].node.incarnation == "inc-a"


def test_a_stop_in_the_middle_of_the_join_leaves_no_node_behind(world: World) -> None:
    runner = world.runner()
    world.stores[0].next("txn", first(lambda: runner.request_stop(1.0)))
    runner.start()  # the join was sent, so it was started all the same
    runner.ended.result(10)
    left = state_of(world.plain)
    assert not left.members
    assert not left.alive
    assert [d.reason for d in left.history["a"].departures] == ["graceful_shutdown"]


def test_a_stop_waits_for_a_join_that_has_been_sent(world: World) -> None:
    runner = world.runner()
    sent, go_on = threading.Event(), threading.Event()

    def slow(call: Callable[[], Any]) -> Any:
        answer = call()
        sent.set()
        assert go_on.wait(10)
        return answer

    world.stores[0].next("txn", slow)
    starting = threading.Thread(target=runner.start)
    starting.start()
    assert sent.wait(10)
    runner.request_stop(1.0)
    eventually(lambda: state(runner) is KitState.DRAINING, "the stop is taken up")
    go_on.set()
    starting.join(10)
    runner.ended.result(10)
    assert not state_of(world.plain).members


def test_a_stop_before_the_start_leaves_nothing_behind(world: World) -> None:
    runner = world.runner()
    runner.request_stop(1.0)
    # The runner has dealt with the stop before the rest of the start goes on.
    started = runner._thread.start

    def start_and_stop() -> None:
        started()
        eventually(lambda: runner.ended.done(), "the run has ended")

    runner._thread.start = start_and_stop  # type: ignore[method-assign]  # to hold the start up
    with pytest.raises(KitStateError, match="was stopped while it was starting"):
        runner.start()
    assert runner.ended.done()
    eventually(lambda: threads_of(world) == set(), f"threads are left: {threads_of(world)}")
    assert not state_of(world.plain).members


def test_what_is_waited_for_fails_when_the_run_ends(world: World) -> None:
    runner = world.runner()
    runner.start()
    never = runner.when(lambda s: False)
    runner.request_stop(1.0)
    with pytest.raises(KitStateError, match="has stopped"):
        never.result(10)
    with pytest.raises(KitStateError):
        runner.when(lambda s: True).result(10)


def broken(runner: Runner, method: str) -> None:
    def defect(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("a defect")

    setattr(runner._machine, method, defect)


def test_a_defect_fences_the_node_and_ends_it(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    runner = world.runner()
    runner.start()
    assert runner.snapshot is not None
    session = runner.snapshot.session
    assert session is not None
    waiting = runner.when(lambda s: False)
    broken(runner, "changed")
    world.runner(profile("b")).start()
    runner.ended.result(10)
    assert session.lost
    assert isinstance(runner.failure, ZeroDivisionError)
    assert state(runner) is KitState.STOPPED
    with pytest.raises(KitStateError, match="a defect"):
        waiting.result(10)
    assert [r.levelname for r in caplog.records if "defect" in r.message] == ["CRITICAL"]


def test_who_asks_after_a_defect_is_answered(world: World) -> None:
    runner = world.runner()
    broken(runner, "begin")
    with pytest.raises(KitStateError, match="a defect"):
        runner.start()
    assert runner.ended.done()


def test_what_is_asked_while_a_failed_node_ends_is_answered(world: World) -> None:
    runner = world.runner()
    runner.start()
    asked: list[Future[None]] = []
    store = world.stores[0]
    closing = store.close

    def close() -> None:
        # The run is ending, and the runner thread still reads its queue.
        asked.append(runner.when(lambda s: True))
        closing()

    store.close = close  # type: ignore[method-assign]  # to be in time
    broken(runner, "changed")
    world.runner(profile("b")).start()
    runner.ended.result(10)
    (future,) = asked
    with pytest.raises(KitStateError):
        future.result(10)


def test_a_defect_in_stopping_does_not_keep_it_from_ending(world: World) -> None:
    runner = world.runner()
    runner.start()
    broken(runner, "stopping")
    runner.request_stop(1.0)
    runner.ended.result(10)
    assert isinstance(runner.failure, ZeroDivisionError)


def test_a_lost_lease_is_followed_by_a_new_join(world: World) -> None:
    news: list[str] = []
    hooks = Hooks()
    hooks.on_fenced(lambda e: news.append("fenced"))
    hooks.on_unfenced(lambda e: news.append("unfenced"))
    runner = world.runner(hooks=hooks)
    runner.start()
    assert runner.snapshot is not None
    session = runner.snapshot.session
    assert session is not None
    world.plain.revoke(session.lease_id, timeout=1)
    runner.when(lambda s: s.session is not None and s.session is not session).result(10)
    assert session.lost
    eventually(lambda: news == ["fenced", "unfenced"], "both hooks")
    member = state_of(world.plain).members["a"]
    assert member.previous is not None
    assert member.previous.reason == "health_check_failure"


def test_whom_an_administrator_removes_lets_go_of_its_lease(world: World) -> None:
    runner = world.runner()
    runner.start()
    remove_by_admin(world.plain, "a")
    runner.when(lambda s: s.kit_state is KitState.REMOVED).result(10)
    eventually(lambda: not state_of(world.plain).alive, "its lease is revoked")
    runner.request_stop(1.0)
    runner.ended.result(10)
    (end,) = state_of(world.plain).history["a"].departures
    assert end.reason == "removed_by_admin"


def test_a_removed_node_joins_again_when_it_is_asked_to(world: World) -> None:
    news: list[str] = []
    hooks = Hooks()
    hooks.on_fenced(lambda e: news.append("fenced"))
    hooks.on_node_rejoin(lambda e: news.append(f"rejoin of {e.node.id}"))
    hooks.on_unfenced(lambda e: news.append(f"unfenced, rejoined={e.rejoined}"))
    runner = world.runner(hooks=hooks)
    runner.start()
    for _ in range(2):
        news.clear()
        remove_by_admin(world.plain, "a")
        runner.when(lambda s: s.kit_state is KitState.REMOVED).result(10)
        runner.rejoin()
        assert runner.snapshot is not None
        assert runner.snapshot.kit_state is KitState.JOINED
        assert runner.snapshot.session is not None
        eventually(lambda: len(news) == 3, "three hooks")
        # A rejoin and fencing are no news of one subject, so their hooks may run side by side.
        assert "rejoin of a" in news
        assert [n for n in news if "fenced" in n] == ["fenced", "unfenced, rejoined=True"]
    member = state_of(world.plain).members["a"]
    assert member.previous is not None
    assert member.previous.reason == "removed_by_admin"
    eventually(lambda: state_of(world.plain).alive, "its sign of life outlives the old lease")


def test_two_who_ask_for_it_at_once_are_one_rejoin(world: World) -> None:
    runner = world.runner()
    runner.start()
    remove_by_admin(world.plain, "a")
    runner.when(lambda s: s.kit_state is KitState.REMOVED).result(10)
    sent = threading.Event()

    def held_up(call: Callable[[], Any]) -> Any:
        sent.set()
        asked[1].start()  # while the first is in the middle of its join
        return call()

    world.stores[0].next("txn", held_up)
    states: list[KitState | None] = []

    def ask() -> None:
        with contextlib.suppress(KitStateError):  # the first may be back before it asks
            runner.rejoin()
        states.append(state(runner))

    asked = [threading.Thread(target=ask) for _ in range(2)]
    asked[0].start()
    assert sent.wait(10)
    for asker in asked:
        asker.join(10)
    assert states == [KitState.JOINED] * 2
    assert state(runner) is KitState.JOINED
    ends = [d.reason for d in state_of(world.plain).history["a"].departures]
    assert ends == ["removed_by_admin"]


def test_who_is_not_out_cannot_rejoin(world: World) -> None:
    runner = world.runner()
    with pytest.raises(KitStateError, match=r"'joining'.* wait for start\(\)"):
        runner.rejoin()
    runner.start()
    with pytest.raises(KitStateError, match=r"'joined'.* it is a member") as caught:
        runner.rejoin()
    assert caught.value.state is KitState.JOINED
    runner.request_stop(1.0)
    runner.ended.result(10)
    with pytest.raises(KitStateError, match=r"'stopped'.* start\(\) it"):
        runner.rejoin()


def test_a_rejoin_that_fails_leaves_the_node_out_and_may_be_tried_again(world: World) -> None:
    runner = world.runner()
    runner.start()
    remove_by_admin(world.plain, "a")
    runner.when(lambda s: s.kit_state is KitState.REMOVED).result(10)
    world.stores[0].next("grant", raising(StoreUnavailableError("nobody there")))
    with pytest.raises(StoreUnavailableError):
        runner.rejoin()
    assert state(runner) is KitState.REMOVED
    runner.rejoin()
    assert state(runner) is KitState.JOINED


def test_a_node_that_is_removed_again_while_it_rejoins_is_told(world: World) -> None:
    runner = world.runner()
    runner.start()
    remove_by_admin(world.plain, "a")
    runner.when(lambda s: s.kit_state is KitState.REMOVED).result(10)

    def joined_and_removed(call: Callable[[], Any]) -> Any:
        answer = call()
        remove_by_admin(world.plain, "a")
        # Else the join may be seen, and rejoin() have returned, a moment before the removal is.
        eventually(lambda: len(runner._machine._held) >= 2, "both revisions await the answer")
        return answer

    world.stores[0].next("txn", joined_and_removed)
    with pytest.raises(KitStateError, match="has ended already"):
        runner.rejoin()
    assert state(runner) is KitState.REMOVED
    runner.rejoin()
    assert state(runner) is KitState.JOINED


def test_a_stop_while_it_tries_to_join_again(world: World) -> None:
    runner = world.runner()
    runner.start()
    store = world.stores[0]
    tries = threading.Event()
    store.always("grant", refusing(tries, StoreUnavailableError("no")))
    assert runner.snapshot is not None
    assert runner.snapshot.session is not None
    world.plain.revoke(runner.snapshot.session.lease_id, timeout=1)
    assert tries.wait(10)
    runner.request_stop(1.0)
    runner.ended.result(10)
    assert runner.failure is None
    assert not state_of(world.plain).members


def test_a_manual_rebalance_is_answered_with_its_revision(world: World) -> None:
    starts: list[str] = []
    hooks = Hooks()
    hooks.on_rebalance_start(lambda e: starts.append(e.trigger))
    runner = world.runner(hooks=hooks)
    runner.start()
    revision = runner.request_rebalance("because")
    runner.when(lambda s: s.view.revision >= revision).result(10)
    eventually(lambda: starts and starts[-1] in ("manual", "rebalance"), "a rebalance begins")


class Dropping:
    """A watch that loses the first batch of which a predicate holds."""

    def __init__(self, inner: Watch, lost: Callable[[WatchBatch], bool]) -> None:
        self._inner, self._lost = inner, lost
        self._done = False

    def __iter__(self) -> Iterator[WatchBatch]:
        for batch in self._inner:
            if not self._done and self._lost(batch):
                self._done = True
            else:
                yield batch

    def close(self) -> None:
        self._inner.close()


def joins_of(node_id: str, batch: WatchBatch) -> bool:
    return any(e.kind == "put" and e.kv.key == KEYS.node(node_id) for e in batch.events)


def test_what_the_watch_has_lost_is_found_and_repaired(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "EVERY_SECONDS", 0.1)
    monkeypatch.setattr(comparison, "AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(comparison, "PATIENCE_SECONDS", 0.3)
    joined: list[str] = []
    hooks = Hooks()
    hooks.on_node_join(lambda e: joined.append(e.node.id))
    a = world.runner(hooks=hooks)
    world.stores[0].next(
        "watch", lambda watch: Dropping(watch(), lambda batch: joins_of("b", batch))
    )
    a.start()
    world.runner(profile("b")).start()
    a.when(lambda s: set(s.view.nodes) == {"a", "b"}).result(10)
    eventually(lambda: joined == ["a", "b"], "nobody's join is lost")
    assert a.divergences == 1
    (record,) = [r for r in caplog.records if "defect" in r.message]
    assert record.levelname == "ERROR"
    assert "/clusterkit/test/c/nodes/b" in record.message
    # It is over with that: the same comparison goes on and finds nothing more.
    reads = len([call for call, _ in world.stores[0].calls if call == "range"])
    eventually(
        lambda: len([c for c, _ in world.stores[0].calls if c == "range"]) > reads + 3, "readings"
    )
    assert a.divergences == 1
    assert state(a) is KitState.JOINED


def test_a_hook_may_ask_for_the_stop(world: World) -> None:
    hooks = Hooks()
    runners: list[Runner] = []
    hooks.on_node_join(lambda e: runners[0].request_stop(1.0))
    runners.append(world.runner(hooks=hooks))
    runners[0].start()
    runners[0].ended.result(10)
    assert not state_of(world.plain).members
