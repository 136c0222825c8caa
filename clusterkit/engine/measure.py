"""Hands measurements to whoever collects them, and keeps the engine safe from what that does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from ..core.placement import Row
from ..metrics import HookOutcome, MetricsSink
from .jobs import HookTimedOut, Job, RebalanceCompleted
from .runs import Run

logger = logging.getLogger(__name__)


class Measure:
    """The runner's end of the metrics sinks. Owned by one thread.

    Args:
        attach: Each begins one collection; none if nobody collects.
        prepare: Counts a new assignment, so that no scrape has to.
    """

    def __init__(
        self,
        *attach: Callable[[], MetricsSink],
        prepare: Callable[[Sequence[Row]], object] | None = None,
    ) -> None:
        self._attach = attach
        self._prepare = prepare
        self._sinks: tuple[MetricsSink, ...] = ()
        self._failed = False

    def open(self) -> None:
        """The run begins."""
        for attach in self._attach:
            try:
                self.add(attach())
            except Exception as e:
                self._fail(e)

    def add(self, sink: MetricsSink) -> None:
        """One more collects, from now on."""
        self._sinks = (*self._sinks, sink)

    def assigned(self, rows: Sequence[Row]) -> None:
        """There is a new assignment. Costs nothing where nobody collects."""
        if self._sinks and self._prepare is not None:
            self._prepare(rows)

    def hooks_ended(self, ends: Iterable[Run]) -> None:
        """Runs are over. One that was out of time has been told of then."""
        if self._sinks:
            for ended in ends:
                if ended.outcome is not None:
                    self._hook(ended.job, ended.outcome, ended.seconds)

    def timed_out(self, action: HookTimedOut) -> None:
        """A run is out of time."""
        if self._sinks:
            self._hook(action.job, "timeout", action.job.timeout or 0.0)

    def rebalance_ended(self, action: RebalanceCompleted) -> None:
        """A rebalance is over."""
        for sink in self._sinks:
            try:
                sink.rebalance_ended(action.duration_seconds)
            except Exception as e:
                self._fail(e)

    def close(self) -> None:
        """Nothing comes any more."""
        for sink in self._sinks:
            try:
                sink.close()
            except Exception as e:
                self._fail(e)
        self._sinks = ()

    def _hook(self, job: Job, outcome: HookOutcome, seconds: float) -> None:
        for sink in self._sinks:
            try:
                sink.hook_ended(job.spec.kind, job.spec.name, outcome, seconds)
            except Exception as e:
                self._fail(e)

    def _fail(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            logger.error(
                "the metrics object raised; this is said once, and else ignored", exc_info=error
            )
