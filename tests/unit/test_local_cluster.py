"""Whole clusters in memory: what ``clusterkit.testing`` gives to users, in virtual time."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta

import pytest

from clusterkit import (
    FencedError,
    KitState,
    KitStateError,
    NodeLeaveEvent,
    NodeRejoinEvent,
    NotOwnerError,
    PartitionChangeEvent,
    PartitionRoleEvent,
    UnfencedEvent,
    WaitTimeoutError,
)
from clusterkit.ports import WatchBatch
from clusterkit.testing import LocalCluster, LocalKit, VirtualClock, memory_kit
from clusterkit.testing.memory import MemoryWatch
from tests.support.bench import eventually, our_threads


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(clock=VirtualClock()) as cluster:
        yield cluster
    eventually(lambda: not our_threads(), "every thread has ended")


def test_nodes_see_each_other_and_agree(cluster: LocalCluster) -> None:
    a, b, c = cluster.start(3)
    assert list(cluster) == [a, b, c]
    assert cluster[:2] == [a, b]
    assert sorted(a.cluster.nodes) == [k.node_id for k in cluster] == ["node-1", "node-2", "node-3"]
    for key in ("user:1", "user:2"):
        assert len({k.partition_for(key) for k in cluster}) == 1
        assert sum(k.is_primary(k.partition_for(key)) for k in cluster) == 1
    assert all(k.readiness().ready for k in cluster)
    assert len({k.address for k in cluster}) == 3


def test_leases_are_kept_alive_however_much_time_passes(cluster: LocalCluster) -> None:
    left: list[NodeLeaveEvent] = []
    kits = cluster.start(3, setup=lambda kit: kit.on_node_leave(left.append))
    cluster.advance(3_600)
    assert [k.state for k in kits] == [KitState.JOINED] * 3
    assert not left


def test_a_crash_is_noticed_when_the_lease_is_over_and_not_before(cluster: LocalCluster) -> None:
    left: list[NodeLeaveEvent] = []
    a, b = cluster.start(2, setup=lambda kit: kit.on_node_leave(left.append))
    a.crash()
    cluster.advance(5)
    assert sorted(b.cluster.nodes) == ["node-1", "node-2"]
    cluster.advance(6)
    cluster.wait_until(lambda: left)
    assert [(e.node.id, e.reason) for e in left] == [("node-1", "health_check_failure")]
    cluster.wait_converged()
    assert {p.primary.id for p in b.partitions() if p.primary} == {"node-2"}


def test_a_node_that_crashed_comes_back_as_a_rejoin(cluster: LocalCluster) -> None:
    back: list[NodeRejoinEvent] = []
    a, b = cluster.start(2)
    a.crash()
    cluster.advance(30)
    a.on_node_rejoin(mine=True)(back.append)
    a.start()
    cluster.wait_converged()
    assert sorted(b.cluster.nodes) == ["node-1", "node-2"]
    cluster.wait_until(lambda: back)
    assert back[0].partitions_before_leave
    assert back[0].offline_duration is not None
    assert 15 <= back[0].offline_duration.total_seconds() <= 30


def test_time_does_not_pass_before_what_it_brings_is_seen(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, never = MemoryWatch.__next__, threading.Event()

    def late(watch: MemoryWatch) -> WatchBatch:
        batch = take(watch)
        never.wait(0.05)
        return batch

    monkeypatch.setattr(MemoryWatch, "__next__", late)
    left: list[NodeLeaveEvent] = []
    a, _ = cluster.start(2, setup=lambda kit: kit.on_node_leave(left.append))
    assert cluster.clock is not None
    crashed = cluster.clock.now()
    a.crash()
    cluster.advance(60)
    cluster.wait_until(lambda: left)
    assert left[0].timestamp - crashed < timedelta(seconds=15), "lease_ttl is 10 s"


def test_who_is_cut_off_fences_itself_before_another_takes_over(cluster: LocalCluster) -> None:
    a, b = cluster.start(2)
    partition = next(p for p in a.my_partitions(role="primary"))
    a.cut_off()
    cluster.advance(9)
    assert not a.is_primary(partition.id)
    with pytest.raises(FencedError):
        a.guard(partition.id)
    with pytest.raises(NotOwnerError):
        b.guard(partition.id)
    cluster.advance(2)
    cluster.wait_until(lambda: b.is_primary(partition.id))


@pytest.mark.parametrize("seconds, rejoined", [(27.5, False), (40, True)])
def test_who_is_healed_in_time_carries_on_and_who_is_not_joins_again(
    cluster: LocalCluster, seconds: float, rejoined: bool
) -> None:
    unfenced: list[UnfencedEvent] = []
    a, _ = cluster.start(
        2, lease_ttl=30, fence_margin=3, setup=lambda kit: kit.on_unfenced(unfenced.append)
    )
    a.cut_off()
    cluster.advance(seconds)
    cluster.wait_until(lambda: a.state is KitState.FENCED)
    a.heal()
    cluster.wait_converged()
    cluster.wait_until(lambda: unfenced)
    assert [e.rejoined for e in unfenced] == [rejoined]


def test_a_hook_that_fails_comes_again_when_its_time_has_come(cluster: LocalCluster) -> None:
    attempts: defaultdict[str, int] = defaultdict(int)

    def fetch(event: PartitionChangeEvent) -> None:
        attempts[event.event_id] += 1
        if attempts[event.event_id] < 4:
            raise ConnectionError("not yet")

    kit = cluster.kit(partitions=1)
    kit.on_partition_change(fetch)
    kit.start()
    cluster.wait_until(lambda: kit.owed())
    cluster.wait_converged()
    assert list(attempts.values()) == [4]


def test_lost_data_is_critical_until_a_new_holder_has_begun_anew(cluster: LocalCluster) -> None:
    broken = threading.Event()
    told: list[str] = []

    def fetch(event: PartitionChangeEvent) -> None:
        if broken.is_set():
            raise ConnectionError("the disk is full")

    a, b, c = cluster.start(
        3, replication_factor=1, setup=lambda kit: kit.on_partition_change(fetch)
    )
    b.on_cluster_health_change(late=True)(lambda e: told.append(e.status))
    cluster.wait_until(lambda: told)
    broken.set()
    a.crash()
    cluster.advance(11)

    def all_see(status: str) -> bool:
        return {kit.health().status for kit in (b, c)} == {status}

    cluster.wait_until(lambda: all_see("critical"))
    for kit in (b, c):
        lost = [reason for reason in kit.health().reasons if "no live node has" in reason]
        assert len(lost) == 1
        assert "the data of partition-" in lost[0]
    broken.clear()
    cluster.wait_converged()
    cluster.wait_until(lambda: all_see("degraded"))
    for kit in (b, c):
        assert kit.health().reasons == ("node-1: its lease expired",)
    cluster.wait_until(lambda: len(told) == 3)
    assert told == ["healthy", "critical", "degraded"], "one change, one piece of news"


def test_a_node_whose_hooks_do_not_succeed_is_overdue_for_all_others(
    cluster: LocalCluster,
) -> None:
    broken = threading.Event()

    def fetch(event: PartitionChangeEvent) -> None:
        if broken.is_set():
            raise ConnectionError("the disk is full")

    def setup(kit: LocalKit) -> None:
        if kit.node_id == "node-2":
            kit.on_partition_change(fetch)

    a, b = cluster.start(2, migration_timeout=60, setup=setup)
    broken.set()
    cluster.kit(migration_timeout=60).start()
    cluster.wait_until(lambda: b.owed())
    assert a.health().status == "healthy", "each node has its time"
    cluster.advance(130)
    cluster.wait_until(lambda: a.health().status == "degraded")
    assert a.health().reasons == ("partition-change hooks are overdue on node-2",)
    broken.clear()
    cluster.wait_converged()
    cluster.wait_until(lambda: a.health().status == "healthy")


def test_an_answer_that_is_lost_at_the_join_does_no_harm(cluster: LocalCluster) -> None:
    kit = cluster.kit()
    kit.faults.lose_answer("txn")
    kit.start()
    cluster.wait_converged()
    assert list(kit.cluster.nodes) == ["node-1"]
    assert kit.faults.pending == 0


def test_keep_alives_that_hang_fence_a_node(cluster: LocalCluster) -> None:
    a, b = cluster.start(2)
    a.faults.hang("keep_alive", times=None)
    cluster.advance(9)
    assert not a.my_partitions(role="primary") or not a.is_primary(a.my_partitions()[0])
    cluster.advance(5)
    cluster.wait_until(lambda: list(b.cluster.nodes) == ["node-2"])
    a.faults.clear()
    cluster.wait_converged()
    assert sorted(b.cluster.nodes) == ["node-1", "node-2"]


def test_work_that_follows_ownership_ends_before_its_node_has_left(cluster: LocalCluster) -> None:
    ending, may_end = threading.Event(), threading.Event()
    seen_by_b: list[bool] = []

    def role(event: PartitionRoleEvent) -> None:
        if event.new_role is None:
            ending.set()
            assert may_end.wait(20)
            seen_by_b.append("node-1" in b.cluster.nodes)

    a, b = cluster.kit(), cluster.kit()
    a.on_partition_role(role)
    a.start()
    b.start()
    cluster.wait_converged()
    held = len(a.my_partitions())
    a.request_stop()
    assert ending.wait(20)
    assert "node-1" in b.cluster.nodes
    assert not any(a.is_primary(p) for p in b.partitions())  # but it owns nothing any more
    may_end.set()
    cluster.wait_until(lambda: "node-1" not in b.cluster.nodes)
    assert seen_by_b == [True] * held


def test_setup_is_called_before_the_start(cluster: LocalCluster) -> None:
    states: list[KitState] = []
    cluster.start(2, setup=lambda kit: states.append(kit.state))
    assert states == [KitState.NEW] * 2


def test_options_are_for_all_unless_one_has_its_own() -> None:
    with LocalCluster(clock=VirtualClock(), partitions=4, zone="a") as cluster:
        cluster.start(1)
        cluster.start(1, zone="b", node_id="other", address="10.0.0.9:80")
        a, b = cluster
        assert len(a.partitions()) == 4
        assert {n.id: (n.zone, n.address) for n in a.cluster.nodes.values()} == {
            "node-1": ("a", a.address),
            "other": ("b", "10.0.0.9:80"),
        }
        assert b.address == "10.0.0.9:80"


def test_a_wait_in_vain_says_what_is_missing(cluster: LocalCluster) -> None:
    cluster.start(2)
    with pytest.raises(WaitTimeoutError, match="never"):
        cluster.wait_until(lambda: False, 0.01, what="never")
    late = cluster.kit(node_id="late")

    @late.on_partition_change(mine=True, retries=0)
    def fetch(event: PartitionChangeEvent) -> None:
        raise OSError("the disk is full")

    late.start()
    with pytest.raises(WaitTimeoutError, match=r"had not converged after 0\.1 s: .*late"):
        cluster.wait_converged(0.1)


def test_time_of_the_machine_or_of_etcd_cannot_be_moved() -> None:
    with LocalCluster() as cluster, pytest.raises(KitStateError, match="VirtualClock"):
        cluster.advance(1)
    with pytest.raises(ValueError, match="in memory only"):
        LocalCluster("127.0.0.1:1", clock=VirtualClock())


def test_kits_for_asyncio_are_members_like_the_others(cluster: LocalCluster) -> None:
    async def main(other: LocalKit) -> None:
        seen: list[str] = []
        async with cluster.async_kit("async") as kit:
            await asyncio.to_thread(cluster.wait_converged)
            assert sorted(other.cluster.nodes) == ["async", "node-1"]
            kit.cut_off()
            await asyncio.to_thread(cluster.advance, 12)
            assert kit.state is KitState.FENCED
            kit.heal()
            await asyncio.to_thread(cluster.wait_converged)
            seen += kit.cluster.nodes
            await kit.crash()
        assert sorted(seen) == ["async", "node-1"]

    (other,) = cluster.start(1)
    asyncio.run(main(other))
    cluster.advance(12)
    cluster.wait_until(lambda: list(other.cluster.nodes) == ["node-1"])


def test_an_asyncio_kit_that_nobody_stopped_ends_with_the_cluster() -> None:
    with LocalCluster() as cluster:
        asyncio.run(cluster.async_kit().start())
    eventually(lambda: not our_threads(), "every thread has ended")


def test_one_kit_without_etcd_by_the_machines_time() -> None:
    fetched: list[str] = []
    kit = memory_kit(partitions=4)
    kit.on_partition_change(lambda event: fetched.append(event.partition_id))
    with kit:
        kit.wait_ready(10)
        assert kit.is_primary(kit.partition_for("user:42"))
        assert len(fetched) == 4
    eventually(lambda: not our_threads(), "every thread has ended")
    with kit:  # the store remembers it
        assert list(kit.cluster.nodes) == ["node-1"]


def test_nobody_mourns_at_the_end() -> None:
    lost: list[object] = []
    with LocalCluster(clock=VirtualClock()) as cluster:
        cluster.start(4, setup=lambda kit: kit.on_partition_lost(lost.append))
    assert lost == []


def test_a_stop_returns_when_every_thread_is_gone() -> None:
    """Also those that had only to return: a check for leaked threads may come right after it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # whoever stops goes on before threads that are ending
    try:
        for _ in range(30):
            kit = memory_kit(partitions=4)
            kit.on_partition_change(lambda e: None)
            kit.start()
            kit.wait_ready(30)
            kit.stop()
            left = {thread.name for thread in our_threads()}
            assert left <= {"clusterkit-memory-leases"}  # the store's, and not the kit's
    finally:
        sys.setswitchinterval(before)


def test_a_stop_returns_when_the_runner_has_said_its_last_words() -> None:
    """Whoever waits in vain for something is told of the end after those who wait for the end."""
    kit = memory_kit(partitions=4)
    kit.start()
    assert kit._run is not None
    never = kit._run.runner.when(lambda _: False)
    never.add_done_callback(lambda _: threading.Event().wait(0.2))
    kit.stop()
    assert "clusterkit-runner" not in {thread.name for thread in our_threads()}
