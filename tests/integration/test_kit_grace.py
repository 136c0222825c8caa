"""A restart grace: a node that shows no sign of life keeps its place for a while."""

from __future__ import annotations

from datetime import timedelta

from clusterkit import (
    ClusterHealthEvent,
    FencedEvent,
    KitState,
    NodeLeaveEvent,
    NodeRejoinEvent,
    UnfencedEvent,
)
from clusterkit.etcd import EtcdStore

from .support import Cluster, Recorder, agree, eventually, is_state


def test_a_killed_node_keeps_its_partitions_and_one_with_a_disk_gets_no_copies(
    threads_cluster: Cluster,
) -> None:
    recorder = Recorder()
    a = threads_cluster.node("a", hooks=recorder)
    b = threads_cluster.process("b", lease_ttl=2, restart_grace=30, storage="disk")
    eventually(lambda: "b" in a.kit.cluster.nodes and not a.kit.owed())
    held = [p.id for p in a.kit.partitions_of("b")]
    agree([a])
    recorder.clear()
    b.kill()
    eventually(lambda: bool(recorder.of(ClusterHealthEvent)), 10)
    assert recorder.of(ClusterHealthEvent)[0].unhealthy_node_ids == ("b",)
    assert [p.id for p in a.kit.partitions_of("b")] == held
    assert a.kit.health().unhealthy_nodes == 1

    again = threads_cluster.process("b", lease_ttl=2, restart_grace=30, storage="disk")
    eventually(lambda: bool(recorder.of(NodeRejoinEvent)), 10)
    rejoin = recorder.one(NodeRejoinEvent)
    assert (rejoin.node.id, sorted(rejoin.partitions_before_leave)) == ("b", sorted(held))
    eventually(lambda: a.kit.health().status == "healthy")
    agree([a])
    assert not recorder.of(NodeLeaveEvent)
    assert not recorder.changes(), "it has on its disk what it had"
    again.stop()


def test_without_a_disk_a_restart_in_the_grace_delivers_its_partitions_again(
    threads_cluster: Cluster,
) -> None:
    recorder = Recorder()
    a = threads_cluster.node("a", hooks=recorder)
    b = threads_cluster.process("b", lease_ttl=2, restart_grace=30)
    eventually(lambda: "b" in a.kit.cluster.nodes and not a.kit.owed())
    held = {p.id for p in a.kit.partitions_of("b")}
    agree([a])
    recorder.clear()
    b.kill()
    again = threads_cluster.process("b", lease_ttl=2, restart_grace=30)
    eventually(lambda: {e.partition_id for e in recorder.changes()} == held, 10)
    assert {e.copy_to_node.id for e in recorder.changes()} == {"b"}
    assert all(e.needs_data for e in recorder.changes())
    assert not recorder.of(NodeLeaveEvent)
    again.stop()


def test_the_end_of_the_grace_is_the_end_of_the_stay(threads_cluster: Cluster) -> None:
    recorder = Recorder()
    a = threads_cluster.node("a", hooks=recorder)
    b = threads_cluster.process("b", lease_ttl=2, restart_grace=2)
    eventually(lambda: "b" in a.kit.cluster.nodes)
    b.kill()
    eventually(lambda: bool(recorder.of(NodeLeaveEvent)), 15)
    assert recorder.one(NodeLeaveEvent).reason == "health_check_failure"
    assert recorder.of(ClusterHealthEvent)[0].unhealthy_node_ids == ("b",)


def test_a_process_that_lost_only_its_sign_of_life_carries_on(threads_cluster: Cluster) -> None:
    recorder = Recorder()
    a = threads_cluster.node("a", hooks=recorder, lease_ttl=2, restart_grace=30)
    agree([a])
    recorder.clear()
    guard = a.kit.guard("partition-0")
    keys, incarnation = threads_cluster.keys, a.kit.cluster.nodes["a"].incarnation
    endpoints = threads_cluster.defaults["endpoints"]
    assert isinstance(endpoints, str)
    store = EtcdStore([endpoints])
    try:
        (sign,) = store.range(keys.alive("a", incarnation), timeout=5).kvs
        store.revoke(sign.lease, timeout=5)
    finally:
        store.close()
    eventually(lambda: bool(recorder.of(UnfencedEvent)), 10)
    assert len(recorder.of(FencedEvent)) == 1
    assert not recorder.one(UnfencedEvent).rejoined
    assert not recorder.of(NodeLeaveEvent)
    assert not recorder.of(NodeRejoinEvent)
    eventually(is_state(a, KitState.JOINED))
    assert guard.valid, "nobody else can have been the owner"
    assert a.kit.readiness().fencing_in > timedelta(0)
