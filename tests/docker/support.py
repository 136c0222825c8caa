"""Nodes on etcd in Docker, and what they are held to: etcd's own history of their prefix."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TypeAlias

from clusterkit import (
    Event,
    KitState,
    NodeJoinEvent,
    NodeLeaveEvent,
    NodeRejoinEvent,
    OptionsDict,
)
from clusterkit.core import codec
from clusterkit.core.keys import Keys, Parsed
from clusterkit.sync import ClusterKit
from tests.integration.support import NodeProcess, Recorder, eventually

from .servers import PROMPTLY, Revision, Server, Servers

Turn: TypeAlias = tuple[int, str, str]
"""A join, rejoin or leave: its revision, its event id, and for a leave the reason."""


def turns_of(history: Iterable[Revision], keys: Keys) -> list[Turn]:
    """What happened to the members by etcd's own history: what every node must be told."""
    turns: list[Turn] = []
    present: dict[str, str] = {}
    for revision in history:
        arrivals: list[Turn] = []
        for key, value in revision.changes.items():
            match keys.parse(key):
                case Parsed("nodes", node_id):
                    if value is None:
                        nonce = present.pop(node_id)
                        past = revision.changes.get(keys.history(node_id))
                        end = codec.decode_history(past).end_of(nonce) if past else None
                        reason = "health_check_failure" if end is None else end.reason
                        turns.append((revision.number, f"node_leave/{node_id}/{nonce}", reason))
                        continue
                    record = codec.decode_node(node_id, value)
                    if present.get(node_id) != record.nonce:
                        present[node_id] = record.nonce
                        kind = "node_join" if record.previous is None else "node_rejoin"
                        turn = f"{kind}/{node_id}/{record.nonce}"
                        arrivals.append((revision.number, turn, ""))
        turns += arrivals
    return turns


class Node:
    """A kit of this process, and what its hooks were told."""

    def __init__(self, options: OptionsDict) -> None:
        self.told = Recorder()
        given: OptionsDict = {**options, "hooks": self.told}
        self.kit = ClusterKit(**given)

    @property
    def serving(self) -> bool:
        """Whether it is a member and can prove it."""
        return self.kit.state is KitState.JOINED and bool(self.kit.readiness().fencing_in)

    @property
    def fenced(self) -> bool:
        return self.kit.state is KitState.FENCED and not self.kit.readiness().fencing_in

    def turns(self) -> list[Turn]:
        """The joins, rejoins and leaves that it was told of, by revision."""
        return sorted(_turn(event) for event in self._node_events())

    def events(self) -> dict[str, Event]:
        return {event.event_id: event for event in self._node_events()}

    def saw(self, kind: str, node_id: str) -> Callable[[], bool]:
        """Whether it was told of such an event of that node."""
        return lambda: any(e.startswith(f"{kind}/{node_id}/") for _, e, _ in self.turns())

    def _node_events(self) -> list[NodeJoinEvent | NodeRejoinEvent | NodeLeaveEvent]:
        kinds = (NodeJoinEvent, NodeRejoinEvent, NodeLeaveEvent)
        return [s.event for s in list(self.told.seen) if isinstance(s.event, kinds)]


def _turn(event: NodeJoinEvent | NodeRejoinEvent | NodeLeaveEvent) -> Turn:
    reason = event.reason if isinstance(event, NodeLeaveEvent) else ""
    return event.revision, event.event_id, reason


class Nodes:
    """The nodes of one cluster, under a prefix of its own.

    How to get at etcd (TLS files, user, password) they read from ``CLUSTERKIT_*`` variables.
    """

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self.prefix = f"/docker/{secrets.token_hex(4)}"
        self._defaults: OptionsDict = {
            "prefix": self.prefix,
            "cluster": "c",
            "partitions": 64,
            "replication_factor": 2,
            "settle_time": 0.05,
            "connect_timeout": 5,
        }
        self.keys = Keys.of(self.prefix, "c")
        self.kits: list[Node] = []
        self._processes = 0
        self._exits = ExitStack()

    def kits_on(self, *servers: Server, lease_ttl: int = 3) -> list[Node]:
        """One kit for each server, connected to that one first, and ready."""
        first = len(self.kits)
        endpoints = [self._endpoints(server) for server in servers]
        return [
            self.kit(f"kit-{first + i}", found, lease_ttl=lease_ttl)
            for i, found in enumerate(endpoints)
        ]

    def kit(self, node_id: str, endpoints: Sequence[str], *, lease_ttl: int) -> Node:
        """A kit that is ready."""
        node = Node(self._options(node_id, endpoints, lease_ttl))
        self._exits.callback(node.kit.stop, timeout=2.0)
        node.kit.start()
        self.kits.append(node)
        node.kit.wait_ready(PROMPTLY)
        return node

    def process(self, node_id: str) -> NodeProcess:
        """A node in a process of its own that has joined, with the shortest TTL."""
        # Another server first for each: they are spread like any clients.
        self._processes += 1
        endpoints = self._endpoints(self._servers.all[self._processes % 3])
        process = NodeProcess({**self._options(node_id, endpoints, 2)})
        self._exits.callback(process.end)
        return process.joined()

    def _options(self, node_id: str, endpoints: Sequence[str], lease_ttl: int) -> OptionsDict:
        return {
            **self._defaults,
            "node_id": node_id,
            "address": f"{node_id}.test:8000",
            "endpoints": endpoints,
            "lease_ttl": lease_ttl,
        }

    def _endpoints(self, first: Server) -> list[str]:
        servers = self._servers.all
        return [servers[(first.number + i) % 3].endpoint for i in range(3)]

    def restarts(self) -> int:
        """How often the watches of the kits broke."""
        return sum(node.kit.stats().watch_restarts for node in self.kits)

    def churn(self, node_id: str, seconds: float = PROMPTLY) -> None:
        """A process joins and is killed; every kit must be told of both."""
        process = self.process(node_id)
        eventually(lambda: all(n.saw("node_join", node_id)() for n in self.kits), seconds)
        process.kill()
        eventually(lambda: all(n.saw("node_leave", node_id)() for n in self.kits), seconds)

    def settle(self) -> None:
        """Waits until every kit serves, all have the same view, and nothing is still to be done.

        Nothing: no hook is to run, no receipt to be given, no expiry to be written down.
        """

        def calm() -> bool:
            if not all(node.serving for node in self.kits):
                return False
            stats = [node.kit.stats() for node in self.kits]
            busy = any(s.hooks_running or s.hooks_queued for s in stats)
            owed = any(node.kit.owed() for node in self.kits)
            return not busy and not owed and len({s.revision for s in stats}) == 1

        eventually(lambda: calm() and self._written(), PROMPTLY)
        eventually(calm, PROMPTLY)
        first, *others = [node.kit.cluster for node in self.kits]
        assert all(view == first for view in others)

    def _written(self) -> bool:
        """Whether etcd has every kit's receipt for its view, and the end of every stay."""
        receipts: dict[str, int] = {}
        present: set[str] = set()
        still_open: set[str] = set()
        for key, value in self._servers.read(self.keys.root.decode()).items():
            match self.keys.parse(key):
                case Parsed("nodes", node_id):
                    present.add(node_id)
                case Parsed("history", node_id) if codec.decode_history(value).open is not None:
                    still_open.add(node_id)
                case Parsed("applied", node_id):
                    receipts[node_id] = codec.decode_receipt(value).epoch
        wanted = {node.kit.node_id: node.kit.partitions()[0].epoch for node in self.kits}
        given = {node_id: receipts.get(node_id) for node_id in wanted}
        return present == still_open and given == wanted

    def check(self, history: Sequence[Revision], *, reread: Sequence[Node] = ()) -> list[Turn]:
        """Every kit was told of every turn in etcd's history from its own first join on, once.

        Those in ``reread`` read the prefix again, so they may have learned of a change at a later
        revision, and tell what a leaver held by the last view that they had before.
        """
        turns = turns_of(history, self.keys)
        for node in self.kits:
            own = f"node_join/{node.kit.node_id}/"
            begin = next(i for i, (_, turn, _) in enumerate(turns) if turn.startswith(own))
            expected, told = sorted(turns[begin:]), node.turns()
            if node in reread:
                assert sorted(t[1:] for t in told) == sorted(t[1:] for t in expected)
            else:
                assert told == expected, node.kit.node_id
            assert not node.kit.stats().hook_failures
        self._check_fields(reread)
        members = {turn.split("/")[1] for turn in self._present(turns)}
        assert set(self.kits[0].kit.cluster.nodes) == members
        return turns

    def _present(self, turns: Iterable[Turn]) -> Iterator[str]:
        """The event ids of the joins and rejoins that still stand."""
        newest = {turn.split("/")[1]: turn for _, turn, _ in turns}
        return (turn for turn in newest.values() if not turn.startswith("node_leave/"))

    def _check_fields(self, reread: Sequence[Node]) -> None:
        """The same event says the same on every node, but for when an expiry was noticed."""
        first: dict[str, Event] = {}
        for node in self.kits:
            for event_id, event in node.events().items():
                one = first.setdefault(event_id, event)
                match event, one:
                    case NodeLeaveEvent(), NodeLeaveEvent():
                        assert (event.node, event.reason) == (one.node, one.reason)
                        assert node in reread or (
                            event.partitions_owned == one.partitions_owned
                            and event.partitions_replica == one.partitions_replica
                        )
                    case NodeRejoinEvent(), NodeRejoinEvent():
                        assert event.last_seen_at == one.last_seen_at
                        assert event.offline_duration == one.offline_duration
                        assert event.partitions_before_leave == one.partitions_before_leave
                    case _:
                        assert event.timestamp == one.timestamp

    def close(self) -> None:
        self._exits.close()
