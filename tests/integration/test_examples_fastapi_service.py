"""``examples/fastapi_service``: routing by key, a join that moves buckets, a kill that does not."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import pytest

from .example_programs import Make, Program, making, until

pytestmark = pytest.mark.timeout(240)

BURST = 3


@pytest.fixture
def programs(etcd_endpoint: str, tmp_path: Path) -> Iterator[Make]:
    with making(etcd_endpoint, tmp_path, partitions=32) as make:
        yield make


def members(*nodes: Program) -> None:
    """All are ready, and see each other and nobody else."""
    wanted = sorted(node.node_id for node in nodes)
    for node in nodes:
        node.answers((200, ...), "GET", "/clusterkit/ready")

        def seen(node: Program = node) -> bool:
            status, page = node.ask("GET", "/clusterkit/nodes")
            return status == 200 and [n["id"] for n in page["nodes"]] == wanted

        until(seen, partial("{} does not see {}".format, node.node_id, wanted))


def post(node: Program, client: str, **headers: str) -> tuple[int, str | None]:
    """The status, and which node has counted."""
    connection = HTTPConnection("127.0.0.1", node.port, timeout=10)
    try:
        connection.request("POST", f"/clients/{client}/requests", headers=headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers.get("x-node")
    finally:
        connection.close()


def counted(node: Program, client: str) -> tuple[int, str | None]:
    """The same, once it is more than "try again": a partition may be on its way."""
    seen: list[tuple[int, str | None]] = []

    def answered() -> bool:
        seen[:] = [post(node, client)]
        return seen[0][0] != 503

    until(answered, lambda: f"{node.node_id}: still 503 for {client}\n{node.text}")
    return seen[0]


def test_fastapi_service(programs: Make) -> None:
    nodes = programs("fastapi_service.app", "n1", "n2", "n3", "n4", BURST=BURST, PER_SECOND=0)
    n1, n2, n3, n4 = nodes
    first = (n1, n2, n3)
    for node in first:
        node.start()
    members(*first)
    clients = [f"client%20{i}" for i in range(40)]

    owners: dict[str, str] = {}
    for i, client in enumerate(clients):
        # Whomever it asks, one node counts.
        answers = [counted(first[(i + turn) % 3], client) for turn in range(BURST + 1)]
        assert [status for status, _ in answers] == [200] * BURST + [429], answers
        ((owner),) = {node for _, node in answers}
        assert owner is not None
        owners[client] = owner
    assert set(owners.values()) == {"n1", "n2", "n3"}

    # Passed on once, and no more.
    stranger = next(client for client in clients if owners[client] != "n1")
    assert post(n1, stranger, **{"X-Forwarded-By-Node": "n9"}) == (503, None)
    assert n1.ask("GET", "/clusterkit/nodes")[1]["total"] == 3
    metrics = n1.ask("GET", "/clusterkit/metrics")[1]
    assert 'clusterkit_nodes_by_state{cluster="default",node="n1",state="active"} 3.0' in metrics
    assert "Limiter.fetch" in metrics

    # A newcomer takes over what has been counted: nobody gets more than his share.
    n4.start()
    members(*nodes)
    after = {client: counted(n2, client) for client in clients}
    assert {status for status, _ in after.values()} == {429}, after
    moved = {client for client, (_, node) in after.items() if node == "n4"}
    assert moved
    assert all(node in (owners[client], "n4") for client, (_, node) in after.items())

    # A crash: its clients wait for the lease, and begin anew at others. Nobody else notices.
    owned = {client: counted(n2, client)[1] for client in clients}
    assert "n3" in owned.values()
    n3.end(signal.SIGKILL)
    for client, owner in owned.items():
        if owner != "n3":
            assert counted(n2, client) == (429, owner)
    members(n1, n2, n4)
    lost = [client for client, owner in owned.items() if owner == "n3"]
    for client in clients:
        assert counted(n1, client)[0] == (200 if client in lost else 429), client
    n2.end()
    members(n1, n4)
    for node in nodes:
        assert node.found("Traceback") == []
