"""One node of the demo: a small replicated key-value store whose data moves only by the hooks.

Run as ``python -m clusterkit.cli.demo.node``. It listens, says so in one JSON line on standard
output, and from then on obeys the lines of its standard input: ``join``, ``stop``. When its input
ends, its parent is gone, and so is it. Everything that its hooks are told goes out as JSON lines.

Requests of clients (the primary answers; 421: not the owner here, 503: try again):
    GET, PUT /kv/{key}

Requests of other nodes:
    PUT /replica/{partition}/{key}?epoch=..&count=..    a write of the partition's primary
    GET /copy/{partition}?epoch=..                      what it has of a partition

Requests of the driver:
    GET /status     POST /rebalance
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
import time
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from clusterkit import (
    ClusterKitError,
    NodeRejoinEvent,
    OwnershipError,
    PartitionChangeEvent,
    PartitionDropEvent,
    hook_context,
)
from clusterkit.cli.demo.store import Item, PartitionStore
from clusterkit.cli.demo.transport import Peers, Reply, Server
from clusterkit.cli.records import record_all
from clusterkit.sync import ClusterKit

REQUEST_TIMEOUT_SECONDS: Final = 2.0
COPY_PATIENCE_SECONDS: Final = 2.0
"""How long one run of the migration hook goes on asking sources that are not ready yet."""


class DemoNode:
    """The store, its server, and the kit that tells both who owns what."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.id: str = args.node_id
        self._store = PartitionStore()
        self._peers = Peers(REQUEST_TIMEOUT_SECONDS)
        self._say_lock = threading.Lock()
        self._waiting = threading.Event()  # never set: only something to wait on
        self._server = Server(self._route)
        self.kit = ClusterKit(
            cluster=args.cluster,
            endpoints=args.endpoints,
            node_id=args.node_id,
            address=self._server.address,
            partitions=args.partitions,
            replication_factor=args.replication_factor,
            lease_ttl=args.ttl,
            environ={},  # a demo is not changed by the settings of the user's own cluster
        )
        record_all(self.kit, self.id, self._say)
        self.kit.on_node_rejoin(mine=True)(self._clear)
        if not args.without_hooks:
            # A source that is itself still copying says so; a moment later it has it all.
            self.kit.on_partition_change(mine=True, retries=1)(self._migrate)

    def run(self) -> int:
        """Obeys standard input until ``stop`` or its end; the exit code."""
        self._say({"event": "listening", "seen_by": self.id, "address": self._server.address})
        for line in sys.stdin:
            match line.strip():
                case "join":
                    self.kit.start()
                    self._say({"event": "joined", "seen_by": self.id})
                case "stop":
                    self.kit.stop()
                    self._server.close()
                    return 0
        # The parent is gone, and etcd probably with it: there is nobody to take leave of.
        os._exit(1)

    # What the hooks do.

    def _clear(self, event: NodeRejoinEvent) -> None:
        self._store.clear()

    def _migrate(self, event: PartitionChangeEvent) -> None:
        """Copies the partition from the first source that has all of it.

        A source that fails, or that is itself still copying, is asked again. Sources that were
        holders too briefly to have it all say so; if all are such, then what they have together
        is what there is: nothing, for a partition that is new.
        """
        if not event.needs_data:
            return
        partition = event.partition_id
        epoch = self.kit.partition(partition).epoch
        context = hook_context()
        give_up = time.monotonic() + COPY_PATIENCE_SECONDS
        while True:
            parts: dict[str, Item] = {}
            refusals: dict[str, str] = {}
            for source in event.copy_from_nodes:
                context.raise_if_cancelled()
                try:
                    status, body = self._peers.request(
                        "GET", source.address, f"/copy/{partition}?epoch={epoch}"
                    )
                except OSError as error:
                    refusals[source.id] = str(error)
                    continue
                if status != 200:
                    refusals[source.id] = body.decode()
                    continue
                answer = json.loads(body)
                items = {key: (item[0], item[1], item[2]) for key, item in answer["items"].items()}
                if answer["complete"]:
                    self._store.copy_in(partition, epoch, items)
                    self._say_copied(event, source.id, len(items), len(body))
                    return
                parts |= {k: i for k, i in items.items() if k not in parts or parts[k] < i}
            if not refusals:
                self._store.copy_in(partition, epoch, parts)
                return
            if time.monotonic() > give_up:
                # Raising leaves the move owed: the library runs this hook again later.
                raise RuntimeError(f"no source has {partition}: {refusals}")
            self._waiting.wait(0.05)

    def _drop(self, event: PartitionDropEvent) -> None:
        partition = self.kit.partition(event.partition_id)
        if all(node.id != self.id for node in partition.nodes):
            self._store.drop(partition.id, partition.epoch)

    def _say_copied(self, event: PartitionChangeEvent, source: str, keys: int, size: int) -> None:
        self._say(
            {
                "event": "copied",
                "seen_by": self.id,
                "revision": event.revision,
                "event_id": event.event_id,
                "partition_id": event.partition_id,
                "source": source,
                "keys": keys,
                "bytes": size,
            }
        )

    def _say(self, line: dict[str, Any]) -> None:
        with self._say_lock:
            print(json.dumps(line), flush=True)

    # What the requests do.

    def _route(self, method: str, target: str, body: bytes) -> Reply:
        url = urlsplit(target)
        query = {name: int(values[0]) for name, values in parse_qs(url.query).items()}
        try:
            match method, *(unquote(part) for part in url.path.strip("/").split("/")):
                case "GET", "kv", key:
                    return self._read(key)
                case "PUT", "kv", key:
                    return self._write(key, body.decode())
                case "PUT", "replica", partition, key:
                    version = query["epoch"], query["count"]
                    if self._store.put(partition, key, version, body.decode()):
                        return 200, b""
                    return 409, b"a newer epoch or version is here"
                case "GET", "copy", partition:
                    return self._copy_out(partition, query["epoch"])
                case "GET", "status":
                    return 200, json.dumps(self._status()).encode()
                case "POST", "rebalance":
                    return 200, str(self.kit.rebalance("asked for by the demo")).encode()
        except OwnershipError as error:
            return 421, str(error).encode()
        except ClusterKitError as error:
            return 503, str(error).encode()
        return 404, b"no such path"

    def _read(self, key: str) -> Reply:
        with self.kit.guard(self.kit.partition_for(key)) as guard:
            if not self.kit.is_ready(guard.partition):
                return 503, b"still copying this partition"
            value = self._store.get(guard.partition.id, key)
            guard.check()
        return (404, b"no such key") if value is None else (200, value.encode())

    def _write(self, key: str, value: str) -> Reply:
        """Acknowledged once every holder has it, and only if this node was the owner throughout.

        An owner that has not received the partition yet takes no writes: a later copy might be
        served by a holder of before, who knows nothing of them.
        """
        with self.kit.guard(self.kit.partition_for(key)) as guard:
            partition = guard.partition
            if not self.kit.is_ready(partition):
                return 503, b"still copying this partition"
            epoch, count = self._store.next_version(guard.epoch)
            if not self._store.put(partition.id, key, (epoch, count), value):
                return 421, b"a newer owner has been here"
            path = f"/replica/{partition.id}/{key}?epoch={epoch}&count={count}"
            for node in partition.replicas:
                try:
                    status, _ = self._peers.request("PUT", node.address, path, value.encode())
                except OSError as error:
                    return 503, f"{node.id} did not take the write: {error}".encode()
                if status != 200:
                    return 503, f"{node.id} refused the write: {status}".encode()
            guard.check()
        return 200, b""

    def _copy_out(self, partition_id: str, epoch: int) -> Reply:
        partition = self.kit.partition(partition_id)
        holds_it = any(node.id == self.id for node in partition.nodes)
        if holds_it and not self.kit.is_ready(partition):
            return 503, b"not ready for this partition itself"
        complete, items = self._store.copy_out(partition_id, epoch)
        return 200, json.dumps({"complete": complete, "items": items}).encode()

    def _status(self) -> dict[str, Any]:
        view = self.kit.cluster
        mine = self.kit.my_partitions()
        return {
            "node": self.id,
            "revision": view.revision,
            "epoch": view.partitions[0].epoch,
            "members": list(view.nodes),
            "not_ready": [p.id for p in mine if not self.kit.is_ready(p)],
            "owed": [f"{move.partition_id}: {move.error}" for move in self.kit.owed()],
            "keys": self._store.keys(),
        }


def main() -> int:
    """Runs one node. Standard error is its log, and ends with what went wrong."""
    parser = argparse.ArgumentParser(prog="clusterkit.cli.demo.node")
    parser.add_argument("--cluster", required=True)
    parser.add_argument("--endpoints", required=True)
    parser.add_argument("--node-id", required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--replication-factor", type=int, required=True)
    parser.add_argument("--ttl", type=int, required=True)
    parser.add_argument("--without-hooks", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        return DemoNode(arguments).run()
    except ClusterKitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
