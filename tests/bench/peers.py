"""What one would write without the kit: a task for each event, or a thread, and a semaphore.

Each run has what a run in the kit has: a context of its own with a ``HookContext`` in it, a
time-out, at most ``LIMIT`` runs at once, and a report of its end to the metrics sink.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta

from clusterkit import HookContext, HookOutcome, MetricsSink, PartitionChangeEvent

from .common import tidy

LIMIT = 50
TIMEOUT = 600.0

Coroutine = Callable[[PartitionChangeEvent], Awaitable[None]]
Function = Callable[[PartitionChangeEvent], None]
Events = Sequence[PartitionChangeEvent]

_here: contextvars.ContextVar[HookContext] = contextvars.ContextVar("bench_hook_context")
_ALLOWED = timedelta(seconds=TIMEOUT)


def _enter(event: PartitionChangeEvent) -> None:
    deadline = datetime.now(UTC) + _ALLOWED
    _here.set(
        HookContext(event_id=event.event_id, attempt=1, replayed=False, deadline=deadline),
    )


async def _tasks(hook: Coroutine, name: str, events: Events, sink: MetricsSink) -> float:
    semaphore = asyncio.Semaphore(LIMIT)

    async def run(event: PartitionChangeEvent) -> None:
        async with semaphore:
            _enter(event)
            outcome: HookOutcome = "ok"
            began = time.perf_counter()
            try:
                async with asyncio.timeout(TIMEOUT):
                    await hook(event)
            except TimeoutError:
                outcome = "timeout"
            except Exception:
                outcome = "error"
            sink.hook_ended("partition_change", name, outcome, time.perf_counter() - began)

    context = contextvars.copy_context()
    tidy()
    began = time.perf_counter()
    created = [asyncio.create_task(run(event), context=context.copy()) for event in events]
    await asyncio.gather(*created)
    return time.perf_counter() - began


def tasks(hook: Coroutine, name: str, events: Events, sink: MetricsSink) -> float:
    """``async def`` hooks: one task an event, all made up front. Seconds until all have ended."""
    return asyncio.run(_tasks(hook, name, events, sink))


def to_thread(hook: Function, name: str, events: Events, sink: MetricsSink) -> float:
    """``def`` hooks: the same tasks, each with ``asyncio.to_thread``, on ``LIMIT`` threads."""

    async def in_thread(event: PartitionChangeEvent) -> None:
        await asyncio.to_thread(hook, event)

    async def main() -> float:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(LIMIT))
        return await _tasks(in_thread, name, events, sink)

    return asyncio.run(main())


def pool(hook: Function, name: str, events: Events, sink: MetricsSink) -> float:
    """``def`` hooks on a bare pool of ``LIMIT`` threads, which have no time-out."""
    lock = threading.Lock()  # a sink is called by one thread at a time

    def run(event: PartitionChangeEvent) -> None:
        _enter(event)
        outcome: HookOutcome = "ok"
        began = time.perf_counter()
        try:
            hook(event)
        except Exception:
            outcome = "error"
        seconds = time.perf_counter() - began
        with lock:
            sink.hook_ended("partition_change", name, outcome, seconds)

    context = contextvars.copy_context()
    with ThreadPoolExecutor(LIMIT) as threads:
        tidy()
        began = time.perf_counter()
        wait([threads.submit(context.copy().run, run, event) for event in events])
        return time.perf_counter() - began
