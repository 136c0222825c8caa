"""The engine's own path from a rebalance to its end, without a cluster around it.

``Engine`` is what ``clusterkit/engine/runner.py`` does with hooks, and nothing else: keep the two
alike. It is the only place here that knows how dispatcher, executors and runner talk.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from clusterkit import MetricsSink, Node, PartitionChangeEvent, RebalanceEvent
from clusterkit.engine.dispatcher import Dispatcher
from clusterkit.engine.executors import Executors
from clusterkit.engine.jobs import Action, CancelJob, RebalanceCompleted, StartJobs
from clusterkit.engine.measure import Measure
from clusterkit.engine.runs import Run
from clusterkit.hooks import Hooks

from .common import tidy
from .peers import LIMIT, TIMEOUT

NODE = "node-0"
_INCARNATION = "i-node-0"
_NOW = datetime(2026, 11, 25, tzinfo=UTC)


def changes(count: int) -> list[PartitionChangeEvent]:
    """So many changes whose target is ``NODE``, as the ledger makes them."""
    target = Node(NODE, "node-0.test:1", {}, None, 100, {}, _INCARNATION, "active", _NOW)
    return [
        PartitionChangeEvent(
            timestamp=_NOW,
            revision=1,
            event_id=f"partition_change/partition-{i}/{NODE}/nonce/1",
            partition_id=f"partition-{i}",
            copy_from_nodes=(),
            copy_to_node=target,
            needs_data=True,
            change_reason="node_join",
            old_primary=None,
            new_primary=NODE,
        )
        for i in range(count)
    ]


class Engine:
    """A dispatcher, what runs its jobs, and the queue between them."""

    def __init__(
        self, hooks: Hooks, sink: MetricsSink, loop: asyncio.AbstractEventLoop | None
    ) -> None:
        self._queue: queue.SimpleQueue[list[Run]] = queue.SimpleQueue()
        self._executors = Executors(self._queue.put, loop=loop, context=contextvars.copy_context())
        self._dispatcher = Dispatcher(
            hooks._specs(),
            incarnation=_INCARNATION,
            max_concurrent=LIMIT,
            migration_timeout=TIMEOUT,
        )
        self._measure = Measure(lambda: sink)
        self._complete = False

    def run(self, events: Sequence[PartitionChangeEvent]) -> float:
        """Seconds from the rebalance to its completion. Call it on a thread of its own."""
        event = RebalanceEvent(
            timestamp=_NOW,
            revision=1,
            event_id="rebalance/1",
            trigger="node_join",
            trigger_node_id=NODE,
            partitions_to_move=len(events),
            nodes_affected=(NODE,),
        )
        self._measure.open()
        tidy()
        began = time.perf_counter()
        self._carry_out(self._dispatcher.rebalance(event, events, time.monotonic()))
        while not self._complete:
            self._carry_out(self._next())
        seconds = time.perf_counter() - began
        self._executors.close(5.0)
        self._measure.close()
        return seconds

    def _next(self) -> list[Action]:
        wake_at = self._dispatcher.wake_at()
        timeout = None if wake_at is None else max(0.0, wake_at - time.monotonic())
        try:
            ends = self._queue.get(timeout=timeout)
        except queue.Empty:
            return self._dispatcher.tick(time.monotonic())
        self._measure.hooks_ended(ends)
        return self._dispatcher.ended([(e.job.id, e.error) for e in ends], time.monotonic())

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case StartJobs(jobs):
                    self._executors.start(jobs)
                case CancelJob(job_id, reason):
                    self._executors.cancel(job_id, reason)
                case RebalanceCompleted():
                    self._measure.rebalance_ended(action)
                    self._complete = True
                case _:
                    pass  # what settles a change is the ledger's, which is not here
