"""A node that comes back before its lease has ended, and two that want one id."""

from __future__ import annotations

import threading
import time

import pytest

from clusterkit import (
    KitState,
    KitStateError,
    NodeIdConflictError,
    NodeLeaveEvent,
    NodeRejoinEvent,
    PartitionLostEvent,
)

from .support import Cluster, Recorder, agree, eventually


def test_a_restart_inside_the_ttl_is_a_rejoin_and_its_data_come_again(cluster: Cluster) -> None:
    recorders = [Recorder(), Recorder()]
    members = [
        cluster.node(node_id, hooks=recorder)
        for node_id, recorder in zip("ab", recorders, strict=True)
    ]
    c = cluster.process("c", lease_ttl=30).joined()
    for recorder in recorders:
        recorder.rebalanced("node_join", "c")
    agree(members)
    before = members[0].kit.partitions()
    owned, replica = members[0].holds("c")
    first_life = members[0].kit.cluster.nodes["c"]
    epoch = before[0].epoch
    for recorder in recorders:
        recorder.clear()

    c.kill()
    began = time.monotonic()
    cluster.process("c", lease_ttl=30).joined()
    assert time.monotonic() - began < 15  # it has not waited for the lease
    for recorder in recorders:
        recorder.rebalanced("node_rejoin", "c")
    agree(members)
    for member, recorder in zip(members, recorders, strict=True):
        rejoin = recorder.one(NodeRejoinEvent)
        assert rejoin.node.incarnation != first_life.incarnation
        assert set(rejoin.partitions_before_leave) == owned | replica
        # Nobody saw when it died.
        assert rejoin.last_seen_at is None
        assert rejoin.offline_duration is None
        assert not recorder.of(NodeLeaveEvent)
        assert not recorder.of(PartitionLostEvent)
        to_c = [e for e in recorder.changes() if e.copy_to_node.id == "c"]
        assert {e.partition_id for e in to_c} == owned | replica
        for e in to_c:
            assert e.needs_data
            assert e.change_reason == "node_rejoin"
            assert e.copy_to_node == rejoin.node
            assert {n.id for n in e.copy_from_nodes} <= {"a", "b"}
            assert e.copy_from_nodes
        # The same owners as before, under a new epoch.
        now = member.kit.partitions()
        assert [[n.id for n in p.nodes] for p in now] == [[n.id for n in p.nodes] for p in before]
        assert now[0].epoch > epoch
    assert recorders[0].one(NodeRejoinEvent) == recorders[1].one(NodeRejoinEvent)
    ids = [sorted(e.event_id for e in r.changes()) for r in recorders]
    assert ids[0] == ids[1]


def test_a_second_live_process_of_this_host_is_refused(cluster: Cluster) -> None:
    holder = cluster.process("a", lease_ttl=10).joined()
    for policy in ("takeover", "wait", "fail"):
        second = cluster.member("a", on_conflict=policy)
        with pytest.raises(NodeIdConflictError, match=f"process {holder.pid} of this host"):
            second.start()
        assert second.kit.state is KitState.STOPPED
    holder.stop()
    cluster.node("a")


def test_fail_refuses_as_long_as_the_lease_of_the_dead_lives(cluster: Cluster) -> None:
    holder = cluster.process("a", lease_ttl=30).joined()
    holder.kill()
    with pytest.raises(NodeIdConflictError, match="on_conflict=") as caught:
        cluster.node("a", on_conflict="fail")
    assert caught.value.node_id == "a"
    assert "a.test:8001" in str(caught.value)
    # The default takes over.
    assert cluster.node("a").kit.state is KitState.JOINED


def test_wait_joins_when_the_lease_of_the_dead_has_ended(cluster: Cluster) -> None:
    recorder = Recorder()
    b = cluster.node("b", hooks=recorder)
    holder = cluster.process("a", lease_ttl=2).joined()
    eventually(lambda: "a" in b.kit.cluster.nodes)
    holder.kill()
    waited = cluster.node("a", on_conflict="wait")
    assert waited.kit.state is KitState.JOINED
    rejoin = recorder.one(NodeRejoinEvent)
    leave = recorder.one(NodeLeaveEvent)
    assert leave.reason == "health_check_failure"
    assert leave.revision < rejoin.revision
    assert rejoin.last_seen_at is not None


def test_a_stop_while_it_waits_for_the_id(threads_cluster: Cluster) -> None:
    """``request_stop`` from a signal handler must end a start that waits."""
    holder = threads_cluster.process("a", lease_ttl=30).joined()
    holder.kill()
    member = threads_cluster.member("a", on_conflict="wait")
    errors: list[BaseException] = []

    def start() -> None:
        try:
            member.start()
        except KitStateError as e:
            errors.append(e)

    starter = threading.Thread(target=start)
    starter.start()
    eventually(lambda: member.kit.state is KitState.JOINING)
    member.kit.request_stop()
    starter.join(10)
    assert not starter.is_alive()
    assert len(errors) == 1
    assert member.kit.state is KitState.STOPPED
