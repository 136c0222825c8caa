"""The dispatcher: which hook runs when. A pure state machine, told the time, owned by the runner.

It is told of news, of rebalances, of the ends of jobs and of the time, and answers each with a
list of actions (``jobs.py``). It calls no hook, and knows no thread, clock or log. ``now`` is in
seconds of a clock that never runs backwards.

What it promises:

* News (of nodes, health, fencing) start at once, except that two hooks about the same node, and
  two runs of the same hook function, run in the order in which the news came. News of a partition
  (its role, its end) wait for each other only if they are about the same partition.
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

from collections.abc import Collection, Hashable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from ..errors import ClusterKitError
from ..events import (
    Event,
    NodeJoinEvent,
    NodeLeaveEvent,
    NodeRejoinEvent,
    PartitionChangeEvent,
    PartitionDropEvent,
    PartitionLostEvent,
    PartitionRoleEvent,
    RebalanceEvent,
)
from ..hooks import HookCancelledError, HookKind, HookSpec
from .jobs import (
    OUT_OF_TIME,
    Action,
    CancelJob,
    ChangeDropped,
    ChangeSettled,
    HookFailed,
    HookSlow,
    HookTimedOut,
    RebalanceCompleted,
    RebalanceStarted,
)
from .lanes import Change, Lane, PartitionLane, Phase, Rebalance, State, Work
from .slots import Slots, job_of

_NODE_EVENTS = (NodeJoinEvent, NodeRejoinEvent, NodeLeaveEvent)
# A copy that is to be dropped must be gone before it may be fetched again.
_AWAITED = (*_NODE_EVENTS, PartitionDropEvent)
_PARTITION_NEWS = (PartitionRoleEvent, PartitionDropEvent, PartitionLostEvent)
# What a replay bears in place of an event of its own: nobody is ever told of it.
_NO_REBALANCE = RebalanceEvent(
    timestamp=datetime.min.replace(tzinfo=UTC),
    revision=0,
    event_id="",
    trigger="manual",
    trigger_node_id=None,
    partitions_to_move=0,
    nodes_affected=(),
)


class HookTimeoutError(ClusterKitError, TimeoutError):
    """A hook ran longer than it may, or an earlier run of it that did has still not ended."""


class Dispatcher:
    """Decides which hook runs when; see the module for what it promises.

    Every method that takes ``now`` returns what is to be done, in that order. After each of them
    ``wake_at()`` says when ``tick()`` is due.

    Args:
        specs: The hooks, in the order of their registration.
        node_id: This node, for hooks with ``mine``.
        max_concurrent: How many runs there may be at once.
        reserved: How many of those partition changes may never take.
        hook_timeout: Seconds for hooks that have no time-out of their own; None for no limit.
        migration_timeout: The same, for hooks of partition changes.
        slow_after: Seconds after which a run is reported as slow.
        grace: Seconds that a newer rebalance waits for the one that it supersedes, and that
            others wait behind a run that is out of time.

    Attributes:
        failures: Runs that raised or ran out of time, so far.
        rebalances: Rebalances begun, so far.
    """

    def __init__(
        self,
        specs: Iterable[HookSpec],
        *,
        node_id: str,
        max_concurrent: int = 50,
        reserved: int = 2,
        hook_timeout: float | None = 30.0,
        migration_timeout: float | None = 600.0,
        slow_after: float = 5.0,
        grace: float = 5.0,
    ) -> None:
        self._node_id = node_id
        self._grace = grace
        self._slots = Slots(
            max_concurrent=max_concurrent,
            reserved=reserved,
            hook_timeout=hook_timeout,
            migration_timeout=migration_timeout,
            slow_after=slow_after,
            grace=grace,
        )
        self.failures = 0
        self.rebalances = 0

        self._specs: dict[HookKind, tuple[HookSpec, ...]] = {}
        self._know(specs)

        self._lanes: dict[Hashable, Lane] = {}
        self._partitions: dict[str, PartitionLane] = {}
        self._awaited_news: set[Work] = set()
        self._pending: Rebalance | None = None
        self._current: Rebalance | None = None
        self._to_proceed: list[Rebalance] = []
        self._replays: list[Rebalance] = []

    def _know(self, specs: Iterable[HookSpec]) -> None:
        for spec in specs:
            self._specs[spec.kind] = (*self._specs.get(spec.kind, ()), spec)
        changes = self._specs.get("partition_change", ())
        # What most programs register needs no look at each hook for each change.
        self._all_changes = changes
        self._changes_of_others = tuple(spec for spec in changes if not spec.mine)
        self._sifted = any(
            spec.partitions is not None or spec.reasons is not None for spec in changes
        )

    # -- what it is told --------------------------------------------------------------------

    def news(self, kind: HookKind, event: Event, now: float, *args: object) -> list[Action]:
        """Something to be told at once. News must come in the order of their revisions."""
        out: list[Action] = []
        for spec in self._specs.get(kind, ()):
            self._tell(spec, event, now, *args)
        self._pump(out, now)
        return out

    def late(self, spec: HookSpec, events: Iterable[Event], now: float) -> list[Action]:
        """A hook that comes late. It is told of ``events`` first, as replayed, and of them alone.

        Changes among them run in their partitions' lanes like all others, but settle nothing:
        what is owed to the other hooks stays owed, and what fails here is not delivered again.
        """
        out: list[Action] = []
        if spec in self._specs.get(spec.kind, ()):
            return out  # it was registered while the kit was being started, and is known
        self._know((spec,))
        replay = Rebalance(_NO_REBALANCE, now, set())
        replay.phase, replay.replay, replay.begun = Phase.CHANGING, True, now
        for event in events:
            if not isinstance(event, PartitionChangeEvent):
                self._tell(spec, event, now, replayed=True)
            elif spec in self._wanting(event):
                replay.changes.append(Change(event, (spec,), replay))
        if replay.changes:
            replay.open = len(replay.changes)
            self._slots.queued += replay.open
            self._replays.append(replay)
            for change in replay.changes:
                self._enter_partition(change, out)
        self._pump(out, now)
        return out

    def replaying(self) -> list[PartitionChangeEvent]:
        """The changes that hooks which came late have still to be told of."""
        return [c.event for replay in self._replays for c in replay.changes if not c.settled]

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
        newer = Rebalance(event, now, set(self._awaited_news))
        newer.replayed = set(replayed)
        wanted = {change.event_id for change in changes}
        if self._pending is not None:
            # The wait goes on from where it began, or a steady stream would never get through.
            newer.not_before = self._pending.not_before
            self._supersede(self._pending, out, newer, wanted)
        elif self._current is not None:
            newer.not_before = now + self._grace
            self._supersede(self._current, out, newer, wanted)
        self._pending = newer
        adopted = {change.event.event_id for change in newer.changes}
        for change in changes:
            if change.event_id in adopted:
                continue
            specs = self._wanting(change)
            if specs:
                newer.changes.append(Change(change, specs, newer))
            else:
                out.append(ChangeSettled(change, True, None, 0))
        newer.open = len(newer.changes)
        self._slots.queued += newer.open - len(adopted)  # those run already
        self._pump(out, now)
        return out

    def withdraw(self, event_ids: Collection[str], now: float) -> list[Action]:
        """These changes are void: a newer view has taken their place, or made them needless."""
        out: list[Action] = []
        for rebalance in (self._pending, self._current, *self._replays):
            for change in rebalance.changes if rebalance is not None else ():
                if not change.settled and change.event.event_id in event_ids:
                    self._drop(change, out)
        self._pump(out, now)
        return out

    def halt(self, now: float) -> list[Action]:
        """No rebalance goes on: what is queued is dropped, what runs is told to end."""
        out: list[Action] = []
        if self._pending is not None:
            self._supersede(self._pending, out)
            self._pending = None
        for rebalance in (self._current, *self._replays):
            if rebalance is not None:
                self._supersede(rebalance, out)
        self._pump(out, now)
        return out

    def ended(self, job_id: int, error: BaseException | None, now: float) -> list[Action]:
        """A job has really ended: with ``error``, or well. A job that is not known is ignored."""
        out: list[Action] = []
        work = self._slots.ended(job_id)
        if work is not None:
            if work.state is State.ZOMBIE:
                self._let_go(work)
            else:
                self._run_over(work, error, now, out)
            self._pump(out, now)
        return out

    def tick(self, now: float) -> list[Action]:
        """The time has come that ``wake_at()`` named. At any other time it does no harm."""
        out: list[Action] = []
        for work in self._slots.due_timeouts(now):
            self._out_of_time(work, now, out)
        out += [HookSlow(job_of(work)) for work in self._slots.due_slow(now)]
        for work in self._slots.due_stuck(now):
            self._stuck(work, out)
        self._slots.retry(now)
        self._pump(out, now)
        return out

    # -- what it tells ----------------------------------------------------------------------

    def wake_at(self) -> float | None:
        """When ``tick()`` is due next; None if nothing depends on the time."""
        times = [self._slots.wake_at()]
        if self._pending is not None and not self._pending.awaits and self._current is not None:
            times.append(self._pending.not_before)
        return min((time for time in times if time is not None), default=None)

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
        found = [
            work.since
            # Copies, each made in one step, since the runner goes on meanwhile.
            for lane in list(self._lanes.values())
            for work in list(lane.queue)
            if work.state in _QUEUED
        ]
        found += [
            rebalance.since
            for rebalance in (self._pending, self._current, *list(self._replays))
            if rebalance is not None and any(map(_is_queued, list(rebalance.changes)))
        ]
        return min(found, default=None)

    @property
    def idle(self) -> bool:
        """Whether nothing runs, nothing is queued and no rebalance is under way."""
        under_way = self._pending is not None or self._current is not None or self._replays
        return self._slots.empty and not under_way

    def awaits(self, kind: HookKind) -> bool:
        """Whether a hook for news of this kind is queued, or runs and still has time."""
        return any(
            work.spec.kind == kind and work.state is not State.ZOMBIE
            for lane in self._lanes.values()
            for work in lane.queue
        )

    def wants(self, kind: HookKind) -> bool:
        """Whether there is any hook of this kind, so that others' events need not be made."""
        return kind in self._specs

    @property
    def zombies(self) -> tuple[str, ...]:
        """The names of the hooks of runs that are out of time and have not ended."""
        return tuple(work.spec.name for work in self._slots.zombies.values())

    @property
    def change_interest(self) -> Literal["none", "mine", "all"]:
        """Of which partition changes any hook wants to know, so that others need not be built."""
        if self._changes_of_others:
            return "all"
        return "mine" if self._all_changes else "none"

    # -- filters ----------------------------------------------------------------------------

    def _wanting(self, event: PartitionChangeEvent) -> tuple[HookSpec, ...]:
        mine = event.copy_to_node.id == self._node_id
        specs = self._all_changes if mine else self._changes_of_others
        if not self._sifted:
            return specs
        return tuple(
            spec
            for spec in specs
            if (spec.partitions is None or event.partition_id in spec.partitions)
            and (spec.reasons is None or event.change_reason in spec.reasons)
        )

    # -- news: lanes by hook function and by subject ----------------------------------------

    def _tell(
        self, spec: HookSpec, event: Event, now: float, *args: object, replayed: bool = False
    ) -> None:
        if spec.mine and isinstance(event, _NODE_EVENTS) and event.node.id != self._node_id:
            return
        work = Work(spec, event, (event, *args), since=now, replayed=replayed)
        if self._enqueue(work, _subject(event)) and isinstance(event, _AWAITED):
            self._awaited_news.add(work)

    def _enqueue(self, work: Work, subject: Hashable | None = None) -> bool:
        """Puts work into its lanes; whether anyone should wait for it."""
        self._slots.queued += 1
        keys = [] if isinstance(work.event, _PARTITION_NEWS) else [_hook_key(work.spec)]
        if subject is not None:
            keys.append(subject)
        first = self._lane(keys[0])
        first.enter(work)
        if first.stuck:
            return False
        for key in keys[1:]:
            self._lane(key).enter(work)
        if not work.blocked:
            self._slots.ready(work)
        return True

    def _lane(self, key: Hashable) -> Lane:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key)
        return lane

    def _leave_lane(self, lane: Lane, work: Work) -> None:
        freed = lane.leave(work)
        if not lane.queue:
            del self._lanes[lane.key]
        if freed is not None:
            self._slots.ready(freed)

    def _not_awaited(self, work: Work) -> None:
        """Nobody waits for this work any more: it is over, out of time, or hopelessly behind."""
        self._awaited_news.discard(work)
        for waiting in (work.rebalance, self._pending):
            if waiting is not None and work in waiting.awaits:
                waiting.awaits.discard(work)
                self._to_proceed.append(waiting)

    # -- partition changes: lanes by partition ----------------------------------------------

    def _enter_partition(self, change: Change, out: list[Action]) -> None:
        change.entered = True
        lane = self._partitions.get(change.event.partition_id)
        if lane is None:
            lane = self._partitions[change.event.partition_id] = PartitionLane()
        if lane.stuck:
            self._fail_behind_zombie(change, lane, out)
            return
        lane.queue.append(change)
        if lane.busy is None and len(lane.queue) == 1:
            self._advance(lane, change.event.partition_id)

    def _advance(self, lane: PartitionLane, partition_id: str) -> None:
        """Makes the next hook of the lane ready, if none occupies it."""
        if lane.busy is not None:
            return
        queue = lane.queue
        while queue and queue[0].settled:
            queue.popleft()
        if not queue:
            del self._partitions[partition_id]
            return
        change = queue[0]
        work = Work(change.specs[change.index], change.event, (change.event,), change=change)
        change.work = lane.busy = work
        self._slots.ready(work)

    def _settle(self, change: Change, out: list[Action], *, superseded: bool = False) -> None:
        change.settled = True
        change.work = None
        self._slots.queued -= 1
        ok = change.error is None and not superseded
        if not change.rebalance.replay:
            out.append(ChangeSettled(change.event, ok, change.error, change.attempts, superseded))
        self._one_less(change.rebalance)

    def _fail_behind_zombie(self, change: Change, lane: PartitionLane, out: list[Action]) -> None:
        if change.error is None:
            hook = lane.busy.spec.name if lane.busy is not None else "?"
            change.error = HookTimeoutError(
                f"hook {hook!r} for {change.event.partition_id} is out of time and has not ended "
                "yet, so no other can run for this partition"
            )
        self._settle(change, out)

    def _one_less(self, rebalance: Rebalance) -> None:
        rebalance.open -= 1
        if rebalance.open == 0:
            self._to_proceed.append(rebalance)

    # -- rebalances -------------------------------------------------------------------------

    def _supersede(
        self,
        old: Rebalance,
        out: list[Action],
        newer: Rebalance | None = None,
        wanted: Collection[str] = (),
    ) -> None:
        """Ends a rebalance early. What runs and is ``wanted`` still goes over to the newer one."""
        if old.superseded:
            return
        old.superseded = True
        for change in old.changes:
            if change.settled:
                continue
            running = change.work is not None and change.work.state is State.RUNNING
            if running and newer is not None and change.event.event_id in wanted:
                change.rebalance = newer
                newer.changes.append(change)
                self._one_less(old)
                continue
            if newer is not None and change.attempts:
                newer.replayed.add(change.event.event_id)
            self._drop(change, out)
        old.changes = []

    def _drop(self, change: Change, out: list[Action]) -> None:
        """Takes back a change that is queued; if it runs it is told to end."""
        work = change.work
        if work is not None and work.state is State.RUNNING:
            work.cancelled = True
            out.append(CancelJob(job_of(work).id, "superseded"))
            return
        if work is not None and work.state is not State.ZOMBIE:
            self._slots.call_off(work)
            self._partitions[change.event.partition_id].busy = None
        if change.attempts:
            self._settle(change, out, superseded=True)
        else:
            change.settled = True
            change.work = None
            self._slots.queued -= 1
            out.append(ChangeDropped(change.event))
            self._one_less(change.rebalance)
        lane = self._partitions.get(change.event.partition_id)
        if lane is not None:
            self._advance(lane, change.event.partition_id)

    def _begin(self, rebalance: Rebalance, now: float, out: list[Action]) -> None:
        self._pending, self._current = None, rebalance
        rebalance.phase = Phase.STARTING
        rebalance.begun = now
        self.rebalances += 1
        out.append(RebalanceStarted(rebalance.event))
        self._run_all("rebalance_start", rebalance, (rebalance.event,), now)
        self._to_proceed.append(rebalance)

    def _run_all(
        self, kind: HookKind, rebalance: Rebalance, args: tuple[object, ...], now: float
    ) -> None:
        for spec in self._specs.get(kind, ()):
            work = Work(spec, rebalance.event, args, since=now, rebalance=rebalance)
            if self._enqueue(work):
                rebalance.awaits.add(work)

    def _proceed(self, rebalance: Rebalance, now: float, out: list[Action]) -> None:
        """Takes a rebalance that has begun as far as it can go without waiting."""
        if rebalance.phase is Phase.STARTING and not rebalance.awaits:
            rebalance.phase = Phase.CHANGING
            for change in rebalance.changes:
                if not change.entered:
                    self._enter_partition(change, out)
        if rebalance.replay:
            if not rebalance.open and rebalance in self._replays:
                self._replays.remove(rebalance)
            return
        if rebalance.phase is Phase.CHANGING and not rebalance.open:
            rebalance.phase = Phase.COMPLETING
            rebalance.changes = []
            seconds = now - rebalance.begun
            out.append(RebalanceCompleted(rebalance.event, seconds, rebalance.superseded))
            duration = timedelta(seconds=seconds)
            self._run_all("rebalance_complete", rebalance, (rebalance.event, duration), now)
        if rebalance.phase is Phase.COMPLETING and not rebalance.awaits:
            rebalance.phase = Phase.DONE
            if self._current is rebalance:
                self._current = None

    # -- runs -------------------------------------------------------------------------------

    def _pump(self, out: list[Action], now: float) -> None:
        """Takes rebalances on, then fills the free slots: news first."""
        while True:
            while self._to_proceed:
                self._proceed(self._to_proceed.pop(), now, out)
            pending = self._pending
            if pending is None or pending.awaits:
                break
            if self._current is not None and now < pending.not_before:
                break
            self._begin(pending, now, out)
        self._slots.fill(now, out)

    def _run_over(
        self, work: Work, error: BaseException | None, now: float, out: list[Action]
    ) -> None:
        change = work.change
        if change is not None:
            self._slots.queued += 1  # it has left its slot, and is not settled yet
        # Who was told to end, and says only that it did so, has not failed.
        if error is not None and not (work.cancelled and isinstance(error, HookCancelledError)):
            self.failures += 1
            spec = work.spec
            again = (
                not work.cancelled
                and work.attempt <= spec.retries
                and isinstance(error, spec.retry_on)
            )
            out.append(HookFailed(job_of(work), error, again))
            if again:
                self._slots.back_off(work, now)
                if change is None:
                    self._slots.queued += 1
                return
        if change is not None:
            if error is not None and change.error is None:
                change.error = error
            unfinished = change.index + 1 < len(change.specs)
            if not unfinished or work.cancelled:
                superseded = work.cancelled and (unfinished or change.error is not None)
                self._settle(change, out, superseded=superseded)
        self._let_go(work)

    def _let_go(self, work: Work) -> None:
        """Opens the lanes of work that has really ended."""
        work.state = State.OVER
        change = work.change
        if change is None:
            self._not_awaited(work)
            for lane in work.lanes:
                lane.stuck = False
                self._leave_lane(lane, work)
            return
        change.index += 1
        change.work = None
        partition_id = _partition(work)
        partition = self._partitions[partition_id]
        partition.busy = None
        partition.stuck = False
        self._advance(partition, partition_id)

    def _out_of_time(self, work: Work, now: float, out: list[Action]) -> None:
        job = job_of(work)
        self._slots.out_of_time(work, now)
        self.failures += 1
        out.append(HookTimedOut(job))
        out.append(CancelJob(job.id, OUT_OF_TIME))
        change = work.change
        if change is None:
            self._not_awaited(work)
            return
        self._slots.queued += 1
        if change.error is None:
            change.error = HookTimeoutError(
                f"hook {work.spec.name!r} ran longer than the {job.timeout:g} seconds it may"
            )
        if change.index + 1 == len(change.specs) or work.cancelled:
            self._settle(change, out, superseded=work.cancelled)

    def _stuck(self, zombie: Work, out: list[Action]) -> None:
        """A zombie has not ended in time: nobody shall wait behind it."""
        if zombie.change is not None:
            partition = self._partitions[_partition(zombie)]
            partition.stuck = True
            for change in partition.queue:
                if not change.settled:
                    self._fail_behind_zombie(change, partition, out)
            partition.queue.clear()
            return
        first = zombie.lanes[0]
        first.stuck = True
        for work in list(first.queue):
            self._not_awaited(work)
            for lane in work.lanes:
                if lane is not first:
                    self._leave_lane(lane, work)


_QUEUED = (State.WAITING, State.READY, State.BACKOFF)


def _is_queued(change: Change) -> bool:
    work = change.work
    return not change.settled and (work is None or work.state in _QUEUED)


def _partition(work: Work) -> str:
    assert work.change is not None, "only work of a change is asked for its partition"
    return work.change.event.partition_id


def _subject(event: Event) -> Hashable | None:
    if isinstance(event, _NODE_EVENTS):
        return ("node", event.node.id)
    if isinstance(event, _PARTITION_NEWS):
        return ("partition", event.partition_id)
    return None


def _hook_key(spec: HookSpec) -> Hashable:
    """The same for the same function, however often and for whatever kinds it is registered."""
    try:
        hash(spec.fn)
    except TypeError:
        return ("hook", id(spec.fn))
    return ("hook", spec.fn)
