"""What a probe waits for while a large rebalance runs, and what a scrape costs.

Both handlers are served by one uvicorn in the kit's own process. The client is a process of its
own (``python -m tests.bench.admin PORT COUNT PATH ...``), which asks for the paths in turn.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from statistics import median

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from clusterkit import PartitionChangeEvent
from clusterkit.admin.server import AdminServer
from clusterkit.sync import ClusterKit

from ..benchmarks.common import new_prefix, options, quantile, until
from .common import Row, at_most, tidy, untidied
from .guest import Guest

READY_PARTITIONS = 16_384
READY_RATIO = 3.0
METRICS_PARTITIONS = 65_536
METRICS_MS = 20.0
WARM_UP = 50
PATIENCE = 120.0


def rows(endpoint: str, probes: int, scrapes: int) -> list[Row]:
    """The rows of probes and those of scrapes."""
    return [*_probes(endpoint, probes), *_scrapes(endpoint, scrapes)]


async def _bare(request: Request) -> JSONResponse:
    return JSONResponse({"ready": True, "reasons": []})


@contextmanager
def _served(kit: ClusterKit) -> Iterator[int]:
    """The kit's application beside a bare handler; the port of their server."""
    app = Starlette(routes=[Route("/bare", _bare), Mount("/ck", kit.asgi())])
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with closing(AdminServer(app, f"127.0.0.1:{port}")) as server:
        server.open()
        yield port


def _probes(endpoint: str, count: int) -> list[Row]:
    prefix = new_prefix()
    kit = ClusterKit(**options(endpoint, prefix, "stays", partitions=READY_PARTITIONS))
    moved: list[int] = []

    @kit.on_partition_change
    def count_it(event: PartitionChangeEvent) -> None:
        moved.append(1)

    over = threading.Event()

    def keep_moving() -> None:
        """One rebalance after another: the guest joins, all hooks end, it leaves, and so on."""
        with Guest(endpoint, prefix) as guest:
            while not over.is_set():
                _seen(kit, guest.move()[1])
                until(lambda: over.is_set() or not kit.owed(), "all hooks have ended", PATIENCE)

    with kit, _served(kit) as port:
        kit.wait_ready(PATIENCE)
        moving = threading.Thread(target=keep_moving, daemon=True)
        moving.start()
        try:
            until(lambda: kit.stats().rebalances > 1, "a rebalance has begun", PATIENCE)
            began, before = len(moved), kit.stats().rebalances
            ours, bare = _ask(port, count, ["/ck/ready", "/bare"])
            done, rebalances = len(moved) - began, kit.stats().rebalances - before
        finally:
            over.set()
            moving.join(PATIENCE)
    if not done:
        raise RuntimeError("nothing was rebalanced meanwhile: this is no measurement")
    what = f"{rebalances} rebalances of {READY_PARTITIONS} partitions"
    return [
        at_most(
            f"GET /ready / a bare handler, p99 of {count}, {what}",
            quantile(ours, 0.99) * 1e3,
            quantile(bare, 0.99) * 1e3,
            "ms",
            READY_RATIO,
        ),
        at_most(
            "the same, median",
            median(ours) * 1e3,
            median(bare) * 1e3,
            "ms",
            None,
        ),
    ]


def _scrapes(endpoint: str, count: int) -> list[Row]:
    prefix = new_prefix()
    kit = ClusterKit(**options(endpoint, prefix, "stays", partitions=METRICS_PARTITIONS))
    fresh: list[float] = []
    with kit, _served(kit) as port, Guest(endpoint, prefix) as guest, untidied():
        kit.wait_ready(PATIENCE)
        tidy()
        for _ in range(max(2, count // 10)):
            _seen(kit, guest.move()[1])
            fresh += _client(port, 1, ["/ck/metrics"], warm_up=0)[0]
        ours, bare = _ask(port, count, ["/ck/metrics", "/bare"])
    return [
        _below(f"GET /metrics, {METRICS_PARTITIONS} partitions, p99 of {count}", ours, bare, 0.99),
        _below(
            f"the same, as soon as one of {len(fresh)} new views is there, median", fresh, bare, 0.5
        ),
        _below("the same, max", fresh, bare, 1.0),
    ]


def _seen(kit: ClusterKit, revision: int) -> None:
    """Waits until the view has a revision. Not by stats(), which counts what a scrape would."""
    until(lambda: kit.cluster.revision >= revision, f"the view has {revision}", PATIENCE)


def _below(work: str, ours: Sequence[float], bare: Sequence[float], which: float) -> Row:
    mine, peer = quantile(ours, which) * 1e3, quantile(bare, which) * 1e3
    good = mine < METRICS_MS
    return Row(work, mine, peer, "ms", mine / peer, f"ours under {METRICS_MS:g}", good)


def _ask(port: int, count: int, paths: Sequence[str]) -> list[list[float]]:
    """Seconds of each request, by path; asked by a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.admin", str(port), str(count), *paths],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found: list[list[float]] = json.loads(done.stdout)
    return found


def _client(
    port: int, count: int, paths: Sequence[str], warm_up: int = WARM_UP
) -> list[list[float]]:
    """Asks for the paths in turn on one connection; who is first changes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    found: dict[str, list[float]] = {path: [] for path in paths}
    for number in range(warm_up + count):
        for path in paths if number % 2 else reversed(paths):
            began = time.perf_counter()
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            seconds = time.perf_counter() - began
            if number >= warm_up:
                found[path].append(seconds)
    connection.close()
    return [*found.values()]


if __name__ == "__main__":
    port, count, *paths = sys.argv[1:]
    print(json.dumps(_client(int(port), int(count), paths)))
