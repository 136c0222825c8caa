"""How the cost of a cluster grows with its nodes: ``make scale``.

For each size it starts that many registered nodes on one etcd, waits until all views are equal and
all hooks have succeeded, measures a quiet while, restarts a tenth of the nodes, and waits again.
Prints a row a size, and writes ``build/scale/results.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from clusterkit.testing import EmbeddedEtcd

from . import one_node

OUT = Path("build/scale")
SIZES = (10, 50, 100, 200, 500)
_ROOT = Path(__file__).resolve().parent.parent.parent
_PAUSE = threading.Event()  # never set


@dataclass(frozen=True)
class Result:
    """What one size costs.

    Attributes:
        nodes: Registered nodes.
        start_seconds: From the first start until all views were equal and all hooks over.
        restart_seconds: The same, from the first stop of a tenth of the nodes, stops and starts
            included.
        events: Hooks run for that restart, over all nodes.
        etcd_cpu_seconds: etcd's processor time for that restart.
        etcd_sent_mb: What etcd sent to clients for that restart.
        node_mb: Resident memory a node, over that of the same process without any.
        quiet_cpu: Processor time a node when nothing happens, in per cent of one core.
        quiet_etcd_cpu: etcd's processor time then, in per cent of one core.
    """

    nodes: int
    start_seconds: float
    restart_seconds: float
    events: int
    etcd_cpu_seconds: float
    etcd_sent_mb: float
    node_mb: float
    quiet_cpu: float
    quiet_etcd_cpu: float


class HostProcess:
    """A process of ``host.py``, by the calls that it takes."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.scale.host", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
        )

    def call(self, name: str, *arguments: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(f"{name}: {answer['error']}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        t: type[BaseException] | None,
        e: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Cluster:
    """Many nodes in few processes, on an etcd of their own."""

    def __init__(self, etcd: EmbeddedEtcd, hosts: list[HostProcess]) -> None:
        self._etcd = etcd
        self._hosts = hosts
        self._pool = ThreadPoolExecutor(len(hosts))

    def each(self, name: str, arguments: list[tuple[object, ...]]) -> list[dict[str, Any]]:
        """The same call of each process, all at once."""
        pairs = zip(self._hosts, arguments, strict=True)
        return list(self._pool.map(lambda pair: pair[0].call(name, *pair[1]), pairs))

    def all(self, name: str, *arguments: object) -> list[dict[str, Any]]:
        return self.each(name, [arguments] * len(self._hosts))

    def share(self, node_ids: list[str]) -> list[tuple[object, ...]]:
        """Deals nodes out to the processes, always the same one to the same."""
        count = len(self._hosts)
        return [(node_ids_of(node_ids, count, i),) for i in range(count)]

    def settle(self, nodes: int, seconds: float) -> float:
        """When all views had become equal."""
        answers = self.all("wait", nodes, seconds)
        epochs = {epoch for answer in answers for epoch in answer["epochs"]}
        hashes = {h for answer in self.all("rows") for h in answer["hashes"]}
        if len(epochs) != 1 or len(hashes) != 1:
            raise RuntimeError(f"views differ at rest: epochs {epochs}, rows {hashes}")
        return max(float(answer["at"]) for answer in answers)

    def used(self) -> tuple[float, float, int]:
        """Processor seconds, resident bytes and events of all hosts."""
        answers = self.all("usage")
        if any(answer["divergences"] for answer in answers):
            raise RuntimeError("a view differed from what etcd has")
        return (
            sum(a["cpu"] for a in answers),
            sum(a["resident"] for a in answers),
            sum(sum(a["events"].values()) for a in answers),
        )

    def etcd(self) -> tuple[float, float]:
        """etcd's processor seconds and bytes sent to clients, so far."""
        fields = Path(f"/proc/{self._etcd.pid}/stat").read_text().rpartition(")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        with urllib.request.urlopen(f"http://{self._etcd.endpoint}/metrics", timeout=30) as page:
            text = page.read().decode()
        found = re.search(r"^etcd_network_client_grpc_sent_bytes_total (\S+)$", text, re.MULTILINE)
        return cpu, float(found[1]) if found else math.nan

    def close(self) -> None:
        self._pool.shutdown()


def node_ids_of(node_ids: list[str], count: int, index: int) -> list[str]:
    return [n for n in node_ids if int(n.rpartition("-")[2]) % count == index]


def settle_seconds(nodes: int) -> float:
    """So that a start is some ten rebalances, on the two cores that have all of the nodes."""
    return min(60.0, max(5.0, nodes * 0.12))


def measure(nodes: int, given: argparse.Namespace) -> Result:
    """One size."""
    settle = settle_seconds(nodes) if given.settle_seconds is None else given.settle_seconds
    with ExitStack() as stack:
        etcd = stack.enter_context(EmbeddedEtcd(args=("--quota-backend-bytes", str(2 << 30))))
        options = {
            "endpoints": etcd.endpoint,
            "prefix": f"/scale-{uuid.uuid4().hex[:8]}",
            "cluster": "c",
            "partitions": given.partitions,
            "settle_time": settle,
            "replication_factor": 3,
            # So many runners share two cores here, that a lease has to outlive their queue.
            "lease_ttl": 600,
            "connect_timeout": 120,
            "drain_timeout": 60,
            "environ": {},
        }
        hosts = [
            stack.enter_context(HostProcess(options))
            for _ in range(max(1, min(given.processes, nodes)))
        ]
        cluster = Cluster(etcd, hosts)
        stack.callback(cluster.close)
        node_ids = [f"node-{i}" for i in range(nodes)]
        _, empty, _ = cluster.used()
        began = time.monotonic()
        cluster.each("start", cluster.share(node_ids))
        started = cluster.settle(nodes, given.patience) - began
        cpu, resident, _ = cluster.used()
        etcd_cpu, _ = cluster.etcd()
        _PAUSE.wait(given.quiet_seconds)
        quiet_cpu = (cluster.used()[0] - cpu) / given.quiet_seconds / nodes
        quiet_etcd = (cluster.etcd()[0] - etcd_cpu) / given.quiet_seconds
        _, _, events = cluster.used()
        etcd_cpu, sent = cluster.etcd()
        restarted = node_ids[:: max(1, nodes // max(1, nodes // 10))][: max(1, nodes // 10)]
        began = time.monotonic()
        cluster.each("stop", cluster.share(restarted))
        cluster.each("start", cluster.share(restarted))
        again = cluster.settle(nodes, given.patience) - began
        _, _, events_after = cluster.used()
        etcd_cpu_after, sent_after = cluster.etcd()
        return Result(
            nodes=nodes,
            start_seconds=round(started, 2),
            restart_seconds=round(again, 2),
            events=events_after - events,
            etcd_cpu_seconds=round(etcd_cpu_after - etcd_cpu, 2),
            etcd_sent_mb=round((sent_after - sent) / 1e6, 2),
            node_mb=round((resident - empty) / nodes / 1e6, 2),
            quiet_cpu=round(100 * quiet_cpu, 3),
            quiet_etcd_cpu=round(100 * quiet_etcd, 2),
        )


def growth(results: list[Result], field: str) -> str:
    """With which power of the number of nodes a cost grew, between the last two sizes."""
    if len(results) < 2:
        return ""
    one, two = results[-2:]
    a, b = getattr(one, field), getattr(two, field)
    if a <= 0 or b <= 0:
        return "-"
    return f"n^{math.log(b / a) / math.log(two.nodes / one.nodes):.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make scale ARGS=...", description=__doc__)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--partitions", type=int, default=16_384)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument(
        "--settle-seconds",
        type=float,
        help="settle_time of the kits; unless given from 5 to 60 s, by the number of nodes, since "
        "each rebalance is a receipt of each for each",
    )
    parser.add_argument("--quiet-seconds", type=float, default=10.0)
    parser.add_argument("--patience", type=float, default=1800.0, help="seconds for one wait")
    parser.add_argument(
        "--one-node",
        metavar="NODES,PARTITIONS",
        help="instead: what one node of a cluster of that size has to do, on the store in memory",
    )
    given = parser.parse_args()
    if given.one_node:
        nodes, partitions = map(int, given.one_node.split(","))
        print(one_node.report(nodes, partitions))
        return 0
    fields = list(Result.__annotations__)
    print("  ".join(f"{name:>16}" for name in fields), flush=True)
    results: list[Result] = []
    for size in map(int, given.sizes.split(",")):
        result = measure(size, given)
        results.append(result)
        print("  ".join(f"{getattr(result, name):>16}" for name in fields), flush=True)
    print("  ".join(f"{growth(results, name):>16}" for name in fields))
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / "results.json"
    file.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    print(f"(the last line: with which power of the nodes each cost grew at the end; {file})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
