"""A key-value store in memory that outlives any one of its nodes.

Each node holds the entries of some partitions. Which ones, who else holds them, and what has to be
copied when nodes come and go, it learns from ClusterKit; the copying is `fetch`, below. Everything
is set by CLUSTERKIT_* variables, so the same file runs on a laptop and in a pod.

For clients, at any node (it forwards to the primary of the key):
    GET  /keys/{key}
    PUT  /keys/{key}            the body is the value; answered when every holder has it
    ...?direct=1                never forwarded: 421 and the primary's address if it is another node

For people:
    GET  /status                the members, and how many copies this node has still to fetch

For probes and metrics there is what ClusterKit serves itself, where CLUSTERKIT_ADMIN says.

Among nodes:
    GET  /partitions/{id}?epoch=N    all entries, for a node that becomes a holder
    PUT  /partitions/{id}?epoch=N    an entry from the primary
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import json
import logging
import signal
import sys
from collections import defaultdict
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

from clusterkit import (
    ClusterKit,
    ClusterKitError,
    Node,
    NodeRejoinEvent,
    NotOwnerError,
    Options,
    PartitionChangeEvent,
    PartitionDropEvent,
)

log = logging.getLogger("quickstart")

Entry: TypeAlias = tuple[int, int, str]
"""The epoch of its writer, the writer's count, the value: a later write compares as greater."""

Reply: TypeAlias = tuple[int, dict[str, Any]]
"""A status and a JSON document."""

TIMEOUT_SECONDS = 5.0
"""For asking another node, and for reading a request."""

COPY_PATIENCE_SECONDS = 5.0
"""How long one run of `fetch` goes on asking holders that are not ready themselves yet."""

MAX_VALUE_BYTES = 1 << 20


class Store:
    """The entries of one node, and what the hooks and requests do with them."""

    def __init__(self, ck: ClusterKit) -> None:
        self.ck = ck
        self.entries: defaultdict[str, dict[str, Entry]] = defaultdict(dict)
        # The partitions that this node has had all entries of since it was last cleared.
        self.complete: set[str] = set()
        # The greatest epoch that each partition has seen. A write of an older one is refused: it
        # comes from a primary that does not know yet that it has been replaced. A copy that is
        # handed out counts too, else such a write could be acknowledged and be in no copy.
        self.fences: defaultdict[str, int] = defaultdict(int)
        self.counter = itertools.count(1)
        ck.on_node_rejoin(mine=True)(self.clear)
        ck.on_partition_change(mine=True)(self.fetch)
        ck.on_partition_drop(self.drop)

    # What the hooks do.

    async def clear(self, event: NodeRejoinEvent) -> None:
        """This node was away and missed writes: all that it has may be old."""
        self.entries.clear()
        self.complete.clear()

    async def fetch(self, event: PartitionChangeEvent) -> None:
        """This node becomes a holder: it copies the entries from one that has them."""
        partition = event.partition_id
        if not event.needs_data:
            return  # it only became the primary of what it holds already
        epoch = self.ck.partition(partition).epoch
        give_up = asyncio.get_running_loop().time() + COPY_PATIENCE_SECONDS
        while True:
            refusals: dict[str, Reply] = {}
            for source in event.copy_from_nodes:
                status, answer = await ask(source, "GET", f"/partitions/{partition}?epoch={epoch}")
                if status == 200:
                    self.merge(partition, answer)
                    self.complete.add(partition)
                    log.info("copied %s from %s: %d keys", partition, source.id, len(answer))
                    return
                refusals[source.id] = status, answer
            if all(status == 404 for status, _ in refusals.values()):
                # Nobody has it: it is new, or lost. It begins empty.
                self.complete.add(partition)
                return
            if asyncio.get_running_loop().time() > give_up:
                # The change stays owed: ClusterKit runs this hook again, with today's sources.
                raise LookupError(f"nobody gave out {partition}: {refusals}")
            await asyncio.sleep(0.1)

    async def drop(self, event: PartitionDropEvent) -> None:
        """Others hold it now, and all of them have their copies."""
        self.complete.discard(event.partition_id)
        self.entries.pop(event.partition_id, None)

    # What the requests do.

    async def answer(self, method: str, target: str, body: bytes = b"") -> Reply:
        """Answers one request; whatever goes wrong is a status and a text."""
        url = urlsplit(target)
        query = parse_qs(url.query)
        try:
            match method, *map(unquote, url.path.split("/")[1:]):
                case "GET", "status":
                    return self.status()
                case (("GET" | "PUT"), "keys", key) if key:
                    return await self.key(method, key, target, body, "direct" in query)
                case "GET", "partitions", partition:
                    return self.hand_out(partition, int(query["epoch"][0]))
                case "PUT", "partitions", partition:
                    return self.take_in(partition, int(query["epoch"][0]), json.loads(body))
                case _:
                    return 404, {"error": f"there is no {method} {url.path}"}
        except NotOwnerError as error:
            return 421, {"error": str(error)}
        except ClusterKitError as error:
            return 503, {"error": str(error)}
        except (KeyError, TypeError, ValueError) as error:
            return 400, {"error": f"a bad request: {error!r}"}

    def status(self) -> Reply:
        """How far this node is. Readiness says less: later copies do not make a node unready."""
        return 200, {
            "members": sorted(self.ck.cluster.nodes),
            "copies_to_fetch": sum(not self.ck.is_ready(p) for p in self.ck.my_partitions()),
        }

    async def key(self, method: str, key: str, target: str, body: bytes, direct: bool) -> Reply:
        """Reads or writes a key where that is done: at its primary."""
        partition = self.ck.partition_for(key)
        primary = self.ck.serving(partition)
        if primary is None:
            return 503, {"error": f"{partition.id} has no primary"}
        if primary.id != self.ck.node_id:
            if direct:
                return 421, {"error": f"{primary.id} serves {partition.id}", "at": primary.address}
            path = urlsplit(target).path
            return await ask(primary, method, f"{path}?direct=1", body)
        # Raises if this node is not the primary any more, or cannot prove that it is alive.
        with self.ck.guard(partition) as guard:
            if not self.ck.is_ready(guard.partition):
                return 503, {"error": f"{partition.id} is still being copied"}
            if method == "GET":
                return self.read(partition.id, key)
            reply = await self.write(guard.partition.replicas, partition.id, guard.epoch, key, body)
            guard.check()  # it was the primary all the time
            return reply

    def read(self, partition: str, key: str) -> Reply:
        """What the primary has."""
        entry = self.entries[partition].get(key)
        if entry is None:
            return 404, {"error": f"there is no key {key!r}"}
        return 200, {"value": entry[2], "partition": partition, "node": self.ck.node_id}

    async def write(
        self, replicas: tuple[Node, ...], partition: str, epoch: int, key: str, body: bytes
    ) -> Reply:
        """The primary takes the value, then every replica. Repeat a write that ends with no 200."""
        change = {key: (epoch, next(self.counter), body.decode())}
        taken = [self.take_in(partition, epoch, change)]
        if taken[0][0] == 200:
            path = f"/partitions/{partition}?epoch={epoch}"
            data = json.dumps(change).encode()
            taken += await asyncio.gather(*(ask(node, "PUT", path, data) for node in replicas))
        refusals = [answer for status, answer in taken if status != 200]
        if refusals:
            return 503, {"error": "not every holder took it", "refusals": refusals}
        holders = [self.ck.node_id, *(node.id for node in replicas)]
        return 200, {"partition": partition, "holders": holders}

    def take_in(self, partition: str, epoch: int, change: dict[str, Any]) -> Reply:
        """Keeps a write of the primary, unless the primary has been replaced."""
        if epoch < self.fences[partition]:
            return 409, {"error": f"{self.ck.node_id} has seen a newer epoch of {partition}"}
        self.fences[partition] = epoch
        self.merge(partition, change)
        return 200, {}

    def hand_out(self, partition: str, epoch: int) -> Reply:
        """All entries of a partition, if this node has all.

        404 says more than 503: this node does not have them, and is not about to get them. When
        nodes come and go quickly, one may be asked that was a holder for a moment and got nothing.
        """
        known = self.ck.partition(partition)
        mine = self.ck.node_id in [node.id for node in known.nodes]
        if mine and not self.ck.is_ready(partition):
            return 503, {"error": f"{self.ck.node_id} does not have all of {partition} yet"}
        if partition not in self.complete:
            behind = known.epoch < epoch  # it may become a holder by what it has not heard yet
            return 503 if behind else 404, {"error": f"{self.ck.node_id} never had {partition}"}
        self.fences[partition] = max(self.fences[partition], epoch)
        return 200, dict(self.entries[partition])

    def merge(self, partition: str, entries: dict[str, Any]) -> None:
        """Takes over what is newer than what is there; so the order of arrival does not matter."""
        held = self.entries[partition]
        for key, (epoch, count, value) in entries.items():
            if key not in held or held[key] < (epoch, count, value):
                held[key] = (epoch, count, value)


# As much HTTP as this needs: one request a connection.


async def read_message(reader: asyncio.StreamReader, limit: int) -> tuple[str, bytes]:
    """The first line, and the body, of a request or an answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    fields = {name.lower(): text for name, _, text in (line.partition(":") for line in lines)}
    length = int(fields.get("content-length", 0))
    if "transfer-encoding" in fields or not 0 <= length <= limit:
        raise ValueError(f"send a Content-Length of at most {limit}, and nothing else")
    return first, await reader.readexactly(length)


async def ask(node: Node, method: str, target: str, body: bytes = b"") -> Reply:
    """Asks another node. One that cannot be asked is a 503 like any other."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection(node.host, node.port)
            try:
                head = f"{method} {target} HTTP/1.1\r\nHost: {node.address}\r\n"
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                first, answer = await read_message(reader, sys.maxsize)
            finally:
                writer.close()
        return int(first.split()[1]), json.loads(answer)
    except (OSError, EOFError, ValueError) as error:
        return 503, {"error": f"{node.id} does not answer: {error!r}"}


async def serve(store: Store, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads one request and answers it."""
    try:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                first, body = await read_message(reader, MAX_VALUE_BYTES)
            method, target, _ = first.split()
        except (ValueError, asyncio.LimitOverrunError) as error:
            status, document = 400, {"error": str(error)}
        else:
            status, document = await store.answer(method, target, body)
        text = json.dumps(document).encode() + b"\n"
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        writer.write(head.encode() + text)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await writer.drain()
    except (OSError, EOFError):
        pass  # the other side has gone, or was too slow
    finally:
        writer.close()


def listen_on(node_host: str) -> str | None:
    """An address is listened on as it is given; behind a name, as in a pod, all of them are."""
    try:
        return str(ipaddress.ip_address(node_host))
    except ValueError:
        return None


async def main() -> None:
    """Runs one node until SIGTERM or SIGINT."""
    host, _, port = Options.resolve().require_address().rpartition(":")
    ck = ClusterKit()
    store = Store(ck)
    server = await asyncio.start_server(
        lambda reader, writer: serve(store, reader, writer), listen_on(host.strip("[]")), int(port)
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ck.request_stop)
    # Others copy from this node until it has left: its server ends after the kit.
    async with server, ck:
        await ck.wait_stopped()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(process)d] %(message)s")
    try:
        asyncio.run(main())
    except (ClusterKitError, OSError) as error:
        sys.exit(f"quickstart: {error}")
