"""What people who run a cluster do to it, and what it does by itself for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import cast

import pytest

from clusterkit import (
    ClusterHealthEvent,
    ClusterKitError,
    FencedError,
    FencedEvent,
    HookRegistrationError,
    KitState,
    KitStateError,
    NodeJoinEvent,
    NodeLeaveEvent,
    NodeRejoinEvent,
    OptionError,
    RebalanceEvent,
    UnfencedEvent,
    _compose,
)
from clusterkit.config import Options
from clusterkit.core import codec
from clusterkit.core.records import Departure, Registration
from clusterkit.engine import comparison, pruning
from clusterkit.etcd import EtcdStore
from clusterkit.etcd.watch import EtcdWatch
from clusterkit.ports import WatchBatch

from .support import (
    PARTITIONS,
    REPOSITORY,
    SECONDS,
    Cluster,
    Member,
    Recorder,
    agree,
    eventually,
    is_state,
    kit_threads,
)


def remove(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``clusterkit remove``, in a process of its own."""
    return command(cluster, "remove", *arguments)


def command(cluster: Cluster, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of ``clusterkit``, in a process of its own."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("CLUSTERKIT_")}
    return subprocess.run(
        [
            *(sys.executable, "-c", "from clusterkit.cli import main; main()", name),
            *("--endpoints", str(cluster.defaults["endpoints"])),
            *("--prefix", cluster.defaults["prefix"], "--cluster", cluster.defaults["cluster"]),
            *arguments,
        ],
        env={**kept, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def three(cluster: Cluster) -> tuple[list[Member], list[Recorder]]:
    """Members a, b and c that are at rest, and what their hooks are told from here on."""
    recorders = [Recorder() for _ in "abc"]
    members = [cluster.node(n, hooks=r) for n, r in zip("abc", recorders, strict=True)]
    agree(members)
    for recorder in recorders:
        recorder.clear()
    return members, recorders


def test_a_removal_is_seen_by_all_and_the_removed_node_stays_out(cluster: Cluster) -> None:
    members, recorders = three(cluster)
    owned, replica = members[0].holds("c")
    removed = members[2]
    guarded = removed.kit.my_partitions(role="primary")[0]
    guard = removed.kit.guard(guarded)
    done = remove(cluster, "c", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert (document["node"], document["reason"]) == ("c", "removed_by_admin")
    assert set(document["partitions"]) == owned | replica
    eventually(is_state(removed, KitState.REMOVED))
    assert not guard.valid
    with pytest.raises(FencedError):
        removed.kit.guard(guarded)
    assert not removed.kit.readiness().ready
    for recorder in recorders[:2]:
        leave = recorder.one(NodeLeaveEvent)
        assert (leave.node.id, leave.reason) == ("c", "removed_by_admin")
        assert (set(leave.partitions_owned), set(leave.partitions_replica)) == (owned, replica)
        assert leave.revision == document["revision"]
    assert "administrator" in recorders[2].one(FencedEvent).reason
    # It lets go of its lease itself, long before that could expire.
    eventually(lambda: not cluster.read(cluster.keys.root + b"alive/c/").kvs, 5.0)
    agree(members[:2])
    assert set(members[0].kit.cluster.nodes) == {"a", "b"}
    assert is_state(removed, KitState.REMOVED)()
    # Whoever starts it again wants it back.
    removed.stop()
    removed.start()
    assert is_state(removed, KitState.JOINED)()
    eventually(lambda: set(members[0].kit.cluster.nodes) == {"a", "b", "c"})


def test_a_removed_node_rejoins_when_the_application_wants_it(cluster: Cluster) -> None:
    members, recorders = three(cluster)
    owned, replica = members[0].holds("c")
    with pytest.raises(KitStateError, match=r"'joined'"):
        members[2].rejoin()
    assert remove(cluster, "c").returncode == 0
    eventually(is_state(members[2], KitState.REMOVED))
    members[2].rejoin()
    assert members[2].kit.state is KitState.JOINED
    for recorder in recorders:
        rejoin = recorder.one(NodeRejoinEvent)
        assert rejoin.node.id == "c"
        assert rejoin.offline_duration is not None
        assert set(rejoin.partitions_before_leave) == owned | replica
    assert recorders[0].one(NodeRejoinEvent) == recorders[2].one(NodeRejoinEvent)
    assert recorders[2].one(UnfencedEvent).rejoined
    agree(members)
    # As a new stay: its data come again.
    to_c = [e for e in recorders[2].changes() if e.copy_to_node.id == "c"]
    assert {e.partition_id for e in to_c if e.needs_data} == owned | replica
    members[2].wait_ready()


def test_a_removal_of_who_is_not_there_is_one_line(threads_cluster: Cluster) -> None:
    threads_cluster.node("a")
    done = remove(threads_cluster, "ghost")
    assert (done.returncode, done.stdout) == (1, "")
    assert "'ghost'" in done.stderr
    assert "members are: a" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = remove(threads_cluster, "a")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"removed a at a.test:8000 from c: it held {PARTITIONS} partitions" in done.stdout


def test_a_cordoned_node_gives_its_partitions_away_and_takes_them_back(cluster: Cluster) -> None:
    members, recorders = three(cluster)
    a, b, c = members
    owned, replica = a.holds("c")
    done = command(cluster, "cordon", "c", "--reason", "bad disk", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert (document["node"], document["cordoned"], document["changed"]) == ("c", True, True)
    agree(members)
    assert a.holds("c") == (set(), set())
    assert c.kit.state is KitState.JOINED, "it is a member, and a source"
    assert all(m.kit.cluster.cordoned == {"c"} for m in members)
    for recorder in recorders:
        (start,) = recorder.of(RebalanceEvent)[:1]
        assert (start.trigger, start.trigger_node_id) == ("config_change", "c")
        gained = {e.partition_id for e in recorder.changes() if e.needs_data}
        assert gained == owned | replica
        assert all(e.copy_from_nodes for e in recorder.changes())
        assert not recorder.of(NodeLeaveEvent)
    document = json.loads(command(cluster, "nodes", "--json").stdout)
    states = {n["id"]: n["state"] for n in document["nodes"]}
    assert states == {"a": "active", "b": "active", "c": "cordoned"}
    assert document["cordons"]["c"]["reason"] == "bad disk"
    done = command(cluster, "cordon", "b")
    assert (done.returncode, done.stdout) == (0, "b is cordoned\n")
    assert done.stderr.startswith("warning: only 1 of the members may hold partitions now")
    assert command(cluster, "uncordon", "b").returncode == 0
    agree(members)
    c.stop()
    c.start()
    agree(members)
    assert a.holds("c") == (set(), set()), "a restart does not end it"
    done = command(cluster, "uncordon", "c")
    assert (done.returncode, done.stdout) == (0, "c is not cordoned any more\n")
    agree(members)
    assert a.holds("c") == (owned, replica)
    assert b.kit.cluster.cordoned == frozenset()


def test_settings_are_shown_and_changed_for_all(cluster: Cluster) -> None:
    members, recorders = three(cluster)
    shown = command(cluster, "settings")
    assert shown.returncode == 0
    assert "  replication_factor  2\n  key_hash            crc32\n" in shown.stdout
    assert "  balance             none\n  balance_primaries   false\n" in shown.stdout
    done = command(cluster, "settings", "--replication-factor", "3", "--json")
    assert json.loads(done.stdout)["replication_factor"] == 3
    agree(members)
    assert {len(p.nodes) for p in members[0].kit.partitions()} == {3}
    for recorder in recorders:
        eventually(partial(recorder.of, RebalanceEvent))
        assert {e.trigger for e in recorder.of(RebalanceEvent)} == {"config_change"}
    refused = command(cluster, "settings", "--balance", "0.5")
    assert refused.returncode == 2
    assert "balance" in refused.stderr
    assert "from 1 to 100" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_plan_is_what_then_happens_and_writes_nothing(cluster: Cluster) -> None:
    members, recorders = three(cluster)

    def written() -> dict[bytes, int]:
        """All but what the nodes write of themselves meanwhile."""
        own = tuple(cluster.keys.root + name for name in (b"applied/", b"alive/"))
        kvs = cluster.read(cluster.keys.root).kvs
        return {kv.key: kv.mod_revision for kv in kvs if not kv.key.startswith(own)}

    before = written()
    done = command(cluster, "plan", "--cordon", "c", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    planned = json.loads(done.stdout)
    assert members[0].kit.plan(cordon=["c"]).after["c"].copies == 0
    with pytest.raises(ClusterKitError, match="'ghost' is not in the cluster"):
        members[0].kit.plan(remove=["ghost"])
    with pytest.raises(OptionError, match="balance"):
        members[0].kit.plan(balance=0.5)
    assert written() == before, "nothing was written"
    assert command(cluster, "cordon", "c").returncode == 0
    agree(members)
    happened = {
        (e.partition_id, e.copy_to_node.id, tuple(sorted(n.id for n in e.copy_from_nodes)))
        for member, recorder in zip(members, recorders, strict=True)
        for e in recorder.changes()
        if e.needs_data and e.copy_to_node.id == member.kit.node_id
    }
    assert happened == {
        (m["partition"], m["to"], tuple(sorted(m["copy_from"]))) for m in planned["moves"]
    }
    promoted = {e.partition_id: e.new_primary for e in recorders[0].changes() if not e.needs_data}
    assert promoted == planned["promotions"]


def test_a_plan_of_a_made_up_cluster_needs_no_etcd() -> None:
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}
    environ["CLUSTERKIT_ENDPOINTS"] = "127.0.0.1:1"
    main = "from clusterkit.cli import main; main()"

    def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", main, "plan", *arguments],
            env=environ,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    done = plan("--nodes", "4", "--zones", "2", "--add", "x,zone=zone-0,weight=50", "--all")
    assert (done.returncode, done.stderr) == (0, "")
    assert "copies to make" in done.stdout
    assert "nothing is changed" in done.stdout
    for wrong, code in ((("--add", "x,y"), 2), (("--weight", "node-0"), 2), (("--remove", "x"), 1)):
        done = plan("--nodes", "4", *wrong)
        assert (done.returncode, done.stdout) == (code, "")
        assert "Traceback" not in done.stderr


def test_loads_are_bounded_and_what_cannot_be_is_said(
    threads_cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    members = [threads_cluster.node(n) for n in "abcd"]
    agree(members)
    done = command(threads_cluster, "settings", "--balance", "1", "--balance-primaries", "--json")
    assert json.loads(done.stdout)["balance"] == 1.0
    agree(members)
    held = {m.kit.node_id: m.holds(m.kit.node_id) for m in members}
    # Two holders of each on four nodes: half of them a node, and half of those as the primary.
    assert {(len(owned), len(replica)) for owned, replica in held.values()} == {
        (PARTITIONS // 4, PARTITIONS // 4)
    }
    assert not [r for r in caplog.records if "bound of 'balance'" in r.message]
    for member in members[1:]:
        member.stop()
    zones = {"x": "small", "y": "large", "z": "large"}
    members += [threads_cluster.node(node_id, zone=zone) for node_id, zone in zones.items()]
    alive = [members[0], *members[4:]]
    agree(alive)
    members[0].stop()
    agree(alive[1:])
    # One node of a zone against two of the other: to spread the copies it has to hold them all.
    assert len(set().union(*alive[1].holds("x"))) == PARTITIONS
    assert [r.levelname for r in caplog.records if "bound of 'balance'" in r.message]


def test_cordoning_what_cannot_be_cordoned_is_one_line(threads_cluster: Cluster) -> None:
    threads_cluster.node("a")
    for node_id, why in (("ghost", "does not know it"), ("a", "no other member")):
        done = command(threads_cluster, "cordon", node_id)
        assert (done.returncode, done.stdout) == (1, "")
        assert why in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_who_has_been_gone_for_long_is_forgotten(
    threads_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "CHECK_SECONDS", 0.2)
    cluster, now = threads_cluster, datetime.now(UTC)
    for name, days in (("old", 8), ("recent", 6)):
        stay = Registration(name, name, now - timedelta(days=90))
        end = Departure(stay, "graceful_shutdown", now - timedelta(days=days), 0)
        cluster.put(cluster.keys.history(name), codec.history_with(b"", ended=end))
    recorder = Recorder()
    members = [cluster.node("a", hooks=recorder), cluster.node("b")]
    eventually(lambda: not cluster.read(cluster.keys.history("old")).kvs)
    agree(members)
    left = {kv.key for kv in cluster.read(cluster.keys.histories).kvs}
    assert left == {cluster.keys.history(name) for name in ("a", "b", "recent")}
    # Whoever comes back after all is new; whoever is remembered is not.
    cluster.node("old")
    cluster.node("recent")
    eventually(lambda: recorder.of(NodeRejoinEvent))
    assert [e.node.id for e in recorder.of(NodeJoinEvent)] == ["a", "b", "old"]
    assert [e.node.id for e in recorder.of(NodeRejoinEvent)] == ["recent"]


class LossyStore(EtcdStore):
    """etcd, but one revision never arrives."""

    def __init__(self, options: Options, lost: bytes) -> None:
        super().__init__(options.endpoints)
        self._lost: bytes | None = lost

    def watch(self, prefix: bytes, start_revision: int) -> EtcdWatch:
        watch = super().watch(prefix, start_revision)

        def batches() -> Iterator[WatchBatch]:
            for batch in watch:
                if self._lost in {event.kv.key for event in batch.events}:
                    self._lost = None
                else:
                    yield batch

        return cast(EtcdWatch, _Lossy(watch, batches()))


class _Lossy:
    def __init__(self, watch: EtcdWatch, batches: Iterator[WatchBatch]) -> None:
        self._watch, self._batches = watch, batches

    def __iter__(self) -> Iterator[WatchBatch]:
        return self._batches

    def close(self) -> None:
        self._watch.close()


def test_a_revision_that_never_arrived_is_found_and_repaired(
    threads_cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(comparison, "EVERY_SECONDS", 0.2)
    monkeypatch.setattr(comparison, "AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(comparison, "PATIENCE_SECONDS", 0.5)
    cluster, recorder = threads_cluster, Recorder()
    lost = cluster.keys.node("c")
    with monkeypatch.context() as lossy:
        lossy.setattr(_compose, "store_of", lambda options: LossyStore(options, lost))
        a = cluster.node("a", hooks=recorder)
    others = [cluster.node("b"), cluster.node("c")]
    eventually(lambda: "c" in a.kit.cluster.nodes)
    agree([a, *others])
    assert [e.node.id for e in recorder.of(NodeJoinEvent)] == ["a", "b", "c"]
    assert [m.kit.stats().divergences for m in (a, *others)] == [1, 0, 0]
    (told,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert lost.decode() in told.message
    assert a.kit.partitions() == others[0].kit.partitions()


def test_a_failing_health_check_is_known_to_every_node(cluster: Cluster) -> None:
    members, recorders = three(cluster)
    well = threading.Event()
    epoch = members[0].kit.partitions()[0].epoch

    async def database() -> bool:
        return well.is_set()

    def disk() -> None:
        if not well.is_set():
            raise OSError("no space")

    def told(recorder: Recorder, events: list[tuple[str, tuple[str, ...]]]) -> bool:
        found = recorder.of(ClusterHealthEvent)
        return [(e.status, e.unhealthy_node_ids) for e in found] == events

    def reasoned(member: Member, reason: str) -> bool:
        return reason in member.kit.health().reasons

    members[2].kit.add_health_check("database", database, interval=0.1)
    members[2].kit.add_health_check("disk", disk, interval=0.1)
    for recorder in recorders:
        eventually(partial(told, recorder, [("degraded", ("c",))]))
    for member in members:
        eventually(partial(reasoned, member, "c: its health checks fail: database, disk"))
        assert member.kit.health().status == "degraded"
    assert members[2].kit.readiness().ready
    well.set()
    for member, recorder in zip(members, recorders, strict=True):
        eventually(partial(told, recorder, [("degraded", ("c",)), ("healthy", ())]))
        assert member.kit.health().status == "healthy"
        assert not recorder.starts  # nothing moved
        assert not recorder.changes()
    assert members[0].kit.partitions()[0].epoch == epoch
    with pytest.raises(HookRegistrationError, match="'disk' already"):
        members[2].kit.add_health_check("disk", disk)
    with pytest.raises(OptionError, match="more than 0 seconds"):
        members[2].kit.add_health_check("other", disk, timeout=0)


def test_checks_begin_and_end_with_the_kit(cluster: Cluster) -> None:
    runs: list[str] = []
    member = cluster.member("a")
    member.kit.add_health_check("count", lambda: runs.append("run"), interval=0.01)
    assert runs == []
    for _ in range(2):
        member.start()
        eventually(lambda: len(runs) > 2)
        member.stop()
        eventually(lambda: not kit_threads())
        runs.clear()
