"""From a put in etcd to the first line of a node hook, beside a bare watch on the same channel."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from clusterkit import NodeJoinEvent, NodeLeaveEvent
from clusterkit.core.keys import range_end
from clusterkit.etcd._pb import rpc_pb2 as pb
from clusterkit.etcd._stubs import WatchStub
from clusterkit.sync import ClusterKit

from ..benchmarks.common import new_prefix, options, quantile, rest
from .common import Row, at_most, tidy, untidied
from .guest import Guest

MEDIAN, P99 = 1.5, 2.0
PARTITIONS = 64  # as many as a cluster has unless told otherwise
WARM_UP = 40
PATIENCE = 30.0

Seen = queue.SimpleQueue[tuple[int, float]]
NodeEvent = NodeJoinEvent | NodeLeaveEvent


def rows(endpoint: str, puts: int) -> list[Row]:
    """The median and the 99th percentile, for ``def`` and for ``async def`` hooks."""
    found: list[Row] = []
    for name, make in (("def", _function), ("async def", _coroutine)):
        ours, bare = _latencies(endpoint, puts, make)
        for which, of, target in (
            ("median", median, MEDIAN),
            ("p99", lambda times: quantile(times, 0.99), P99),
        ):
            found.append(
                at_most(
                    f"put -> node hook ({name}) / bare watch, {which} of {puts}",
                    of(ours) * 1e3,
                    of(bare) * 1e3,
                    "ms",
                    target,
                )
            )
    return found


def _function(seen: Seen) -> Callable[[NodeEvent], object]:
    def hook(event: NodeEvent) -> None:
        at = time.perf_counter()
        seen.put((event.revision, at))

    return hook


def _coroutine(seen: Seen) -> Callable[[NodeEvent], object]:
    async def hook(event: NodeEvent) -> None:
        at = time.perf_counter()
        seen.put((event.revision, at))

    return hook


def _latencies(
    endpoint: str, puts: int, make: Callable[[Seen], Callable[[NodeEvent], object]]
) -> tuple[list[float], list[float]]:
    prefix = new_prefix()
    hooked: Seen = queue.SimpleQueue()
    kit = ClusterKit(**options(endpoint, prefix, "stays", partitions=PARTITIONS))
    hook = make(hooked)
    kit.on_node_leave(hook)
    ours: list[float] = []
    bare: list[float] = []
    pauses = random.Random(20261125)
    with untidied(), kit, Guest(endpoint, prefix) as guest:
        kit.wait_converged(PATIENCE)
        kit.on_node_join(late=True)(hook)  # not of this node's own join
        watch = BareWatch(kit, guest)
        hooked.get(timeout=PATIENCE)  # of the one member that is there, as replayed
        try:
            for number in range(WARM_UP + puts):
                if number == WARM_UP:
                    tidy()
                # Puts come one at a time, and at no special moment of the kit's.
                rest(pauses.uniform(0.0, 0.01))
                sent, revision = guest.move()
                told = _when(hooked, revision)
                yielded = _when(watch.seen, revision)
                if number >= WARM_UP:
                    ours.append(told - sent)
                    bare.append(yielded - sent)
        finally:
            watch.close()
    return ours, bare


def _when(seen: Seen, revision: int) -> float:
    """The time at which a revision was seen; what is older is passed over."""
    deadline = time.perf_counter() + PATIENCE
    while True:
        at, when = seen.get(timeout=max(0.01, deadline - time.perf_counter()))
        if at == revision:
            return when


class BareWatch:
    """etcd's Watch by a raw stub on the very channel that the kit's own watch uses."""

    def __init__(self, kit: ClusterKit, guest: Guest) -> None:
        self.seen: Seen = queue.SimpleQueue()
        self._over = threading.Event()
        self._node_key = guest.node_key
        # A channel is nothing that a kit shows to anybody: this is a look inside.
        store: Any = kit._running().runner._store
        (connection,) = store._channels._connections
        stub = WatchStub(connection.client.channel)
        create = pb.WatchCreateRequest(key=guest.root, range_end=range_end(guest.root))
        self._call = stub.Watch(self._requests(pb.WatchRequest(create_request=create)))
        created = next(self._call)
        assert created.created
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _requests(self, first: pb.WatchRequest) -> Iterator[pb.WatchRequest]:
        yield first
        self._over.wait()  # the stream is open as long as its requests are not over

    def _follow(self) -> None:
        try:
            for answer in self._call:
                at = time.perf_counter()
                for event in answer.events:
                    if event.kv.key == self._node_key:
                        self.seen.put((event.kv.mod_revision, at))
        except Exception:
            if not self._over.is_set():
                raise

    def close(self) -> None:
        self._over.set()
        self._call.cancel()
        self._thread.join(PATIENCE)
