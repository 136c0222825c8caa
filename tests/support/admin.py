"""Kits on a store in memory, and questions to their HTTP application without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Unpack

import httpx
import pytest

from clusterkit import OptionsDict, _compose
from clusterkit._asgi import ASGIApplication
from clusterkit.ports import Store
from clusterkit.sync import ClusterKit
from clusterkit.testing.memory import MemoryServer, MemoryStore

PARTITIONS = 16
PATHS = (
    "/health",
    "/health/detailed",
    "/ready",
    "/cluster",
    "/nodes",
    "/partitions",
    "/partitions/stats",
    "/partitions/partition-3",
    "/metrics",
    "/openapi.json",
)


class MemoryKits:
    """Kits that share an etcd in memory. ``wrap`` may put something before a kit's store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = MemoryServer()
        self.wrap: Callable[[Store], Store] = lambda store: store
        self._made: list[ClusterKit] = []
        monkeypatch.setattr(
            _compose, "store_of", lambda options: self.wrap(MemoryStore(self.server))
        )

    def kit(self, node_id: str = "a", /, **options: Unpack[OptionsDict]) -> ClusterKit:
        given: OptionsDict = {
            "cluster": "c",
            "node_id": node_id,
            "address": f"{node_id}.test:8000",
            "partitions": PARTITIONS,
            "replication_factor": 2,
            "settle_time": 0,
            "environ": {},
            **options,
        }
        made = ClusterKit(**given)
        self._made.append(made)
        return made

    def started(self, node_id: str = "a", /, **options: Unpack[OptionsDict]) -> ClusterKit:
        kit = self.kit(node_id, **options)
        kit.start()
        kit.wait_ready(10)
        return kit

    def close(self) -> None:
        for kit in self._made:
            kit.stop(timeout=5)
        self.server.close()


def ask(
    app: ASGIApplication,
    path: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
) -> httpx.Response:
    """One request. What the application raises is raised here."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://node.test") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(send())
