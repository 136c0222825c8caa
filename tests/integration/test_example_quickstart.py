"""The quickstart as its README tells it: three processes, a kill, a return, a stop, no key lost."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import clusterkit
from clusterkit.testing.embedded import EmbeddedEtcd, free_port
from tests.support.processes import pause

PROGRAM = Path(__file__).parents[2] / "examples" / "quickstart" / "app.py"
PATIENCE_SECONDS = 40.0
PAUSE_SECONDS = 0.05
STOP_SECONDS = 10.0

pytestmark = pytest.mark.timeout(150)


def until(what: str, condition: Callable[[], object]) -> None:
    """Asks again until it is so; what was seen last is in the failure."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (seen := condition()) is not True:
        assert time.monotonic() < deadline, f"{what}: still {seen}"
        time.sleep(PAUSE_SECONDS)


class App:
    """One node: the program with variables of its own, and a client for it."""

    def __init__(self, name: str, endpoint: str, log: Path) -> None:
        self.name = name
        self.port = free_port()
        self.admin_port = free_port()
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        # A user's own settings must not reach it.
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("CLUSTERKIT_")}
        self.environment |= {
            "PYTHONPATH": str(Path(clusterkit.__file__).parents[1]),
            "CLUSTERKIT_NODE_ID": name,
            "CLUSTERKIT_ADDRESS": f"127.0.0.1:{self.port}",
            "CLUSTERKIT_ADMIN": f":{self.admin_port}",
            "CLUSTERKIT_ENDPOINTS": endpoint,
            "CLUSTERKIT_REPLICATION_FACTOR": "2",
            "CLUSTERKIT_PARTITIONS": "16",
            "CLUSTERKIT_LEASE_TTL": "3",
        }

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(PROGRAM)], env=self.environment, stdout=log, stderr=log
            )

    def end(self, number: signal.Signals) -> int:
        """Sends a signal and waits for the end; the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    def clean_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.end(signal.SIGKILL)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        port: int | None = None,
    ) -> tuple[int, Any]:
        """One request; 0 if nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=10)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException) as error:
            return 0, repr(error)
        finally:
            connection.close()

    def put(self, key: str, value: str) -> None:
        def written() -> object:
            status, answer = self.ask("PUT", f"/keys/{key}", value.encode())
            return status == 200 or (status, answer)

        until(f"{self.name} writes {key}", written)

    def read(self, key: str, value: str) -> None:
        """Waits while nobody serves the key, never for a wrong value to become right."""

        def answered() -> object:
            status, answer = self.ask("GET", f"/keys/{key}")
            assert status in (0, 200, 421, 503), (key, status, answer)
            if status == 200:
                assert answer["value"] == value, (key, answer)
            return status == 200 or (status, answer)

        until(f"{self.name} reads {key}", answered)

    def settle(self, *members: str) -> None:
        """Waits until it sees these members and has all copies that it should have."""
        wanted = (200, {"members": sorted(members), "copies_to_fetch": 0})

        def settled() -> object:
            seen = self.ask("GET", "/status")
            return seen == wanted or seen

        until(f"{self.name} settles", settled)


@pytest.fixture
def apps(tmp_path: Path) -> Iterator[list[App]]:
    with EmbeddedEtcd() as etcd, ExitStack() as ends:
        made = [App(name, etcd.endpoint, tmp_path / f"{name}.log") for name in ("n1", "n2", "n3")]
        for app in made:
            ends.callback(app.clean_up)
            app.start()
        for app in made:
            app.settle("n1", "n2", "n3")
        yield made


def test_no_key_is_lost_when_a_node_is_killed_returns_and_another_stops(apps: list[App]) -> None:
    n1, n2, n3 = apps
    values = {f"key-{i}": f"first {i}" for i in range(60)}
    for i, (key, value) in enumerate(values.items()):
        apps[i % 3].put(key, value)

    assert n2.end(signal.SIGKILL) == -signal.SIGKILL
    for key, value in values.items():
        n1.read(key, value)
        n3.read(key, value)
    for i in range(0, 60, 2):
        values[f"key-{i}"] = f"second {i}"
        n3.put(f"key-{i}", f"second {i}")
    # Each entry has one copy less, until the hooks have made a new one. Only then may another go.
    n1.settle("n1", "n3")
    n3.settle("n1", "n3")

    n2.start()
    for app in apps:
        app.settle("n1", "n2", "n3")
    for key, value in values.items():
        n2.read(key, value)
    # What n2 holds now it has got by its hooks: the copies of the killed process are gone.
    assert n1.end(signal.SIGTERM) == 0
    for key, value in values.items():
        n2.read(key, value)
        n3.read(key, value)
    assert "node_leave of n1" in n3.log.read_text()

    for app in (n2, n3):
        assert app.end(signal.SIGTERM) == 0
    for app in apps:
        assert "Traceback" not in app.log.read_text()


def test_a_node_that_was_paused_never_gives_out_an_old_value(apps: list[App]) -> None:
    n1, n2, n3 = apps
    values = {f"key-{i}": f"first {i}" for i in range(30)}
    for key, value in values.items():
        n1.put(key, value)

    assert n2.process is not None
    pause(n2.process)
    try:
        n1.settle("n1", "n3")
        n3.settle("n1", "n3")
        for key in values:
            values[key] = f"second of {key}"
            n3.put(key, values[key])
    finally:
        n2.process.send_signal(signal.SIGCONT)
    # It was the primary of some of them, and does not know yet that it has been replaced.
    for key, value in values.items():
        n2.read(key, value)
    for app in apps:
        app.settle("n1", "n2", "n3")
    assert n1.end(signal.SIGTERM) == 0
    for key, value in values.items():
        n2.read(key, value)


def test_only_the_primary_serves_a_key_and_bad_requests_are_refused(apps: list[App]) -> None:
    n1, *_ = apps
    n1.put("colour", "blue")
    status, found = apps[1].ask("GET", "/keys/colour")
    assert (status, found["value"]) == (200, "blue")
    for app in apps:
        status, answer = app.ask("GET", "/keys/colour?direct=1")
        if app.name == found["node"]:
            assert (status, answer) == (200, found)
        else:
            assert status == 421
            assert (
                answer["at"] == f"127.0.0.1:{next(a.port for a in apps if a.name == found['node'])}"
            )
    assert apps[2].ask("GET", "/keys/never-written")[0] == 404
    for path in ("/health", "/ready"):
        assert n1.ask("GET", path, port=n1.admin_port)[0] == 200

    bad = {
        "no UTF-8": n1.ask("PUT", "/keys/colour", b"\xff"),
        "no epoch": n1.ask("GET", "/partitions/partition-0"),
        "no number": n1.ask("GET", "/partitions/partition-0?epoch=new"),
        "too long": n1.ask("PUT", "/keys/colour", headers={"Content-Length": str(1 << 21)}),
        "no length": n1.ask("PUT", "/keys/colour", headers={"Transfer-Encoding": "chunked"}),
    }
    assert {why: status for why, (status, _) in bad.items()} == dict.fromkeys(bad, 400)
    n1.read("colour", "blue")
