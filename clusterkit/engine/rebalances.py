"""Rebalances on their way through their phases, one after another. Pure.

One is current, and one may be pending, which supersedes it. Replays, of the changes for one hook
that came late, go beside them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta

from ..events import PartitionChangeEvent, RebalanceEvent
from ..hooks import HookKind, HookSpec
from .changes import ChangeLanes, is_queued
from .interest import Interest
from .jobs import Action, ChangeSettled, RebalanceCompleted, RebalanceStarted
from .lanes import NewsLanes
from .slots import Slots
from .work import RUNNING, WAITING, Change, News, Phase, Rebalance

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


class Rebalances:
    """See the module.

    Args:
        slots: Counts what is queued.
        news: Where start and complete hooks go.
        interest: Which hooks there are.
        grace: Seconds that a newer rebalance waits for the one that it supersedes.
        mover: The incarnation of the process whose fetching is limited; None if none is.

    Attributes:
        begun: Rebalances begun, so far.
    """

    def __init__(
        self, slots: Slots, news: NewsLanes, interest: Interest, grace: float, mover: str | None
    ) -> None:
        self._slots = slots
        self._news = news
        self._interest = interest
        self._grace = grace
        self._mover = mover
        self._to_proceed: list[Rebalance] = []
        self.changes = ChangeLanes(slots, self._to_proceed)
        self._pending: Rebalance | None = None
        self._current: Rebalance | None = None
        self._replays: list[Rebalance] = []
        self.begun = 0

    # -- what it is told --------------------------------------------------------------------

    def plan(
        self,
        event: RebalanceEvent,
        changes: Sequence[PartitionChangeEvent],
        awaits: Collection[News],
        replayed: Collection[str],
        now: float,
        out: list[Action],
    ) -> None:
        """A newer rebalance, which begins when the news that it ``awaits`` are over."""
        newer = Rebalance(event, now, set(awaits), replayed)
        if self._pending is not None:
            # The wait goes on from where it began, or a steady stream would never get through.
            newer.not_before = self._pending.not_before
            self._supersede(self._pending, out, newer, changes)
        elif self._current is not None:
            newer.not_before = now + self._grace
            self._supersede(self._current, out, newer, changes)
        self._pending = newer
        adopted = {change.event.event_id for change in newer.changes}
        for change in changes:
            if adopted and change.event_id in adopted:
                continue
            specs = self._interest.wanting(change)
            if specs:
                newer.changes.append(Change(change, specs, newer, moves=self._moves(change)))
            else:
                out.append(ChangeSettled(change, True, None, 0))
        newer.open = len(newer.changes)
        self._slots.queued += newer.open - len(adopted)  # those run already

    def replay(
        self, events: Sequence[PartitionChangeEvent], spec: HookSpec, now: float, out: list[Action]
    ) -> None:
        """Changes for one hook alone, in their partitions' lanes, which settle nothing."""
        replay = Rebalance(_NO_REBALANCE, now, set())
        replay.phase, replay.replay, replay.begun = Phase.CHANGING, True, now
        for event in events:
            if spec in self._interest.wanting(event):
                replay.changes.append(Change(event, (spec,), replay, moves=self._moves(event)))
        if replay.changes:
            replay.open = len(replay.changes)
            self._slots.queued += replay.open
            self._replays.append(replay)
            for change in replay.changes:
                self.changes.enter(change, out)

    def replaying(self) -> list[PartitionChangeEvent]:
        """The changes of replays that are not over."""
        return [c.event for replay in self._replays for c in replay.changes if not c.settled]

    def withdraw(self, event_ids: Collection[str], out: list[Action]) -> None:
        """These changes are void."""
        for rebalance in self._all():
            for change in rebalance.changes:
                if not change.settled and change.event.event_id in event_ids:
                    self.changes.drop(change, out)

    def halt(self, out: list[Action]) -> None:
        """None goes on: what is queued is dropped, what runs is told to end."""
        everything = self._all()
        self._pending = None
        for rebalance in everything:
            self._supersede(rebalance, out)

    def not_awaited(self, news: News) -> None:
        """Nobody waits for these news any more."""
        for waiting in (news.rebalance, self._pending):
            if waiting is not None and news in waiting.awaits:
                waiting.awaits.discard(news)
                self._to_proceed.append(waiting)

    def proceed(self, now: float, out: list[Action]) -> None:
        """Takes all as far as they can go without waiting."""
        while True:
            while self._to_proceed:
                self._proceed(self._to_proceed.pop(), now, out)
            pending = self._pending
            if pending is None or pending.awaits:
                return
            if self._current is not None and now < pending.not_before:
                return
            self._begin(pending, now, out)

    # -- what it tells ----------------------------------------------------------------------

    def wake_at(self) -> float | None:
        """When ``proceed`` is due for reasons of time; None if it is not."""
        if self._pending is None or self._pending.awaits or self._current is None:
            return None
        return self._pending.not_before

    @property
    def under_way(self) -> bool:
        """Whether there is any that is not over."""
        return bool(self._pending or self._current or self._replays)

    def queued_since(self) -> Iterator[float]:
        """Since when each that has changes queued has been so. For any thread."""
        for rebalance in self._all():
            if any(map(is_queued, list(rebalance.changes))):
                yield rebalance.since

    def _all(self) -> list[Rebalance]:
        found = (self._pending, self._current, *list(self._replays))
        return [rebalance for rebalance in found if rebalance is not None]

    def _moves(self, event: PartitionChangeEvent) -> bool:
        mover = self._mover
        return mover is not None and event.needs_data and event.copy_to_node.incarnation == mover

    # -- from phase to phase ----------------------------------------------------------------

    def _supersede(
        self,
        old: Rebalance,
        out: list[Action],
        newer: Rebalance | None = None,
        wanted: Sequence[PartitionChangeEvent] = (),
    ) -> None:
        """Ends one early. What runs and is ``wanted`` still goes over to the newer one."""
        if old.superseded:
            return
        old.superseded = True
        wanted_ids = {event.event_id for event in wanted}
        for change in old.changes:
            if change.settled:
                continue
            if newer is not None:
                if change.state is RUNNING and change.event.event_id in wanted_ids:
                    change.rebalance = newer
                    newer.changes.append(change)
                    old.open -= 1
                    if old.open == 0:
                        self._to_proceed.append(old)
                    continue
                if change.attempts:
                    newer.replayed.add(change.event.event_id)
            self.changes.drop(change, out)
        old.changes = []

    def _begin(self, rebalance: Rebalance, now: float, out: list[Action]) -> None:
        self._pending, self._current = None, rebalance
        rebalance.phase = Phase.STARTING
        rebalance.begun = now
        self.begun += 1
        out.append(RebalanceStarted(rebalance.event))
        self._run_all("rebalance_start", rebalance, (rebalance.event,), now)
        self._to_proceed.append(rebalance)

    def _run_all(
        self, kind: HookKind, rebalance: Rebalance, args: tuple[object, ...], now: float
    ) -> None:
        for spec in self._interest.of(kind):
            news = News(spec, rebalance.event, args, since=now, rebalance=rebalance)
            if self._news.enter(news):
                rebalance.awaits.add(news)

    def _proceed(self, rebalance: Rebalance, now: float, out: list[Action]) -> None:
        if rebalance.phase is Phase.STARTING and not rebalance.awaits:
            rebalance.phase = Phase.CHANGING
            for change in rebalance.changes:
                # Those taken over from the one before are in their lanes; others are withdrawn.
                if change.state is WAITING and not change.settled:
                    self.changes.enter(change, out)
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
