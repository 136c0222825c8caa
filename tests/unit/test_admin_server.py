"""The thread that serves by itself: it comes up or says why, and leaves nothing behind."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing

import httpx
import pytest

from clusterkit._asgi import Receive, Scope, Send
from clusterkit.admin import server as server_module
from clusterkit.admin.server import AdminServer
from clusterkit.errors import ClusterKitError, OptionError
from clusterkit.model import KitState
from clusterkit.ports import Store
from tests.support.admin import MemoryKits
from tests.support.bench import FaultyStore, eventually, first, our_threads, raising


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def free_port(family: socket.AddressFamily = socket.AF_INET) -> int:
    with socket.socket(family) as found:
        found.bind(("::1" if family is socket.AF_INET6 else "127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = our_threads()
    yield
    eventually(lambda: our_threads() <= before, f"threads are left: {our_threads() - before}")


@pytest.fixture
def kits(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryKits]:
    made = MemoryKits(monkeypatch)
    yield made
    made.close()


def get(address: str, path: str = "/") -> httpx.Response:
    return httpx.get(f"http://{address}{path}", timeout=10, trust_env=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_it_answers_when_it_is_open_and_frees_its_port(host: str) -> None:
    address = f"{host}:{free_port()}"
    for _ in range(2):
        server = AdminServer(hello, address)
        server.open()
        assert get(address).text == "hello"
        assert "server" not in get(address).headers
        server.close()
        with pytest.raises(httpx.ConnectError):
            get(address)
        server.close()  # again, it does nothing


def test_a_connection_that_is_kept_open_does_not_hold_up_the_end() -> None:
    address = f"127.0.0.1:{free_port()}"
    server = AdminServer(hello, address)
    server.open()
    with httpx.Client(trust_env=False) as client:
        assert client.get(f"http://{address}/").text == "hello"
        half = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
        with half:
            half.sendall(b"GET / HTTP/1.1\r\nHost: ")
            server.close()
    assert "clusterkit-admin" not in {t.name for t in threading.enumerate()}


def test_garbage_is_answered_as_such() -> None:
    port = free_port()
    with closing(AdminServer(hello, f"127.0.0.1:{port}")) as server:
        server.open()
        for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"X" * 100_000):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger:
                stranger.sendall(garbage + b"\r\n\r\n")
                assert stranger.recv(100).startswith(b"HTTP/1.1 4")
        assert get(f"127.0.0.1:{port}").text == "hello"


def test_who_only_connects_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_REQUEST_SECONDS", 0.05)
    port = free_port()
    with closing(AdminServer(hello, f"127.0.0.1:{port}")) as server:
        server.open()
        for said in (b"", b"GET / HTTP/1.1\r\nHost: "):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger:
                stranger.sendall(said)
                assert ended(stranger)


def test_there_is_an_end_to_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_MOST_CONNECTIONS", 2)
    port = free_port()
    with closing(AdminServer(hello, f"127.0.0.1:{port}")) as server, ExitStack() as stack:
        server.open()
        first, _, third = (
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            for _ in range(3)
        )
        assert ended(third)
        first.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert first.recv(100).startswith(b"HTTP/1.1 200")


def ended(connection: socket.socket) -> bool:
    """Whether the other side ends it, and says nothing before."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_port_that_is_taken_is_an_error_that_names_the_option() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = AdminServer(hello, address)
        with pytest.raises(OptionError, match=f"admin='{address}' cannot work.*in use") as caught:
            server.open()
        assert (caught.value.option, caught.value.value) == ("admin", address)
        assert "CLUSTERKIT_ADMIN" in str(caught.value)
        server.close()


@pytest.mark.parametrize("address", ["192.0.2.1:8080", "no-such-host.invalid:8080"])
def test_an_address_that_is_not_of_this_machine_is_the_same_error(address: str) -> None:
    server = AdminServer(hello, address)
    with pytest.raises(OptionError, match="admin="):
        server.open()
    server.close()


def test_the_loggers_of_the_application_stay_as_they_are() -> None:
    names = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
    before = [
        (log.level, list(log.handlers), log.propagate) for log in map(logging.getLogger, names)
    ]
    address = f"127.0.0.1:{free_port()}"
    with closing(AdminServer(hello, address)) as server:
        server.open()
        assert get(address).text == "hello"
    assert before == [
        (log.level, list(log.handlers), log.propagate) for log in map(logging.getLogger, names)
    ]


def test_requests_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    address = f"127.0.0.1:{free_port()}"
    with caplog.at_level(logging.INFO), closing(AdminServer(hello, address)) as server:
        server.open()
        get(address)
    assert not [r for r in caplog.records if r.name == "uvicorn.access"]
    assert [r for r in caplog.records if r.name == "clusterkit.admin.server"]


# --- with a kit -----------------------------------------------------------------------------------


def test_a_kit_serves_from_before_its_join_to_after_its_leave(kits: MemoryKits) -> None:
    port = free_port()
    during: list[int] = []

    def wrap(store: Store) -> FaultyStore:
        faulty = FaultyStore(store)
        faulty.next("range", first(lambda: during.append(ready())))
        return faulty

    def ready() -> int:
        return get(f"127.0.0.1:{port}", "/ready").status_code

    kits.wrap = wrap
    kit = kits.kit(admin=f":{port}")
    for run in range(2):
        kit.start()
        assert during == [503] * (run + 1)
        kit.wait_ready(10)
        assert ready() == 200
        assert get(f"127.0.0.1:{port}", "/cluster").json()["node"] == "a"
        kit.stop()
        with pytest.raises(httpx.ConnectError):
            ready()


def test_a_start_that_fails_serves_no_longer(kits: MemoryKits) -> None:
    port = free_port()

    def wrap(store: Store) -> FaultyStore:
        faulty = FaultyStore(store)
        faulty.always("range" if len(failed) == 0 else "txn", raising(ClusterKitError("no")))
        failed.append(1)
        return faulty

    failed: list[int] = []
    kits.wrap = wrap
    kit = kits.kit(admin=f":{port}")
    for _ in range(2):  # at its first reading, and at its join
        with pytest.raises(ClusterKitError, match="no"):
            kit.start()
        assert kit.state is KitState.STOPPED
        with pytest.raises(httpx.ConnectError):
            get(f"127.0.0.1:{port}")
        assert "clusterkit-admin" not in {t.name for t in threading.enumerate()}


def test_a_kit_whose_port_is_taken_joins_nothing_and_can_be_started_later(
    kits: MemoryKits,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        kit = kits.kit(admin=f"127.0.0.1:{port}")
        with pytest.raises(OptionError, match="admin="):
            kit.start()
        assert kit.state is KitState.STOPPED
        assert kits.server.revision == 1, "nothing was written"
    kit.start()
    assert get(f"127.0.0.1:{port}", "/health").status_code == 200


def test_a_stop_that_is_only_asked_for_ends_the_server_too(kits: MemoryKits) -> None:
    port = free_port()
    kit = kits.kit(admin=f":{port}")
    kit.start()
    kit.request_stop()
    assert kit.wait_stopped(10)
    with pytest.raises(httpx.ConnectError):
        get(f"127.0.0.1:{port}")
