"""A rate limiter as a FastAPI service: all requests of one client are counted in one place.

    POST /clients/{client}/requests    200, or 429 when the client has had its share; at any node
    GET  /buckets/{partition}          among nodes: what a node has counted of a partition
    /clusterkit/...                    the kit's own pages: ready, health, nodes, metrics, ...

Settings beside CLUSTERKIT_*: BURST, a client's requests at once (5), and PER_SECOND, how fast it
gets them back (1).
"""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Unpack

import httpx
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from clusterkit import (
    ClusterKit,
    FencedError,
    Guard,
    NodeRejoinEvent,
    NotOwnerError,
    Options,
    OptionsDict,
    PartitionChangeEvent,
    PartitionDropEvent,
)

log = logging.getLogger("fastapi_service")
HOPS = "x-forwarded-by-node"
PASSED_BACK = ("content-type", "retry-after", "x-node")


class Limiter:
    """The buckets of the clients whose owner this node is, and how they move with ownership."""

    def __init__(self, ck: ClusterKit, http: httpx.AsyncClient) -> None:
        self.ck, self.http = ck, http
        self.burst = float(os.environ.get("BURST", "5"))
        self.per_second = float(os.environ.get("PER_SECOND", "1"))
        # Partition → client → how much it had left, and when. Clocks of nodes are not compared.
        self.buckets: defaultdict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
        ck.on_node_rejoin(mine=True)(self.clear)
        ck.on_partition_change(mine=True, retries=3)(self.fetch)
        ck.on_partition_drop(self.drop)

    def take(self, partition: str, client: str) -> float:
        """Takes one request off; what is left. Negative: how much is missing, nothing is taken."""
        left = self.left(partition, client) - 1
        if left >= 0:
            self.buckets[partition][client] = left, time.monotonic()
        return left

    def left(self, partition: str, client: str) -> float:
        left, when = self.buckets[partition].get(client, (self.burst, 0.0))
        return min(self.burst, left + (time.monotonic() - when) * self.per_second)

    async def clear(self, event: NodeRejoinEvent) -> None:
        """Others have counted meanwhile."""
        self.buckets.clear()

    async def fetch(self, event: PartitionChangeEvent) -> None:
        """This node becomes the owner: it takes over what the owner before has counted."""
        partition = event.partition_id
        refused: list[str] = []
        for source in event.copy_from_nodes:
            try:
                answer = await self.http.get(f"http://{source.address}/buckets/{partition}")
            except httpx.HTTPError as error:
                refused.append(f"{source.id}: {error!r}")
                continue
            if answer.status_code == 200:
                now = time.monotonic()
                self.buckets[partition] = {c: (left, now) for c, left in answer.json().items()}
                log.info("took %s over from %s", partition, source.id)
                return
            if answer.status_code != 404:  # 404: it has counted nobody
                refused.append(f"{source.id}: {answer.status_code}")
        if refused:
            raise LookupError(f"{partition}: {refused}")  # it comes again
        # Nobody has it: its owner is gone. All clients have their full share again, see the README.

    async def drop(self, event: PartitionDropEvent) -> None:
        """The new owner has it."""
        self.buckets.pop(event.partition_id, None)


# Dependencies: what a path of the application asks for, it has to be able to rely on.


def limiter(request: Request) -> Limiter:
    found: Limiter = request.app.state.limiter
    return found


async def owner(client: str, here: Annotated[Limiter, Depends(limiter)]) -> Guard:
    """The permission to answer for a client. Without it the path is not called at all.

    Raises:
        OwnershipError: See `forward` and `fenced`, which make an answer of it.
    """
    guard = here.ck.guard(here.ck.partition_for(client))
    if not here.ck.is_ready(guard.partition):
        raise HTTPException(503, f"{guard.partition.id} is coming", headers={"Retry-After": "1"})
    return guard


async def count(
    client: str,
    response: Response,
    guard: Annotated[Guard, Depends(owner)],
    here: Annotated[Limiter, Depends(limiter)],
) -> dict[str, Any]:
    """Counts one request of a client."""
    left = here.take(guard.partition.id, client)
    if left < 0:
        wait = -left / here.per_second if here.per_second else 3600
        raise HTTPException(
            429,
            f"{client} has to wait",
            {"Retry-After": str(int(wait) + 1), "X-Node": here.ck.node_id},
        )
    response.headers["X-Node"] = here.ck.node_id
    return {"left": int(left), "epoch": guard.epoch}


async def hand_out(partition: str, here: Annotated[Limiter, Depends(limiter)]) -> dict[str, float]:
    """For the next owner."""
    mine = here.ck.serving(partition)
    if mine is not None and mine.id == here.ck.node_id and not here.ck.is_ready(partition):
        raise HTTPException(503, "it is coming here, and may be asked for later")
    if partition not in here.buckets:
        raise HTTPException(404, f"{here.ck.node_id} has counted nobody of {partition}")
    return {client: here.left(partition, client) for client in here.buckets[partition]}


async def forward(request: Request, error: NotOwnerError) -> Response:
    """Routing by key: what belongs to another node is passed on, once."""
    via, to = request.headers.get(HOPS), error.owner
    here: Limiter = request.app.state.limiter
    if via is not None or to is None or to.id == here.ck.node_id:
        # This node and the one before see different owners, for a moment. No loops.
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "1"})
    url = httpx.URL(
        f"http://{to.address}",
        raw_path=request.scope["raw_path"],  # as it came: %2F stays %2F
    )
    try:
        answer = await here.http.request(request.method, url, headers={HOPS: here.ck.node_id})
    except httpx.HTTPError as failed:
        detail = f"{to.id} does not answer: {failed!r}"
        return JSONResponse({"detail": detail}, 503, {"Retry-After": "1"})
    kept = {
        k: v for k, v in answer.headers.items() if k in ("content-type", "retry-after", "x-node")
    }
    return Response(answer.content, answer.status_code, kept)


async def fenced(request: Request, error: FencedError) -> Response:
    """etcd cannot be reached: this node may not act as an owner, and does not know who may."""
    return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "5"})


def create_app(**options: Unpack[OptionsDict]) -> FastAPI:
    """An application with a kit of its own, so that tests can make several."""
    # One holder: a bucket is worth too little to be kept twice.
    given: OptionsDict = {"replication_factor": 1, **options}
    ck = ClusterKit(**given)
    http = httpx.AsyncClient(timeout=5)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        """The kit runs while the server does. It does not wait to be ready: probes ask for that."""
        async with http, ck:
            yield

    app = FastAPI(lifespan=lifespan)
    app.state.limiter = Limiter(ck, http)
    app.post("/clients/{client}/requests")(count)
    app.get("/buckets/{partition}")(hand_out)
    app.exception_handler(NotOwnerError)(forward)
    app.exception_handler(FencedError)(fenced)
    app.mount("/clusterkit", ck.asgi())
    return app


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(process)d] %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    host, _, port = Options.resolve().require_address().rpartition(":")
    uvicorn.run(create_app(), host=host.strip("[]"), port=int(port), log_level="warning")
