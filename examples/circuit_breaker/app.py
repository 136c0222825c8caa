"""A circuit breaker on the health of the cluster: who is known to be unwell is not waited for.

Orders of a customer are taken by one node, the primary of his partition; the others pass them on.
Before they do, they ask a breaker:

* one for the cluster: while it is critical no order is taken anywhere;
* one for each node: open while the node says that it is unhealthy (its own health check fails), or
  after calls to it have failed. Then nobody waits for a time-out any more, until one call that is
  let through after a while succeeds.

    POST /customers/{customer}/orders    at any node; 503 with Retry-After where a breaker is open
    GET  /breakers                       which are open, and why
    GET  /ready                          for a probe

`python -m examples.circuit_breaker.app`. Settings beside CLUSTERKIT_*: SPOOL, the directory whose
presence is the health check of this node, and COOL_DOWN_SECONDS (5).
"""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from clusterkit import ClusterHealthEvent, ClusterKit, ClusterKitError, Node, Options

log = logging.getLogger("circuit_breaker")
SPOOL = Path(os.environ.get("SPOOL", "spool"))
COOL_DOWN_SECONDS = float(os.environ.get("COOL_DOWN_SECONDS", "5"))
FAILURES = 3
FORWARDED = "x-forwarded-by-node"


class Breaker:
    """Closed, calls pass. Open, none does. In between one is let through, to see.

    ::

        closed ──told "unwell", or FAILURES in a row──► open
        open   ──told "well"──────────────────────────► half open, at once
        open   ──COOL_DOWN_SECONDS, if not unwell─────► half open
        half open ──one call succeeds─► closed;  ──it fails─► open
    """

    def __init__(self) -> None:
        self.unwell = False
        self.failures = 0
        self.tries_at = 0.0

    def told(self, unwell: bool) -> None:
        """What the health of the cluster says."""
        if self.unwell and not unwell:
            self.tries_at = 0.0
        self.unwell = unwell

    def refuses(self) -> bool:
        """Whether a call may not be made. If it may while half open, the next may not."""
        if self.unwell:
            return True
        if self.failures < FAILURES:
            return False
        now = time.monotonic()
        if now < self.tries_at:
            return True
        self.tries_at = now + COOL_DOWN_SECONDS
        return False

    def ended(self, well: bool) -> None:
        """What became of a call."""
        self.failures = 0 if well else self.failures + 1
        if self.failures >= FAILURES:
            self.tries_at = time.monotonic() + COOL_DOWN_SECONDS

    @property
    def state(self) -> str:
        if self.unwell:
            return "open: unhealthy"
        return "closed" if self.failures < FAILURES else f"open: {self.failures} failures"


ck = ClusterKit(replication_factor=1)
http = httpx.AsyncClient(timeout=1)
cluster = Breaker()
nodes: defaultdict[str, Breaker] = defaultdict(Breaker)
orders = 0


def storage() -> None:
    """This node's own health check: what it raises is what all nodes are told.

    `def`, so it runs on a worker thread: a disk that hangs holds up nothing else, and is a
    time-out of the check.
    """
    if not SPOOL.is_dir():
        raise FileNotFoundError(f"there is no {SPOOL.name}")


ck.add_health_check("storage", storage, interval=0.5, timeout=2)


@ck.on_cluster_health_change
async def changed(event: ClusterHealthEvent) -> None:
    """In the order of the changes: two runs of one hook never overtake each other."""
    told(event.status, event.unhealthy_node_ids)


def told(status: str, unhealthy: tuple[str, ...]) -> None:
    cluster.told(status == "critical")
    for node_id in {*nodes, *unhealthy}:
        nodes[node_id].told(node_id in unhealthy)
    log.info("the cluster is %s, unhealthy: %s", status, ", ".join(unhealthy) or "nobody")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    async with http, ck:
        health = ck.health()  # a hook is told of changes only
        told(health.status, health.unhealthy_node_ids)
        yield


app = FastAPI(lifespan=lifespan)


def later(why: str) -> HTTPException:
    return HTTPException(503, why, {"Retry-After": str(max(1, round(COOL_DOWN_SECONDS)))})


@app.post("/customers/{customer}/orders")
async def order(customer: str, request: Request) -> Response:
    """At once, in any case: an answer, or a refusal."""
    global orders
    if cluster.refuses():
        raise later("; ".join(ck.health().reasons))
    partition = ck.partition_for(customer)
    owner = partition.primary
    if owner is None:
        raise later(f"nobody serves {partition.id}")
    if nodes[owner.id].refuses():
        raise later(f"the breaker for {owner.id} is {nodes[owner.id].state}")
    if owner.id != ck.node_id and FORWARDED not in request.headers:
        return await passed_on(owner, customer)
    with ck.guard(partition):  # health is an opinion, this is the permission
        orders += 1
        return JSONResponse({"node": ck.node_id, "number": orders})


async def passed_on(owner: Node, customer: str) -> Response:
    """One call, and the breaker is told how it ended. Any answer at all is one of a live node."""
    url = httpx.URL(f"http://{owner.address}").copy_with(path=f"/customers/{customer}/orders")
    try:
        answer = await http.post(url, headers={FORWARDED: ck.node_id})
    except httpx.HTTPError as error:
        nodes[owner.id].ended(well=False)
        raise later(f"{owner.id} does not answer: {error!r}") from error
    nodes[owner.id].ended(well=True)
    kind = answer.headers.get("content-type")
    return Response(answer.content, answer.status_code, media_type=kind)


@app.get("/breakers")
async def breakers() -> dict[str, str]:
    return {"cluster": cluster.state} | {name: nodes[name].state for name in sorted(nodes)}


@app.get("/ready")
async def ready() -> dict[str, Any]:
    """An open breaker is no reason to take the node out of traffic."""
    readiness = ck.readiness()
    if not readiness.ready:
        raise HTTPException(503, list(readiness.reasons))
    missing = sum(not ck.is_ready(partition) for partition in ck.my_partitions())
    return {"members": sorted(ck.cluster.nodes), "copies_to_fetch": missing}


@app.exception_handler(ClusterKitError)
async def refused(request: Request, error: ClusterKitError) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "1"})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(process)d] %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    host, _, port = Options.resolve().require_address().rpartition(":")
    uvicorn.run(app, host=host.strip("[]"), port=int(port), log_level="warning")
