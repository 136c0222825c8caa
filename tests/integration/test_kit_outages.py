"""What a running cluster does when its etcd goes away, hangs, and comes back."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from functools import partial

import pytest

from clusterkit import (
    ClusterHealthEvent,
    FencedError,
    FencedEvent,
    HookErrorEvent,
    KitState,
    NodeIdConflictError,
    NodeJoinEvent,
    NodeLeaveEvent,
    NodeRejoinEvent,
    PartitionChangeEvent,
    StoreError,
    UnfencedEvent,
)
from clusterkit.testing import EmbeddedEtcd

from .support import PARTITIONS, Cluster, Recorder, agree, eventually, is_state, kit_threads


def test_fenced_without_etcd_and_an_owner_again_with_it(
    own_etcd: EmbeddedEtcd, own_cluster: Cluster
) -> None:
    recorder = Recorder()
    a = own_cluster.node("a", hooks=recorder)
    a.wait_ready()
    agree([a])
    guard = a.kit.guard("partition-0")
    own_etcd.stop()
    assert guard.remaining > timedelta(0)  # the lease is alive for a while yet
    eventually(is_state(a, KitState.FENCED))
    # Nothing may be owned any more, while lookups answer as before.
    assert not guard.valid
    assert guard.remaining == timedelta(0)
    with pytest.raises(FencedError) as caught:
        guard.check()
    assert caught.value.partition_id == "partition-0"
    with pytest.raises(FencedError, match="cannot prove that its lease is alive"):
        a.kit.guard("partition-0")
    assert not a.kit.is_primary("partition-0")
    assert a.kit.partition_for("k").primary is not None
    assert len(a.kit.my_partitions()) == PARTITIONS
    fenced = recorder.one(FencedEvent)
    assert "keep-alive" in fenced.reason
    health = a.kit.health()
    assert health.status == "critical"
    assert any("fenced" in reason for reason in health.reasons)
    assert not a.kit.readiness().ready
    assert "fenced" in " ".join(a.kit.readiness().reasons)
    assert a.kit.readiness().fencing_in == timedelta(0)
    with pytest.raises(StoreError):
        a.rebalance()

    own_etcd.start()
    eventually(is_state(a, KitState.JOINED))
    recorder.one(UnfencedEvent)
    a.wait_ready()
    assert a.kit.is_primary("partition-0")
    assert a.kit.guard("partition-0").valid
    eventually(lambda: a.kit.health().status == "healthy")
    eventually(
        lambda: [e.status for e in recorder.of(ClusterHealthEvent)] == ["critical", "healthy"]
    )
    assert not recorder.of(HookErrorEvent)


def test_a_frozen_etcd_fences_in_time(own_etcd: EmbeddedEtcd, own_cluster: Cluster) -> None:
    recorder = Recorder()
    a = own_cluster.node("a", hooks=recorder)
    agree([a])
    own_etcd.pause()
    try:
        eventually(lambda: not a.kit.is_primary("partition-0"), 2.0)
        recorder.one(FencedEvent)
    finally:
        own_etcd.resume()
    eventually(lambda: a.kit.is_primary("partition-0"))
    recorder.one(UnfencedEvent)


def test_a_lease_that_ended_in_the_meantime_is_a_rejoin(
    own_etcd: EmbeddedEtcd, own_cluster: Cluster
) -> None:
    """The node's process is frozen for longer than its TTL."""
    recorder = Recorder()
    a = own_cluster.node("a", hooks=recorder)
    b = own_cluster.process("b").joined()
    recorder.rebalanced("node_join", "b")
    agree([a])
    incarnation = a.kit.cluster.nodes["b"].incarnation
    b.freeze()
    try:
        leave = recorder.one(NodeLeaveEvent)
        assert (leave.node.id, leave.reason) == ("b", "health_check_failure")
    finally:
        b.thaw()
    rejoin = recorder.one(NodeRejoinEvent)
    assert rejoin.node.id == "b"
    assert rejoin.node.incarnation == incarnation  # the same process
    assert rejoin.last_seen_at is not None
    eventually(lambda: set(a.kit.cluster.nodes) == {"a", "b"})


def has_told(
    recorder: Recorder, kind: type[NodeJoinEvent | NodeLeaveEvent], node_ids: list[str]
) -> bool:
    return [e.node.id for e in recorder.of(kind)] == node_ids


def test_etcd_restarts_and_nothing_is_missed(own_etcd: EmbeddedEtcd, own_cluster: Cluster) -> None:
    own_cluster.defaults["lease_ttl"] = 10
    recorders = [Recorder(), Recorder()]
    members = [
        own_cluster.node(node_id, hooks=recorder)
        for node_id, recorder in zip("ab", recorders, strict=True)
    ]
    agree(members)
    for recorder in recorders:
        recorder.clear()
    for round_ in range(2):
        own_etcd.kill()
        own_etcd.start()
        c = own_cluster.node(f"c{round_}")
        c.stop()
    d = own_cluster.node("d")
    for recorder in recorders:
        eventually(partial(has_told, recorder, NodeJoinEvent, ["c0", "c1", "d"]))
        eventually(partial(has_told, recorder, NodeLeaveEvent, ["c0", "c1"]))
        assert {e.reason for e in recorder.of(NodeLeaveEvent)} == {"graceful_shutdown"}
        assert not recorder.of(FencedEvent)
        assert not recorder.of(NodeRejoinEvent)
    agree([*members, d])
    assert all(m.kit.stats().watch_restarts > 0 for m in members)
    assert members[0].kit.partitions() == members[1].kit.partitions() == d.kit.partitions()
    joins = [[e.event_id for e in r.of(NodeJoinEvent)] for r in recorders]
    assert joins[0] == joins[1]


def test_a_stop_without_etcd_ends_in_time(own_etcd: EmbeddedEtcd, own_cluster: Cluster) -> None:
    a = own_cluster.node("a")
    agree([a])
    own_etcd.stop()
    began = time.monotonic()
    a.stop(1.0)
    assert time.monotonic() - began < 20  # hooks twice 1 s, and an etcd that refuses at once
    assert a.kit.state is KitState.STOPPED
    eventually(lambda: not kit_threads())


def test_hooks_go_on_while_etcd_is_away(own_etcd: EmbeddedEtcd, own_cluster: Cluster) -> None:
    gate = threading.Event()
    done: list[str] = []
    a = own_cluster.member("a")

    @a.kit.on_partition_change
    def migrate(event: PartitionChangeEvent) -> None:
        assert gate.wait(30)
        done.append(event.partition_id)

    a.start()
    own_etcd.stop()
    eventually(is_state(a, KitState.FENCED))
    gate.set()
    eventually(lambda: len(done) == PARTITIONS)
    own_etcd.start()
    a.wait_ready()


def test_stopped_without_etcd_and_started_again_before_the_lease_ends(
    own_etcd: EmbeddedEtcd, own_cluster: Cluster
) -> None:
    """What was left behind is this very process's: it is in conflict with nobody."""
    a = own_cluster.node("a", lease_ttl=60, connect_timeout=1)
    own_etcd.stop()
    a.stop()
    own_etcd.start()
    a.start()
    assert a.kit.state is KitState.JOINED
    a.wait_ready()
    b = own_cluster.member("a", lease_ttl=60)
    with pytest.raises(NodeIdConflictError, match="still running"):
        b.start()
