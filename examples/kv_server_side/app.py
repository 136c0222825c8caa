"""A key-value store that may be asked at any node: the server finds the primary, not the client.

`python -m examples.kv_server_side.app`. Settings beside CLUSTERKIT_*: WAIT_SECONDS, how long a
request waits for a primary that can be reached (5).

For clients, at any node or behind one load balancer for all:
    GET  /keys/{key}
    PUT  /keys/{key}             the body is the value; answered when every holder has it
    GET  /ready                  for a probe

Among nodes:
    GET  /partitions/{id}?epoch=N          all entries, for a node that becomes a holder
    PUT  /partitions/{id}/{key}?epoch=N    a write of the primary
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import sys
from collections import defaultdict
from typing import Annotated, Any, NamedTuple
from urllib.parse import quote

import httpx
import uvicorn
from fastapi import Body, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from clusterkit import (
    ClusterKit,
    ClusterKitError,
    NodeRejoinEvent,
    Options,
    OwnershipError,
    PartitionChangeEvent,
    PartitionDropEvent,
)

log = logging.getLogger("kv_server_side")
WAIT_SECONDS = float(os.environ.get("WAIT_SECONDS", "5"))
FORWARDED = "x-forwarded-by-node"


class Entry(NamedTuple):
    """A version of a value. A later one compares as greater: a new primary has a new epoch."""

    epoch: int
    number: int
    value: str


ck = ClusterKit()
http = httpx.AsyncClient(timeout=5)
entries: defaultdict[str, dict[str, Entry]] = defaultdict(dict)
complete: set[str] = set()  # the partitions that this node has copied since it was last cleared
epochs: defaultdict[str, int] = defaultdict(int)  # the newest that each partition has seen
numbers = itertools.count(1)


class NotHereError(Exception):
    """This node cannot answer that now, and has done nothing; the text says why."""


def admit(partition: str, epoch: int) -> None:
    """Refuses whom others have replaced, and who does not know it yet."""
    if epoch < epochs[partition]:
        raise NotHereError(f"{ck.node_id} has seen a newer epoch of {partition}")
    epochs[partition] = epoch


def merge(partition: str, found: dict[str, Entry]) -> None:
    """Keeps of each key what is newer, so order does not matter, and twice is once."""
    held = entries[partition]
    for key, entry in found.items():
        held[key] = max(entry, held.get(key, entry))


@ck.on_node_rejoin(mine=True)
async def clear(event: NodeRejoinEvent) -> None:
    """This node was away and missed writes."""
    entries.clear()
    complete.clear()


@ck.on_partition_change(mine=True, retries=5, retry_on=(LookupError,))
async def fetch(event: PartitionChangeEvent) -> None:
    """This node becomes a holder: any one that has everything will do, as all holders have it."""
    partition = event.partition_id
    if not event.needs_data:
        return  # it only became the primary of what it holds
    params = {"epoch": ck.partition(partition).epoch}
    refusals: dict[str, object] = {}
    for source in event.copy_from_nodes:
        url = f"http://{source.address}/partitions/{partition}"
        try:
            answer = await http.get(url, params=params, timeout=30)
        except httpx.HTTPError as error:
            refusals[source.id] = error
            continue  # the next source
        if answer.status_code == 200:
            merge(partition, {key: Entry(*entry) for key, entry in answer.json().items()})
            log.info("copied %s from %s: %d keys", partition, source.id, len(entries[partition]))
            break
        refusals[source.id] = answer.status_code
    else:
        if any(refusal != 404 for refusal in refusals.values()):
            raise LookupError(f"nobody gave {partition} out: {refusals}")  # it comes again
        # Nobody has it: it is new, or lost. It begins empty.
    complete.add(partition)


@ck.on_partition_drop
async def drop(event: PartitionDropEvent) -> None:
    """All present holders have their copies."""
    complete.discard(event.partition_id)
    entries.pop(event.partition_id, None)


app = FastAPI()


@app.get("/keys/{key:path}")
async def read(key: str, request: Request) -> Response:
    return await at_the_primary(key, request)


@app.put("/keys/{key:path}")
async def write(key: str, request: Request) -> Response:
    return await at_the_primary(key, request)


async def at_the_primary(key: str, request: Request) -> Response:
    """Answers here, or passes the request on; and waits while there is nobody to pass it on to.

    A request is sent again only if the one before has certainly done nothing: nobody listened, or
    who did is not the primary. After a time-out a write may have happened. To repeat it could undo
    one of somebody else that came in between, so the client is told that nobody knows.
    """
    body = await request.body()
    loop = asyncio.get_running_loop()
    give_up = loop.time() + WAIT_SECONDS
    while True:
        partition = ck.partition_for(key)
        primary = partition.primary
        why = f"{partition.id} has no primary"
        if primary is not None and primary.id == ck.node_id:
            try:
                return JSONResponse(await here(request.method, partition.id, key, body))
            except (OwnershipError, NotHereError) as error:
                why = str(error)
                if FORWARDED in request.headers:
                    raise HTTPException(421, why) from error  # who sent it looks again
        elif FORWARDED in request.headers:
            at = f"{primary.id} at {primary.address}" if primary else "nobody"
            raise HTTPException(421, f"the primary of {partition.id} is {at}")
        elif primary is not None:
            url = f"http://{primary.address}/keys/{quote(key, safe='')}"
            headers = {FORWARDED: ck.node_id}
            try:
                answer = await http.request(request.method, url, content=body, headers=headers)
                if answer.status_code != 421:
                    kind = answer.headers.get("content-type")
                    return Response(answer.content, answer.status_code, media_type=kind)
                why = answer.text
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                why = f"{primary.id} cannot be reached: {error!r}"
            except httpx.HTTPError as error:
                raise HTTPException(504, f"{primary.id} has not answered: {error!r}") from error
        if loop.time() > give_up:
            raise HTTPException(503, why, {"Retry-After": "1"})
        await asyncio.sleep(0.05)  # the view changes behind it, when the lease of the dead ends


async def here(method: str, partition: str, key: str, body: bytes) -> dict[str, Any]:
    """What the primary does."""
    with ck.guard(partition) as guard:
        admit(partition, guard.epoch)
        if not ck.is_ready(partition):
            raise NotHereError(f"{partition} is being copied")
        if method == "GET":
            entry = entries[partition].get(key)
            if entry is None:
                raise HTTPException(404, f"there is no key {key!r}")
            return {"value": entry.value, "partition": partition, "node": ck.node_id}
        entry = Entry(guard.epoch, next(numbers), body.decode(errors="replace"))
        merge(partition, {key: entry})
        path = f"/partitions/{partition}/{quote(key, safe='')}"
        sent = [
            http.put(f"http://{n.address}{path}", params={"epoch": guard.epoch}, json=entry)
            for n in guard.partition.replicas
        ]
        for answer in await asyncio.gather(*sent, return_exceptions=True):
            if isinstance(answer, BaseException) or answer.status_code != 200:
                raise HTTPException(503, f"not every holder took it, repeat it: {answer!r}")
        if not guard.valid:  # written, but perhaps to holders of which none is one any more
            raise HTTPException(504, f"{partition} has another primary now, repeat it")
        return {"partition": partition, "node": ck.node_id}


@app.put("/partitions/{partition}/{key:path}")
async def take(partition: str, key: str, epoch: int, entry: Annotated[Entry, Body()]) -> None:
    admit(partition, epoch)
    merge(partition, {key: entry})


@app.get("/partitions/{partition}")
async def hand_out(partition: str, epoch: int) -> dict[str, Entry]:
    """404: it never had it. 503: it does not have it yet, ask the next one."""
    epochs[partition] = max(epochs[partition], epoch)
    known = ck.partition(partition)
    mine = ck.node_id in [node.id for node in known.nodes]
    if mine and not ck.is_ready(partition):
        raise HTTPException(503, f"{ck.node_id} does not have all of {partition} yet")
    if partition not in complete:
        behind = known.epoch < epoch  # it may become a holder by what it has not heard yet
        raise HTTPException(503 if behind else 404, f"{ck.node_id} never had {partition}")
    return dict(entries[partition])


@app.get("/ready")
async def ready() -> dict[str, Any]:
    readiness = ck.readiness()
    if not readiness.ready:
        raise HTTPException(503, list(readiness.reasons))
    missing = sum(not ck.is_ready(partition) for partition in ck.my_partitions())
    return {"members": sorted(ck.cluster.nodes), "copies_to_fetch": missing}


@app.exception_handler(NotHereError)
@app.exception_handler(ClusterKitError)
async def refused(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 503)


class Server(uvicorn.Server):
    """Listens before the node joins and until it has left, since others copy from it."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        await ck.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await ck.stop()
        await super().shutdown(sockets)
        await http.aclose()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(process)d] %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    host, _, port = Options.resolve().require_address().rpartition(":")
    config = uvicorn.Config(app, host=host.strip("[]"), port=int(port), log_level="warning")
    try:
        asyncio.run(Server(config).serve())
    except ClusterKitError as error:
        sys.exit(f"kv_server_side: {error}")
