"""What a hook does with an error: three kinds, three answers.

* It knows what the error means: it handles it. A snapshot that is not there is a new partition.
* It may pass: `retries`, on the errors in `retry_on`. They are told apart from defects, which no
  repetition repairs.
* It stays: the hook raises. Never return as if all were well: ClusterKit takes that as "this node
  has the data", tells everybody so, and others may delete theirs. A change whose hook raised stays
  owed: it is delivered again, after growing pauses, until it succeeds.

That holds for partition changes. No other event is delivered again, so that hooks for them handle
their errors, or have `retries`. Whatever a hook raises stays in that hook: it ends no other hook,
and not the program. `on_hook_error` is told of all.

By hand: run it with no directory `snapshots`: every partition is owed, and the cluster is degraded.
`mkdir snapshots`, and within seconds nothing is owed. Before that, put a broken file in:
`echo oops > snapshots/partition-0.json`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

from clusterkit import (
    ClusterHealthEvent,
    ClusterKitError,
    HookErrorEvent,
    NodeLeaveEvent,
    PartitionChangeEvent,
    RebalanceEvent,
)
from clusterkit.sync import ClusterKit

log = logging.getLogger("errors")
SNAPSHOTS = Path(os.environ.get("SNAPSHOTS", "snapshots"))  # a volume that may not be mounted yet
DEPARTURES = Path(os.environ.get("DEPARTURES", "departures.log"))

ck = ClusterKit()
entries: dict[str, dict[str, str]] = {}


@ck.on_partition_change(mine=True, retries=2, retry_on=(OSError,), name="fetch")
def fetch(event: PartitionChangeEvent) -> None:
    """Loads a partition's snapshot."""
    names = {file.name for file in SNAPSHOTS.iterdir()}  # no volume: an OSError, which may pass
    if f"{event.partition_id}.json" not in names:
        entries[event.partition_id] = {}  # handled: it is new
        return
    text = (SNAPSHOTS / f"{event.partition_id}.json").read_text()
    entries[event.partition_id] = json.loads(text)  # a broken file: a ValueError, which stays
    log.info("loaded %s: %d entries", event.partition_id, len(entries[event.partition_id]))


@ck.on_node_leave(name="note")
def note(event: NodeLeaveEvent) -> None:
    """Nobody delivers this again: a note that cannot be written must at least be in the log."""
    try:
        with DEPARTURES.open("a") as file:
            file.write(f"{event.timestamp.isoformat()} {event.node.id} {event.reason}\n")
    except OSError as error:
        log.warning("the leave of %s is not in %s: %s", event.node.id, DEPARTURES, error)


@ck.on_hook_error
def report(event: HookErrorEvent) -> None:
    """Where a real service would count, and tell its people. The traceback is in the log."""
    log.warning("hook %s failed, run %d: %r", event.hook, event.attempt, event.error)


@ck.on_rebalance_complete
def settled(event: RebalanceEvent, duration: timedelta) -> None:
    """What is still to be done, with the newest error of each."""
    owed = [f"{move.partition_id}: {move.error}" for move in ck.owed()]
    log.info("owed: %s", "; ".join(owed) or "nothing")


@ck.on_cluster_health_change
def health(event: ClusterHealthEvent) -> None:
    """Degraded while hooks have failed and are owed."""
    log.info("the cluster is %s, for the hooks", event.status)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(process)d] %(message)s")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ck.request_stop())
    try:
        with ck:
            ck.wait_stopped()
    except ClusterKitError as error:
        sys.exit(f"errors: {error}")
