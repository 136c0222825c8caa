"""Hands measurements to whoever collects them, and keeps the engine safe from what that does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from ..metrics import HookOutcome, MetricsSink
from .jobs import HookTimedOut, Job, RebalanceCompleted
from .runs import Run

logger = logging.getLogger(__name__)


class Measure:
    """The runner's end of a metrics sink. Owned by one thread.

    Args:
        attach: Begins the collection; None if nobody collects.
    """

    def __init__(self, attach: Callable[[], MetricsSink] | None = None) -> None:
        self._attach = attach
        self._sink: MetricsSink | None = None
        self._failed = False

    def open(self) -> None:
        """The run begins."""
        if self._attach is not None:
            try:
                self._sink = self._attach()
            except Exception as e:
                self._fail(e)

    def hooks_ended(self, ends: Iterable[Run]) -> None:
        """Runs are over. One that was out of time has been told of then."""
        if self._sink is not None:
            for ended in ends:
                if ended.outcome is not None:
                    self._hook(ended.job, ended.outcome, ended.seconds)

    def timed_out(self, action: HookTimedOut) -> None:
        """A run is out of time."""
        if self._sink is not None:
            self._hook(action.job, "timeout", action.job.timeout or 0.0)

    def rebalance_ended(self, action: RebalanceCompleted) -> None:
        """A rebalance is over."""
        if self._sink is not None:
            try:
                self._sink.rebalance_ended(action.duration_seconds)
            except Exception as e:
                self._fail(e)

    def close(self) -> None:
        """Nothing comes any more."""
        if self._sink is not None:
            try:
                self._sink.close()
            except Exception as e:
                self._fail(e)
            self._sink = None

    def _hook(self, job: Job, outcome: HookOutcome, seconds: float) -> None:
        assert self._sink is not None
        try:
            self._sink.hook_ended(job.spec.kind, job.spec.name, outcome, seconds)
        except Exception as e:
            self._fail(e)

    def _fail(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            logger.error(
                "the metrics object raised; this is said once, and else ignored", exc_info=error
            )
