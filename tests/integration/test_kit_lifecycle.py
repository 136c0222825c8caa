"""Starting and stopping: what is refused at the door, and what is left behind."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from clusterkit import (
    ClusterKit,
    ClusterKitError,
    ConfigMismatchError,
    KitState,
    NodeIdConflictError,
    NodeJoinEvent,
    OptionError,
    OptionsDict,
    StoreError,
)
from clusterkit import sync as threads
from clusterkit.testing.embedded import free_port

from .support import (
    PARTITIONS,
    SECONDS,
    Cluster,
    Face,
    Member,
    agree,
    eventually,
    is_state,
    kit_threads,
    soon,
)

BAD: list[tuple[OptionsDict, str, str]] = [
    ({"node_id": ""}, "node_id", "''"),
    ({"node_id": "a/b"}, "node_id", "'a/b'"),
    ({"node_id": "a\x07b"}, "node_id", r"a\x07b"),
    ({"partitions": 0}, "partitions", "0"),
    ({"replication_factor": 0}, "replication_factor", "0"),
    ({"lease_ttl": 1}, "lease_ttl", "1"),
    ({"endpoints": ""}, "endpoints", "''"),
    ({"endpoints": []}, "endpoints", "[]"),
    ({"address": "host"}, "address", "'host'"),
    ({"address": None}, "address", "None"),
    ({"ownership": "exclusive"}, "ownership", "'exclusive'"),
    ({"lease_ttl": 1.5}, "lease_ttl", "1.5"),
    ({"restart_grace": 0.5}, "restart_grace", "0.5"),
]


@pytest.mark.parametrize(
    "options,name,shown", BAD, ids=lambda v: str(v) if isinstance(v, str) else ""
)
def test_a_wrong_option_is_refused_by_name_and_value(
    cluster: Cluster, options: OptionsDict, name: str, shown: str
) -> None:
    given: OptionsDict = {**cluster.defaults, "node_id": "a", "address": "a.test:1", **options}
    made = threads.ClusterKit(**given) if cluster.face == "threads" else ClusterKit(**given)
    with pytest.raises(OptionError) as caught:
        Member(made, cluster.loop).start()
    assert isinstance(caught.value, ValueError)
    assert caught.value.option == name
    assert name in str(caught.value)
    assert shown in str(caught.value)
    assert made.state is KitState.NEW
    assert not kit_threads()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections, and where nobody says a word."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("how", ["refused", "silent", "unknown host"])
def test_an_unreachable_etcd_fails_fast(face: Face, how: str, silent_port: int) -> None:
    port = free_port()
    endpoint = {
        "refused": f"127.0.0.1:{port}",
        "silent": f"127.0.0.1:{silent_port}",
        "unknown host": "etcd.invalid:2379",
    }[how]
    with closing(Cluster(endpoint, face)) as cluster:
        member = cluster.member("a", connect_timeout=0.5)
        began = time.monotonic()
        with pytest.raises(StoreError) as caught:
            member.start()
        assert time.monotonic() - began < 2.5
        assert endpoint in str(caught.value)
        assert "\n" not in str(caught.value).strip()
        assert member.kit.state is KitState.STOPPED
        assert not kit_threads()


@pytest.mark.parametrize(
    "options,ours,stored",
    [({"partitions": 32}, 32, PARTITIONS), ({"key_hash": "blake2b"}, "blake2b", "crc32")],
)
def test_a_cluster_made_with_other_settings_is_not_joined(
    cluster: Cluster, options: OptionsDict, ours: object, stored: object
) -> None:
    a = cluster.node("a")
    b = cluster.member("b", **options)
    with pytest.raises(ConfigMismatchError) as caught:
        b.start()
    error = caught.value
    assert (error.option, error.ours, error.stored) == (next(iter(options)), ours, stored)
    for said in (error.option, repr(ours), repr(stored)):
        assert said in str(error)
    assert b.kit.state is KitState.STOPPED
    assert set(a.kit.cluster.nodes) == {"a"}
    # Nothing was written; with the right setting it joins.
    cluster.node("b")
    eventually(lambda: set(a.kit.cluster.nodes) == {"a", "b"})


def test_another_replication_factor_is_a_warning(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.node("a")
    b = cluster.node("b", replication_factor=3)
    assert b.kit.cluster.replication_factor == 2
    assert all(len(p.nodes) <= 2 for p in b.kit.partitions())
    warnings = [r for r in caplog.records if "replication factor" in r.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].levelno == logging.WARNING
    assert "3" in warnings[0].getMessage()
    assert "2" in warnings[0].getMessage()


def test_foreign_and_damaged_keys_are_reported_once_and_stop_nobody(
    threads_cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    root = threads_cluster.keys.root
    before = [root + b"nodes/damaged", root + b"what is this", root + b"nodes/x/y"]
    for key in before:
        threads_cluster.put(key, b"\xff\xff garbage")
    a = threads_cluster.node("a")
    during = [root + b"history/damaged", root + b"alive/only-one-part", root + b"\xff\xfe"]
    for key in during:
        threads_cluster.put(key, b"\xff\xff garbage")
    for key in (*before, *during):  # again, changed
        threads_cluster.put(key, b"\xff\xff other garbage")
    b = threads_cluster.node("b")
    agree([a, b])
    assert set(a.kit.cluster.nodes) == {"a", "b"}
    assert a.kit.partitions() == b.kit.partitions()
    for key in (*before, *during):
        said = [r for r in caplog.records if repr(key) in r.getMessage()]
        assert len(said) == 2, key  # once by each of the two nodes
        assert {r.levelno for r in said} == {logging.WARNING}


def test_a_node_joins_over_its_own_damaged_keys(threads_cluster: Cluster) -> None:
    keys = threads_cluster.keys
    for key in (keys.node("a"), keys.history("a"), keys.applied("a")):
        threads_cluster.put(key, b"\xff\xff garbage")
    told: list[NodeJoinEvent] = []
    member = threads_cluster.member("a")
    member.kit.on_node_join(told.append)
    member.start()
    member.wait_ready()
    assert member.kit.is_primary("partition-0")
    assert [e.is_bootstrap for e in told] == [False]  # somebody was there


def test_a_damaged_config_is_one_clear_error(threads_cluster: Cluster) -> None:
    threads_cluster.put(threads_cluster.keys.config, b"\xff\xff garbage")
    member = threads_cluster.member("a")
    with pytest.raises(ClusterKitError, match=r"config in etcd.*cannot be understood"):
        member.start()
    assert member.kit.state is KitState.STOPPED


def test_it_leaves_nothing_behind(cluster: Cluster) -> None:
    members = [cluster.node(node_id) for node_id in "abc"]
    agree(members)
    assert kit_threads()
    for member in members:
        member.stop()
    assert not kit_threads()
    left = [kv.key for kv in cluster.read().kvs if kv.lease]
    assert left == []
    assert not [kv.key for kv in cluster.read(cluster.keys.nodes).kvs]


def test_it_can_be_started_again(cluster: Cluster) -> None:
    told: list[str] = []
    member = cluster.member("a")
    member.kit.on_node_join(lambda e: told.append("join"))
    member.kit.on_node_rejoin(lambda e: told.append("rejoin"))
    for _ in range(3):
        member.start()
        assert is_state(member, KitState.JOINED)()
        member.wait_ready()
        member.stop()
        assert is_state(member, KitState.STOPPED)()
        eventually(lambda: not kit_threads())
    assert told == ["join", "rejoin", "rejoin"]


def test_a_stop_asked_for_before_the_start_holds_for_that_start(cluster: Cluster) -> None:
    """A signal may come while a program still imports its modules."""
    member = cluster.member("a")
    member.kit.request_stop()
    member.start()
    member.wait_stopped()
    eventually(lambda: not kit_threads())
    assert not cluster.read(cluster.keys.nodes).kvs
    member.start()
    assert member.kit.state is KitState.JOINED


def test_with_statements(etcd_endpoint: str) -> None:
    with closing(Cluster(etcd_endpoint)) as cluster:
        given: OptionsDict = {**cluster.defaults, "node_id": "a", "address": "a.test:1"}

        class BodyError(Exception):
            pass

        kit = threads.ClusterKit(**given)

        def body() -> None:
            with kit as entered:
                assert entered is kit
                assert kit.state is KitState.JOINED
                raise BodyError

        with pytest.raises(BodyError):
            body()
        assert kit.state is KitState.STOPPED

        async def main() -> None:
            kit = ClusterKit(**given)
            async with kit as entered:
                assert entered is kit
                await kit.wait_ready(SECONDS)
                kit.request_stop()
                await kit.wait_stopped()
            assert kit.state is KitState.STOPPED

        asyncio.run(main())
        eventually(lambda: not kit_threads())


def test_a_cancelled_start_leaves_nothing_behind(etcd_endpoint: str) -> None:
    """Cancelled at each of many moments, from the first connection on to after the join."""
    with closing(Cluster(etcd_endpoint, "asyncio")) as cluster:

        async def main() -> None:
            for i in range(12):
                kit = cluster.member("a").kit
                assert isinstance(kit, ClusterKit)
                starting = asyncio.create_task(kit.start())
                await asyncio.sleep(i * 0.004)
                starting.cancel()
                await asyncio.wait([starting])
                await kit.stop()
                await soon(lambda: not kit_threads())
                await soon(lambda: not cluster.read(cluster.keys.nodes).kvs)

        asyncio.run(main())
        assert not [kv for kv in cluster.read().kvs if kv.lease]
        cluster.node("a").wait_ready()


def test_a_start_that_hangs_can_be_cancelled(silent_port: int) -> None:
    with closing(Cluster(f"127.0.0.1:{silent_port}", "asyncio")) as cluster:

        async def main() -> None:
            kit = cluster.member("a", connect_timeout=2).kit
            assert isinstance(kit, ClusterKit)
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await kit.start()
            assert time.monotonic() - began < 1
            await soon(lambda: not kit_threads())

        asyncio.run(main())


def test_a_second_kit_with_the_same_id_in_this_process(cluster: Cluster) -> None:
    a = cluster.node("a")
    twin = cluster.member("a")
    with pytest.raises(NodeIdConflictError, match="still running") as caught:
        twin.start()
    assert caught.value.node_id == "a"
    assert "CLUSTERKIT_NODE_ID" in str(caught.value)
    assert a.kit.state is KitState.JOINED
    assert a.kit.is_primary("partition-0")


def test_stop_waits_for_hooks_no_longer_than_it_was_told(cluster: Cluster) -> None:
    gate = threading.Event()
    running = threading.Event()
    member = cluster.member("a")

    @member.kit.on_node_join
    def deaf(event: NodeJoinEvent) -> None:
        running.set()
        gate.wait(SECONDS)

    try:
        member.start()
        assert running.wait(SECONDS)
        began = time.monotonic()
        member.stop(0.2)
        assert time.monotonic() - began < 3
        assert member.kit.state is KitState.STOPPED
        assert not cluster.read(cluster.keys.nodes).kvs
    finally:
        gate.set()


def test_the_environment_is_read_at_the_start(cluster: Cluster) -> None:
    environ = {
        "CLUSTERKIT_NODE_ID": "from-the-environment",
        "CLUSTERKIT_ADDRESS": "e.test:1",
        "CLUSTERKIT_PARTITIONS": "4",
        "CLUSTERKIT_SETTLE_TIME": "10ms",
        "CLUSTERKIT_ENDPOINTS": str(cluster.defaults["endpoints"]),
        "CLUSTERKIT_PREFIX": cluster.defaults["prefix"],
    }
    made = threads.ClusterKit if cluster.face == "threads" else ClusterKit
    member = Member(made(environ=environ, cluster="c"), cluster.loop)
    member.start()
    try:
        assert member.kit.node_id == "from-the-environment"
        assert len(member.kit.partitions()) == 4
    finally:
        member.stop()


def test_a_request_to_stop_that_comes_before_the_start_is_not_lost(cluster: Cluster) -> None:
    member = cluster.member("a")
    member.kit.request_stop()
    member.start()
    member.wait_stopped()
    member.start()  # the next start is one like any other
    eventually(is_state(member, KitState.JOINED))
