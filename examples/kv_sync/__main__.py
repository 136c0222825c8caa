"""One node: `python -m examples.kv_sync`, all else by CLUSTERKIT_* variables.

For clients:
    GET     /keys/{key}         at any node: it asks R holders
    PUT     /keys/{key}         the body is the value; other nodes than the primary redirect to it
    DELETE  /keys/{key}
    GET     /ready              for a readiness probe

Among nodes:
    GET, PUT  /partitions/{id}/{key}?epoch=N    one version, at one holder
    GET       /copies/{id}?epoch=N              all that a node has of a partition
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import uvicorn
from fastapi import Body, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from clusterkit import (
    ClusterKit,
    ClusterKitError,
    NodeRejoinEvent,
    NotOwnerError,
    Options,
    OwnershipError,
    PartitionChangeEvent,
    PartitionDropEvent,
)

from .quorum import NoQuorumError, Quorum
from .store import Copy, Entry, RefusedError, Store

log = logging.getLogger("kv_sync")
ck = ClusterKit()
http = httpx.AsyncClient(timeout=httpx.Timeout(2, pool=10))
store = Store(ck)
quorum = Quorum(ck, store, http)


class NotYetError(Exception):
    """Not all who may have a part of the data have given it."""


@ck.on_node_rejoin(mine=True)
async def clear(event: NodeRejoinEvent) -> None:
    """What is left from before is gone before the first partition is fetched."""
    log.info("away for %s: %d partitions cleared", event.offline_duration, len(store.complete))
    store.clear()


@ck.on_partition_change(mine=True, retries=5, retry_on=(NotYetError,))
async def fetch(event: PartitionChangeEvent) -> None:
    """This node becomes a holder: it takes in what all the sources have, whatever the order.

    One source is not enough. A write counts when W of RF have it, so each of them may lack what the
    others have; and if the node in whose place this one comes is dead, a write that it and one more
    took is on one live holder only. So every source must answer. One that does not, while it is a
    member, fails this run, and ClusterKit runs it again with the sources of that moment.
    """
    partition = event.partition_id
    if not event.needs_data:
        return  # it only became the primary of what it holds already
    epoch = ck.partition(partition).epoch
    found: dict[str, str] = {}
    silent: list[str] = []
    for source in event.copy_from_nodes:
        try:
            answer = await http.get(
                f"http://{source.address}/copies/{partition}", params={"epoch": epoch}, timeout=30
            )
            answer.raise_for_status()
        except httpx.HTTPError as error:
            silent.append(f"{source.id}: {error!r}")
            continue  # on to the next: what this run gets, the next one need not get
        copy = Copy.model_validate_json(answer.content)
        store.merge(partition, copy.entries)
        found[source.id] = copy.has
    parts_only = "part" in found.values() and "all" not in found.values()
    if silent or parts_only:
        raise NotYetError(f"{partition}: {found}, no answer from {silent}")
    # If all have nothing, or there is nobody: the partition is new, or lost. It begins as it is.
    store.completed(partition, epoch)
    log.info("copied %s, %d keys: %s", partition, len(store.entries[partition]), found)


@ck.on_partition_drop
async def drop(event: PartitionDropEvent) -> None:
    """All present holders have their copies."""
    store.drop(event.partition_id)


app = FastAPI()


@app.get("/keys/{key:path}")
async def read(key: str) -> dict[str, Any]:
    entry = await quorum.read(key)
    if entry.value is None:
        raise HTTPException(404, f"there is no key {key!r}")
    return {"value": entry.value, "version": entry.version, "asked": ck.node_id}


@app.put("/keys/{key:path}")
async def write(key: str, request: Request) -> dict[str, Any]:
    try:
        return await quorum.write(key, (await request.body()).decode())
    except UnicodeDecodeError as error:
        raise HTTPException(400, "a value is a text in UTF-8") from error


@app.delete("/keys/{key:path}")
async def delete(key: str) -> dict[str, Any]:
    return await quorum.write(key, None)


@app.get("/partitions/{partition}/{key:path}")
async def get_one(partition: str, key: str, epoch: int) -> Entry:
    return store.get(partition, key, epoch)


@app.put("/partitions/{partition}/{key:path}")
async def put_one(partition: str, key: str, epoch: int, entry: Annotated[Entry, Body()]) -> bool:
    return store.take(partition, key, entry, epoch)


@app.get("/copies/{partition}")
async def copy_of(partition: str, epoch: int) -> Copy:
    return store.hand_out(partition, epoch)


@app.get("/ready")
async def ready() -> dict[str, Any]:
    readiness = ck.readiness()
    if not readiness.ready:
        raise HTTPException(503, list(readiness.reasons))
    missing = sum(not ck.is_ready(partition) for partition in ck.my_partitions())
    return {"members": sorted(ck.cluster.nodes), "copies_to_fetch": missing}


@app.exception_handler(OwnershipError)
async def elsewhere(request: Request, error: OwnershipError) -> Response:
    """Writes go to the primary; 307 keeps their method and body."""
    owner = error.owner if isinstance(error, NotOwnerError) else None
    if owner is not None and owner.id != ck.node_id:
        path = quote(request.path_params["key"], safe="")
        return RedirectResponse(f"http://{owner.address}/keys/{path}", 307)
    return JSONResponse({"detail": str(error)}, 503)


@app.exception_handler(NoQuorumError)
@app.exception_handler(RefusedError)
@app.exception_handler(ClusterKitError)
async def not_now(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 503)


class Server(uvicorn.Server):
    """Listens before the node joins and until it has left, since others copy from it."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        await ck.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await ck.stop()
        await super().shutdown(sockets)
        await quorum.close()
        await http.aclose()


def main() -> None:
    """Runs until SIGTERM or SIGINT."""
    host, _, port = Options.resolve().require_address().rpartition(":")
    config = uvicorn.Config(app, host=host.strip("[]"), port=int(port), log_level="warning")
    asyncio.run(Server(config).serve())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(process)d] %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        main()
    except ClusterKitError as error:
        sys.exit(f"kv_sync: {error}")
