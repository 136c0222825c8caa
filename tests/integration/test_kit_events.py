"""The seven hooks over the life of a cluster: who is told what, and in which order."""

from __future__ import annotations

import threading
from datetime import UTC, timedelta

from clusterkit import (
    ClusterHealthEvent,
    ClusterKit,
    Event,
    NodeJoinEvent,
    NodeLeaveEvent,
    NodeRejoinEvent,
    PartitionChangeEvent,
    PartitionLostEvent,
    RebalanceEvent,
)
from clusterkit import sync as threads
from clusterkit.hooks import HookKind

from .support import PARTITIONS, Cluster, Member, Recorder, agree, eventually

NODE_EVENTS = (NodeJoinEvent, NodeRejoinEvent, NodeLeaveEvent)
ALL = {f"partition-{i}" for i in range(PARTITIONS)}


def assert_in_order(recorder: Recorder) -> None:
    """node events → start → changes → complete, where the cluster was left in peace in between."""
    open_rebalance: Event | None = None
    for seen in list(recorder.seen):
        match seen.kind:
            case "rebalance_start":
                assert open_rebalance is None
                open_rebalance = seen.event
            case "partition_change":
                assert open_rebalance is not None
            case "rebalance_complete":
                assert seen.event == open_rebalance
                assert isinstance(seen.duration, timedelta)
                assert seen.duration >= timedelta(0)
                open_rebalance = None
            case "node_join" | "node_rejoin" | "node_leave":
                assert open_rebalance is None
            case _:
                pass
    assert open_rebalance is None


def ids(events: list[PartitionChangeEvent]) -> list[str]:
    return sorted(e.event_id for e in events)


def calm(members: list[Member], recorders: list[Recorder], trigger: str, node_id: str) -> None:
    """Waits until all have completed that rebalance; each event was seen once, and in order."""
    for recorder in recorders:
        recorder.rebalanced(trigger, node_id)
    agree(members)
    for recorder in recorders:
        assert_in_order(recorder)
        told = [s.event.event_id for s in recorder.seen if s.kind != "rebalance_complete"]
        assert len(told) == len(set(told))
        assert all(s.event.timestamp.tzinfo is UTC for s in recorder.seen)


def test_the_first_node_bootstraps(cluster: Cluster) -> None:
    recorder = Recorder()
    a = cluster.node("a", hooks=recorder, services={"http": "a.test:80"}, zone="z", weight=7)
    calm([a], [recorder], "node_join", "a")
    join = recorder.one(NodeJoinEvent)
    assert join.is_bootstrap
    assert join.cluster_size == 1
    assert (join.node.id, join.node.address, join.node.host, join.node.port) == (
        "a",
        "a.test:8000",
        "a.test",
        8000,
    )
    assert dict(join.node.services) == {"http": "a.test:80"}
    assert (join.node.zone, join.node.weight, join.node.state) == ("z", 7, "active")
    assert join.timestamp == join.node.joined_at
    start = recorder.starts[0]
    assert start == recorder.completes[0]
    assert (start.partitions_to_move, start.nodes_affected) == (PARTITIONS, ("a",))
    changes = recorder.changes()
    assert {e.partition_id for e in changes} == ALL
    for e in changes:
        assert e.copy_from_nodes == ()
        assert e.copy_to_node == join.node
        assert e.needs_data
        assert (e.old_primary, e.new_primary) == (None, "a")
        assert e.change_reason == "node_join"
    # There was no data yet, so none is lost.
    assert not recorder.of(PartitionLostEvent)


def test_seven_hooks_over_the_life_of_a_node(cluster: Cluster) -> None:
    recorders = [Recorder(), Recorder()]
    a = cluster.node("a", hooks=recorders[0])
    calm([a], recorders[:1], "node_join", "a")
    recorders[0].clear()

    b = cluster.node("b", hooks=recorders[1])
    both = [a, b]
    calm(both, recorders, "node_join", "b")
    for recorder in recorders:
        join = recorder.one(NodeJoinEvent)  # that a is there is state, not news
        assert (join.node.id, join.cluster_size, join.is_bootstrap) == ("b", 2, False)
        assert {e.partition_id for e in recorder.changes() if e.needs_data} == ALL
        for e in recorder.changes():
            assert [n.id for n in e.copy_from_nodes] == ["a"]
            assert e.copy_to_node.id == "b"
            assert e.old_primary == "a"
            primary = a.kit.partition(e.partition_id).primary
            assert primary is not None
            assert e.new_primary == primary.id
    assert recorders[0].one(NodeJoinEvent) == recorders[1].one(NodeJoinEvent)
    assert ids(recorders[0].changes()) == ids(recorders[1].changes())
    for recorder in recorders:
        recorder.clear()

    # A third one, whose process can be killed.
    c = cluster.process("c").joined()
    calm(both, recorders, "node_join", "c")
    owned, replica = a.holds("c")
    assert owned
    assert replica
    assert (owned, replica) == b.holds("c")
    moved = recorders[0].changes("node_join")
    assert {e.partition_id for e in moved if e.copy_to_node.id == "c"} == owned | replica
    assert recorders[0].starts[-1].partitions_to_move == len(owned | replica)
    for recorder in recorders:
        recorder.clear()

    # It is killed.
    c.kill()
    calm(both, recorders, "node_leave", "c")
    for recorder in recorders:
        leave = recorder.one(NodeLeaveEvent)
        assert (leave.node.id, leave.reason) == ("c", "health_check_failure")
        assert (set(leave.partitions_owned), set(leave.partitions_replica)) == (owned, replica)
        assert recorder.changes()
        assert {e.change_reason for e in recorder.changes()} == {"node_leave"}
        for e in recorder.changes():
            assert (e.old_primary == "c") == (e.partition_id in owned)
            # Of two holders one is left: it is the source, or is itself promoted.
            others = {"a", "b"} - {e.copy_to_node.id}
            sources = {n.id for n in e.copy_from_nodes}
            assert sources == others if e.needs_data else sources <= others
            assert e.needs_data or e.new_primary == e.copy_to_node.id
        health = recorder.one(ClusterHealthEvent)
        assert (health.status, health.unhealthy_node_ids) == ("degraded", ("c",))
        assert (health.healthy_nodes, health.unhealthy_nodes, health.total_nodes) == (2, 1, 3)
    leaves = [recorder.one(NodeLeaveEvent) for recorder in recorders]
    assert leaves[0].event_id == leaves[1].event_id
    assert ids(recorders[0].changes()) == ids(recorders[1].changes())
    for recorder in recorders:
        recorder.clear()

    # It comes back, empty.
    c = cluster.process("c").joined()
    calm(both, recorders, "node_rejoin", "c")
    for recorder in recorders:
        rejoin = recorder.one(NodeRejoinEvent)
        assert rejoin.node.id == "c"
        assert rejoin.last_seen_at is not None
        assert rejoin.offline_duration == rejoin.node.joined_at - rejoin.last_seen_at
        assert rejoin.offline_duration >= timedelta(0)
        assert set(rejoin.partitions_before_leave) == owned | replica
        assert {e.change_reason for e in recorder.changes()} == {"node_rejoin"}
        to_c = [e for e in recorder.changes() if e.copy_to_node.id == "c"]
        assert {e.partition_id for e in to_c} == owned | replica
        assert all(e.needs_data and e.copy_from_nodes for e in to_c)
        assert recorder.one(ClusterHealthEvent).status == "healthy"
        assert not recorder.of(NodeJoinEvent)
    rejoins = [recorder.one(NodeRejoinEvent) for recorder in recorders]
    assert rejoins[0] == rejoins[1]
    # Who saw it leave wrote down when.
    assert rejoins[0].last_seen_at in {leave.timestamp for leave in leaves}
    for recorder in recorders:
        recorder.clear()

    # It stops of its own will.
    c.stop()
    calm(both, recorders, "node_leave", "c")
    graceful = [recorder.one(NodeLeaveEvent) for recorder in recorders]
    assert graceful[0] == graceful[1]
    assert graceful[0].reason == "graceful_shutdown"
    assert set(graceful[0].partitions_owned) == owned
    for recorder in recorders:
        assert not recorder.of(ClusterHealthEvent)
        recorder.clear()

    # Somebody asks for a rebalance, where nothing is owed.
    revision = a.rebalance("because")
    calm(both, recorders, "manual", "a")
    for member, recorder in zip(both, recorders, strict=True):
        assert member.kit.cluster.revision >= revision
        assert len(recorder.starts) == 1
        assert recorder.starts[0].partitions_to_move == 0
        assert not recorder.changes()


def test_a_node_that_comes_back_sees_its_own_rejoin(cluster: Cluster) -> None:
    recorder = Recorder()
    a = cluster.node("a", hooks=recorder)
    calm([a], [recorder], "node_join", "a")
    recorder.clear()
    a.stop()
    a.start()
    calm([a], [recorder], "node_rejoin", "a")
    rejoin = recorder.one(NodeRejoinEvent)
    assert set(rejoin.partitions_before_leave) == ALL
    assert rejoin.last_seen_at is not None
    assert not recorder.of(NodeJoinEvent)


def test_a_new_node_of_an_old_cluster_does_not_bootstrap(cluster: Cluster) -> None:
    a = cluster.node("a")
    agree([a])
    a.stop()
    recorder = Recorder()
    b = cluster.node("b", hooks=recorder)
    calm([b], [recorder], "node_join", "b")
    assert not recorder.one(NodeJoinEvent).is_bootstrap
    assert recorder.one(NodeJoinEvent).cluster_size == 1


def test_both_faces_in_one_cluster_see_the_same(threads_cluster: Cluster) -> None:
    recorders = [Recorder(), Recorder()]
    a = threads_cluster.node("a", face="threads", hooks=recorders[0])
    agree([a])
    b = threads_cluster.node("b", face="asyncio", hooks=recorders[1])
    assert isinstance(a.kit, threads.ClusterKit)
    assert isinstance(b.kit, ClusterKit)
    for recorder in recorders:
        recorder.rebalanced("node_join", "b")
    agree([a, b])
    to_b = [[e for e in r.changes() if e.copy_to_node.id == "b"] for r in recorders]
    assert ids(to_b[0]) == ids(to_b[1])
    assert a.kit.partitions() == b.kit.partitions()


def test_each_phase_waits_for_the_one_before(cluster: Cluster) -> None:
    order: list[tuple[HookKind, str]] = []
    member = cluster.member("a")

    def slowly(kind: HookKind) -> None:
        order.append((kind, "begins"))
        threading.Event().wait(0.05)  # time for whoever would not wait
        order.append((kind, "ends"))

    @member.kit.on_node_join
    def joined(event: NodeJoinEvent) -> None:
        slowly("node_join")

    @member.kit.on_rebalance_start
    def started(event: RebalanceEvent) -> None:
        slowly("rebalance_start")

    @member.kit.on_partition_change(partitions={"partition-3"})
    def changed(event: PartitionChangeEvent) -> None:
        slowly("partition_change")

    @member.kit.on_rebalance_complete
    def completed(event: RebalanceEvent, duration: timedelta) -> None:
        assert duration >= timedelta(seconds=0.1)
        slowly("rebalance_complete")

    member.start()
    eventually(lambda: ("rebalance_complete", "ends") in order)
    expected: list[HookKind] = [
        "node_join",
        "rebalance_start",
        "partition_change",
        "rebalance_complete",
    ]
    assert order == [(kind, edge) for kind in expected for edge in ("begins", "ends")]


def test_a_burst_of_changes_is_one_rebalance_and_all_of_its_node_events(
    threads_cluster: Cluster,
) -> None:
    threads_cluster.defaults["settle_time"] = 2
    recorder = Recorder()
    a = threads_cluster.node("a", hooks=recorder)
    recorder.rebalanced("node_join", "a")
    recorder.clear()
    for node_id in ("b", "c"):
        threads_cluster.node(node_id)
    threads_cluster.node("d").stop()
    recorder.rebalanced("rebalance", None)
    assert [e.node.id for e in recorder.of(NodeJoinEvent)] == ["b", "c", "d"]
    assert recorder.one(NodeLeaveEvent).node.id == "d"
    assert len(recorder.starts) == 1
    # Nobody but a had any data yet, so a is a source of every copy, and nothing is lost.
    assert not recorder.of(PartitionLostEvent)
    copies = [e for e in recorder.changes() if e.needs_data and e.copy_to_node.id != "a"]
    assert copies
    assert all("a" in {n.id for n in e.copy_from_nodes} for e in copies)
    assert a.kit.owed() == ()
