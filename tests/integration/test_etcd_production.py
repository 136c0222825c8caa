"""Whole kits on an etcd as it is in production: a role for a prefix, no space, an old release."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from clusterkit import KitState, NodeLeaveEvent, OptionsDict, StoreAuthError, StoreError
from clusterkit.etcd import EtcdStore
from clusterkit.ports import Put, Txn
from clusterkit.sync import ClusterKit
from clusterkit.testing import EmbeddedEtcd
from clusterkit.testing.embedded import find_etcd
from tests.support.secured import TIMEOUT, gateway, make_users

from .support import PARTITIONS, Cluster, Recorder, agree, eventually, is_state

PREFIX = "/clusterkit"


def options(etcd: EmbeddedEtcd, node_id: str, user: str) -> OptionsDict:
    return {
        "endpoints": etcd.endpoint,
        "username": user,
        "password": f"{user}-secret",
        "node_id": node_id,
        "address": f"{node_id}:1",
        "settle_time": 0.05,
        "partitions": PARTITIONS,
        "environ": {},
    }


# -- a role ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_roles() -> Iterator[EmbeddedEtcd]:
    """``app`` may do everything under the prefix, ``reader`` may read there."""
    with EmbeddedEtcd(args=["--bcrypt-cost=4"]) as etcd:
        make_users(etcd.endpoint, f"{PREFIX}/".encode())
        etcdctl(etcd, "role", "add", "reader")
        etcdctl(etcd, "role", "grant-permission", "--prefix=true", "reader", "read", f"{PREFIX}/")
        etcdctl(etcd, "user", "add", "reader:reader-secret")
        etcdctl(etcd, "user", "grant-role", "reader", "reader")
        gateway(etcd.endpoint, "auth/enable")
        yield etcd


def etcdctl(etcd: EmbeddedEtcd, *args: str) -> str:
    etcdctl = str(find_etcd().with_name("etcdctl"))
    command = [etcdctl, f"--endpoints={etcd.endpoint}", *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_whole_life_under_a_role_for_the_prefix(
    with_roles: EmbeddedEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Cluster(with_roles.endpoint)
    secured: OptionsDict = {
        "prefix": PREFIX,
        "username": "app",
        "password": "app-secret",
        "lease_ttl": 2,
    }
    cluster.defaults.update(secured)
    recorder = Recorder()
    with closing(cluster):
        first = cluster.node("a", hooks=recorder)
        second = cluster.node("b")
        agree([first, second])
        first.rebalance("by hand")
        recorder.rebalanced("manual", "a")
        second.stop()
        assert recorder.one(NodeLeaveEvent).reason == "graceful_shutdown"
        third = cluster.process("c").joined()
        agree([first])
        recorder.clear()
        third.kill()
        # Also the writing down of the end of a stay needs only the prefix.
        assert recorder.one(NodeLeaveEvent).reason == "health_check_failure"
        eventually(lambda: cluster_history_closed(with_roles))
        first.stop()
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert not [text for text in said if "permission" in text or "refused" in text]


def cluster_history_closed(etcd: EmbeddedEtcd) -> bool:
    """Whether the departure of ``c`` has been written: its history has a second version."""
    shown = etcdctl(
        etcd, "--user=root:root-secret", "get", f"{PREFIX}/c/c/history/c", "--write-out=fields"
    )
    return '"Version" : 2' in shown


def test_a_role_that_may_only_read_is_an_error_at_the_start(with_roles: EmbeddedEtcd) -> None:
    given = options(with_roles, "r", "reader")
    begin = time.monotonic()
    with pytest.raises(StoreAuthError, match="readwrite permission on the keys from '/clusterkit/"):
        ClusterKit(**given).start()
    assert time.monotonic() - begin < TIMEOUT


def test_a_role_for_another_prefix_is_an_error_at_the_start(with_roles: EmbeddedEtcd) -> None:
    given = options(with_roles, "r", "app")
    given["prefix"] = "/other"
    with pytest.raises(StoreAuthError, match="read permission on the keys from '/other/default/c"):
        ClusterKit(**given).start()


# -- no space --------------------------------------------------------------------------------


@pytest.fixture
def small_etcd() -> Iterator[EmbeddedEtcd]:
    with EmbeddedEtcd(args=["--quota-backend-bytes=2000000"]) as etcd:
        yield etcd


def fill(store: EtcdStore) -> StoreError:
    """Writes until etcd raises the alarm; its refusal."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        try:
            store.txn(Txn((), (Put(b"/filler", bytes(200_000)),)), timeout=TIMEOUT)
        except StoreError as e:
            return e
    raise AssertionError("etcd took everything")


def make_room(etcd: EmbeddedEtcd, store: EtcdStore) -> None:
    """What the error says: compact, defragment, disarm."""
    etcdctl(etcd, "compact", str(store.range(b"/filler", timeout=TIMEOUT).revision))
    etcdctl(etcd, "defrag")
    etcdctl(etcd, "alarm", "disarm")


def test_reads_and_renewals_go_on_in_an_etcd_without_space(small_etcd: EmbeddedEtcd) -> None:
    with closing(EtcdStore([small_etcd.endpoint])) as store:
        lease = store.grant(60, timeout=TIMEOUT).id
        store.txn(Txn((), (Put(b"/kept", b"v", lease),)), timeout=TIMEOUT)
        refusals = [fill(store)]
        for write in (
            lambda: store.txn(Txn((), (Put(b"/a", b"v"),)), timeout=TIMEOUT),
            lambda: store.grant(60, timeout=TIMEOUT),
        ):
            with pytest.raises(StoreError) as caught:
                write()
            refusals.append(caught.value)
        for refusal in refusals:
            assert type(refusal) is StoreError
            assert "etcd is out of space (NOSPACE alarm): compact, defragment, disarm" in str(
                refusal
            )
            assert refusal.retryable
        assert store.keep_alive(lease, timeout=TIMEOUT) == 60
        (kept,) = store.range(b"/kept", timeout=TIMEOUT).kvs
        with closing(store.watch(b"/kept", kept.mod_revision)) as watch:
            assert next(watch).revision == kept.mod_revision
            store.revoke(lease, timeout=TIMEOUT)
            assert next(watch).events[0].kind == "delete"
        make_room(small_etcd, store)
        assert store.txn(Txn((), (Put(b"/a", b"v"),)), timeout=TIMEOUT).succeeded


def test_a_node_that_lost_its_lease_joins_again_when_etcd_has_room(
    small_etcd: EmbeddedEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    """The other one goes on undisturbed; a third cannot join, and is told why."""
    caplog.set_level(logging.DEBUG, "clusterkit")
    with (
        closing(EtcdStore([small_etcd.endpoint])) as store,
        closing(Cluster(small_etcd.endpoint)) as cluster,
    ):
        cluster.defaults["lease_ttl"] = 2
        recorder = Recorder()
        calm = cluster.node("calm", hooks=recorder)
        unlucky = cluster.node("unlucky")
        agree([calm, unlucky])
        fill(store)
        (record,) = cluster.read(cluster.keys.node("unlucky")).kvs
        store.revoke(record.lease, timeout=TIMEOUT)
        eventually(is_state(unlucky, KitState.FENCED))
        with pytest.raises(StoreError, match="NOSPACE"):
            cluster.node("third")
        # So it has been refused, more than once, and said so once.
        eventually(lambda: len(refused(caplog)) >= 2)
        assert [r.levelname for r in refused(caplog)].count("WARNING") == 1
        assert calm.kit.state is KitState.JOINED
        make_room(small_etcd, store)
        begin = time.monotonic()
        eventually(is_state(unlucky, KitState.JOINED))
        assert time.monotonic() - begin < 3 + TIMEOUT / 5
        agree([calm, unlucky])
        assert "fenced" not in recorder.kinds()


def refused(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [r for r in caplog.records if "joining again failed" in r.getMessage()]


# -- an old release --------------------------------------------------------------------------


def test_an_old_server_is_warned_of_once_a_start(
    threads_cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """The embedded etcd is one of those."""

    def warned() -> list[str]:
        said = [r for r in caplog.records if r.levelname == "WARNING"]
        return [r.getMessage() for r in said if "upgrade etcd to 3.4.31, 3.5.13" in r.getMessage()]

    member = threads_cluster.node("a")
    eventually(warned)
    member.rebalance()
    member.stop()
    assert len(warned()) == 1
