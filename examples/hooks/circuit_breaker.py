"""A circuit breaker on the cluster's health: no writes while the cluster is critical.

Critical means: no majority of the known nodes is healthy, or this node is cut off from etcd. What
is written then may well be lost, or nobody takes it. So the service refuses writes at once, rather
than let each of them run into a time-out, and goes on answering reads.

Three things to mind:

* only changes are told: what the health was at the start is asked for, once;
* health can come and go. The breaker opens at once, and closes only when all has been well for a
  while (COOL_DOWN_SECONDS); `degraded` is a reason to worry, and not one to refuse;
* health is one node's view of the cluster. That this node may act for a partition it does not say:
  that is `ck.guard()`, see ownership.py.

With FastAPI (pip install fastapi uvicorn). By hand: run two nodes, POST /orders at the first, `kill
-9` the second. After its lease a majority is missing, and POST answers 503; start it again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

import uvicorn
from fastapi import Body, Depends, FastAPI, HTTPException

from clusterkit import ClusterHealthEvent, ClusterKit, Options

log = logging.getLogger("circuit_breaker")
COOL_DOWN_SECONDS = float(os.environ.get("COOL_DOWN_SECONDS", "5"))


class Breaker:
    """Open: nothing passes. It closes when it has not been critical for a while."""

    def __init__(self) -> None:
        self.critical = False
        self.closes_at = 0.0

    def told(self, status: str) -> None:
        """The health as it is now."""
        if self.critical and status != "critical":
            self.closes_at = time.monotonic() + COOL_DOWN_SECONDS
        self.critical = status == "critical"

    @property
    def open(self) -> bool:
        return self.critical or time.monotonic() < self.closes_at


ck = ClusterKit()
breaker = Breaker()
orders: list[str] = []


@ck.on_cluster_health_change
async def health(event: ClusterHealthEvent) -> None:
    """In the order in which it changed: two runs of one hook never overtake each other."""
    breaker.told(event.status)
    missing = ", ".join(event.unhealthy_node_ids) or "nobody"
    log.info("%s, unhealthy: %s, breaker open: %s", event.status, missing, breaker.open)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    async with ck:
        breaker.told(ck.health().status)
        yield


app = FastAPI(lifespan=lifespan)


def writable() -> None:
    """What every write asks first."""
    if breaker.open:
        seconds = str(max(1, round(COOL_DOWN_SECONDS)))
        reasons = list(ck.health().reasons) or ["the cluster was critical a moment ago"]
        raise HTTPException(503, reasons, headers={"Retry-After": seconds})


@app.post("/orders", dependencies=[Depends(writable)])
async def order(text: Annotated[str, Body()]) -> dict[str, int]:
    orders.append(text)
    return {"number": len(orders)}


@app.get("/orders")
async def all_orders() -> list[str]:
    return orders


@app.get("/ready")
async def ready() -> dict[str, list[str]]:
    """An open breaker is no reason to take the node out of traffic: reads are answered."""
    readiness = ck.readiness()
    if not readiness.ready:
        raise HTTPException(503, list(readiness.reasons))
    return {"members": sorted(ck.cluster.nodes)}


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(process)d] %(message)s")
    host, _, port = Options.resolve().require_address().rpartition(":")
    uvicorn.run(app, host=host.strip("[]"), port=int(port), log_level="warning")
