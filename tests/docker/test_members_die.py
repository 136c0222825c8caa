"""Members of etcd that are killed: one by one, a majority, all at once."""

from __future__ import annotations

import pytest

from clusterkit import FencedError, FencedEvent, KitState, UnfencedEvent
from tests.integration.support import eventually

from .servers import PROMPTLY, CommandError, Servers
from .support import Nodes, turns_of


def test_the_kill_of_each_member_in_turn(servers: Servers, nodes: Nodes) -> None:
    nodes.kits_on(*servers.all, lease_ttl=4)
    elections = 0
    for server in servers.all:
        leader, before = servers.leader(), nodes.restarts()
        servers.kill(server)
        assert servers.status(server) is None
        successor = servers.leader(but=server)
        elections += leader is server and successor is not server
        nodes.churn(f"while-{server.peer}-is-down")
        assert nodes.restarts() > before, "no kit was connected to the member that was killed"
        servers.start(server)
        nodes.settle()
    assert elections, "none of the three was the leader when it was killed"
    turns = nodes.check(servers.history(nodes.prefix))
    kits = {node.kit.node_id for node in nodes.kits}
    gone = [turn for _, turn, _ in turns if turn.startswith("node_leave/")]
    assert len(gone) == 3
    assert not [turn for turn in gone if turn.split("/")[1] in kits]


@pytest.mark.parametrize("leader_lives", [True, False])
def test_the_loss_of_the_majority_and_its_return(
    servers: Servers, nodes: Nodes, leader_lives: bool
) -> None:
    kits = nodes.kits_on(*servers.all)
    owned = [node.kit.my_partitions(role="primary")[0] for node in kits]
    assert [n.kit.guard(p).valid for n, p in zip(kits, owned, strict=True)] == [True] * 3
    before = len(turns_of(servers.history(nodes.prefix), nodes.keys))
    leader = servers.leader()
    followers = [s for s in servers.all if s is not leader]
    down = followers if leader_lives else [leader, followers[0]]
    (survivor,) = [s for s in servers.all if s not in down]

    servers.kill(*down)
    # Without a majority etcd can end no lease: all are fenced before anybody may take over.
    eventually(lambda: all(node.fenced for node in kits), PROMPTLY)
    with pytest.raises(CommandError):
        servers.ctl("get", "anything", server=survivor, seconds=3.0)
    for node, partition in zip(kits, owned, strict=True):
        with pytest.raises(FencedError):
            node.kit.guard(partition)
        assert not node.kit.is_primary(partition)
        assert node.kit.health().status == "critical"
        node.told.one(FencedEvent)

    servers.start(*down)
    nodes.settle()
    nodes.churn("after")
    nodes.settle()
    turns = nodes.check(servers.history(nodes.prefix))
    for node in kits:
        news = node.told.one(UnfencedEvent)
        # Whoever's lease outlived it carries on as if nothing had been.
        left = any(f"node_leave/{node.kit.node_id}/" in turn for _, turn, _ in turns)
        assert news.rejoined == left
        assert node.kit.guard(node.kit.my_partitions(role="primary")[0]).valid
    assert len(turns) > before


def test_a_restart_of_all_members_on_their_data(servers: Servers, nodes: Nodes) -> None:
    kits = nodes.kits_on(*servers.all)
    nodes.churn("before")
    nodes.settle()
    revision = servers.history(nodes.prefix)[-1].number
    terms = [s.term for server in servers.all if (s := servers.status(server))]
    restarts = nodes.restarts()

    servers.kill(*servers.all)
    eventually(lambda: all(node.fenced for node in kits), PROMPTLY)
    servers.start(*servers.all)
    servers.leader()

    nodes.settle()
    nodes.churn("after")
    nodes.settle()
    status = servers.status(servers.all[0])
    assert status is not None
    assert status.term > max(terms)
    assert nodes.restarts() >= restarts + len(kits)
    history = servers.history(nodes.prefix)
    assert history[-1].number > revision
    nodes.check(history)
    assert all(node.kit.state is KitState.JOINED for node in kits)
