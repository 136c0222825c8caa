"""The dispatcher: which hook runs when. A pure state machine, told the time, owned by the runner.

It is told of news, of rebalances, of the ends of jobs and of the time, and answers each with a
list of actions (``jobs.py``). It calls no hook, and knows no thread, clock or log. ``now`` is in
seconds of a clock that never runs backwards.

What it promises:

* News (of nodes, health, fencing) start at once, except that two hooks about the same node, two
  about fencing, and two runs of the same hook function, run in the order in which the news came.
  News of a partition (its role, its end) wait for each other only if they are about the same one.
* One rebalance: the hooks of nodes and drops from before it are over → its start hooks are over →
  its partition changes, those of one partition one after another, and the hooks of one change in
  the order of their registration → its complete hooks. Exactly one complete for each start, in
  that order.
* At most ``max_concurrent`` runs at once, of which partition changes take all but ``reserved``.
* A newer rebalance supersedes the one before: what is queued of it is dropped; what runs goes over
  to the newer one if that wants the same change, and is told to end if not; then its complete
  hooks run, and then the newer one starts; or after ``grace`` seconds, if the older one is not
  over by then. One that had not begun yet vanishes without a trace.
* A run that is out of time is a *zombie*: reported, told to end, failed, its slot given back, and
  nobody waits for it; but what stands behind it in its lanes waits until it has really ended.
  After ``grace`` seconds more the lanes are *stuck*: changes of that partition fail (they are
  owed, and delivered again later), news for that hook keep waiting but hold up nobody else.
* Changes start only while there are fewer than ``max_concurrent`` zombies, so that threads that
  never end are bounded.
* A failure touches no other hook and no other event. Retries come after 0.1, 0.2, 0.4 … at most
  10 seconds, which are spent in the lane, but not in a slot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from ..events import Event, PartitionChangeEvent, PartitionDropEvent, RebalanceEvent
from ..hooks import HookCancelledError, HookKind, HookSpec
from .interest import Interest
from .jobs import OUT_OF_TIME, Action, CancelJob, HookFailed, HookSlow, HookTimedOut
from .lanes import NODE_EVENTS, NewsLanes
from .rebalances import Rebalances
from .slots import Slots, job_of
from .work import RUNNING, ZOMBIE, Change, News, Work

# A copy that is to be dropped must be gone before it may be fetched again.
_AWAITED = (*NODE_EVENTS, PartitionDropEvent)


class Dispatcher:
    """Decides which hook runs when; see the module for what it promises.

    Every method that takes ``now`` returns what is to be done, in that order. After each of them
    ``wake_at()`` says when ``tick()`` is due.

    Args:
        specs: The hooks, in the order of their registration.
        incarnation: This process, for hooks with ``mine`` and for ``max_moves``.
        max_concurrent: How many runs there may be at once.
        reserved: How many of those partition changes may never take.
        max_moves: How many changes that bring data to this process may run at once; None for as
            many as changes may.
        hook_timeout: Seconds for hooks that have no time-out of their own; None for no limit.
        migration_timeout: The same, for hooks of partition changes.
        slow_after: Seconds after which a run is reported as slow.
        grace: Seconds that a newer rebalance waits for the one that it supersedes, and that
            others wait behind a run that is out of time.

    Attributes:
        failures: Runs that raised or ran out of time, so far.
    """

    def __init__(
        self,
        specs: Iterable[HookSpec],
        *,
        incarnation: str,
        max_concurrent: int = 50,
        reserved: int = 2,
        max_moves: int | None = None,
        hook_timeout: float | None = 30.0,
        migration_timeout: float | None = 600.0,
        slow_after: float = 5.0,
        grace: float = 5.0,
    ) -> None:
        self._slots = Slots(
            max_concurrent=max_concurrent,
            reserved=reserved,
            max_moves=max_moves,
            hook_timeout=hook_timeout,
            migration_timeout=migration_timeout,
            slow_after=slow_after,
            grace=grace,
        )
        self._interest = Interest(incarnation, specs)
        self._news = NewsLanes(self._slots)
        mover = None if max_moves is None else incarnation
        self._rebalances = Rebalances(self._slots, self._news, self._interest, grace, mover)
        self._changes = self._rebalances.changes
        self._awaited_news: set[News] = set()
        self.failures = 0

    # -- what it is told --------------------------------------------------------------------

    def news(self, kind: HookKind, event: Event, now: float, *args: object) -> list[Action]:
        """Something to be told at once. News must come in the order of their revisions."""
        for spec in self._interest.of(kind):
            self._tell(spec, event, now, *args)
        return self._pump([], now)

    def late(self, spec: HookSpec, events: Iterable[Event], now: float) -> list[Action]:
        """A hook that comes late. It is told of ``events`` first, as replayed, and of them alone.

        Changes among them run in their partitions' lanes like all others, but settle nothing:
        what is owed to the other hooks stays owed, and what fails here is not delivered again.
        """
        out: list[Action] = []
        if spec in self._interest.of(spec.kind):
            return out  # it was registered while the kit was being started, and is known
        self._interest.add((spec,))
        changes: list[PartitionChangeEvent] = []
        for event in events:
            if isinstance(event, PartitionChangeEvent):
                changes.append(event)
            else:
                self._tell(spec, event, now, replayed=True)
        self._rebalances.replay(changes, spec, now, out)
        return self._pump(out, now)

    def replaying(self) -> list[PartitionChangeEvent]:
        """The changes that hooks which came late have still to be told of."""
        return self._rebalances.replaying()

    def rebalance(
        self,
        event: RebalanceEvent,
        changes: Sequence[PartitionChangeEvent],
        now: float,
        *,
        replayed: Collection[str] = (),
    ) -> list[Action]:
        """A newer rebalance, which supersedes the one before it.

        Args:
            event: What its start and complete hooks are called with.
            changes: All its changes, in order.
            now: The time.
            replayed: The event ids of those that were delivered before.
        """
        out: list[Action] = []
        self._rebalances.plan(event, changes, self._awaited_news, replayed, now, out)
        return self._pump(out, now)

    def withdraw(self, event_ids: Collection[str], now: float) -> list[Action]:
        """These changes are void: a newer view has taken their place, or made them needless."""
        out: list[Action] = []
        self._rebalances.withdraw(event_ids, out)
        return self._pump(out, now)

    def halt(self, now: float) -> list[Action]:
        """No rebalance goes on: what is queued is dropped, what runs is told to end."""
        out: list[Action] = []
        self._rebalances.halt(out)
        return self._pump(out, now)

    def ended(self, ends: Iterable[tuple[int, BaseException | None]], now: float) -> list[Action]:
        """Jobs have really ended, each with an error, or well. Of one not known nothing is said."""
        out: list[Action] = []
        for job_id, error in ends:
            work = self._slots.ended(job_id)
            if work is None:
                continue
            if work.state is RUNNING and error is not None and self._failed(work, error, now, out):
                continue  # it is tried again
            if isinstance(work, Change):
                if work.state is ZOMBIE:
                    self._changes.zombie_ended(work)
                else:
                    self._changes.over(work, error, out)
            elif isinstance(work, News):
                self._not_awaited(work)
                self._news.over(work)
        return self._pump(out, now)

    def tick(self, now: float) -> list[Action]:
        """The time has come that ``wake_at()`` named. At any other time it does no harm."""
        out: list[Action] = []
        slow = self._slots.due_slow(now)
        for work in self._slots.due_timeouts(now):
            self._out_of_time(work, now, out)
        out += [HookSlow(job_of(work)) for work in slow if work.state is RUNNING]
        for work in self._slots.due_stuck(now):
            if isinstance(work, Change):
                self._changes.stuck(work, out)
            elif isinstance(work, News):
                for hopeless in self._news.stuck(work):
                    self._not_awaited(hopeless)
        self._slots.retry(now)
        return self._pump(out, now)

    # -- what it tells ----------------------------------------------------------------------

    def wake_at(self) -> float | None:
        """When ``tick()`` is due next; None if nothing depends on the time."""
        times = (self._slots.wake_at(), self._rebalances.wake_at())
        return min((time for time in times if time is not None), default=None)

    @property
    def rebalances(self) -> int:
        """Rebalances begun, so far."""
        return self._rebalances.begun

    @property
    def running(self) -> int:
        """Runs in a slot."""
        return self._slots.running

    @property
    def queued(self) -> int:
        """Hooks of news, and changes, that are neither running nor over."""
        return self._slots.queued

    def oldest_queued(self) -> float | None:
        """Since when the oldest of what is queued has been so; None if nothing is.

        It looks through what is there, so it is for whoever asks now and then, from any thread.
        """
        times = [*self._news.queued_since(), *self._rebalances.queued_since()]
        return min(times, default=None)

    @property
    def idle(self) -> bool:
        """Whether nothing runs, nothing is queued and no rebalance is under way."""
        return self._slots.empty and not self._rebalances.under_way

    def awaits(self, kind: HookKind) -> bool:
        """Whether a hook for news of this kind is queued, or runs and still has time."""
        return self._news.awaits(kind)

    def wants(self, kind: HookKind) -> bool:
        """Whether there is any hook of this kind, so that others' events need not be made."""
        return bool(self._interest.of(kind))

    @property
    def zombies(self) -> tuple[str, ...]:
        """The names of the hooks of runs that are out of time and have not ended."""
        return tuple(work.spec.name for work in list(self._slots.zombies.values()))

    @property
    def change_interest(self) -> Literal["none", "mine", "all"]:
        """Of which partition changes any hook wants to know, so that others need not be built."""
        return self._interest.in_changes

    # -- news and runs ----------------------------------------------------------------------

    def _tell(
        self, spec: HookSpec, event: Event, now: float, *args: object, replayed: bool = False
    ) -> None:
        if not self._interest.wants(spec, event):
            return
        news = News(spec, event, (event, *args), since=now, replayed=replayed)
        if self._news.enter(news, about=event) and isinstance(event, _AWAITED):
            self._awaited_news.add(news)

    def _not_awaited(self, news: News) -> None:
        """Nobody waits for these news any more: they are over, out of time, or hopeless."""
        self._awaited_news.discard(news)
        self._rebalances.not_awaited(news)

    def _pump(self, out: list[Action], now: float) -> list[Action]:
        """Takes rebalances on, then fills the free slots: news first."""
        self._rebalances.proceed(now, out)
        self._slots.fill(now, out)
        return out

    def _failed(self, work: Work, error: BaseException, now: float, out: list[Action]) -> bool:
        """Reports a run that raised; whether it is tried again."""
        if work.cancelled and isinstance(error, HookCancelledError):
            return False  # who was told to end, and says only that it did so, has not failed
        self.failures += 1
        spec = work.spec
        again = (
            not work.cancelled and work.attempt <= spec.retries and isinstance(error, spec.retry_on)
        )
        out.append(HookFailed(job_of(work), error, again))
        if again:
            self._slots.back_off(work, now)
        return again

    def _out_of_time(self, work: Work, now: float, out: list[Action]) -> None:
        job = job_of(work)
        self._slots.out_of_time(work, now)
        self.failures += 1
        out.append(HookTimedOut(job))
        out.append(CancelJob(job.id, OUT_OF_TIME))
        if isinstance(work, Change):
            self._changes.out_of_time(work, out)
        elif isinstance(work, News):
            self._not_awaited(work)
