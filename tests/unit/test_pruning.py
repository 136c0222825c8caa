"""Forgetting the nodes that never come back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import pytest

from clusterkit.core.membership import State
from clusterkit.core.records import Departure, EndReason, History, NodeRecord, Process, Registration
from clusterkit.engine.errands import prune_txn
from clusterkit.engine.join import Joiner
from clusterkit.engine.pruning import CHECK_SECONDS, RETENTION, PruneHistory, Pruning
from clusterkit.events import NodeJoinEvent
from clusterkit.model import Node
from clusterkit.testing.clock import VirtualClock
from clusterkit.testing.memory import MemoryServer, MemoryStore
from tests.support.bench import KEYS, profile, remove_by_admin, state_of
from tests.support.sim import TTL, Simulation

NOW = datetime(2024, 6, 1, tzinfo=UTC)
HOUR = 3600.0
WEEK = RETENTION.total_seconds()


def end(left_at: datetime | None, reason: EndReason = "graceful_shutdown") -> Departure:
    return Departure(Registration("n", "i", NOW - timedelta(days=90)), reason, left_at, 0)


def member(node_id: str) -> NodeRecord:
    none = MappingProxyType[str, str]({})
    node = Node(node_id, "x:1", none, None, 100, none, "i", "active", NOW)
    return NodeRecord(node, f"n-{node_id}", "memory", None, False, Process())


def state_with(past: History, members: str = "abc", *, gone: str = "gone", at: int = 7) -> State:
    return State(
        10,
        1,
        members={node_id: member(node_id) for node_id in members},
        history={gone: past},
        history_revisions={gone: at},
    )


def check(state: State, survivor: str = "a", hours: float = 2.0) -> list[PruneHistory]:
    pruning = Pruning(survivor)
    pruning.begin(0.0)
    return pruning.due(state, hours * HOUR, NOW)


def who_prunes(past: History, members: str = "abc") -> list[str]:
    return [name for name in members if check(state_with(past, members), name)]


OLD, RECENT = NOW - RETENTION - timedelta(seconds=1), NOW - RETENTION + timedelta(seconds=1)


@pytest.mark.parametrize(
    "past, pruned",
    [
        (History(None, (end(OLD),)), True),
        (History(None, (end(OLD, "health_check_failure"),)), True),
        (History(None, (end(OLD, "removed_by_admin"),)), True),
        (History(None, (end(RECENT),)), False),
        (History(None, (end(OLD), end(RECENT))), False),
        (History(Registration("n", "i", OLD), (end(OLD),)), False),  # its end is not written down
        (History(None, (end(OLD), end(None))), False),  # the newest end may be of today
        (History(None, (end(None),)), False),
        (History(None, ()), False),
    ],
)
def test_who_has_been_gone_for_long_is_forgotten_by_one_survivor(
    past: History, pruned: bool
) -> None:
    assert len(who_prunes(past)) == (1 if pruned else 0)


def test_the_work_is_spread_over_the_survivors() -> None:
    past = History(None, (end(OLD),))
    doers = [[s for s in "abc" if check(state_with(past, gone=f"gone-{i}"), s)] for i in range(60)]
    assert all(len(doer) == 1 for doer in doers)
    assert {doer[0] for doer in doers} == set("abc")


def test_the_history_of_a_member_is_never_deleted() -> None:
    past = History(None, (end(OLD),))  # though it says that the stay has ended
    assert who_prunes(past, "a") == ["a"]
    state = state_with(past, "a", gone="a")
    assert check(state) == []


def test_it_looks_at_most_once_an_hour_and_each_at_its_own_time() -> None:
    state = state_with(History(None, (end(OLD),)), "a")
    pruning = Pruning("a")
    assert pruning.wake_at() is None
    pruning.begin(0.0)
    found: list[float] = []
    while (at := pruning.wake_at()) is not None and at < 24 * HOUR:
        assert pruning.due(state, at - 1.0, NOW) == []
        assert pruning.due(state, at, NOW) == [PruneHistory("gone", 7)]
        found.append(at)
    pauses = {round(b - a) for a, b in zip([0.0, *found], found, strict=False)}
    assert len(pauses) == 1
    assert CHECK_SECONDS <= pauses.pop() <= 1.5 * CHECK_SECONDS
    periods = [Pruning(name) for name in "abcdef"]
    for each in periods:
        each.begin(0.0)
    assert len({each.wake_at() for each in periods}) == 6


def test_where_nobody_knows_when_it_left_the_survivor_counts_from_when_it_saw_it() -> None:
    unknown = History(None, (end(OLD), end(None)))
    pruning = Pruning("a")
    pruning.begin(0.0)
    state = state_with(unknown, "a")
    assert pruning.due(state, 2 * HOUR, NOW) == []
    assert pruning.due(state, 2 * HOUR + WEEK, NOW) == []
    assert pruning.due(state, 4 * HOUR + WEEK, NOW) == [PruneHistory("gone", 7)]
    # It came and went in between: that is another history, and the count begins anew.
    assert pruning.due(state_with(unknown, "a", at=9), 6 * HOUR + WEEK, NOW) == []


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with MemoryServer(VirtualClock()) as server:
        yield MemoryStore(server)


def test_a_join_that_comes_first_keeps_its_history(store: MemoryStore) -> None:
    joiner = Joiner(store, KEYS, VirtualClock(), profile("a"), 1.0)
    joiner.join("n1", after=None, cancelled=threading.Event())
    remove_by_admin(store, "a")
    prune = PruneHistory("a", state_of(store).history_revisions["a"])
    joiner.join("n2", after=None, cancelled=threading.Event())
    assert not store.txn(prune_txn(KEYS, prune), timeout=1).succeeded
    assert "a" in state_of(store).history
    # Not even a wrong judgement of the right revision deletes a member's.
    prune = PruneHistory("a", state_of(store).history_revisions["a"])
    assert not store.txn(prune_txn(KEYS, prune), timeout=1).succeeded
    remove_by_admin(store, "a")
    prune = PruneHistory("a", state_of(store).history_revisions["a"])
    assert store.txn(prune_txn(KEYS, prune), timeout=1).succeeded
    assert state_of(store).history == {}


def test_a_week_later_the_cluster_has_forgotten() -> None:
    sim = Simulation(partitions=2)
    a, b, gone = (sim.start(node_id) for node_id in ("a", "b", "gone"))
    sim.run_for(5.0)
    gone.crash()
    sim.run_for(TTL + 5.0)
    before = len(sim.log)
    days(sim, 6.9)
    assert a.pruned + b.pruned == []
    days(sim, 0.2)
    assert a.pruned + b.pruned == ["gone"]  # by one, and once
    assert a.snapshot is not None
    assert set(a.snapshot.state.history) == {"a", "b"}
    assert len(sim.log) == before + 1
    joins = len(a.events("node_join"))
    sim.start("gone")
    sim.run_for(5.0)
    (join,) = a.events("node_join")[joins:]
    assert isinstance(join, NodeJoinEvent)
    assert not join.is_bootstrap
    assert a.events("node_rejoin") == []
    assert sim.faults == []
    sim.close()


def days(sim: Simulation, count: float) -> None:
    sim.run_for(count * 24 * HOUR)
