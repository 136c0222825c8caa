"""Counting in hooks what is yours; the kit counts what is its own.

* The kit measures its hooks, by name and outcome, and its rebalances and queues: one line,
  `metrics=PrometheusMetrics()`. Do not count in hooks what a hook cannot see, such as the runs that
  were out of time.
* What an event means to your service, you count in a hook, when the work is done. That takes some
  microseconds, and is safe in threads, as prometheus_client's counters are.
* What is so now is read when somebody asks, and not kept up to date by hooks: it would be wrong
  after the first that failed.

With prometheus_client (pip install 'clusterkit[admin]'); `GET /metrics` answers.

By hand: run two nodes, one of them with BROKEN=1. There the count of `fetch` with
`outcome="error"` grows, `clusterkit_partition_changes_owed` says how much is missing and
`app_ready` is 0. On the other one nothing of that: each node measures its own hooks. Then stop one,
and look for `app_leaves_total` in what the other one answers.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

from prometheus_client import Counter, Gauge, start_http_server

from clusterkit import ClusterKitError, NodeLeaveEvent, Options, PartitionChangeEvent
from clusterkit.admin.prometheus import PrometheusMetrics
from clusterkit.sync import ClusterKit

ck = ClusterKit(metrics=PrometheusMetrics())

moves = Counter("app_moves", "Partitions that came here.", ("kind", "reason"))
leaves = Counter("app_leaves", "Other nodes that left.", ("reason",))
ready = Gauge("app_ready", "Whether all data of this node is here.")
ready.set_function(lambda: ck.readiness().ready)


@ck.on_partition_change(mine=True, name="fetch")
def fetch(event: PartitionChangeEvent) -> None:
    """Where the data would be copied. It counts what is done, so at the end."""
    if os.environ.get("BROKEN"):
        raise OSError("BROKEN is set")
    moves.labels("copy" if event.needs_data else "promotion", event.change_reason).inc()


@ck.on_node_leave(name="left")
def left(event: NodeLeaveEvent) -> None:
    """Why others leave: a deployment, or crashes."""
    leaves.labels(event.reason).inc()


def main() -> None:
    """Runs one node until SIGTERM or SIGINT, and a server for as long."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ck.request_stop())
    host, _, port = Options.resolve().require_address().rpartition(":")
    with ck:
        server, thread = start_http_server(int(port), host.strip("[]"))
        ck.wait_stopped()
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(process)d] %(message)s")
    try:
        main()
    except ClusterKitError as error:
        sys.exit(f"metrics: {error}")
