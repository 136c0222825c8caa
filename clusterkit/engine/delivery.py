"""From events and gains to runs of hooks: when a rebalance is due, and what its end means.

News go to the dispatcher at once. Gains go into the ledger, and ``settle_seconds`` after the first
change of a burst the whole ledger becomes one rebalance. What failed stays in the ledger and is
delivered again after a pause that doubles from one rebalance to the next, up to a minute; at once
when somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..core import plan
from ..core.hashing import partition_index
from ..core.holdings import Holdings
from ..core.ledger import Ledger
from ..core.membership import State
from ..core.motion import Gain
from ..core.placement import Row
from ..events import Event, HookErrorEvent, PartitionChangeEvent
from ..hooks import HookKind, HookSpec
from .dispatcher import Dispatcher
from .effects import INFO, Instant, Outbox
from .jobs import (
    Action,
    CancelJob,
    ChangeSettled,
    HookFailed,
    HookSlow,
    HookTimedOut,
    HookTimeoutError,
    Job,
    RebalanceCompleted,
    StartJobs,
)

_FIRST_RETRY = 1.0
_LAST_RETRY = 60.0


class Delivery:
    """What the hooks of one node are told, and what they still have to be told.

    Attributes:
        ledger: The gains whose hooks have not all succeeded yet.
        revision: The newest revision that was applied; what is told from here on is as of it.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        out: Outbox,
        *,
        node_id: str,
        incarnation: str,
        settle_seconds: float,
    ) -> None:
        self.ledger = Ledger()
        self.revision = 0
        self._dispatcher = dispatcher
        self._out = out
        self._me = node_id
        self._incarnation = incarnation
        self._settle_seconds = settle_seconds
        self._causes: list[plan.Cause] = []
        self._settle_at: float | None = None
        self._retry_at: float | None = None
        self._retry_after = _FIRST_RETRY
        self._rebalances = 0

    # -- what it is told ---------------------------------------------------------------------

    def news(self, kind: HookKind, event: Event, at: Instant) -> None:
        """Something to be told at once."""
        self._take(self._dispatcher.news(kind, event, at.mono), at)

    def gained(
        self,
        gains: Iterable[Gain],
        causes: Sequence[plan.Cause],
        rows: Sequence[Row],
        state: State,
        at: Instant,
    ) -> None:
        """The assignment may have changed: a rebalance is due when the burst has settled."""
        # Nobody begins to fetch what the view has taken away from him.
        void = self.ledger.prune(rows, state)
        void |= {e.event_id for e in self._dispatcher.replaying() if not _holds(e, rows, state)}
        if void:
            self._take(self._dispatcher.withdraw(void, at.mono), at)
        cause = plan.merge(causes) if causes else plan.Cause("rebalance", None)
        # What no hook asks for is not made. Of the node's own changes the receipt must know.
        only = None if self._dispatcher.change_interest == "all" else self._me
        self.ledger.add(gains, state, cause, at.wall, only=only)
        self.ledger.known(rows)
        self._causes += causes or [cause]
        if any(one.reason == "manual" for one in causes):
            self._retry_after = _FIRST_RETRY
        if self._settle_at is None:
            self._settle_at = at.mono + self._settle_seconds

    def late(self, spec: HookSpec, events: Iterable[Event], at: Instant) -> None:
        """A hook that comes late, and is first told of these events."""
        self._take(self._dispatcher.late(spec, events, at.mono), at)

    def jobs_ended(self, ends: Iterable[tuple[int, BaseException | None]], at: Instant) -> None:
        """Runs of hooks have ended, each with an error, or well."""
        self._take(self._dispatcher.ended(ends, at.mono), at)

    def tick(self, at: Instant) -> None:
        """The time named by ``wake_at()`` has come."""
        self._take(self._dispatcher.tick(at.mono), at)

    def due(self, rows: Sequence[Row], state: State, holdings: Holdings, at: Instant) -> None:
        """Begins the rebalance whose time has come, if any."""
        again = self._retry_at is not None and self._retry_at <= at.mono
        if again:
            self._retry_after = min(self._retry_after * 2, _LAST_RETRY)
            self._causes.append(plan.Cause("rebalance", None))
        if again or (self._settle_at is not None and self._settle_at <= at.mono):
            self._rebalance(rows, state, holdings, at)
        if not self.ledger.entries:
            self._retry_at, self._retry_after = None, _FIRST_RETRY

    def halt(self, at: Instant) -> None:
        """No further rebalance begins, and what runs is told to end."""
        self._settle_at = self._retry_at = None
        self._take(self._dispatcher.halt(at.mono), at)

    def wants(self, kind: HookKind) -> bool:
        """Whether there is any hook for news of this kind."""
        return self._dispatcher.wants(kind)

    def awaits(self, kind: HookKind) -> bool:
        """Whether a hook for news of this kind is queued, or runs and still has time."""
        return self._dispatcher.awaits(kind)

    def wake_at(self) -> float | None:
        """When ``tick()`` and ``due()`` are to be called next."""
        times = (self._settle_at, self._retry_at, self._dispatcher.wake_at())
        return min((t for t in times if t is not None), default=None)

    # -- rebalances and the dispatcher's answers ---------------------------------------------

    def _rebalance(
        self, rows: Sequence[Row], state: State, holdings: Holdings, at: Instant
    ) -> None:
        cause = plan.merge(self._causes)
        self._causes.clear()
        self._settle_at = self._retry_at = None
        self._rebalances += 1
        told = {e.event_id for e in self.ledger.entries.values() if e.delivered}
        start, changes = self.ledger.plan(
            rows,
            state,
            holdings,
            cause,
            f"rebalance/{self._me}/{self._incarnation}/{self._rebalances}",
            at.wall,
        )
        self._out.note(
            INFO,
            "rebalance: %s, %d partitions to move",
            start.trigger,
            start.partitions_to_move,
            ck_revision=start.revision,
        )
        self._take(self._dispatcher.rebalance(start, changes, at.mono, replayed=told), at)

    def _take(self, actions: Sequence[Action], at: Instant) -> None:
        """Sorts the dispatcher's actions into what concerns the ledger and what is to be done."""
        for action in actions:
            match action:
                case ChangeSettled():
                    event = action.event
                    if action.ok:
                        self.ledger.settled(event, None, action.attempts)
                    elif action.superseded:
                        self.ledger.interrupted(event)
                    else:
                        self.ledger.settled(event, _told(action.error), action.attempts)
                case RebalanceCompleted(event, seconds, superseded):
                    self._out.add(action)
                    self._out.note(
                        INFO, "rebalance complete after %.3f s: %s", seconds, event.trigger
                    )
                    if not superseded and self.ledger.entries:
                        self._retry_at = at.mono + self._retry_after
                case HookFailed(job, error):
                    self._out.add(action)
                    self._hook_error(job, error, at)
                case HookTimedOut(job):
                    self._out.add(action)
                    self._hook_error(job, HookTimeoutError(f"{job.spec.name} ran out of time"), at)
                case StartJobs() | CancelJob() | HookSlow():
                    self._out.add(action)
                case _:
                    pass  # ChangeDropped: still in the ledger. RebalanceStarted: known already.

    def _hook_error(self, job: Job, error: BaseException, at: Instant) -> None:
        if job.spec.kind == "hook_error":
            return  # it was logged; telling itself of its own failure would never end
        event = HookErrorEvent(
            timestamp=at.wall,
            revision=self.revision,
            event_id=f"hook_error/{self._me}/{job.id}/{job.event.event_id}",
            hook=job.spec.name,
            error=error,
            failed_event=job.event,
            attempt=job.attempt,
        )
        self.news("hook_error", event, at)


def _holds(event: PartitionChangeEvent, rows: Sequence[Row], state: State) -> bool:
    target, index = event.copy_to_node, partition_index(event.partition_id)
    member = state.members.get(target.id)
    same = member is not None and member.node.incarnation == target.incarnation
    return same and index is not None and target.id in rows[index]


def _told(error: BaseException | None) -> str:
    return "its hooks failed" if error is None else f"{type(error).__name__}: {error}"
