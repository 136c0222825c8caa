"""Members of etcd that freeze, or lose their network, while nodes talk to them."""

from __future__ import annotations

import time

import pytest

from clusterkit import FencedEvent
from tests.integration.support import eventually

from .servers import PROMPTLY, Network, Servers
from .support import Nodes

# A server that is frozen is found out by pings: within 15 s, and the rest is for a busy machine.
FOUND_SECONDS = 15.0
SLACK_SECONDS = 5.0


def test_a_leader_that_is_paused(servers: Servers, nodes: Nodes) -> None:
    kits = nodes.kits_on(*servers.all, lease_ttl=4)
    leader, restarts = servers.leader(), nodes.restarts()
    began = time.monotonic()
    servers.pause(leader)
    successor = servers.leader(but=leader)
    assert servers.status(leader) is None
    eventually(lambda: all(node.serving for node in kits), PROMPTLY)
    # One kit's watch is on the frozen server, and nothing but a ping tells it so.
    nodes.churn("meanwhile")
    eventually(lambda: nodes.restarts() > restarts)
    assert time.monotonic() - began < FOUND_SECONDS + SLACK_SECONDS

    servers.unpause(leader)
    servers.wait_serving(leader)
    assert servers.leader() is not leader or successor is not leader
    nodes.settle()
    nodes.churn("after")
    nodes.settle()
    turns = nodes.check(servers.history(nodes.prefix))
    # etcd before 3.5.13 may revoke leases when a leader wakes up: those nodes were fenced and came
    # back, as every other node was told.
    for node in kits:
        left = [turn for _, turn, _ in turns if turn.startswith(f"node_leave/{node.kit.node_id}/")]
        assert len(node.told.of(FencedEvent)) >= len(left)


@pytest.mark.parametrize("network", ["peers", "all"])
def test_a_leader_that_is_disconnected(servers: Servers, nodes: Nodes, network: Network) -> None:
    """From its peers alone it still talks to its clients, and must not keep them in the dark."""
    kits = nodes.kits_on(*servers.all, lease_ttl=4)
    leader, restarts = servers.leader(), nodes.restarts()
    servers.disconnect(leader, network)
    servers.leader(but=leader)
    if network == "peers":
        eventually(lambda: (s := servers.status(leader)) is not None and not s.leader, PROMPTLY)
    else:
        assert servers.status(leader) is None
    eventually(lambda: nodes.restarts() > restarts, PROMPTLY)
    nodes.churn("meanwhile")
    assert all(node.serving for node in kits)

    servers.connect(leader, network)
    servers.wait_serving(leader)
    nodes.settle()
    nodes.churn("after")
    nodes.settle()
    turns = nodes.check(servers.history(nodes.prefix))
    assert not [t for _, t, _ in turns if t.startswith("node_leave/kit-")]
