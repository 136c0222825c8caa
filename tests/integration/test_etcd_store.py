"""The store on real servers that are dead, frozen, unreachable, or cut off in the middle."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import grpc
import pytest

from clusterkit.errors import StoreError, StoreTimeoutError, StoreUnavailableError
from clusterkit.etcd import EtcdStore
from clusterkit.ports import Compare, Get, Put, Txn
from clusterkit.testing import EmbeddedEtcd

TIMEOUT = 10.0


@pytest.fixture(scope="module")
def etcd() -> Iterator[EmbeddedEtcd]:
    with EmbeddedEtcd() as etcd:
        yield etcd


@pytest.fixture(scope="module")
def frozen() -> Iterator[str]:
    """The endpoint of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def dead() -> str:
    """An endpoint where nobody listens: port 1 is never given out."""
    return "127.0.0.1:1"


def put(key: bytes) -> Txn:
    return Txn((), (Put(key, b"v"),))


class CuttingProxy:
    """Stands before an etcd and, once told to, cuts connections when the next answer comes.

    So a request has been received and carried out, and its client never hears of it.
    """

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.rpartition(":")
        self._to = (host, int(port))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.cut = threading.Event()
        self._sockets = [self._server]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(self._to)
                self._sockets += [near, far]
                for source, sink, answers in ((near, far, False), (far, near, True)):
                    thread = threading.Thread(target=self._pump, args=(source, sink, answers))
                    self._threads.append(thread)
                    thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                # An answer to a transaction is longer than the frames that HTTP/2 sends about.
                if answers and self.cut.is_set() and len(data) > 60:
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join(TIMEOUT)


def test_making_a_store_touches_no_network(frozen: str) -> None:
    with closing(EtcdStore(["no-such-host.invalid:1", frozen])):
        pass


@pytest.mark.parametrize("bad", ["dead", "frozen"])
def test_the_next_endpoint_serves_when_the_first_does_not(
    etcd: EmbeddedEtcd, bad: str, request: pytest.FixtureRequest
) -> None:
    """Each call with a store of its own, so that each meets the bad endpoint first."""
    endpoints = [request.getfixturevalue(bad), etcd.endpoint]

    def store(connect_timeout: float = 60) -> contextlib.closing[EtcdStore]:
        return closing(EtcdStore(endpoints, connect_timeout=connect_timeout))

    with store() as s:
        assert s.txn(put(b"/failover"), timeout=2).succeeded
    with store() as s:
        assert len(s.range(b"/failover", timeout=1).kvs) == 1
    with store() as s:
        lease = s.grant(60, timeout=1)
        assert lease.ttl_seconds == 60
    with store() as s:
        assert s.keep_alive(lease.id, timeout=1) == 60
    with store() as s:
        s.revoke(lease.id, timeout=1)
    with store() as s:
        assert s.server_version(timeout=1)
    with store() as s:
        revision = s.range(b"/failover", timeout=1).kvs[0].mod_revision
    with store(0.3) as s, closing(s.watch(b"/failover", revision)) as watch:
        assert next(iter(watch)).revision == revision


def test_a_call_stays_with_the_endpoint_that_served(etcd: EmbeddedEtcd, frozen: str) -> None:
    with closing(EtcdStore([frozen, etcd.endpoint])) as store:
        store.range(b"/", timeout=1)
        begin = time.monotonic()
        for _ in range(5):
            store.range(b"/", timeout=4)
        # A frozen endpoint would have cost two seconds each time.
        assert time.monotonic() - begin < 2


@pytest.mark.parametrize("bad", ["dead", "frozen"])
def test_an_endpoint_that_does_not_serve_is_an_error_in_time(
    bad: str, request: pytest.FixtureRequest
) -> None:
    endpoint: str = request.getfixturevalue(bad)
    with closing(EtcdStore([endpoint], connect_timeout=0.5)) as store:
        calls: list[Callable[[], object]] = [
            lambda: store.range(b"/", timeout=0.5),
            lambda: store.txn(put(b"/a"), timeout=0.5),
            lambda: store.grant(5, timeout=0.5),
            lambda: store.revoke(1, timeout=0.5),
            lambda: store.keep_alive(1, timeout=0.5),
            lambda: store.server_version(timeout=0.5),
            lambda: next(iter(store.watch(b"/", 1))),
        ]
        for call in calls:
            begin = time.monotonic()
            with pytest.raises((StoreUnavailableError, StoreTimeoutError)) as caught:
                call()
            assert time.monotonic() - begin < 2
            # It never reached anybody, so it may be sent again.
            assert caught.value.retryable
            assert endpoint in str(caught.value)
            assert isinstance(caught.value.__cause__, Exception)
            assert not isinstance(caught.value, grpc.RpcError)


def test_host_names(etcd: EmbeddedEtcd) -> None:
    """One that leads nowhere is an error that says so, or is passed over for the next."""
    nowhere = "no-such-host.invalid:2379"
    with closing(EtcdStore([nowhere])) as store:
        for call in (
            lambda: store.range(b"/", timeout=2),
            lambda: store.txn(put(b"/a"), timeout=2),
            lambda: next(store.watch(b"/", 1)),
        ):
            with pytest.raises(StoreUnavailableError, match="Check the host names") as caught:
                call()
            assert nowhere in str(caught.value)
            assert caught.value.retryable
    named = etcd.endpoint.replace("127.0.0.1", "localhost")
    with closing(EtcdStore([nowhere, named])) as store:
        revision = store.txn(put(b"/a"), timeout=2).revision
        with closing(store.watch(b"/a", revision)) as watch:
            assert next(watch).revision == revision


def test_a_server_that_freezes_after_it_has_served(etcd: EmbeddedEtcd) -> None:
    with EmbeddedEtcd() as own, closing(EtcdStore([own.endpoint, etcd.endpoint])) as store:
        store.range(b"/", timeout=TIMEOUT)
        own.pause()
        begin = time.monotonic()
        with pytest.raises(StoreTimeoutError) as caught:
            store.txn(put(b"/frozen"), timeout=0.5)
        # It may lie in the server's buffers and be carried out later: not for the next endpoint.
        assert not caught.value.retryable
        assert time.monotonic() - begin < 2
        store.range(b"/", timeout=1)


def test_a_transaction_whose_answer_is_lost_is_never_sent_again(etcd: EmbeddedEtcd) -> None:
    key = b"/cut"
    with (
        closing(CuttingProxy(etcd.endpoint)) as proxy,
        closing(EtcdStore([proxy.endpoint, etcd.endpoint])) as store,
        closing(EtcdStore([etcd.endpoint])) as direct,
    ):
        store.range(b"/", timeout=TIMEOUT)
        proxy.cut.set()
        with pytest.raises(StoreUnavailableError) as caught:
            store.txn(Txn((), (Put(key, b"x" * 100), Get(key))), timeout=TIMEOUT)
        assert not caught.value.retryable
        assert "may or may not have been applied" in str(caught.value)
        (kv,) = direct.range(key, timeout=TIMEOUT).kvs
        assert kv.version == 1


def test_a_transaction_that_only_reads_goes_on_to_the_next_endpoint(etcd: EmbeddedEtcd) -> None:
    with (
        closing(CuttingProxy(etcd.endpoint)) as proxy,
        closing(EtcdStore([proxy.endpoint, etcd.endpoint])) as store,
    ):
        store.txn(Txn((), (Put(b"/read", b"x" * 100),)), timeout=TIMEOUT)
        proxy.cut.set()
        result = store.txn(Txn((), (Get(b"/read"),)), timeout=TIMEOUT)
        assert [len(kvs) for kvs in result.reads] == [1]


def test_calls_work_again_soon_after_the_server_is_back() -> None:
    with EmbeddedEtcd() as own, closing(EtcdStore([own.endpoint])) as store:
        store.txn(put(b"/kept"), timeout=TIMEOUT)
        own.kill()
        for _ in range(3):
            with pytest.raises(StoreUnavailableError):
                store.range(b"/", timeout=0.5)
        own.start()
        begin = time.monotonic()
        while True:
            try:
                kvs = store.range(b"/", timeout=1).kvs
                break
            except StoreError:
                assert time.monotonic() - begin < 3
        assert [kv.key for kv in kvs] == [b"/kept"]


def test_a_lease_that_never_was_is_gone(etcd: EmbeddedEtcd) -> None:
    with closing(EtcdStore([etcd.endpoint])) as store:
        assert store.keep_alive(4711, timeout=TIMEOUT) == 0
        store.revoke(4711, timeout=TIMEOUT)
        lease = store.grant(60, timeout=TIMEOUT).id
        store.revoke(lease, timeout=TIMEOUT)
        assert store.keep_alive(lease, timeout=TIMEOUT) == 0


def test_what_etcd_refuses_says_so_and_is_not_retryable(etcd: EmbeddedEtcd) -> None:
    with closing(EtcdStore([etcd.endpoint, etcd.endpoint])) as store:
        twice = Txn((Compare(b"/t", "version", "==", 0),), (Put(b"/t", b"1"), Put(b"/t", b"2")))
        with pytest.raises(StoreError, match="duplicate key") as caught:
            store.txn(twice, timeout=TIMEOUT)
        assert not caught.value.retryable
        with pytest.raises(StoreError, match="lease not found"):
            store.txn(Txn((), (Put(b"/t", b"1", 4711),)), timeout=TIMEOUT)


def test_close_ends_a_call_that_is_under_way(frozen: str) -> None:
    store = EtcdStore([frozen])
    ended: list[BaseException] = []

    def call() -> None:
        try:
            store.range(b"/", timeout=TIMEOUT)
        except StoreError as e:
            ended.append(e)

    thread = threading.Thread(target=call)
    thread.start()
    begin = time.monotonic()
    store.close()
    store.close()
    thread.join(TIMEOUT)
    assert time.monotonic() - begin < 5
    assert len(ended) == 1
    with pytest.raises(StoreError, match="closed"):
        store.range(b"/", timeout=TIMEOUT)


def test_ipv6_in_brackets() -> None:
    """Nobody serves IPv6 here; but the address is understood, and is asked for by itself."""
    with (
        closing(EtcdStore(["[::1]:1"])) as store,
        pytest.raises(StoreUnavailableError, match=r"\[::1\]:1: failed to connect"),
    ):
        store.range(b"/", timeout=1)
