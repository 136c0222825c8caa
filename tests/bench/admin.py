"""What a probe waits for while a large rebalance runs, and what a scrape costs.

Both handlers are served by one uvicorn in the kit's own process. The client is a process of its
own (``python -m tests.bench.admin PORT``), since one in the kit's would wait for the interpreter
as often as the server does. It asks as it is told by the lines of its input.
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
from typing import Self

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
            with _Client(port) as client:
                ours, bare = client.ask(["/ck/ready", "/bare"], count, WARM_UP)
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
    fresh: dict[str, list[float]] = {"/ck/metrics": [], "/bare": []}
    with (
        kit,
        _served(kit) as port,
        _Client(port) as client,
        Guest(endpoint, prefix) as guest,
        untidied(),
    ):
        kit.wait_ready(PATIENCE)
        client.ask([*fresh], WARM_UP, 0)
        tidy()
        for number in range(max(2, count // 5)):
            # A join and a leave for each of them, and then again.
            path = [*fresh][number // 2 % 2]
            _seen(kit, guest.move()[1])
            fresh[path] += client.ask([path], 1, 0)[0]
        ours, bare = client.ask([*fresh], count, WARM_UP)
    now, bare_now = fresh.values()
    work = f"the same, as soon as one of {len(fresh['/bare'])} new views is there"
    return [
        _below(f"GET /metrics, {METRICS_PARTITIONS} partitions, p99 of {count}", ours, bare, 0.99),
        _below(f"{work}, median", now, bare_now, 0.5),
        _below("the same, max", now, bare_now, 1.0),
    ]


def _seen(kit: ClusterKit, revision: int) -> None:
    """Waits until the view has a revision. Not by stats(), which counts what a scrape would."""
    until(lambda: kit.cluster.revision >= revision, f"the view has {revision}", PATIENCE)


def _below(work: str, ours: Sequence[float], bare: Sequence[float], which: float) -> Row:
    mine, peer = quantile(ours, which) * 1e3, quantile(bare, which) * 1e3
    good = mine < METRICS_MS
    return Row(work, mine, peer, "ms", mine / peer, f"ours under {METRICS_MS:g}", good)


class _Client:
    """Asks the server from a process of its own, on one connection."""

    def __init__(self, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.admin", str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, paths: Sequence[str], count: int, warm_up: int) -> list[list[float]]:
        """Seconds of each request, by path, which take turns; without those of the warm-up."""
        told, tells = self._process.stdin, self._process.stdout
        assert told is not None
        assert tells is not None
        told.write(json.dumps([paths, count, warm_up]) + "\n")
        told.flush()
        found: list[list[float]] = json.loads(tells.readline())
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()  # the end of its input is its end


def _asked(connection: http.client.HTTPConnection, path: str) -> float:
    began = time.perf_counter()
    connection.request("GET", path)
    connection.getresponse().read()
    return time.perf_counter() - began


def _serve_client(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    for line in sys.stdin:
        paths, count, warm_up = json.loads(line)
        found: dict[str, list[float]] = {path: [] for path in paths}
        for number in range(warm_up + count):
            for path in paths if number % 2 else reversed(paths):
                seconds = _asked(connection, path)
                if number >= warm_up:
                    found[path].append(seconds)
        print(json.dumps([*found.values()]), flush=True)
    connection.close()


if __name__ == "__main__":
    _serve_client(int(sys.argv[1]))
