"""A key-value store that answers when the primary has a write; the replicas get it afterwards.

`python -m examples.kv_async.app`, all else by CLUSTERKIT_* variables and DELAY_SECONDS.

For clients:
    PUT  /keys/{key}             the body is the value; other nodes than the primary redirect to it
    GET  /keys/{key}             the same; with ?stale=true at any holder, which may be behind
    GET  /ready, /lag            for a probe; how many writes are still on their way to replicas

Among nodes:
    POST /entries                writes that the primary passes on
    GET  /copies/{id}?epoch=N    all that a node has of a partition
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import sys
from collections import defaultdict
from contextlib import suppress
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import quote

import httpx
import uvicorn
from fastapi import Body, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import BaseModel

from clusterkit import (
    ClusterKit,
    ClusterKitError,
    Node,
    NodeRejoinEvent,
    NotOwnerError,
    Options,
    OwnershipError,
    PartitionChangeEvent,
    PartitionDropEvent,
)

log = logging.getLogger("kv_async")
BATCH = 200
DELAY_SECONDS = float(os.environ.get("DELAY_SECONDS", "0"))
"""How long a write waits before it is passed on: to see by hand what that costs."""
STOP_SECONDS = 5.0
"""How long a node that stops goes on passing on what its replicas have not got."""


class Entry(NamedTuple):
    """A version of a value. A later one compares as greater: a new primary has a new epoch."""

    epoch: int
    number: int
    value: str


class Copy(BaseModel):
    """What a node has of a partition."""

    has: Literal["all", "part", "nothing"]
    entries: dict[str, Entry]


ck = ClusterKit()
http = httpx.AsyncClient(timeout=2)
entries: defaultdict[str, dict[str, Entry]] = defaultdict(dict)
complete: set[str] = set()  # the partitions that this node has copied since it was last cleared
epochs: defaultdict[str, int] = defaultdict(int)  # the newest that a new holder has shown
numbers = itertools.count(1)


def merge(partition: str, found: dict[str, Entry]) -> None:
    """Keeps of each key what is newer, so order does not matter, and twice is once."""
    held = entries[partition]
    for key, entry in found.items():
        held[key] = max(entry, held.get(key, entry))


class Outbox:
    """The writes that not all replicas have yet, of each key the newest."""

    def __init__(self) -> None:
        # (partition, key) → the write, and the incarnations that have it.
        self.waiting: dict[tuple[str, str], tuple[Entry, set[str]]] = {}
        self.news = asyncio.Event()
        self.empty = asyncio.Event()
        self.empty.set()

    def add(self, partition: str, key: str, entry: Entry) -> None:
        self.waiting[partition, key] = entry, set()
        self.empty.clear()
        self.news.set()

    async def run(self) -> None:
        """Goes on for ever."""
        while True:
            await self.news.wait()
            await asyncio.sleep(DELAY_SECONDS)
            self.news.clear()
            while self.waiting:
                if not await self.round():
                    await asyncio.sleep(0.2)  # nobody took anything
            self.empty.set()

    async def round(self) -> bool:
        """Sends each replica some of what it lacks; whether anything has come nearer to its end."""
        lacks: defaultdict[Node, list[tuple[str, str]]] = defaultdict(list)
        before = len(self.waiting)
        for name, (_, had_by) in list(self.waiting.items()):
            # The replicas of this moment: one that has come since then needs it too.
            replicas = [n for n in ck.nodes_for(name[0]) if n.id != ck.node_id]
            missing = [n for n in replicas if n.incarnation not in had_by]
            if not missing:
                del self.waiting[name]
            for node in missing:
                lacks[node].append(name)
        sent = await asyncio.gather(*(self.send(n, names[:BATCH]) for n, names in lacks.items()))
        return any(sent) or len(self.waiting) < before

    async def send(self, node: Node, names: list[tuple[str, str]]) -> bool:
        batch = {name: self.waiting[name] for name in names}
        body = [(partition, key, entry) for (partition, key), (entry, _) in batch.items()]
        try:
            answer = await http.post(f"http://{node.address}/entries", json=body)
            answer.raise_for_status()
        except httpx.HTTPError:
            return False  # the next round asks again, as long as it is a replica
        for _, had_by in batch.values():
            had_by.add(node.incarnation)  # of this write: a newer one has a set of its own
        return True


outbox = Outbox()


@ck.on_node_rejoin(mine=True)
async def clear(event: NodeRejoinEvent) -> None:
    """This node was away and missed writes. What it never passed on is lost: see the README."""
    log.info("away for %s, %d not passed on", event.offline_duration, len(outbox.waiting))
    entries.clear()
    complete.clear()
    outbox.waiting.clear()


@ck.on_partition_change(mine=True, retries=5)
async def fetch(event: PartitionChangeEvent) -> None:
    """This node becomes a holder, or the primary: it takes in what the others have.

    The primary before is the first of the sources, and has everything. If that is dead the replicas
    may each lack what others have, so all of them are asked, also for a promotion. Who does not
    answer is left out, if one has answered that has a whole copy.
    """
    partition = event.partition_id
    promotion = not event.needs_data
    seconds = 2 if promotion else 30
    epoch = ck.partition(partition).epoch
    found: dict[str, str] = {}
    for source in event.copy_from_nodes:
        url = f"http://{source.address}/copies/{partition}"
        try:
            answer = await http.get(url, params={"epoch": epoch}, timeout=seconds)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            found[source.id] = repr(error)
            continue  # the next source
        copy = Copy.model_validate_json(answer.content)
        merge(partition, copy.entries)
        found[source.id] = copy.has
        if copy.has == "all" and source.id == event.old_primary:
            break
    new = all(has == "nothing" for has in found.values())
    if not (promotion or new or "all" in found.values()):
        raise LookupError(f"nobody has all of {partition} yet: {found}")  # it comes again
    complete.add(partition)
    log.info("copied %s, %d keys: %s", partition, len(entries[partition]), found)


@ck.on_partition_drop
async def drop(event: PartitionDropEvent) -> None:
    """All present holders have their copies."""
    complete.discard(event.partition_id)
    entries.pop(event.partition_id, None)


app = FastAPI()


@app.put("/keys/{key:path}")
async def write(key: str, request: Request) -> dict[str, Any]:
    value = (await request.body()).decode(errors="replace")
    partition = ck.partition_for(key).id
    with ck.guard(partition) as guard:
        if stopping.is_set() or not ck.is_ready(partition):
            raise HTTPException(503, f"{partition} is being copied, or this node stops")
        if guard.epoch < epochs[partition]:
            # A new holder has made its copy, by a view that this node has not got yet.
            raise HTTPException(503, f"{partition} is about to have another primary")
        entry = Entry(guard.epoch, next(numbers), value)
        merge(partition, {key: entry})
        outbox.add(partition, key, entry)
    return {"partition": partition, "node": ck.node_id, "on_their_way": len(outbox.waiting)}


@app.get("/keys/{key:path}")
async def read(key: str, stale: bool = False) -> dict[str, Any]:
    partition = ck.partition_for(key)
    if not stale or ck.node_id not in [node.id for node in partition.nodes]:
        ck.guard(partition)  # raises if this node is not the primary
    if not ck.is_ready(partition):
        raise HTTPException(503, f"{partition.id} is being copied")
    entry = entries[partition.id].get(key)
    if entry is None:
        raise HTTPException(404, f"there is no key {key!r}")
    return {"value": entry.value, "partition": partition.id, "node": ck.node_id}


@app.post("/entries")
async def take(batch: Annotated[list[tuple[str, str, Entry]], Body()]) -> None:
    """No epoch is asked for: whoever it comes from, what is older changes nothing."""
    for partition, key, entry in batch:
        merge(partition, {key: entry})


@app.get("/copies/{partition}")
async def copy_of(partition: str, epoch: int) -> Copy:
    epochs[partition] = max(epochs[partition], epoch)
    mine = ck.node_id in [node.id for node in ck.nodes_for(partition)]
    has_all = ck.is_ready(partition) if mine else partition in complete
    found = dict(entries[partition])
    behind = ck.partition(partition).epoch < epoch  # it may become a holder by what it will hear
    nothing = not (found or mine or behind)
    return Copy(has="all" if has_all else "nothing" if nothing else "part", entries=found)


@app.get("/lag")
async def lag() -> int:
    return len(outbox.waiting)


@app.get("/ready")
async def ready() -> dict[str, Any]:
    readiness = ck.readiness()
    if not readiness.ready:
        raise HTTPException(503, list(readiness.reasons))
    missing = sum(not ck.is_ready(partition) for partition in ck.my_partitions())
    return {"members": sorted(ck.cluster.nodes), "copies_to_fetch": missing}


@app.exception_handler(ClusterKitError)
async def elsewhere(request: Request, error: ClusterKitError) -> Response:
    """To the primary; 307 keeps method and body."""
    owner = error.owner if isinstance(error, NotOwnerError) else None
    if owner is not None and owner.id != ck.node_id:
        path = quote(request.path_params["key"], safe="")
        return RedirectResponse(f"http://{owner.address}/keys/{path}", 307)
    return JSONResponse({"detail": str(error)}, 503)


app.exception_handler(OwnershipError)(elsewhere)
stopping = asyncio.Event()


class Server(uvicorn.Server):
    """Listens before the node joins and until it has left; and passes on what it has before."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.replication = asyncio.create_task(outbox.run())
        await ck.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stopping.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(outbox.empty.wait(), STOP_SECONDS)
        await ck.stop()
        self.replication.cancel()
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
        sys.exit(f"kv_async: {error}")
