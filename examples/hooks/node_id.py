"""Whose event is it? Every node is told of everything; a hook has to know whom an event is about.

There are two ways to ask:

* at registration: with `mine=True` the hook runs only on the node that the event is about, the
  target of a copy or the node that has joined. It costs nothing on all the others;
* in the hook: compare an id of the event with `ck.node_id`, where this node may be more than one
  thing in it. Here it counts the copies that it gets, and the copies that it has to give.

A hook that does neither runs on every node: ten nodes then fetch what one of them should.

By hand: run three nodes. For each `fetch` on one of them there is a `give`, with the same event id,
on those that it names, and silence on the third. Then end one with Ctrl-C, another with `kill -9`:
who is told of its leave, and why did it leave?
"""

from __future__ import annotations

import logging
import signal
import sys
from collections import Counter
from types import FrameType

from clusterkit import ClusterKitError, NodeJoinEvent, NodeLeaveEvent, PartitionChangeEvent
from clusterkit.sync import ClusterKit

log = logging.getLogger("node_id")

ck = ClusterKit()
gives: Counter[str] = Counter()
"""How many copies each of the others was to fetch from this node, among others."""


@ck.on_node_join(mine=True)
def joined(event: NodeJoinEvent) -> None:
    """Here alone: this node's own join."""
    log.info("this node has joined: it is one of %d", event.cluster_size)


@ck.on_partition_change(mine=True)
def fetch(event: PartitionChangeEvent) -> None:
    """Here alone: this node is the target."""
    if event.needs_data:
        sources = ",".join(node.id for node in event.copy_from_nodes) or "nobody"
        log.info("fetch %s from %s", event.event_id, sources)


@ck.on_partition_change
def give(event: PartitionChangeEvent) -> None:
    """On every node; the comparison says whether it is one that the target may copy from."""
    if not event.needs_data or ck.node_id not in [node.id for node in event.copy_from_nodes]:
        return
    gives[event.copy_to_node.id] += 1
    log.info("give %s", event.event_id)


@ck.on_node_leave
def left(event: NodeLeaveEvent) -> None:
    """On every node that stays. It is about another one, whose id is not this node's."""
    if event.node.id == ck.node_id:
        return  # this node lost its lease and has joined again: it learns of its own leave as well
    log.info("%s is gone: %s; it got %d copies", event.node.id, event.reason, gives[event.node.id])


def stop(number: int, frame: FrameType | None) -> None:
    """Ctrl-C or SIGTERM: the node takes its leave."""
    ck.request_stop()


def main() -> None:
    """Runs one node until a signal ends it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with ck:
        ck.wait_stopped()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(process)d] %(message)s")
    try:
        main()
    except ClusterKitError as error:
        sys.exit(f"node_id: {error}")
