"""What lookups, guards and reports say, and that all nodes say the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest

from clusterkit import (
    ClusterHealthEvent,
    ClusterKit,
    HookErrorEvent,
    KitState,
    KitStateError,
    NotOwnerError,
    Partition,
    PartitionChangeEvent,
    UnknownPartitionError,
    WaitTimeoutError,
)
from clusterkit import sync as threads

from .support import PARTITIONS, SECONDS, Cluster, Recorder, agree, eventually, is_state

KEYS = [f"user:{i}" for i in range(100)]


def test_all_nodes_place_every_key_in_the_same_way(cluster: Cluster) -> None:
    members = [cluster.node(node_id) for node_id in "abc"]
    agree(members)
    kits = [m.kit for m in members]
    index_of = {key: kits[0].partition_for(key).index for key in KEYS}
    for kit in kits:
        assert [kit.partition_for(key) for key in KEYS] == [kits[0].partition_for(k) for k in KEYS]
        assert kit.partition_for(b"user:1") == kit.partition_for("user:1")
        assert kit.partitions() == kits[0].partitions()
        assert kit.cluster == kits[0].cluster
        assert list(kit.cluster.nodes) == ["a", "b", "c"]
        assert kit.cluster.replication_factor == 2
        assert kit.cluster.partition_for("user:1") == kit.partition_for("user:1")
    assert [p.id for p in kits[0].partitions()] == [f"partition-{i}" for i in range(PARTITIONS)]
    for p in kits[0].partitions():
        assert p == kits[0].partition(p.id)
        assert len({n.id for n in p.nodes}) == 2
        assert kits[0].nodes_for(p) == kits[0].nodes_for(p.id) == p.nodes
        assert p.primary is not None
        assert p.nodes == (p.primary, *p.replicas)
        assert kits[0].serving(p) == p.primary
    # Whoever comes and goes, a key stays in its partition.
    members[2].stop()
    eventually(lambda: set(kits[0].cluster.nodes) == {"a", "b"})
    assert {key: kits[0].partition_for(key).index for key in KEYS} == index_of


def test_what_a_node_holds(cluster: Cluster) -> None:
    cluster.defaults["partitions"] = 64  # by any seed each node gets some of both roles
    members = [cluster.node(node_id) for node_id in "abc"]
    agree(members)
    for member in members:
        kit = member.kit
        primary = kit.my_partitions(role="primary")
        replica = kit.my_partitions(role="replica")
        assert primary
        assert replica
        assert {p.id for p in primary} == {
            p.id for p in kit.partitions() if p.primary is not None and p.primary.id == kit.node_id
        }
        assert {p.id for p in primary} | {p.id for p in replica} == {
            p.id for p in kit.my_partitions()
        }
        assert kit.my_partitions() == kit.partitions_of(kit.node_id)
        for p in kit.partitions():
            assert kit.is_primary(p) == kit.is_primary(p.id) == (p in primary)
            assert kit.is_replica(p) == (p in replica)
            assert kit.is_ready(p) == (p in kit.my_partitions())
    held = [p for m in members for p in m.kit.my_partitions()]
    assert len(held) == 2 * 64
    assert members[0].kit.partitions_of("nobody") == ()


def test_partitions_that_there_are_not(cluster: Cluster) -> None:
    kit = cluster.node("a").kit
    calls: list[Callable[[str], object]] = [
        kit.partition, kit.nodes_for, kit.guard, kit.is_primary, kit.is_replica, kit.is_ready,
        kit.serving,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(UnknownPartitionError, match=r"'user:1' is not a .*partition_for"):
            call("user:1")
        with pytest.raises(
            LookupError, match=f"no partition-{PARTITIONS}: the cluster has {PARTITIONS} partitions"
        ):
            call(f"partition-{PARTITIONS}")


def test_guards_follow_ownership(cluster: Cluster) -> None:
    a = cluster.node("a")
    agree([a])
    guards = {p.id: a.kit.guard(p) for p in a.kit.partitions()}
    epoch = guards["partition-0"].epoch
    assert all(g.valid and g.check() == g.epoch for g in guards.values())
    assert all(g.remaining > timedelta(0) for g in guards.values())
    with a.kit.guard("partition-0") as guard:
        assert guard.partition == a.kit.partition("partition-0")

    b = cluster.node("b")
    agree([a, b])
    lost = [p for p in a.kit.partitions() if b.kit.is_primary(p)]
    kept = [p for p in a.kit.partitions() if a.kit.is_primary(p)]
    assert lost
    assert kept
    for p in lost:
        assert not guards[p.id].valid
        with pytest.raises(NotOwnerError) as caught:
            guards[p.id].check()
        assert caught.value.owner == b.kit.cluster.nodes["b"]
        assert caught.value.partition_id == p.id
        with pytest.raises(NotOwnerError), guards[p.id]:
            pytest.fail("entered a guard that has ended")
        with pytest.raises(NotOwnerError, match=r"'b' at b\.test:8000") as caught:
            a.kit.guard(p)
        assert caught.value.owner is not None
        assert caught.value.owner.id == "b"
        assert b.kit.guard(p).epoch > epoch
    for p in kept:
        assert guards[p.id].valid
        assert guards[p.id].check() == a.kit.guard(p).epoch > epoch

    # Ownership that was lost in between is not taken up again by an old guard.
    b.stop()
    eventually(lambda: a.kit.is_primary(lost[0]))
    assert not guards[lost[0].id].valid
    assert a.kit.guard(lost[0]).valid
    assert a.kit.guard(lost[0]).epoch > epoch


def test_the_epoch_is_the_same_on_all_nodes_and_grows(cluster: Cluster) -> None:
    a = cluster.node("a")
    epochs = [a.kit.partition("partition-0").epoch]
    members = [a]
    for node_id in "bcd":
        members.append(cluster.node(node_id))
        agree(members)
        assert len({m.kit.partition("partition-0").epoch for m in members}) == 1
        epochs.append(a.kit.partition("partition-0").epoch)
    members.pop().stop()
    agree(members)
    epochs.append(a.kit.partition("partition-0").epoch)
    assert epochs == sorted(set(epochs))


def test_readiness_health_and_stats(cluster: Cluster) -> None:
    gate = threading.Event()
    member = cluster.member("a")

    @member.kit.on_partition_change(partitions={"partition-7"})
    def migrate(event: PartitionChangeEvent) -> None:
        gate.wait(SECONDS)

    before = member.kit.readiness()
    assert (before.ready, before.reasons) == (False, ("the kit is new",))
    member.start()
    try:
        eventually(lambda: member.kit.stats().hooks_running == 1)
        waiting = member.kit.readiness()
        assert not waiting.ready
        assert "initial copies" in waiting.reasons[0]
        assert waiting.fencing_in > timedelta(0)
        with pytest.raises(WaitTimeoutError, match=r"not ready after 0\.05 s: the initial copies"):
            member.wait_ready(0.05)
        with pytest.raises(TimeoutError, match=r"not ready after 0:00:00\.05"):
            member.wait_ready(timedelta(seconds=0.05))
        assert not member.kit.is_ready("partition-7")
        assert [m.partition_id for m in member.kit.owed()] == ["partition-7"]
    finally:
        gate.set()
    member.wait_ready()
    ready = member.kit.readiness()
    assert ready.ready
    assert ready.reasons == ()
    eventually(lambda: member.kit.stats().hooks_running == 0)
    stats = member.kit.stats()
    assert (stats.rebalances, stats.hooks_queued, stats.hook_failures) == (1, 0, 0)
    assert stats.watch_restarts == 0
    assert stats.revision == member.kit.cluster.revision
    health = member.kit.health()
    assert (health.status, health.reasons, health.unhealthy_node_ids) == ("healthy", (), ())
    assert (health.healthy_nodes, health.unhealthy_nodes, health.total_nodes) == (1, 0, 1)
    member.stop()
    assert not member.kit.readiness().ready
    assert member.kit.readiness().reasons == ("the kit is stopped",)


def test_health_goes_down_and_up_again(threads_cluster: Cluster) -> None:
    recorder = Recorder()
    a = threads_cluster.node("a", hooks=recorder)
    b = threads_cluster.process("b").joined()
    c = threads_cluster.process("c").joined()
    eventually(lambda: len(a.kit.cluster.nodes) == 3)
    b.kill()
    eventually(lambda: a.kit.health().status == "degraded")
    c.kill()
    eventually(lambda: a.kit.health().status == "critical")
    assert a.kit.health().unhealthy_node_ids == ("b", "c")
    assert any("b: its lease expired" in reason for reason in a.kit.health().reasons)
    threads_cluster.process("b").joined()
    eventually(lambda: a.kit.health().status == "degraded")
    threads_cluster.process("c").joined()
    eventually(lambda: a.kit.health().status == "healthy")
    eventually(lambda: len(recorder.of(ClusterHealthEvent)) == 4)
    told = recorder.of(ClusterHealthEvent)
    assert [e.status for e in told] == ["degraded", "critical", "degraded", "healthy"]
    assert [e.unhealthy_node_ids for e in told] == [("b",), ("b", "c"), ("c",), ()]
    assert len({e.event_id for e in told}) == 4


def test_before_the_start_and_after_the_stop(cluster: Cluster) -> None:
    member = cluster.member("a")
    kit = member.kit
    assert is_state(member, KitState.NEW)()
    assert kit.node_id == "a"
    calls: list[Callable[[], object]] = [
        lambda: kit.partition_for("k"),
        lambda: kit.partitions(),
        lambda: kit.my_partitions(),
        lambda: kit.is_primary("partition-0"),
        lambda: kit.guard("partition-0"),
        lambda: kit.health(),
        lambda: kit.stats(),
        lambda: kit.owed(),
        lambda: kit.cluster,
        lambda: member.wait_ready(1),
        lambda: member.wait_stopped(),
        lambda: member.rebalance(),
    ]
    for call in calls:
        with pytest.raises(KitStateError, match=r"start\(\)") as caught:
            call()
        assert caught.value.state is KitState.NEW
    member.stop()  # nothing to stop
    member.start()
    with pytest.raises(KitStateError, match="started already") as caught:
        member.start()
    assert caught.value.state is KitState.JOINED
    before = kit.partitions()
    member.stop()
    member.stop()
    assert is_state(member, KitState.STOPPED)()
    member.wait_stopped()
    # What was known may still be looked up; nothing is owned.
    assert [p.id for p in kit.partitions()] == [p.id for p in before]
    assert not kit.is_primary("partition-0")
    with pytest.raises(KitStateError) as caught:
        member.wait_ready(1)
    assert caught.value.state is KitState.STOPPED
    with pytest.raises(KitStateError, match="stopped"):
        member.rebalance()


def test_blocking_is_the_same_kit_for_threads(etcd_endpoint: str) -> None:
    cluster = Cluster(etcd_endpoint, "asyncio")
    try:
        member = cluster.node("a")
        assert isinstance(member.kit, ClusterKit)
        face = member.kit.blocking
        assert isinstance(face, threads.ClusterKit)
        face.wait_ready(SECONDS)
        assert face.partitions() == member.kit.partitions()
        assert face.rebalance() <= eventually(
            lambda: member.kit.cluster.revision if member.kit.stats().rebalances == 2 else 0
        )
        face.stop()
        assert member.kit.state is KitState.STOPPED
        assert face.wait_stopped(1)
    finally:
        cluster.close()


def test_two_kits_in_one_process(cluster: Cluster) -> None:
    """Of two clusters: they share nothing."""
    recorder = Recorder()
    one = cluster.node("a", hooks=recorder)
    two = cluster.node("a", cluster="other", partitions=4)
    agree([one])
    assert len(two.kit.partitions()) == 4
    assert set(one.kit.cluster.nodes) == {"a"}
    two.stop()
    assert one.kit.state is KitState.JOINED
    assert one.kit.is_primary("partition-0")
    assert not recorder.of(HookErrorEvent)


def test_partitions_are_values(cluster: Cluster) -> None:
    kit = cluster.node("a").kit
    p = kit.partition("partition-0")
    assert isinstance(p, Partition)
    assert p in {p: 1}
    with pytest.raises(AttributeError):
        p.index = 1  # type: ignore[misc]  # that is what must fail
