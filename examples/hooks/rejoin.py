"""A node that comes back: it forgets what is old, copies what is new, and serves only what it has.

Whoever was away missed writes and deletions; what it still has is wrong. Three steps:

* `on_node_rejoin` clears. It is over before the first partition is copied;
* `on_partition_change` copies, from any of `copy_from_nodes`;
* until all that has succeeded the node serves nothing, and says so. `ck.is_ready(partition)` turns
  False in the very moment in which the node is back, before any hook has run. `ck.readiness()` is
  for the whole node: not the first partition that has come makes it ready, but the last.

A small store in memory, with httpx and FastAPI (pip install fastapi httpx uvicorn). A write is
answered with 200 when every holder has it; repeat one that was not. `null` deletes.

By hand: run three nodes with CLUSTERKIT_REPLICATION_FACTOR=2, PUT a key at its primary, `kill
-STOP` that, wait for its leave, change the key at the new primary, and `kill -CONT` the first: it
never tells what it had, and GET /ready answers 503 until it has copied everything.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

import httpx
import uvicorn
from fastapi import Body, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from clusterkit import (
    ClusterKit,
    NodeRejoinEvent,
    NotOwnerError,
    Options,
    OwnershipError,
    PartitionChangeEvent,
    PartitionDropEvent,
)

log = logging.getLogger("rejoin")
ck = ClusterKit()
http = httpx.AsyncClient(timeout=5)
entries: dict[str, dict[str, str]] = {}  # the partitions of which this node has all entries
epochs: defaultdict[str, int] = defaultdict(int)  # the newest that each partition has seen
locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)


@ck.on_node_rejoin(mine=True)
async def clear(event: NodeRejoinEvent) -> None:
    """What is left from before is gone before the first partition comes."""
    log.info("away for %s: %d partitions are cleared", event.offline_duration, len(entries))
    entries.clear()


@ck.on_partition_change(mine=True, retries=5, retry_on=(LookupError,), name="copy")
async def copy(event: PartitionChangeEvent) -> None:
    """Copies a partition from the first node that has all of it."""
    partition = event.partition_id
    if not event.needs_data:
        return  # it only became the primary of what it holds
    refusals: dict[str, object] = {}
    for source in event.copy_from_nodes:
        url = f"http://{source.address}/partitions/{partition}"
        try:
            answer = await http.get(url, params={"epoch": ck.partition(partition).epoch})
        except httpx.HTTPError as error:
            refusals[source.id] = error  # the next one may have it as well
            continue
        if answer.status_code == 200:
            entries[partition] = answer.json()
            log.info("copied %s from %s", partition, source.id)
            return
        refusals[source.id] = answer.status_code
    if any(refusal != 404 for refusal in refusals.values()):
        raise LookupError(f"nobody gave out {partition}: {refusals}")  # owed: it comes again
    entries[partition] = {}  # nobody has it: it is new


@ck.on_partition_drop
async def drop(event: PartitionDropEvent) -> None:
    """All present holders have their copies."""
    entries.pop(event.partition_id, None)


async def say_when_ready() -> None:
    """Not when the first partition has come: when all have."""
    await ck.wait_ready()
    log.info("ready: all %d partitions are here", len(ck.my_partitions()))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """The kit runs while the server does. It must not wait here: others ask it meanwhile."""
    async with http, ck:
        waiting = asyncio.create_task(say_when_ready())
        yield
        waiting.cancel()


app = FastAPI(lifespan=lifespan)


def held(partition: str, epoch: int) -> dict[str, str]:
    """The entries of a partition, if this node has all of them and the asker is not outdated."""
    if epoch < epochs[partition]:
        raise HTTPException(409, f"{ck.node_id} has seen a newer epoch of {partition}")
    epochs[partition] = epoch
    if ck.node_id in [n.id for n in ck.nodes_for(partition)] and not ck.is_ready(partition):
        raise HTTPException(503, f"{ck.node_id} does not have all of {partition} yet")
    if partition not in entries:
        raise HTTPException(404, f"{ck.node_id} never had {partition}")
    return entries[partition]


@app.get("/partitions/{partition}")
async def give(partition: str, epoch: int) -> dict[str, str]:
    """For a node that becomes a holder."""
    return held(partition, epoch)


@app.put("/partitions/{partition}/{key}")
async def take(
    partition: str, epoch: int, key: str, value: Annotated[str | None, Body()] = None
) -> None:
    """A write that the primary sends to each holder."""
    if value is None:
        held(partition, epoch).pop(key, None)
    else:
        held(partition, epoch)[key] = value


@app.get("/keys/{key}")
async def read(key: str) -> dict[str, str | None]:
    """A key, at its primary."""
    with ck.guard(ck.partition_for(key)) as guard:
        return {"value": held(guard.partition.id, guard.epoch).get(key)}


@app.put("/keys/{key}")
async def write(key: str, value: Annotated[str | None, Body()] = None) -> dict[str, list[str]]:
    """A write, at its primary: one after the other, each to all holders."""
    partition = ck.partition_for(key).id
    async with locks[partition]:
        with ck.guard(partition) as guard:
            holders, path = guard.partition.nodes, f"/partitions/{partition}/{key}"
            for node in holders:
                url = f"http://{node.address}{path}"
                try:
                    answer = await http.put(url, params={"epoch": guard.epoch}, json=value)
                except httpx.HTTPError as error:
                    raise HTTPException(503, f"{node.id} did not take it: {error!r}") from error
                if answer.status_code != 200:
                    raise HTTPException(503, f"{node.id} did not take it: {answer.text}")
            guard.check()
    return {"holders": [node.id for node in holders]}


@app.get("/ready")
async def ready() -> dict[str, list[str]]:
    """For a readiness probe."""
    readiness = ck.readiness()
    if not readiness.ready:
        raise HTTPException(503, list(readiness.reasons))
    return {"members": sorted(ck.cluster.nodes)}


@app.exception_handler(OwnershipError)
async def refused(request: Request, error: OwnershipError) -> JSONResponse:
    """The text names the owner, and its address."""
    return JSONResponse({"detail": str(error)}, 421 if isinstance(error, NotOwnerError) else 503)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(process)d] %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    host, _, port = Options.resolve().require_address().rpartition(":")
    uvicorn.run(app, host=host.strip("[]"), port=int(port), log_level="warning")
