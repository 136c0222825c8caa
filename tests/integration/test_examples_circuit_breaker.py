"""``examples/circuit_breaker``: an ill node, one that hangs, and a cluster without a majority."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .example_programs import Make, Program, making, settled, until

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def programs(etcd_endpoint: str, tmp_path: Path) -> Iterator[Make]:
    # A lease that outlives the pause of a node: its calls fail, and its membership does not end.
    with making(etcd_endpoint, tmp_path, partitions=32, lease_ttl=15) as make:
        yield make


def test_circuit_breaker(programs: Make, tmp_path: Path) -> None:
    n1, n2, n3 = nodes = programs("circuit_breaker.app", "n1", "n2", "n3", COOL_DOWN_SECONDS=1)
    for node in nodes:
        spool = tmp_path / node.node_id
        spool.mkdir()
        node.environment["SPOOL"] = str(spool)
        node.start()
    settled(*nodes)

    served: dict[str, str] = {}
    for i in range(40):
        path = f"/customers/customer%20{i}/orders"
        answer = n1.answers((200, ...), "POST", path)
        served.setdefault(answer["node"], path)
    assert sorted(served) == ["n1", "n2", "n3"]

    # n2 is a member, holds its partitions, and says that it is ill: nobody sends it anything.
    (tmp_path / "n2").rmdir()
    says(n1, "n2", "open: unhealthy")
    status, answer = n1.ask("POST", served["n2"])
    assert (status, answer["detail"]) == (503, "the breaker for n2 is open: unhealthy")
    assert n1.ask("POST", served["n3"])[0] == 200
    (tmp_path / "n2").mkdir()
    says(n1, "n2", "closed")
    n1.answers((200, ...), "POST", served["n2"])

    # n3 hangs, and nobody knows: three calls run into their time-outs, the others do not.
    n3.pause()
    try:
        for _ in range(3):
            status, answer = n1.ask("POST", served["n3"])
            assert status == 503
            assert "n3 does not answer" in answer["detail"]
        began = time.monotonic()
        status, answer = n1.ask("POST", served["n3"])
        assert (status, answer["detail"]) == (503, "the breaker for n3 is open: 3 failures")
        assert time.monotonic() - began < 0.9, "it has waited for n3"
    finally:
        n3.wake()
    n1.answers((200, ...), "POST", served["n3"])
    says(n1, "n3", "closed")

    # Two of three are gone: no majority, no orders, not even for what this node serves itself.
    for node in (n2, n3):
        node.end(signal.SIGKILL)
    # (Before, for a moment, since nobody has the data any more of what the first of them held.)
    seen: list[tuple[int, Any]] = []

    def refused() -> bool:
        seen[:] = [n1.ask("POST", served["n1"])]
        return seen[0][0] == 503 and "only 1 of 3 nodes are healthy" in seen[0][1]["detail"]

    until(refused, lambda: f"{seen}\n{n1.text}")
    says(n1, "cluster", "open: unhealthy")
    n2.start()
    says(n1, "cluster", "closed")
    n1.answers((200, ...), "POST", served["n1"])


def says(node: Program, name: str, state: str) -> None:
    """Waits until the breaker of that name is in that state."""

    def said() -> bool:
        status, states = node.ask("GET", "/breakers")
        return status == 200 and states.get(name, "closed") == state

    until(said, lambda: f"{name} is not {state!r}: {node.ask('GET', '/breakers')}\n{node.text}")
