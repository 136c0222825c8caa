"""Nodes that lose etcd while it goes on: fenced in time, and told afterwards what they missed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from clusterkit import FencedError, FencedEvent, NodeLeaveEvent, NodeRejoinEvent, UnfencedEvent
from tests.integration.support import eventually

from .proxy import Proxy
from .servers import PROMPTLY, Servers
from .support import Nodes


@pytest.fixture
def proxies(servers: Servers) -> Iterator[list[Proxy]]:
    """One before each server."""
    with ExitStack() as exits:
        yield [exits.enter_context(closing(Proxy(server.port))) for server in servers.all]


@pytest.mark.parametrize("lease_lives", [True, False])
def test_compaction_while_a_node_is_cut_off(
    servers: Servers,
    proxies: list[Proxy],  # before the nodes, which need them to the end
    nodes: Nodes,
    lease_lives: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    near = nodes.kits_on(*servers.all[:2])
    endpoints = [proxy.endpoint for proxy in proxies]
    far = nodes.kit("far", endpoints, lease_ttl=120 if lease_lives else 2)
    killed, leaver, restarted = (nodes.process(n) for n in ("killed", "leaver", "restarted"))
    nodes.settle()

    for proxy in proxies:
        proxy.cut()
    killed.kill()
    leaver.stop()
    restarted.stop()
    nodes.process("restarted")
    nodes.process("newcomer")
    for node in near:
        for kind, node_id in (
            ("leave", "killed"),
            ("leave", "leaver"),
            ("rejoin", "restarted"),
            ("join", "newcomer"),
            *(() if lease_lives else (("leave", "far"),)),
        ):
            eventually(node.saw(f"node_{kind}", node_id), PROMPTLY)
    if not lease_lives:
        owned = far.kit.my_partitions(role="primary")
        with pytest.raises(FencedError):
            far.kit.guard(owned[0])
        # It stopped before its key went, and so before anybody took over.
        gone = next(e for e in near[0].told.of(NodeLeaveEvent) if e.node.id == "far")
        assert far.told.one(FencedEvent).timestamp < gone.timestamp
    history = servers.history(nodes.prefix)
    last = history[-1].number
    servers.compact(last)
    assert not far.saw("node_leave", "leaver")(), "it was not cut off"

    for proxy in proxies:
        proxy.mend()
    eventually(far.saw("node_leave", "leaver"), PROMPTLY)
    assert "is compacted" in caplog.text
    nodes.settle()
    nodes.churn("after")
    nodes.settle()
    history += servers.history(nodes.prefix, since=last + 1)
    nodes.check(history, reread=[far])

    reasons = {e.node.id: e.reason for e in far.told.of(NodeLeaveEvent)}
    assert reasons.pop("far", None) == (None if lease_lives else "health_check_failure")
    assert reasons == {
        "killed": "health_check_failure",
        "leaver": "graceful_shutdown",
        "restarted": "graceful_shutdown",
        "after": "health_check_failure",
    }
    if lease_lives:
        assert not far.told.of(FencedEvent)
    else:
        assert far.told.one(UnfencedEvent).rejoined
        back = next(e for e in far.told.of(NodeRejoinEvent) if e.node.id == "far")
        assert back.last_seen_at is not None
