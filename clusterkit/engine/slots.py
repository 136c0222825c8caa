"""Slots and time: which ready work runs now, and what its run costs in time.

The dispatcher decides the order; this decides how much at once, and keeps the deadlines. Pure.
"""

from __future__ import annotations

import itertools
from collections import deque

from ..hooks import DEFAULT, HookSpec
from .jobs import Action, Job, StartJob
from .lanes import Deadlines, State, Work

_FIRST_BACKOFF_SECONDS = 0.1
_LONGEST_BACKOFF_SECONDS = 10.0


class Slots:
    """Ready work, running work, and work that is out of time and has not ended (zombies).

    Attributes:
        running: Runs in a slot.
        queued: Hooks of news, and changes, that are neither running nor over. Whoever makes work
            or settles a change counts it; here it is counted off when it runs.
        zombies: Work that is out of time and has not ended, by job id.
    """

    def __init__(
        self,
        *,
        max_concurrent: int,
        reserved: int,
        hook_timeout: float | None,
        migration_timeout: float | None,
        slow_after: float,
        grace: float,
    ) -> None:
        self._slots = max_concurrent
        self._change_slots = max(1, max_concurrent - reserved)
        self._hook_timeout = hook_timeout
        self._migration_timeout = migration_timeout
        self._slow_after = slow_after
        self._grace = grace
        self.running = 0
        self.queued = 0
        self.zombies: dict[int, Work] = {}
        self._running_changes = 0
        self._runs: dict[int, Work] = {}
        self._job_ids = itertools.count(1)
        self._ready_news: deque[Work] = deque()
        self._ready_changes: deque[Work] = deque()
        self._timeouts: Deadlines[Work] = Deadlines()
        self._slows: Deadlines[Work] = Deadlines()
        self._backoffs: Deadlines[Work] = Deadlines()
        self._graces: Deadlines[Work] = Deadlines()

    @property
    def empty(self) -> bool:
        return not self._runs and not self.queued

    def ready(self, work: Work) -> None:
        """Work that may run as soon as a slot is free."""
        work.state = State.READY
        (self._ready_news if work.change is None else self._ready_changes).append(work)

    def fill(self, now: float, out: list[Action]) -> None:
        """Fills the free slots, news first."""
        while self._ready_news and self.running < self._slots:
            self._start(self._ready_news.popleft(), now, out)
        while (
            self._ready_changes
            and self.running < self._slots
            and self._running_changes < self._change_slots
            and len(self.zombies) < self._slots
        ):
            work = self._ready_changes.popleft()
            if work.state is State.READY:  # else it was called off
                self._start(work, now, out)

    def _start(self, work: Work, now: float, out: list[Action]) -> None:
        spec, change = work.spec, work.change
        replayed = work.replayed
        if change is not None:
            self._running_changes += 1
            change.attempts = max(change.attempts, work.attempt)
            rebalance = change.rebalance
            replayed = rebalance.replay or work.event.event_id in rebalance.replayed
        timeout = self._timeout(spec)
        job = Job(next(self._job_ids), spec, work.event, work.args, work.attempt, timeout, replayed)
        work.state = State.RUNNING
        work.job = job
        self._runs[job.id] = work
        self.running += 1
        self.queued -= 1
        if timeout is not None:
            self._timeouts.set(work, timeout, now)
        self._slows.set(work, self._slow_after, now)
        out.append(StartJob(job))

    def _timeout(self, spec: HookSpec) -> float | None:
        if spec.timeout is not DEFAULT:
            return spec.timeout
        change = spec.kind == "partition_change"
        return self._migration_timeout if change else self._hook_timeout

    def ended(self, job_id: int) -> Work | None:
        """The work whose run has really ended, with its slot free; None if nothing is known of it.

        Its state tells what it was: RUNNING or ZOMBIE.
        """
        work = self._runs.pop(job_id, None)
        if work is None:
            return None
        if work.state is State.ZOMBIE:
            del self.zombies[job_id]
            self._graces.cancel(work, self._grace)
        else:
            self._leave_slot(work)
        return work

    def out_of_time(self, work: Work, now: float) -> None:
        """Makes running work a zombie, and gives its slot back."""
        self._leave_slot(work)
        work.state = State.ZOMBIE
        self.zombies[job_of(work).id] = work
        self._graces.set(work, self._grace, now)

    def back_off(self, work: Work, now: float) -> None:
        """Keeps work whose run has failed, until it is time for its next attempt."""
        work.state = State.BACKOFF
        self._backoffs.set(work, _backoff(work.attempt), now)

    def call_off(self, work: Work) -> None:
        """Takes back work that is ready, or waits for its next attempt."""
        if work.state is State.BACKOFF:
            self._backoffs.cancel(work, _backoff(work.attempt))
        work.state = State.OVER

    def _leave_slot(self, work: Work) -> None:
        timeout = job_of(work).timeout
        self.running -= 1
        if work.change is not None:
            self._running_changes -= 1
        if timeout is not None:
            self._timeouts.cancel(work, timeout)
        self._slows.cancel(work, self._slow_after)

    # -- time -------------------------------------------------------------------------------

    def due_timeouts(self, now: float) -> list[Work]:
        return self._timeouts.due(now)

    def due_slow(self, now: float) -> list[Work]:
        return self._slows.due(now)

    def due_stuck(self, now: float) -> list[Work]:
        """Zombies that have had their grace."""
        return self._graces.due(now)

    def retry(self, now: float) -> None:
        """Makes work ready whose next attempt is due."""
        for work in self._backoffs.due(now):
            work.attempt += 1
            self.ready(work)

    def wake_at(self) -> float | None:
        """The next deadline of any kind."""
        kinds = (self._timeouts, self._slows, self._backoffs, self._graces)
        firsts = [deadlines.first() for deadlines in kinds]
        return min((first for first in firsts if first is not None), default=None)


def job_of(work: Work) -> Job:
    assert work.job is not None, "only work that runs, or has run, is asked for its job"
    return work.job


def _backoff(attempt: int) -> float:
    """Seconds from the failure of an attempt to the next one."""
    return min(_FIRST_BACKOFF_SECONDS * 2.0 ** min(attempt - 1, 16), _LONGEST_BACKOFF_SECONDS)
