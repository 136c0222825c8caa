"""Dispatch of no-op partition changes, beside a task or a thread for each of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from clusterkit import ClusterKit, PartitionChangeEvent, RebalanceEvent
from clusterkit.hooks import Hooks

from ..benchmarks.common import new_prefix, options
from . import peers
from .common import Row, at_least, duel, tidy
from .engine import Engine, changes
from .sinks import SINKS, Sink, no_stats

EVENTS = 20_000
TARGET = 3.0

Hook = Callable[[PartitionChangeEvent], object]
Peer = Callable[..., float]
Side = Callable[[Sink], float]


async def coroutine(event: PartitionChangeEvent) -> None:
    """The hook that does nothing, as an ``async def``."""


def function(event: PartitionChangeEvent) -> None:
    """The same as a ``def``."""


def rows(endpoint: str, rounds: int) -> list[Row]:
    """The rates of the engine's path alone and of whole kits, over those of their peers."""
    events = changes(EVENTS)

    def peer(run: Peer, hook: Hook) -> Side:
        return lambda sink: run(hook, hook.__qualname__, events, sink.attach("c", "node", no_stats))

    def engine(hook: Hook) -> Side:
        return lambda sink: asyncio.run(_engine(hook, events, sink))

    def kit(hook: Hook) -> Side:
        return lambda sink: asyncio.run(_kit(endpoint, hook, sink))

    tasks = peer(peers.tasks, coroutine)
    to_thread, pool = peer(peers.to_thread, function), peer(peers.pool, function)
    found: list[Row] = []
    for name, ours, theirs, target, sink in (
        ("engine, async def / a task each", engine(coroutine), tasks, TARGET, "counting"),
        ("kit, async def / a task each", kit(coroutine), tasks, TARGET, "counting"),
        ("kit, async def / a task each", kit(coroutine), tasks, TARGET, "Prometheus"),
        ("kit, def / to_thread each", kit(function), to_thread, None, "counting"),
        ("kit, def / a bare pool, no time-outs", kit(function), pool, None, "counting"),
    ):
        mine, other = duel(partial(_counted, ours, sink), partial(_counted, theirs, sink), rounds)
        work = f"dispatch, {name}, {sink} sink"
        found.append(at_least(work, EVENTS / mine, EVENTS / other, "events/s", target))
    return found


def _counted(side: Side, name: str) -> float:
    """One round with a new sink, which must have been told of every end."""
    sink = SINKS[name]()
    seconds = side(sink)
    if sink.ok() != EVENTS:
        raise RuntimeError(f"{sink.ok()} of {EVENTS} hooks ended well: that is no measurement")
    return seconds


async def _engine(hook: Hook, events: list[PartitionChangeEvent], sink: Sink) -> float:
    hooks = Hooks()
    hooks.on_partition_change(hook)
    engine = Engine(hooks, sink.attach("c", "node", no_stats), asyncio.get_running_loop())
    return await asyncio.to_thread(engine.run, events)


async def _kit(endpoint: str, hook: Hook, sink: Sink) -> float:
    """From the last line of ``on_rebalance_start`` to the first of ``on_rebalance_complete``."""
    given = options(
        endpoint,
        new_prefix(),
        "node",
        partitions=EVENTS,
        replication_factor=1,
        max_concurrent_hooks=peers.LIMIT,
        migration_timeout=peers.TIMEOUT,
        metrics=sink,
    )
    kit = ClusterKit(**given)
    kit.on_partition_change(hook)
    complete = asyncio.Event()
    times: list[float] = []

    @kit.on_rebalance_start
    async def start(event: RebalanceEvent) -> None:
        tidy()
        times.append(time.perf_counter())

    @kit.on_rebalance_complete
    async def end(event: RebalanceEvent, duration: object) -> None:
        times.append(time.perf_counter())
        complete.set()

    async with kit:
        await complete.wait()
    began, ended = times
    return ended - began
