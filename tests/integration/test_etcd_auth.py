"""etcd's own users and passwords, on a real server."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from clusterkit.errors import StoreAuthError, StoreUnavailableError
from clusterkit.etcd import EtcdStore
from clusterkit.ports import Compare, Put, Txn
from clusterkit.testing import EmbeddedEtcd
from clusterkit.testing.embedded import find_etcd
from tests.support.secured import gateway, make_users

TIMEOUT = 10.0


@pytest.fixture(scope="module")
def etcd() -> Iterator[EmbeddedEtcd]:
    with EmbeddedEtcd(args=["--bcrypt-cost=4"]) as etcd:
        make_users(etcd.endpoint, b"/app/")
        gateway(etcd.endpoint, "auth/enable")
        yield etcd


@pytest.fixture
def store(etcd: EmbeddedEtcd) -> Iterator[EtcdStore]:
    with closing(EtcdStore([etcd.endpoint], username="app", password="app-secret")) as store:
        yield store


def put(key: bytes) -> Txn:
    return Txn((), (Put(key, b"v"),))


def test_a_user_may_do_everything_within_its_role(store: EtcdStore) -> None:
    revision = store.txn(put(b"/app/a"), timeout=TIMEOUT).revision
    assert [kv.key for kv in store.range(b"/app/a", timeout=TIMEOUT).kvs] == [b"/app/a"]
    lease = store.grant(60, timeout=TIMEOUT)
    assert store.keep_alive(lease.id, timeout=TIMEOUT) == 60
    store.revoke(lease.id, timeout=TIMEOUT)
    assert store.server_version(timeout=TIMEOUT)
    with closing(store.watch(b"/app/", revision)) as watch:
        assert next(iter(watch)).revision == revision


@pytest.mark.parametrize(
    "username, password", [("app", "wrong"), ("nobody", "app-secret"), (None, None)]
)
def test_wrong_credentials(etcd: EmbeddedEtcd, username: str | None, password: str | None) -> None:
    with closing(EtcdStore([etcd.endpoint], username=username, password=password)) as store:
        calls = (
            lambda: store.range(b"/app/", timeout=TIMEOUT),
            lambda: store.txn(put(b"/app/a"), timeout=TIMEOUT),
            lambda: next(iter(store.watch(b"/app/", 1))),
        )
        for call in calls:
            with pytest.raises(StoreAuthError, match="username and password") as caught:
                call()
            assert not caught.value.retryable
            assert "app-secret" not in str(caught.value)


def test_outside_of_the_role(store: EtcdStore) -> None:
    compared = Txn((Compare(b"/other/b", "mod", "==", 0),), (Put(b"/other/a", b"v"),))
    calls: list[tuple[Callable[[], object], str, bytes]] = [
        (lambda: store.range(b"/other/", timeout=TIMEOUT), "read", b"/other/"),
        (lambda: store.txn(put(b"/other/a"), timeout=TIMEOUT), "write", b"/other/a"),
        (lambda: store.txn(compared, timeout=TIMEOUT), "readwrite", b"/other/"),
        (lambda: next(iter(store.watch(b"/other/", 1))), "read", b"/other/"),
    ]
    for call, permission, prefix in calls:
        with pytest.raises(StoreAuthError, match="permission denied") as caught:
            call()
        text = str(caught.value)
        assert f"{permission} permission on the keys from {prefix.decode()!r} up to" in text
        assert f"grant-permission --prefix=true ROLE {permission} {prefix.decode()}`" in text


def test_a_role_that_gets_the_permission_that_the_error_names(
    etcd: EmbeddedEtcd, store: EtcdStore
) -> None:
    with pytest.raises(StoreAuthError) as caught:
        store.txn(put(b"/granted/a"), timeout=TIMEOUT)
    named = re.search(r"`etcdctl (role grant-permission [^`]*)`", str(caught.value))
    assert named is not None
    etcdctl = find_etcd().with_name("etcdctl")
    given = named[1].replace("ROLE", "app").split()
    connection = [f"--endpoints={etcd.endpoint}", "--user=root:root-secret"]
    subprocess.run([etcdctl, *connection, *given], check=True, capture_output=True)
    assert store.txn(put(b"/granted/a"), timeout=TIMEOUT).succeeded


@pytest.mark.parametrize("call", ["range", "txn", "grant", "watch"])
def test_a_token_that_the_server_has_forgotten_is_renewed(etcd: EmbeddedEtcd, call: str) -> None:
    with (
        closing(EtcdStore([etcd.endpoint], username="app", password="app-secret")) as store,
    ):
        store.txn(put(b"/app/a"), timeout=TIMEOUT)
        # Its tokens live in memory.
        etcd.stop()
        etcd.start()
        reconnected(store)
        match call:
            case "range":
                assert store.range(b"/app/", timeout=TIMEOUT).kvs
            case "txn":
                assert store.txn(put(b"/app/b"), timeout=TIMEOUT).succeeded
            case "grant":
                assert store.grant(60, timeout=TIMEOUT).ttl_seconds == 60
            case "watch":
                with closing(store.watch(b"/app/", 2)) as watch:
                    assert next(iter(watch)).events


def reconnected(store: EtcdStore) -> None:
    """Waits until the server answers again, by a call that needs no token."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            store.server_version(timeout=TIMEOUT)
            return
        except StoreUnavailableError:
            assert time.monotonic() < deadline


def test_users_where_authentication_is_off_and_then_switched_on() -> None:
    with (
        EmbeddedEtcd(args=["--bcrypt-cost=4"]) as own,
        closing(EtcdStore([own.endpoint], username="app", password="app-secret")) as store,
    ):
        make_users(own.endpoint, b"/app/")
        revision = store.txn(put(b"/app/a"), timeout=TIMEOUT).revision
        gateway(own.endpoint, "auth/enable")
        store.txn(put(b"/app/a"), timeout=TIMEOUT)
        with closing(store.watch(b"/app/", revision)) as watch:
            assert next(iter(watch)).revision == revision
        with pytest.raises(StoreAuthError):
            store.range(b"/other/", timeout=TIMEOUT)
