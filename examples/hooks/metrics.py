"""Counting in hooks: what has happened is counted when it happens, what is so is read when asked.

* A hook of a few microseconds is enough to count an event: who moved, why, how long it took. Hooks
  run side by side in threads, so what they share needs a lock.
* Which partitions this node has, what is owed, how the cluster is: the kit knows that at any time.
  To count it in hooks would make a second truth, which is wrong after the first hook that failed.

`GET /metrics` answers in the text format of Prometheus, by the standard library alone.

By hand: run two nodes, one of them with BROKEN=1: there `app_hook_errors_total` grows, `app_owed`
says how much is missing and `app_ready` is 0. On the other one nothing of that: each node counts
its own hooks. Then stop one, and look for `node_leave` in what the other one answers.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections import defaultdict
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from clusterkit import (
    ClusterKitError,
    HookErrorEvent,
    NodeLeaveEvent,
    Options,
    PartitionChangeEvent,
    RebalanceEvent,
)
from clusterkit.sync import ClusterKit

ck = ClusterKit()
lock = threading.Lock()
counters: defaultdict[str, float] = defaultdict(float)


def count(series: str, by: float = 1) -> None:
    """Adds to one line of the answer."""
    with lock:
        counters[series] += by


@ck.on_partition_change(mine=True, name="fetch")
def fetch(event: PartitionChangeEvent) -> None:
    """Where the data would be copied. It counts what is done, at the end."""
    if os.environ.get("BROKEN"):
        raise OSError("BROKEN is set")
    kind = "copy" if event.needs_data else "promotion"
    count(f'app_moves_total{{kind="{kind}",reason="{event.change_reason}"}}')


@ck.on_node_leave
def left(event: NodeLeaveEvent) -> None:
    count(f'app_leaves_total{{reason="{event.reason}"}}')


@ck.on_rebalance_complete
def rebalanced(event: RebalanceEvent, duration: timedelta) -> None:
    count(f'app_rebalances_total{{trigger="{event.trigger}"}}')
    count("app_rebalance_seconds_total", duration.total_seconds())


@ck.on_hook_error
def failed(event: HookErrorEvent) -> None:
    count(f'app_hook_errors_total{{hook="{event.hook}",error="{type(event.error).__name__}"}}')


def exposition() -> str:
    """What has been counted, and what is so now."""
    with lock:
        values = dict(counters)
    values |= {
        "app_owed": len(ck.owed()),
        "app_ready": ck.readiness().ready,
        'app_partitions{role="primary"}': len(ck.my_partitions(role="primary")),
        'app_partitions{role="replica"}': len(ck.my_partitions(role="replica")),
    }
    return "".join(f"{series} {float(value):g}\n" for series, value in sorted(values.items()))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # the name that http.server looks for
        found = self.path == "/metrics"
        body = exposition().encode() if found else b"try /metrics\n"
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Runs one node until SIGTERM or SIGINT, and a server for as long."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ck.request_stop())
    host, _, port = Options.resolve().require_address().rpartition(":")
    with ck, ThreadingHTTPServer((host.strip("[]"), int(port)), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ck.wait_stopped()
        server.shutdown()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(process)d] %(message)s")
    try:
        main()
    except ClusterKitError as error:
        sys.exit(f"metrics: {error}")
