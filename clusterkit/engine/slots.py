"""Slots and time: which ready work runs now, and what its run costs in time.

The dispatcher decides the order; this decides how much at once, and keeps the deadlines. Pure.
"""

from __future__ import annotations

import itertools
from collections import deque

from .._hook_spec import DEFAULT
from .deadlines import Deadlines
from .jobs import Action, Job, StartJobs
from .work import BACKOFF, OVER, READY, RUNNING, ZOMBIE, Change, News, Work

_FIRST_BACKOFF_SECONDS = 0.1
_LONGEST_BACKOFF_SECONDS = 10.0


class Slots:
    """Ready work, running work, and work that is out of time and has not ended (zombies).

    Attributes:
        queued: Hooks of news, and changes, that are neither running nor over. Whoever makes work
            or settles a change counts it; here it is counted off when it runs.
        zombies: Work that is out of time and has not ended, by job id.
    """

    def __init__(
        self,
        *,
        max_concurrent: int,
        reserved: int,
        max_moves: int | None,
        hook_timeout: float | None,
        migration_timeout: float | None,
        slow_after: float,
        grace: float,
    ) -> None:
        self._slots = max_concurrent
        self._change_slots = max(1, max_concurrent - reserved)
        self._max_moves = max_concurrent if max_moves is None else max_moves
        self._hook_timeout = hook_timeout
        self._migration_timeout = migration_timeout
        self._slow_after = slow_after
        self._grace = grace
        self.queued = 0
        self.zombies: dict[int, Work] = {}
        self._running_changes = 0
        self._running_moves = 0
        # What runs, by job id, in the order of the starts: not yet slow, and slow. Most runs end
        # long before they are slow, so only a slow one, or one that may not even take so long, has
        # a time-out in the books.
        self._young: dict[int, Work] = {}
        self._slow: dict[int, Work] = {}
        self._timeouts: Deadlines[Work] = Deadlines()
        self._job_ids = itertools.count(1)
        self._ready_news: deque[News] = deque()
        self._ready_changes: deque[Change] = deque()
        self._ready_moves: deque[Change] = deque()  # those that a limit of their own holds for
        self._backoffs: Deadlines[Work] = Deadlines()
        self._graces: Deadlines[Work] = Deadlines()

    @property
    def running(self) -> int:
        """Runs in a slot."""
        return len(self._young) + len(self._slow)

    @property
    def empty(self) -> bool:
        return not (self._young or self._slow or self.zombies or self.queued)

    def ready(self, work: Work) -> None:
        """Work that may run as soon as a slot is free."""
        work.state = READY
        if isinstance(work, Change):
            (self._ready_moves if work.moves else self._ready_changes).append(work)
        elif isinstance(work, News):
            self._ready_news.append(work)

    def fill(self, now: float, out: list[Action]) -> None:
        """Fills the free slots, news first."""
        jobs: list[Job] = []
        news = self._ready_news
        while news and self.running < self._slots:
            work = news.popleft()
            jobs.append(self._start(work, work.replayed, self._hook_timeout, now))
        if len(self.zombies) < self._slots:
            free = min(self._slots - self.running, self._change_slots - self._running_changes)
            if free > 0 and self._ready_changes:
                free -= self._start_changes(self._ready_changes, free, now, jobs)
            moves = min(free, self._max_moves - self._running_moves)
            if moves > 0 and self._ready_moves:
                self._running_moves += self._start_changes(self._ready_moves, moves, now, jobs)
        if jobs:
            self.queued -= len(jobs)
            out.append(StartJobs(jobs))

    def _start_changes(self, ready: deque[Change], most: int, now: float, jobs: list[Job]) -> int:
        """Starts the first changes of a queue; how many."""
        free = most
        while free and ready:
            change = ready.popleft()
            if change.state is not READY:
                continue  # it was called off
            if change.attempts < change.attempt:
                change.attempts = change.attempt
            passage = change.rebalance
            replayed = passage.replay or (
                bool(passage.replayed) and change.event.event_id in passage.replayed
            )
            jobs.append(self._start(change, replayed, self._migration_timeout, now))
            free -= 1
        self._running_changes += most - free
        return most - free

    def _start(self, work: Work, replayed: bool, usual_timeout: float | None, now: float) -> Job:
        spec = work.spec
        timeout = usual_timeout if spec.timeout is DEFAULT else spec.timeout
        job_id = next(self._job_ids)
        job = Job(job_id, spec, work.event, work.args, work.attempt, timeout, replayed)
        work.state = RUNNING
        work.job = job
        work.started = now
        self._young[job_id] = work
        if timeout is not None and timeout <= self._slow_after:
            work.timed = timeout
            self._timeouts.set(work, timeout, now)
        return job

    def ended(self, job_id: int) -> Work | None:
        """The work whose run has really ended, with its slot free; None if nothing is known of it.

        Its state tells what it was: RUNNING or ZOMBIE.
        """
        work = self._young.pop(job_id, None)
        if work is None:
            work = self._slow.pop(job_id, None)
            if work is None:
                work = self.zombies.pop(job_id, None)
                if work is not None:
                    self._graces.cancel(work, self._grace)
                return work
        if work.timed is not None:
            self._timeouts.cancel(work, work.timed)
            work.timed = None
        if isinstance(work, Change):
            self._running_changes -= 1
            if work.moves:
                self._running_moves -= 1
        return work

    def out_of_time(self, work: Work, now: float) -> None:
        """Makes running work a zombie, and gives its slot back."""
        job_id = job_of(work).id
        self.ended(job_id)
        work.state = ZOMBIE
        self.zombies[job_id] = work
        self._graces.set(work, self._grace, now)

    def back_off(self, work: Work, now: float) -> None:
        """Keeps work whose run has failed, until it is time for its next attempt."""
        work.state = BACKOFF
        self.queued += 1
        self._backoffs.set(work, _backoff(work.attempt), now)

    def call_off(self, work: Work) -> None:
        """Takes back work that is ready, or waits for its next attempt."""
        if work.state is BACKOFF:
            self._backoffs.cancel(work, _backoff(work.attempt))
        work.state = OVER

    # -- time -------------------------------------------------------------------------------

    def due_slow(self, now: float) -> list[Work]:
        """What has become slow; from here on its time-out is in the books."""
        found: list[Work] = []
        for job_id, work in self._young.items():
            slow_at = work.started + self._slow_after
            if slow_at > now:
                break
            found.append(work)
            self._slow[job_id] = work
            timeout = job_of(work).timeout
            if timeout is not None and timeout > self._slow_after:
                work.timed = timeout - self._slow_after
                self._timeouts.set(work, work.timed, slow_at)
        for work in found:
            del self._young[job_of(work).id]
        return found

    def due_timeouts(self, now: float) -> list[Work]:
        """What is out of time; to be asked after ``due_slow``."""
        return self._timeouts.due(now)

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
        times = [kind.first() for kind in (self._timeouts, self._backoffs, self._graces)]
        if self._young:
            times.append(next(iter(self._young.values())).started + self._slow_after)
        return min((time for time in times if time is not None), default=None)


def job_of(work: Work) -> Job:
    assert work.job is not None, "only work that runs, or has run, is asked for its job"
    return work.job


def _backoff(attempt: int) -> float:
    """Seconds from the failure of an attempt to the next one."""
    return min(_FIRST_BACKOFF_SECONDS * 2.0 ** min(attempt - 1, 16), _LONGEST_BACKOFF_SECONDS)
