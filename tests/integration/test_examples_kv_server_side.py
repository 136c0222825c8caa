"""``examples/kv_server_side``: any node may be asked, also while there is no primary."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .example_programs import Make, making, settled

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def programs(etcd_endpoint: str, tmp_path: Path) -> Iterator[Make]:
    with making(etcd_endpoint, tmp_path, partitions=32, replication_factor=2, lease_ttl=5) as make:
        yield make


def test_kv_server_side(programs: Make) -> None:
    n1, n2, n3 = nodes = programs("kv_server_side.app", "n1", "n2", "n3", WAIT_SECONDS=45)
    for node in nodes:
        node.start()
    settled(*nodes)
    keys = [f"a/key {i}".replace(" ", "%20") for i in range(40)]
    served: dict[str, str] = {}
    for i, key in enumerate(keys):
        # Written at one, read at another: a third has it, or one of these two.
        wrote = nodes[i % 3].answers((200, ...), "PUT", f"/keys/{key}", f"first {i}")
        status, answer = nodes[(i + 1) % 3].ask("GET", f"/keys/{key}")
        assert (status, answer) == (200, wrote | {"value": f"first {i}"})
        served[key] = answer["node"]
    assert set(served.values()) == {"n1", "n2", "n3"}
    assert n1.ask("GET", "/keys/never")[0] == 404

    # One hop: what was forwarded to a node that is not the primary comes back, with its address.
    stranger = next(key for key in keys if served[key] == "n2")
    headers = {"X-Forwarded-By-Node": "n1"}
    status, answer = n3.ask("GET", f"/keys/{stranger}", headers=headers)
    assert status == 421
    assert n2.address in answer["detail"]
    assert n2.ask("GET", f"/keys/{stranger}", headers=headers)[0] == 200

    # The primary is gone and its lease still runs: nobody serves the key. Who asks is not told so;
    # his one request is answered by the next primary.
    n2.end(signal.SIGKILL)
    key, i = stranger, keys.index(stranger)
    status, answer = n1.ask("GET", f"/keys/{key}", seconds=60)
    assert (status, answer["value"], answer["node"] in ("n1", "n3")) == (200, f"first {i}", True)
    settled(n1, n3)
    for i, key in enumerate(keys):
        status, answer = n3.ask("GET", f"/keys/{key}")
        assert (status, answer["value"]) == (200, f"first {i}")
        assert n1.ask("PUT", f"/keys/{key}", f"second {i}")[0] == 200
    n2.start()
    settled(*nodes)
    n3.end(signal.SIGTERM)
    settled(n1, n2)
    for i, key in enumerate(keys):
        status, answer = n2.ask("GET", f"/keys/{key}")
        assert (status, answer["value"]) == (200, f"second {i}")
