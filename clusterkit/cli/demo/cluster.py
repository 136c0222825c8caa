"""The demo's cluster: an etcd, the node processes, and a kit that watches them from outside."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from clusterkit.cli.observer import Observer
from clusterkit.config import Options
from clusterkit.hooks import Hooks
from clusterkit.testing.embedded import EmbeddedEtcd

from .processes import DemoError, NodeProcess
from .timeline import Timeline
from .transport import Peers

LEASE_TTL_SECONDS: Final = 2
REPLICATION_FACTOR: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How large the demo is, and whether it is the control, without the migration hook."""

    keys: int
    partitions: int
    without_hooks: bool


class DemoCluster:
    """What the story is played on. All that it starts ends with ``stack``.

    Attributes:
        nodes: The processes that should be running, by node id.
        view: A kit that has joined nothing, for lookups; known after ``watch``.
    """

    def __init__(
        self,
        settings: Settings,
        stack: ExitStack,
        logs: Path,
        timeline: Timeline,
        waiting: Callable[[str], None],
    ) -> None:
        self.nodes: dict[str, NodeProcess] = {}
        self._settings = settings
        self._stack = stack
        self._logs = logs
        self._timeline = timeline
        self._waiting = waiting
        self._peers = Peers(timeout=2.0)
        waiting("etcd to answer")
        self._endpoint = stack.enter_context(EmbeddedEtcd()).endpoint

    def watch(self) -> None:
        """Watches the cluster, which must have been made by a first node."""
        options = Options.resolve(cluster="demo", endpoints=self._endpoint, environ={})
        self.view = self._stack.enter_context(Observer(options, Hooks()))

    def spawn(self, name: str) -> None:
        """Starts a node's process, which does not join yet."""
        arguments = [
            *("--cluster", "demo"),
            *("--endpoints", self._endpoint),
            *("--partitions", str(self._settings.partitions)),
            *("--replication-factor", str(REPLICATION_FACTOR)),
            *("--ttl", str(LEASE_TTL_SECONDS)),
            *(["--without-hooks"] if self._settings.without_hooks else []),
        ]
        process = NodeProcess(name, arguments, self._logs / f"{name}.log", self._timeline.add)
        self.nodes[name] = self._stack.enter_context(process)

    def join(self, name: str) -> None:
        """Has a started node join.

        Raises:
            DemoError: It did not.
        """
        self._waiting(f"{name} to start")
        self.nodes[name].wait_listening()
        self.nodes[name].join()

    def kill(self, name: str) -> None:
        """Ends a node without a word."""
        self.nodes.pop(name).kill()

    def stop(self, name: str) -> None:
        """Has a node leave and end.

        Raises:
            DemoError: It did not.
        """
        self.nodes.pop(name).stop()

    def rebalance(self, name: str) -> None:
        """Has a node ask all for a rebalance.

        Raises:
            DemoError: It refused.
        """
        status, body = self._peers.request("POST", self.nodes[name].address, "/rebalance")
        if status != 200:
            raise DemoError(f"{name} refused to rebalance: {status} {body.decode()}")

    def check(self) -> None:
        """Raises:
        DemoError: A process that should be running has ended.
        """
        for node in self.nodes.values():
            node.check()

    def unsettled(self) -> list[str]:
        """What is still moving: empty once all live nodes have one view and all their data."""
        view = self.view.cluster
        if set(view.nodes) != set(self.nodes):
            return [f"the change of members, which are {', '.join(view.nodes)}"]
        return [
            text
            for name in sorted(self.nodes)
            if (text := self._still_moving(name, view.partitions[0].epoch))
        ]

    def _still_moving(self, name: str, epoch: int) -> str | None:
        try:
            code, body = self._peers.request("GET", self.nodes[name].address, "/status")
        except OSError as error:
            return f"{name} to answer: {error}"
        if code != 200:
            return f"{name} to answer: {body.decode()}"
        status: dict[str, Any] = json.loads(body)
        if status["epoch"] != epoch:
            return f"{name} to have the newest view"
        if status["not_ready"]:
            return f"{name} to receive {len(status['not_ready'])} partitions"
        if status["owed"]:
            return f"{name} to finish its hooks for {len(status['owed'])} partitions"
        return None
