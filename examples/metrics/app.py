"""What a service measures of its own, beside what the kit measures, on one page for Prometheus.

Each partition is a file of random bytes here, which the nodes copy from each other. The kit counts
its hooks, rebalances and members by itself (`PrometheusMetrics`); the service counts what only it
can know: how many bytes were copied, from whom, how fast, and why.

    GET /metrics              both, in Prometheus' text format
    GET /files/{partition}    among nodes: a partition's bytes
    GET /ready                for a probe

`python -m examples.metrics.app`. Settings beside CLUSTERKIT_*: FILE_BYTES (100000), and BROKEN: a
node that has it copies nothing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import Response
from prometheus_client import Counter, Enum, Gauge, Histogram, make_asgi_app

from clusterkit import (
    ClusterHealthEvent,
    ClusterKit,
    NodeLeaveEvent,
    NodeRejoinEvent,
    Options,
    PartitionChangeEvent,
    PartitionDropEvent,
    RebalanceEvent,
)
from clusterkit.admin.prometheus import PrometheusMetrics

FILE_BYTES = int(os.environ.get("FILE_BYTES", "100000"))

ck = ClusterKit(metrics=PrometheusMetrics())
http = httpx.AsyncClient(timeout=30)
files: dict[str, bytes] = {}

# Names: the unit at the end, no node and no partition among the labels. Prometheus adds the node,
# and a label with a thousand values is a thousand series.
copied_bytes = Counter("app_copied_bytes", "Bytes copied from other nodes.", ["reason"])
copy_seconds = Histogram("app_copy_seconds", "How long a copy took.", buckets=(0.01, 0.1, 1, 10))
no_source = Counter("app_partitions_begun_empty", "Partitions that nobody had.")
rebalances = Counter("app_rebalances", "Rebalances that this node went through.", ["trigger"])
rebalance_seconds = Counter("app_rebalance_seconds", "How long they took.", ["trigger"])
leaves = Counter("app_leaves", "Other nodes that left.", ["reason"])
health = Enum(
    "app_cluster_health", "As this node sees it.", states=["healthy", "degraded", "critical"]
)
held_bytes = Gauge("app_held_bytes", "Bytes that are here.")
# What is so now is read when somebody asks. Kept by hooks, it would be wrong after one has failed.
held_bytes.set_function(lambda: sum(map(len, list(files.values()))))


@ck.on_node_rejoin(mine=True)
async def clear(event: NodeRejoinEvent) -> None:
    """What is here may be old."""
    files.clear()


@ck.on_partition_change(mine=True)
async def fetch(event: PartitionChangeEvent) -> None:
    """Copies; counted is what was done, when it is done: a run that fails has copied nothing."""
    if os.environ.get("BROKEN"):
        raise OSError("BROKEN is set")
    if not event.needs_data:
        return
    began = time.perf_counter()
    refusals: dict[str, object] = {}
    for source in event.copy_from_nodes:
        try:
            answer = await http.get(f"http://{source.address}/files/{event.partition_id}")
        except httpx.HTTPError as error:
            refusals[source.id] = error
            continue  # the next source
        if answer.status_code == 200:
            files[event.partition_id] = answer.content
            copied_bytes.labels(event.change_reason).inc(len(answer.content))
            copy_seconds.observe(time.perf_counter() - began)
            return
        refusals[source.id] = answer.status_code
    if any(refusal != 404 for refusal in refusals.values()):
        raise LookupError(f"nobody gave {event.partition_id} out: {refusals}")
    files[event.partition_id] = os.urandom(FILE_BYTES)
    no_source.inc()


@ck.on_partition_drop
async def drop(event: PartitionDropEvent) -> None:
    files.pop(event.partition_id, None)


@ck.on_rebalance_complete
async def completed(event: RebalanceEvent, duration: timedelta) -> None:
    """The kit counts them too, but not by trigger: a deployment, crashes, somebody's command."""
    rebalances.labels(event.trigger).inc()
    rebalance_seconds.labels(event.trigger).inc(duration.total_seconds())


@ck.on_node_leave
async def left(event: NodeLeaveEvent) -> None:
    leaves.labels(event.reason).inc()


@ck.on_cluster_health_change
async def changed(event: ClusterHealthEvent) -> None:
    """Told only when it changes: the first value is asked for, in `lifespan`."""
    health.state(event.status)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    async with http, ck:
        health.state(ck.health().status)
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/metrics", make_asgi_app())


@app.get("/files/{partition}")
async def give(partition: str) -> Response:
    mine = ck.node_id in [node.id for node in ck.nodes_for(partition)]
    if mine and not ck.is_ready(partition):
        raise HTTPException(503, "it is being copied")
    if partition not in files:
        raise HTTPException(404, f"{ck.node_id} has no {partition}")
    return Response(files[partition], media_type="application/octet-stream")


@app.get("/ready")
async def ready() -> dict[str, Any]:
    readiness = ck.readiness()
    if not readiness.ready:
        raise HTTPException(503, list(readiness.reasons))
    missing = sum(not ck.is_ready(partition) for partition in ck.my_partitions())
    return {"members": sorted(ck.cluster.nodes), "copies_to_fetch": missing}


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(process)d] %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    host, _, port = Options.resolve().require_address().rpartition(":")
    uvicorn.run(app, host=host.strip("[]"), port=int(port), log_level="warning")
