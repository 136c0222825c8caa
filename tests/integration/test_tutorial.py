"""The program of the tutorial does what the tutorial says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from clusterkit.testing.embedded import free_port

from .support import REPOSITORY, eventually

pytestmark = pytest.mark.repository


def ask(port: int, path: str, body: str | None = None) -> tuple[int, str]:
    method = "GET" if body is None else "PUT"
    data = None if body is None else body.encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


class Nodes:
    """The program, as often as it is started."""

    def __init__(self, program: Path, endpoint: str, exits: ExitStack) -> None:
        self._program = program
        self._endpoint = endpoint
        self._exits = exits
        self.ports: dict[str, int] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, node_id: str) -> None:
        port = self.ports.setdefault(node_id, free_port())
        environ = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "CLUSTERKIT_ENDPOINTS": self._endpoint,
            "CLUSTERKIT_PREFIX": f"/tutorial/{self._program.parent.name}",
            "CLUSTERKIT_NODE_ID": node_id,
            "CLUSTERKIT_ADDRESS": f"127.0.0.1:{port}",
            "CLUSTERKIT_LEASE_TTL": "3",
        }
        process = subprocess.Popen(
            [sys.executable, self._program], env=environ, stdout=subprocess.DEVNULL
        )
        self._exits.callback(process.wait)
        self._exits.callback(process.kill)
        self.processes[node_id] = process
        eventually(lambda: ask(port, "/ready")[0] == 200)


@pytest.fixture
def nodes(tmp_path: Path, etcd_endpoint: str) -> Iterator[Nodes]:
    text = (REPOSITORY / "docs" / "tutorial.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    program = tmp_path / "store.py"
    program.write_text(block)
    with ExitStack() as exits:
        yield Nodes(program, etcd_endpoint, exits)


@pytest.mark.timeout(120)
def test_no_key_is_lost_when_a_node_stops_returns_and_is_killed(nodes: Nodes) -> None:
    for node_id in ("n1", "n2", "n3"):
        nodes.start(node_id)
    ports = list(nodes.ports.values())
    keys = [f"key-{i}" for i in range(40)]

    def written(i: int, key: str) -> bool:
        return ask(ports[i % 3], f"/keys/{key}", f"value of {key}")[0] == 200

    for i, key in enumerate(keys):
        eventually(partial(written, i, key))

    def all_there(port: int) -> bool:
        return all(ask(port, f"/keys/{key}") == (200, f"value of {key}") for key in keys)

    assert all_there(ports[1])
    nodes.processes["n1"].terminate()
    assert nodes.processes["n1"].wait(20) == 0
    eventually(lambda: all_there(ports[1]))
    nodes.start("n1")
    eventually(lambda: all_there(ports[0]))
    # Every copy that n1 is to hold is there before another holder goes.
    eventually(lambda: all(ask(port, "/ready")[0] == 200 for port in ports))
    nodes.processes["n2"].kill()
    eventually(lambda: all_there(ports[2]))
    assert ask(ports[0], "/keys/nothing")[0] == 404
