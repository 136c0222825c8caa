"""How far hooks that never end delay other news: of nodes, and of this node's own fencing.

Four kits, alike but for their ``partition_change`` hook: it ends at once; or it blocks for ever, as
a ``def``, as an ``async def`` that heeds no cancellation, or as one that holds up the event loop.
``BLOCKED`` runs of it take every place that partition changes may take, and more wait behind them.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack

from clusterkit import FencedEvent, KitState, NodeJoinEvent, NodeLeaveEvent, PartitionChangeEvent
from clusterkit.sync import ClusterKit

from ..benchmarks.common import new_prefix, options, quantile, until
from ..benchmarks.proxy import Proxies, Proxy
from .common import Row, tidy, untidied
from .guest import Guest

BLOCKED = 50
RESERVED = 2  # the places that partition changes never take
PARTITIONS = 64
ALLOWED_MS = 50.0
TTL = 2
WARM_UP = 10
PATIENCE = 30.0

FREE = "none"
KINDS = ("def", "async def", "async def that holds up the loop")

_pause = threading.Event()  # never set


class Subject:
    """One kit with its hooks, behind a proxy that can cut it off."""

    def __init__(self, kind: str, proxy: Proxy) -> None:
        self.kind = kind
        self.proxy = proxy
        self.prefix = new_prefix()
        self.told: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()
        self.fenced: queue.SimpleQueue[float] = queue.SimpleQueue()
        self._released: Future[None] = Future()
        given = options(
            proxy.endpoint,
            self.prefix,
            "stays",
            partitions=PARTITIONS,
            replication_factor=1,
            max_concurrent_hooks=BLOCKED + RESERVED,
            lease_ttl=TTL,
            connect_timeout=2,
        )
        self.kit = ClusterKit(**given)
        self.kit.on_partition_change(self._hook())
        self.kit.on_node_join(self._tell)
        self.kit.on_node_leave(self._tell)
        self.kit.on_fenced(self._tell_fenced)

    def _hook(self) -> Callable[[PartitionChangeEvent], object]:
        released = self._released

        def ends(event: PartitionChangeEvent) -> None:
            pass

        def blocks(event: PartitionChangeEvent) -> None:
            released.result()

        async def awaits(event: PartitionChangeEvent) -> None:
            while not released.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.shield(asyncio.wrap_future(released))

        async def holds_up(event: PartitionChangeEvent) -> None:
            released.result()

        return dict(zip((FREE, *KINDS), (ends, blocks, awaits, holds_up), strict=True))[self.kind]

    def _tell(self, event: NodeJoinEvent | NodeLeaveEvent) -> None:
        at = time.perf_counter()
        self.told.put((event.revision, at))

    def _tell_fenced(self, event: FencedEvent) -> None:
        self.fenced.put(time.perf_counter())

    def owns(self) -> bool:
        return self.kit.state is KitState.JOINED and self.kit.is_primary("partition-0")

    def settle(self) -> None:
        """Waits until it owns its partitions, and all places of hooks that block are taken."""
        running = 0 if self.kind == FREE else BLOCKED
        until(
            lambda: self.owns() and self.kit.stats().hooks_running == running,
            f"{running} hooks run, kind: {self.kind}",
        )

    def stop(self) -> None:
        self.proxy.heal()
        self._released.set_result(None)
        self.kit.stop()


def rows(endpoint: str, puts: int, cuts: int) -> list[Row]:
    """The delays of node hooks and of ``on_fenced``, with each kind of blocked hooks."""
    proxies = Proxies(endpoint)
    subjects = [Subject(kind, proxies.new()) for kind in (FREE, *KINDS)]
    with ExitStack() as stack:
        stack.callback(proxies.close)
        for subject in subjects:
            subject.kit.start()
            stack.callback(subject.stop)
        for subject in subjects:
            subject.settle()
        nodes = _node_news(endpoint, subjects, puts)
        fencing = _fencing_news(subjects, cuts)
    found: list[Row] = []
    for what, which, times in (
        (f"put -> node hook, p99 of {puts}", 0.99, nodes),
        (f"fenced -> on_fenced, max of {cuts}", 1.0, fencing),
    ):
        free = quantile(times[FREE], which) * 1e3
        for kind in KINDS:
            delayed = quantile(times[kind], which) * 1e3
            found.append(
                Row(
                    f"{what}; {BLOCKED} blocked {kind} / none",
                    delayed,
                    free,
                    "ms",
                    delayed / free,
                    f"at most {ALLOWED_MS:g} ms more",
                    delayed - free <= ALLOWED_MS,
                )
            )
    return found


def _node_news(endpoint: str, subjects: Sequence[Subject], puts: int) -> Mapping[str, list[float]]:
    """From the put of a node's key to the first line of the hook, for each kind in turn."""
    found: dict[str, list[float]] = {subject.kind: [] for subject in subjects}
    with untidied(), ExitStack() as stack:
        guests = [stack.enter_context(Guest(endpoint, subject.prefix)) for subject in subjects]
        for number in range(WARM_UP + puts):
            if number == WARM_UP:
                tidy()
            for guest, subject in zip(guests, subjects, strict=True):
                sent, revision = guest.move()
                at, when = subject.told.get(timeout=PATIENCE)
                while at != revision:
                    at, when = subject.told.get(timeout=PATIENCE)
                if number >= WARM_UP:
                    found[subject.kind].append(when - sent)
    return found


def _fencing_news(subjects: Sequence[Subject], cuts: int) -> Mapping[str, list[float]]:
    """From the last time that a cut-off kit was still an owner to the first line of the hook."""
    found: dict[str, list[float]] = {subject.kind: [] for subject in subjects}
    for _ in range(cuts):
        for subject in subjects:
            subject.settle()
        for subject in subjects:
            subject.proxy.cut()
        owned: dict[str, float] = {}
        left = list(subjects)
        deadline = time.perf_counter() + PATIENCE
        while left:
            for subject in list(left):
                at = time.perf_counter()
                if subject.kit.is_primary("partition-0"):
                    owned[subject.kind] = at
                else:
                    left.remove(subject)
            if time.perf_counter() > deadline:
                raise TimeoutError("a kit that was cut off is still an owner")
            _pause.wait(0.001)
        for subject in subjects:
            found[subject.kind].append(
                max(0.0, subject.fenced.get(timeout=PATIENCE) - owned[subject.kind])
            )
            subject.proxy.heal()
    return found
