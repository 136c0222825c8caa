"""The state machine in the cases that matter one by one, on the simulator's world."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import TypeVar

import pytest

from clusterkit.core import codec
from clusterkit.engine.effects import ERROR, Instant, Note, Publish, Register, WriteReceipt
from clusterkit.engine.machine import Machine
from clusterkit.events import (
    ClusterHealthEvent,
    Event,
    FencedEvent,
    HookErrorEvent,
    NodeJoinEvent,
    NodeLeaveEvent,
    NodeRejoinEvent,
    PartitionChangeEvent,
    PartitionRoleEvent,
    RebalanceEvent,
    UnfencedEvent,
)
from clusterkit.hooks import HookKind, Hooks
from clusterkit.model import KitState
from clusterkit.ports import Put, RangeResult, Txn
from clusterkit.testing.memory import MemoryStore
from tests.support.sim import MARGIN, SETTLE, TTL, Call, Life, Simulation

E = TypeVar("E", bound=Event)


@pytest.fixture
def sim() -> Iterator[Simulation]:
    simulation = Simulation()
    yield simulation
    assert simulation.faults == []
    simulation.close()


def settled(sim: Simulation, *node_ids: str) -> list[Life]:
    """Nodes that have joined, and have nothing more to do."""
    lives = [sim.start(node_id) for node_id in node_ids]
    sim.settle()
    return lives


def told(life: Life, kind: HookKind, of: type[E]) -> list[E]:
    return [event for event in life.events(kind) if isinstance(event, of)]


def state(life: Life) -> KitState:
    assert life.snapshot is not None
    return life.snapshot.kit_state


def foreign(sim: Simulation, key: bytes, value: bytes) -> None:
    store = MemoryStore(sim.server)
    store.txn(Txn((), (Put(key, value),)), timeout=1)
    sim.collect()
    sim.run_for(0.1)


@pytest.mark.parametrize("late", ["the watch", "the answer", "neither"])
def test_a_join_may_be_seen_before_and_after_it_is_answered(sim: Simulation, late: str) -> None:
    life = sim.start("a")
    life.delay = 1.0 if late == "the watch" else 0.0
    life.late_news = 1.0 if late == "the answer" else 0.0
    sim.run_for(0.5)
    if late != "neither":
        assert state(life) is KitState.JOINING
        assert life.snapshot is not None
        assert life.snapshot.session is None
        # Whoever is told of the own join, or of what came after it, finds the node joined.
        assert not life.calls
    sim.run_for(1.0)
    assert state(life) is KitState.JOINED
    assert life.snapshot is not None
    assert life.snapshot.session is life.session
    (join,) = told(life, "node_join", NodeJoinEvent)
    assert (join.node.id, join.cluster_size, join.is_bootstrap) == ("a", 1, True)
    sim.settle()
    assert life.snapshot.initial_copies_done


def test_who_was_there_before_is_state_and_no_join(sim: Simulation) -> None:
    settled(sim, "a")
    (b,) = settled(sim, "b")
    assert [e.node.id for e in told(b, "node_join", NodeJoinEvent)] == ["b"]
    assert not told(b, "node_join", NodeJoinEvent)[0].is_bootstrap


def test_a_lost_lease_fences_and_a_new_join_ends_that(sim: Simulation) -> None:
    a, b = settled(sim, "a", "b")
    a.cut_off()
    sim.run_for(TTL + 1.0)
    assert state(a) is KitState.FENCED
    assert [type(e) for e in a.events("fenced")] == [FencedEvent]
    assert [e.reason for e in told(b, "node_leave", NodeLeaveEvent)] == ["health_check_failure"]
    a.heal()
    sim.settle()
    assert state(a) is KitState.JOINED
    (unfenced,) = told(a, "unfenced", UnfencedEvent)
    assert unfenced.rejoined
    assert a.registers == 1
    for life in (a, b):
        (rejoin,) = told(life, "node_rejoin", NodeRejoinEvent)
        assert rejoin.node.id == "a"
        assert rejoin.offline_duration is not None
        assert rejoin.offline_duration > timedelta(0)
        assert rejoin.partitions_before_leave
    kinds = [c.kind for c in a.calls if c.kind in ("fenced", "unfenced")]
    assert kinds == ["fenced", "unfenced"]


def test_a_lease_in_doubt_that_turns_out_alive_needs_no_new_join(sim: Simulation) -> None:
    (a,) = settled(sim, "a")
    a.cut_off()
    session = a.session
    assert session is not None
    sim.run_for(session.remaining(sim.clock.monotonic()) + MARGIN / 4)
    assert state(a) is KitState.FENCED
    assert [type(e) for e in a.events("fenced")] == [FencedEvent]
    assert told(a, "cluster_health_change", ClusterHealthEvent)[-1].status == "critical"
    a.heal()
    sim.run_for(1.5)
    assert state(a) is KitState.JOINED
    (unfenced,) = told(a, "unfenced", UnfencedEvent)
    assert not unfenced.rejoined
    assert a.registers == 0
    assert a.session is session
    assert told(a, "cluster_health_change", ClusterHealthEvent)[-1].status == "healthy"
    assert a.events("node_rejoin") == []


def test_a_successor_is_told_of_every_role_that_it_takes_over(sim: Simulation) -> None:
    """The assignment stays as it is, but this process has had no role in it."""
    settled(sim, "a", "b")
    new = sim.start("a")
    sim.settle()
    assert new.snapshot is not None
    held = {i: row[0] == "a" for i, row in enumerate(new.snapshot.rows) if "a" in row}
    assert held
    events = told(new, "partition_role", PartitionRoleEvent)
    assert {e.partition_id: (e.old_role, e.new_role) for e in events} == {
        f"partition-{i}": (None, "primary" if primary else "replica") for i, primary in held.items()
    }


def roles(life: Life) -> dict[str, str | None]:
    """The newest role of each partition that the process was told of."""
    events = told(life, "partition_role", PartitionRoleEvent)
    return {e.partition_id: e.new_role for e in events}


def test_whoever_is_taken_over_loses_its_roles_and_hears_nothing_of_its_successors(
    sim: Simulation,
) -> None:
    old, _ = settled(sim, "a", "b")
    assert any(roles(old).values())
    new = sim.start("a")
    sim.settle()
    assert set(roles(old).values()) == {None}
    before = len(old.events("partition_role"))
    sim.start("c")
    sim.settle()
    assert len(old.events("partition_role")) == before
    assert any(roles(new).values())


def test_what_a_successor_gains_or_may_drop_is_not_told_to_whoever_was_taken_over(
    sim: Simulation,
) -> None:
    hooks = Hooks()
    hooks.on_partition_change(mine=True)(lambda e: None)
    hooks.on_node_rejoin(mine=True)(lambda e: None)
    specs = hooks._specs()
    old, _ = settled(sim, "a", "b")
    for spec in specs:
        old.tell(old.machine.hook_added(spec, old.at()))
    sim.settle()
    assert any(call.job.spec in specs for call in old.calls)
    before = len(old.calls)
    new = sim.start("a")
    sim.settle()
    others = settled(sim, "c", "d")
    assert new.events("partition_drop")
    for other in others:
        other.leave()
    sim.settle()
    since = old.calls[before:]
    assert [e for call in since if call.job.spec in specs for e in [call.event]] == []
    assert [call.event for call in since if call.kind == "partition_drop"] == []
    assert any(call.kind == "node_join" for call in since), "it goes on looking on"


@pytest.mark.parametrize("late_news", [0.0, 0.3])
def test_whoever_is_taken_over_stays_out(sim: Simulation, late_news: float) -> None:
    old = sim.start("a")
    old.late_news = late_news  # also if the successor comes before the answer to the own join
    sim.run_for(0.1)
    new = sim.start("a")
    sim.settle()
    sim.run_for(2 * TTL)
    assert state(old) is KitState.REMOVED
    assert old.session is None
    assert old.registers == 0
    assert state(new) is KitState.JOINED
    assert [e.node.incarnation for e in told(new, "node_rejoin", NodeRejoinEvent)] == [
        new.incarnation
    ]
    assert new.events("node_leave") == []


@pytest.mark.parametrize("late_news", [0.0, 0.3])
def test_whom_an_administrator_removes_stays_out(sim: Simulation, late_news: float) -> None:
    (b,) = settled(sim, "b")
    a = sim.start("a")
    a.late_news = late_news
    sim.run_for(0.1)
    sim.remove("a")
    sim.settle()
    sim.run_for(2 * TTL)
    assert state(a) is KitState.REMOVED
    assert a.registers == 0
    assert [e.reason for e in told(b, "node_leave", NodeLeaveEvent)] == ["removed_by_admin"]
    alive = sim.keys.root + b"alive/a/"
    assert not MemoryStore(sim.server).range(alive, timeout=1).kvs  # its lease is revoked


def test_a_lease_that_ends_before_the_join_is_answered_is_noticed(sim: Simulation) -> None:
    a = sim.start("a")
    a.late_news = TTL + 2.0
    sim.run_for(0.1)
    a.cut_off()
    sim.run_for(TTL + 1.0)
    a.heal()
    sim.settle()
    assert state(a) is KitState.JOINED
    assert a.registers == 1


def test_who_joined_twice_before_its_view_had_either_is_not_taken_over_by_itself(
    sim: Simulation,
) -> None:
    a, b = settled(sim, "a", "b")
    a.delay = 12 * TTL  # its keep-alives get through, and its watch does not
    for joins in (1, 2):
        a.cut_off()
        sim.run_for(TTL + 1.0)
        a.heal()
        sim.run_for(TTL)
        assert a.registers == joins
    a.delay = 0.0
    sim.run_for(12 * TTL)
    sim.settle()
    assert state(a) is KitState.JOINED
    assert a.registers == 2
    assert len(told(b, "node_rejoin", NodeRejoinEvent)) == 2


def test_what_may_have_been_in_other_hands_unseen_is_asked_for_everywhere(sim: Simulation) -> None:
    a, d = sim.start("a", replication=1), sim.start("d", replication=1)
    sim.settle()
    d.delay = 4 * TTL
    d.cut_off()
    sim.run_for(TTL + 1.0)
    d.heal()
    sim.run_for(2.0)
    before = len(d.calls)
    d.reread()  # as where what came in between is compacted
    sim.settle()
    gained = [c.event for c in d.calls[before:] if isinstance(c.event, PartitionChangeEvent)]
    mine = [event for event in gained if event.copy_to_node.id == "d"]
    assert mine
    assert all([n.id for n in event.copy_from_nodes] == ["a"] for event in mine)
    assert d.events("partition_lost") == [], "a has it since"
    assert a.events("partition_lost"), "what only d had when it went"


def test_whoever_had_the_place_before_a_join_and_left_it_again_is_no_successor(
    sim: Simulation,
) -> None:
    a, b = settled(sim, "a", "b")
    a.cut_off()
    sim.run_for(2 * TTL)
    other = sim.start("a")
    sim.run_for(1.0)
    other.leave()
    a.delay = 4 * TTL
    a.heal()
    sim.run_for(2 * TTL)
    a.delay = 0.0
    sim.run_for(6 * TTL)
    sim.settle()
    assert state(a) is KitState.JOINED
    assert [e.node.incarnation for e in told(b, "node_rejoin", NodeRejoinEvent)] == [
        other.incarnation,
        a.incarnation,
    ]


def test_a_stopping_node_has_no_session_whatever_comes_late(sim: Simulation) -> None:
    a = sim.start("a")
    a.late_news = 1.0
    sim.run_for(0.1)
    session = a.session
    assert session is not None
    a.tell(a.machine.stopping(a.at()))
    a.tell(a.machine.registered(session, a.at()))
    assert state(a) is KitState.DRAINING
    assert a.snapshot is not None
    assert a.snapshot.session is None


def test_no_two_pieces_of_local_news_have_one_id(sim: Simulation) -> None:
    (a,) = settled(sim, "a")
    for _ in range(2):  # without a revision in between
        a.cut_off()
        sim.run_for(TTL - MARGIN)
        a.heal()
        sim.run_for(0.5)
    a.leave()
    for kind in ("fenced", "unfenced", "partition_role"):
        ids = [call.event.event_id for call in a.calls if call.kind == kind]
        assert len(ids) >= 2
        assert len(set(ids)) == len(ids), kind


def test_a_stop_ends_ownership_and_drops_rebalances(sim: Simulation) -> None:
    a, b = settled(sim, "a", "b")
    roles = len(a.events("partition_role"))
    a.tell(a.machine.stopping(a.at()))
    assert state(a) is KitState.DRAINING
    assert a.snapshot is not None
    assert (a.snapshot.session, dict(a.snapshot.owned_since)) == (None, {})
    sim.run_for(0.5)
    assert len(a.events("partition_role")) > roles
    before = len(a.calls)
    settled(sim, "c")
    assert len(a.calls) == before
    assert b.events("node_join")[-1].revision > 0


def test_a_foreign_key_is_reported_once(sim: Simulation) -> None:
    (a,) = settled(sim, "a")
    key = sim.keys.root + b"alive/ghost/incarnation"
    foreign(sim, key, b"\xff\xff")
    foreign(sim, key, b"\xff\xfe")
    foreign(sim, sim.keys.root + b"what/is/this", b"")
    reported = [note for note in a.notes if "foreign or damaged" in note]
    assert ["ghost" in note for note in reported] == [True, False]
    assert "what/is/this" in reported[1]
    assert state(a) is KitState.JOINED


def changes(life: Life) -> list[PartitionChangeEvent]:
    return told(life, "partition_change", PartitionChangeEvent)


def test_what_failed_is_delivered_again_with_growing_pauses_and_the_same_id(
    sim: Simulation,
) -> None:
    a = sim.start("a")
    a.mode = "fails"
    sim.run_for(16.0)
    starts = [call for call in a.calls if call.kind == "rebalance_start"]
    # The first at once, then after 1, 2, 4 and 8 seconds.
    assert len(starts) == 5
    ids = {event.event_id for event in changes(a)}
    assert len(ids) == sim.partitions
    assert len(changes(a)) == 5 * sim.partitions
    replayed = [call.job.replayed for call in a.calls if call.kind == "partition_change"]
    assert replayed == [False] * sim.partitions + [True] * 4 * sim.partitions
    owed = a.machine.ledger.owed()
    assert {(move.attempts, move.error) for move in owed} == {(5, "CopyError: told to fail")}
    assert a.receipts == []
    assert told(a, "cluster_health_change", ClusterHealthEvent)[-1].status == "degraded"
    a.mode = "ok"
    sim.settle()
    assert a.machine.ledger.owed() == ()
    assert len(a.receipts) == 1


def test_a_manual_rebalance_delivers_at_once_what_is_owed(sim: Simulation) -> None:
    a = sim.start("a")
    a.mode = "fails"
    sim.run_for(16.0)  # the next attempt would be 16 seconds away
    a.mode = "ok"
    before = len(changes(a))
    sim.rebalance()
    sim.run_for(SETTLE + 0.5)
    assert len(changes(a)) == before + sim.partitions
    assert a.machine.ledger.owed() == ()
    assert told(a, "rebalance_start", RebalanceEvent)[-1].trigger == "manual"


def test_nothing_is_owed_and_a_manual_rebalance_says_so(sim: Simulation) -> None:
    (a,) = settled(sim, "a")
    before = len(changes(a))
    sim.rebalance()
    sim.settle()
    start = told(a, "rebalance_start", RebalanceEvent)[-1]
    assert (start.trigger, start.partitions_to_move) == ("manual", 0)
    assert len(changes(a)) == before


def test_a_burst_is_one_rebalance_and_every_node_is_told_of(sim: Simulation) -> None:
    (a,) = settled(sim, "a")
    before = len(a.events("rebalance_start"))
    for node_id in ("b", "c", "d"):
        sim.start(node_id)
        sim.run_for(SETTLE / 4)
    sim.run_for(SETTLE)
    starts = told(a, "rebalance_start", RebalanceEvent)[before:]
    assert [(s.trigger, s.trigger_node_id) for s in starts] == [("node_join", None)]
    assert [e.node.id for e in told(a, "node_join", NodeJoinEvent)] == ["a", "b", "c", "d"]


def test_joining_and_leaving_within_the_window_is_told_twice_and_moves_nothing(
    sim: Simulation,
) -> None:
    (a,) = settled(sim, "a")
    moved = len(changes(a))
    b = sim.start("b")
    sim.run_for(SETTLE / 4)
    b.leave()
    sim.settle()
    assert [e.node.id for e in told(a, "node_join", NodeJoinEvent)] == ["a", "b"]
    (leave,) = told(a, "node_leave", NodeLeaveEvent)
    assert (leave.node.id, leave.reason) == ("b", "graceful_shutdown")
    assert told(a, "rebalance_start", RebalanceEvent)[-1].trigger == "rebalance"
    # Only what b held in between comes back, and a has kept it.
    assert all(not event.needs_data for event in changes(a)[moved:])


def test_a_receipt_is_written_only_when_nothing_is_owed(sim: Simulation) -> None:
    a = sim.start("a")
    a.mode = "slow"
    sim.run_for(SETTLE + 1.0)
    assert a.machine.ledger.owed()
    assert a.receipts == []
    a.mode = "ok"
    sim.settle()
    assert a.snapshot is not None
    assert [write.receipt.epoch for write in a.receipts] == [a.snapshot.epoch]


def test_a_partition_is_pending_as_soon_as_the_view_names_this_node(sim: Simulation) -> None:
    settled(sim, "a")
    b = sim.start("b")
    b.mode = "never"
    sim.run_for(0.05)  # the settle time has not passed: no hook has started
    assert state(b) is KitState.JOINED
    assert b.snapshot is not None
    held = [i for i, row in enumerate(b.snapshot.rows) if "b" in row]
    assert held
    rows, ledger = b.snapshot.rows, b.machine.ledger
    assert all(ledger.pending_for(i, "b", rows[i]) for i in held)
    assert not b.snapshot.initial_copies_done
    sim.settle()
    assert not any(ledger.pending_for(i, "b", rows[i]) for i in held)


def test_a_failing_hook_is_told_of_once_and_a_failing_error_hook_not_at_all(
    sim: Simulation,
) -> None:
    (a,) = settled(sim, "a")
    a.mode = "fails"
    settled_calls = len(a.calls)
    sim.rebalance()
    sim.run_for(SETTLE + 0.5)
    new = a.calls[settled_calls:]
    assert [c.kind for c in new if c.kind != "hook_error"] == [
        "rebalance_start",
        "rebalance_complete",
    ]
    errors = [c.event for c in new if isinstance(c.event, HookErrorEvent)]
    assert [type(e.failed_event) for e in errors] == [RebalanceEvent, RebalanceEvent]
    assert len({e.event_id for e in errors}) == 2


def test_the_second_of_two_nodes_that_start_together_is_given_a_source(sim: Simulation) -> None:
    # The first has copied nothing down in etcd yet: what it has must not be called lost.
    sim.start("a", replication=1)
    sim.run_for(SETTLE + 0.05)
    b = sim.start("b", replication=1)
    sim.settle()
    assert b.events("partition_lost") == []
    mine = [e for e in changes(b) if e.copy_to_node.id == "b"]
    assert mine
    assert all([n.id for n in e.copy_from_nodes] == ["a"] for e in mine)


def test_a_copy_that_was_kept_is_no_loss_when_its_successor_dies(sim: Simulation) -> None:
    (a,) = [sim.start("a", replication=1)]
    sim.settle()
    b = sim.start("b", replication=1)
    b.mode = "never"
    sim.run_for(1.0)
    b.crash()
    sim.settle()
    assert a.events("partition_lost") == []
    regained = [e for e in changes(a) if e.copy_to_node.id == "a"][sim.partitions :]
    assert regained
    assert all((e.needs_data, e.copy_from_nodes) == (False, ()) for e in regained)


def test_two_who_gained_one_after_the_other_do_not_wait_for_each_other(sim: Simulation) -> None:
    # The first is promoted while it still copies, which dates its gain anew.
    a = sim.start("a", replication=3)
    sim.run_for(0.01)
    a.mode = "never"
    d, c = sim.start("d", replication=3), sim.start("c", replication=3)
    sim.run_for(8.0)
    d.leave()
    sim.settle()
    assert a.machine.ledger.owed() == ()
    assert c.machine.ledger.owed() == ()


def test_an_observer_hears_of_all_and_joins_nothing(sim: Simulation) -> None:
    (a,) = settled(sim, "a")
    watcher = Life(sim, "", replication=2)
    watcher.machine = Machine(
        keys=sim.keys,
        node_id="",
        incarnation="observer",
        dispatcher=watcher.dispatcher,
        settle_seconds=SETTLE,
        observer=True,
    )
    read = watcher.store.range(sim.keys.root, timeout=1)
    watcher.revision, watcher.next = read.revision, len(sim.log)
    watcher.begun = watcher.reached = True
    sim.lives.append(watcher)
    watcher.tell(watcher.machine.begin(read, watcher.at()))
    assert state(watcher) is KitState.JOINED
    settled(sim, "b")
    a.leave()
    sim.run_for(1.0)
    assert [e.node.id for e in told(watcher, "node_join", NodeJoinEvent)] == ["b"]
    assert [e.node.id for e in told(watcher, "node_leave", NodeLeaveEvent)] == ["a"]
    assert watcher.receipts == []
    assert watcher.events("fenced") == []


def failing_in_etcd(sim: Simulation) -> tuple[str, ...]:
    (alive,) = MemoryStore(sim.server).range(sim.keys.root + b"alive/a/", timeout=1).kvs
    return codec.decode_alive(alive.value).failing_checks


def arrive_late(life: Life, register: Callable[[Hooks], object]) -> list[Call]:
    """The runs of a hook that is registered only now, when all that it is told of is over."""
    hooks = Hooks()
    register(hooks)
    (spec,) = hooks._specs()
    life.tell(life.machine.hook_added(spec, life.at()))
    life.sim.settle()
    return [call for call in life.calls if call.job.spec is spec]


def test_a_late_hook_is_told_of_members_and_of_what_this_node_holds(sim: Simulation) -> None:
    a, b = settled(sim, "a", "b")
    joins = arrive_late(a, lambda h: h.on_node_join(lambda e: None))
    first = {e.node.id: e for e in told(b, "node_join", NodeJoinEvent)}
    assert [c.event.event_id.split("/")[1] for c in joins] == ["a", "b"]
    assert joins[1].event.event_id == first["b"].event_id, "the same on every delivery"
    assert all(c.job.replayed for c in joins)
    assert a.snapshot is not None

    changes = arrive_late(a, lambda h: h.on_partition_change(mine=True)(lambda e: None))
    events = [c.event for c in changes if isinstance(c.event, PartitionChangeEvent)]
    held = [p.id for p in a.snapshot.view.partitions if "a" in {n.id for n in p.nodes}]
    assert [e.partition_id for e in events] == held
    for event in events:
        assert event.copy_to_node.id == "a"
        assert event.needs_data
        others = {n.id for n in a.snapshot.view.partitions[int(event.partition_id[10:])].nodes}
        assert {n.id for n in event.copy_from_nodes} == others - {"a"}
    assert not a.machine.ledger.entries

    roles = arrive_late(a, lambda h: h.on_partition_role(lambda e: None))
    assert len(roles) == len(held)
    (calm,) = arrive_late(a, lambda h: h.on_cluster_health_change(lambda e: None))
    assert isinstance(calm.event, ClusterHealthEvent)
    assert calm.event.status == "healthy"
    for nothing in (Hooks.on_node_leave, Hooks.on_node_rejoin, Hooks.on_rebalance_start):
        assert arrive_late(a, lambda h, on=nothing: on(h, lambda e: None)) == []  # type: ignore[misc]
    assert arrive_late(a, lambda h: h.on_fenced(lambda e: None)) == []


def test_a_late_hook_is_told_of_a_fencing_that_lasts(sim: Simulation) -> None:
    (a,) = settled(sim, "a")
    a.cut_off()
    sim.run_for(TTL)
    assert state(a) is KitState.FENCED
    (event,) = told(a, "fenced", FencedEvent)
    hooks = Hooks()
    hooks.on_fenced(lambda e: None)
    (spec,) = hooks._specs()
    a.tell(a.machine.hook_added(spec, a.at()))
    assert [c.event for c in a.calls if c.job.spec is spec] == [event]


def test_a_replay_ends_when_the_node_no_longer_holds_the_partition(sim: Simulation) -> None:
    (a,) = settled(sim, "a")
    a.mode = "slow"
    hooks = Hooks()
    hooks.on_partition_change(mine=True)(lambda e: None)
    (spec,) = hooks._specs()
    a.tell(a.machine.hook_added(spec, a.at()))
    before = a.dispatcher.replaying()
    a.mode = "ok"
    for other in ("b", "c", "d"):
        sim.start(other)
    sim.run_for(1.0)
    assert a.snapshot is not None
    held = {p.id for p in a.snapshot.view.partitions if "a" in {n.id for n in p.nodes}}
    assert {e.partition_id for e in before} > held
    assert {e.partition_id for e in a.dispatcher.replaying()} <= held
    sim.settle()
    assert a.dispatcher.replaying() == []


def test_failing_checks_are_published_at_most_once_a_second(sim: Simulation) -> None:
    a, b = settled(sim, "a", "b")
    assert a.snapshot is not None
    epoch = a.snapshot.epoch
    for i in range(30):  # one that cannot decide
        a.tell(a.machine.checked(("disk",) if i % 2 else (), a.at()))
        sim.run_for(0.1)
    times = [at for at, _ in a.alive_writes]
    assert 2 <= len(times) <= 4
    assert all(after - before >= 1.0 for before, after in pairwise(times))
    sim.run_for(2.0)
    assert failing_in_etcd(sim) == ("disk",)
    assert told(b, "cluster_health_change", ClusterHealthEvent)[-1].unhealthy_node_ids == ("a",)
    written = len(a.alive_writes)
    a.tell(a.machine.checked(("disk",), a.at()))
    sim.run_for(60.0)
    assert len(a.alive_writes) == written  # nothing changed
    a.tell(a.machine.checked((), a.at()))
    sim.run_for(1.0)
    assert failing_in_etcd(sim) == ()
    assert told(b, "cluster_health_change", ClusterHealthEvent)[-1].status == "healthy"
    assert a.snapshot.epoch == epoch


def test_failing_checks_are_published_again_after_an_outage_and_a_new_join(
    sim: Simulation,
) -> None:
    (a,) = settled(sim, "a")
    a.cut_off()
    a.tell(a.machine.checked(("disk",), a.at()))
    sim.run_for(TTL + 2.0)
    a.heal()
    sim.settle()
    assert a.registers == 1
    sim.run_for(60.0)
    assert failing_in_etcd(sim) == ("disk",)


def test_an_etcd_that_goes_back_is_followed_and_told_of(sim: Simulation) -> None:
    (a,) = settled(sim, "a")
    assert a.snapshot is not None
    revision, cluster_id = a.snapshot.state.revision, a.snapshot.state.cluster_id
    at = Instant(sim.clock.monotonic(), sim.clock.now())
    effects = a.machine.reread(RangeResult((), revision - 1, cluster_id), "restored", at)
    notes = [effect for effect in effects if isinstance(effect, Note)]
    assert any("went back" in note.message for note in notes)
    (published,) = [e.snapshot for e in effects if isinstance(e, Publish)]
    assert published.state.revision == revision - 1
    assert published.session is None, "nothing of its stay is there any more"


def test_a_stay_that_an_etcd_of_the_past_knows_goes_on(sim: Simulation) -> None:
    (a,) = settled(sim, "a")
    assert a.session is not None
    assert a.snapshot is not None
    now = a.store.range(sim.keys.root, timeout=1)
    assert a.session.revision < now.revision
    restored = RangeResult(now.kvs, a.session.revision, now.cluster_id)
    effects = a.machine.reread(restored, "restored", a.at())
    (published,) = [e.snapshot for e in effects if isinstance(e, Publish)]
    assert (published.kit_state, published.session) == (KitState.JOINED, a.session)
    assert not a.session.lost
    # The receipt that was written may be lost with what came after the backup.
    assert [e.receipt.nonce for e in effects if isinstance(e, WriteReceipt)] == [a.session.nonce]


def test_a_stay_that_began_after_the_backup_is_over_and_a_new_one_begins(sim: Simulation) -> None:
    (a,) = settled(sim, "a")
    assert a.session is not None
    revision = a.session.revision - 1
    now = a.store.range(sim.keys.root, timeout=1)
    nonce = a.session.nonce.encode()
    of_old = [replace(kv, value=kv.value.replace(nonce, b"-" * len(nonce))) for kv in now.kvs]
    assert sum(nonce in kv.value for kv in now.kvs) > sum(nonce in kv.value for kv in of_old) == 0
    restored = RangeResult(tuple(of_old), revision, now.cluster_id)
    effects = a.machine.reread(restored, "restored", a.at())
    assert a.session.lost
    assert [e.after for e in effects if isinstance(e, Register)] == [a.session.nonce]
    (published,) = [e.snapshot for e in effects if isinstance(e, Publish)]
    assert published.kit_state is KitState.FENCED  # and not put out by its own past


@pytest.mark.parametrize(
    "wrong, told",
    [("other partitions", "option 'partitions' is 8 here"), ("damaged", "cannot be understood")],
)
def test_what_only_an_operator_can_mend_is_told_of_each_time_until_it_is_mended(
    sim: Simulation, wrong: str, told: str
) -> None:
    (a,) = settled(sim, "a")
    a.cut_off()
    sim.run_for(TTL + 2.0)
    assert state(a) is KitState.FENCED
    store = MemoryStore(sim.server)
    (config,) = store.range(sim.keys.config, timeout=1).kvs
    other = replace(codec.decode_config(config.value), partitions=9)
    now = sim.clock.now()
    value = b"?" if wrong == "damaged" else codec.encode_config(other, now)
    # The config is an input of the assignment, and who changes one puts the key that says so.
    changed = Put(sim.keys.membership, codec.encode_membership("", now))
    store.txn(Txn((), (Put(sim.keys.config, value), changed)), timeout=1)
    a.heal()
    a.levels.clear()
    sim.run_for(180.0)
    assert state(a) is KitState.FENCED
    errors = [note for level, note in a.levels if level == ERROR and told in note]
    assert 4 <= len(errors) <= 20, "not once only, nor without a pause"
    assert all("cannot join again" in error for error in errors)
    store.txn(Txn((), (Put(sim.keys.config, config.value), changed)), timeout=1)
    sim.run_for(60.0)
    assert state(a) is KitState.JOINED
