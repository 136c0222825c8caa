"""The node's state machine: from news to snapshots, hooks and writes. It decides and does nothing.

The runner owns it and tells it, one after the other, what the watch, the keep-alive thread, the
hooks and the clock have to say. Each method returns the effects that the runner carries out, in
order. Nothing here blocks, reads a clock or starts a thread, so a test can lead it through any
history, in virtual time.

One revision passes through it like this: ``membership`` makes the new state and the changes; if an
input of the assignment changed, ``ownership`` makes the new rows, ``holdings`` the gains, and the
ledger takes them in; the snapshot is swapped; the node hooks are dispatched at once; and
``settle_seconds`` after the first change of a burst the ledger is made into one rebalance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TypeAlias

from ..core import health, membership, ownership, plan
from ..core.hashing import partition_id
from ..core.holdings import Gain, Holdings
from ..core.keys import Keys
from ..core.membership import Change, Left, RebalanceRequested, Rejoined, State
from ..core.placement import Row
from ..core.records import EndReason, Receipt
from ..events import (
    ClusterHealthEvent,
    Event,
    FencedEvent,
    HookErrorEvent,
    NodeJoinEvent,
    NodeLeaveEvent,
    NodeRejoinEvent,
    PartitionDropEvent,
    PartitionLostEvent,
    PartitionRoleEvent,
    UnfencedEvent,
)
from ..hooks import HookKind
from ..model import ClusterHealth, KitState
from ..ports import RangeResult, WatchBatch
from .comparison import Comparison, ReadView
from .departures import CloseHistory, Departures
from .dispatcher import Dispatcher, HookTimeoutError
from .jobs import (
    Action,
    CancelJob,
    ChangeSettled,
    HookFailed,
    HookSlow,
    HookTimedOut,
    Job,
    RebalanceCompleted,
    StartJob,
)
from .pruning import PruneHistory, Pruning
from .session import LeaseDoubted, LeaseLost, LeaseNews, Session
from .snapshot import Snapshot, view_of

_FIRST_RETRY = 1.0
_LAST_RETRY = 60.0
_FIRST_REGISTER, _LAST_REGISTER = 0.5, 2.0
_NAMED = 10
_FIRST_ALIVE, _LAST_ALIVE = 1.0, 30.0  # the first is also the least between two writes


@dataclass(frozen=True, slots=True)
class Instant:
    """Now, by both clocks: ``mono`` for decisions, ``wall`` for what people read."""

    mono: float
    wall: datetime


@dataclass(frozen=True, slots=True)
class Publish:
    """Swap the snapshot that lookups read."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class WriteReceipt:
    """Write that this node's partition-change hooks have succeeded."""

    session: Session
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class WriteAlive:
    """Publish which health checks fail here, in the sign of life."""

    session: Session
    incarnation: str
    failing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Register:
    """Join again after about ``delay`` seconds; ``after`` is the nonce of the stay before."""

    after: str
    delay: float


@dataclass(frozen=True, slots=True)
class Drop:
    """Let go of a session: stop renewing it, and revoke its lease; with ``slot`` its slot's too."""

    session: Session
    slot: bool


@dataclass(frozen=True, slots=True)
class ReadAgain:
    """Open the watch anew, with a reading of the whole prefix before it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something for the log."""

    level: int
    message: str
    args: tuple[object, ...]
    extra: Mapping[str, object]


Effect: TypeAlias = (
    Publish
    | WriteReceipt
    | WriteAlive
    | CloseHistory
    | PruneHistory
    | ReadView
    | ReadAgain
    | Register
    | Drop
    | Note
    | StartJob
    | CancelJob
    | HookFailed
    | HookTimedOut
    | HookSlow
)

_DEBUG, _INFO, _WARNING, _ERROR = 10, 20, 30, 40
_KINDS: dict[type[Event], HookKind] = {
    NodeJoinEvent: "node_join",
    NodeRejoinEvent: "node_rejoin",
    NodeLeaveEvent: "node_leave",
}


class Machine:
    """One node, or an observer that joins nothing (``observer=True``)."""

    def __init__(
        self,
        *,
        keys: Keys,
        node_id: str,
        incarnation: str,
        dispatcher: Dispatcher,
        settle_seconds: float,
        observer: bool = False,
    ) -> None:
        self._keys = keys
        self._me = node_id
        self._incarnation = incarnation
        self._dispatcher = dispatcher
        self._settle_seconds = settle_seconds
        self._observer = observer
        self._out: list[Effect] = []
        self._state = State(0, 0)
        self._rows: Sequence[Row] = ()
        self._told_rows: Sequence[Row] = ()  # with this process's newest roles that it was told of
        self._holdings = Holdings()
        self.ledger = plan.Ledger()
        self._departures = Departures(node_id)
        self._pruning = Pruning(node_id)
        self._comparison = Comparison(keys, node_id)
        self._failing: tuple[str, ...] = ()
        self._alive_after = 0.0  # when the sign of life may next be written
        self._alive_retry = _FIRST_ALIVE
        self._alive_at: float | None = None  # when it will be
        self.divergences = 0  # how often the view was found to be not what etcd has
        self._kit_state = KitState.JOINING
        self._live = False  # whether this node's own join has been seen: only then are there events
        self._expected: str | None = None
        self._answered = True  # whether the outcome of this node's newest join is known
        self._held: list[Callable[[Instant], None]] = []  # news that waits for that outcome
        self._session: Session | None = None
        self._doubted = False
        self._fenced_news = False
        self._owned_since: dict[int, int] = {}
        self._owner_nonce: str | None = None
        self._causes: list[plan.Cause] = []
        self._settle_at: float | None = None
        self._retry_at: float | None = None
        self._retry_after = _FIRST_RETRY
        self._register_after = _FIRST_REGISTER
        self._health: ClusterHealth | None = None
        self._health_at: float | None = None
        self._health_changes = 0
        self._receipt: Receipt | None = None
        self._initial_copies_of: str | None = None
        self._published: Snapshot | None = None
        self._assessed: tuple[State, bool, bool] | None = None
        self._rebalances = 0
        self._reported_keys: set[bytes] = set()

    # -- what it is told ---------------------------------------------------------------------

    def begin(self, read: RangeResult, at: Instant) -> list[Effect]:
        """The first reading of the prefix: what is there already is state, not change."""
        self._state = membership.read(self._keys, read.kvs, read.revision, read.cluster_id)
        self._rows = ownership.rows_of(self._state)
        nonces = {node_id: m.nonce for node_id, m in self._state.members.items()}
        self._holdings.assume(self._rows, nonces, self._state.receipts, self._state.epoch)
        self.ledger.start_from(self._rows)
        self._departures.found(self._state, at.mono)
        self._pruning.begin(at.mono)
        self._comparison.begin(at.mono)
        if self._observer:
            self._live = True
            self._kit_state = KitState.JOINED
        self._report_ignored()
        return self._done(at)

    def expect(self, nonce: str) -> None:
        """A join under this nonce is about to be sent."""
        self._expected = nonce
        self._answered = False

    def registered(self, session: Session, at: Instant) -> list[Effect]:
        """The join was applied. The view may have it already, or will."""
        if self._kit_state is KitState.DRAINING:
            self._answer(at)
            return self._done(at)  # whoever stops the node ends this stay as well
        self._session = session
        self._expected = session.nonce  # an earlier one, if its slot was still held
        self._receipt = None  # the one that was written went with the lease before
        self._doubted = False
        self._register_after = _FIRST_REGISTER
        if self._kit_state is KitState.REMOVED:
            self._kit_state = KitState.FENCED  # somebody asked for it; until the view has it
        self._answer(at)
        # The view may be further still: what ended the stay came before there was a session.
        past = self._state.history.get(self._me)
        if past is not None and (end := past.end_of(session.nonce)) is not None:
            self._ended(end.reason, at)
        elif (
            past is not None
            and past.open is not None
            and past.open.nonce == session.nonce
            and self._me not in self._state.members
        ):
            self._ended("health_check_failure", at)  # nobody wrote why
        return self._done(at)

    def register_failed(
        self, after: str, error: Exception, displaced: bool, at: Instant
    ) -> list[Effect]:
        """Joining again failed; it is tried again unless somebody else's will is against it."""
        self._answer(at)
        if displaced:
            self._kit_state = KitState.REMOVED
            self._note(_ERROR, "this node stays out of the cluster: %s", error)
        else:
            first = self._register_after == _FIRST_REGISTER
            self._note(
                _WARNING if first else _DEBUG,  # once an outage
                "joining again failed and will be retried: %s",
                error,
            )
            self._out.append(Register(after, self._register_after))
            self._register_after = min(self._register_after * 2, _LAST_REGISTER)
        return self._done(at)

    def changed(self, batch: WatchBatch, at: Instant) -> list[Effect]:
        """One whole revision."""
        if self._held:
            self._held.append(partial(self._change, batch))
            return []
        self._change(batch, at)
        return self._done(at)

    def _change(self, batch: WatchBatch, at: Instant) -> None:
        if batch.revision <= self._state.revision:
            return
        new, changes = membership.step(self._keys, self._state, batch)
        if self._precedes_answer(new):
            self._held.append(partial(self._change, batch))
            return
        self._comparison.changed(batch.events)
        self._advance(new, changes, at, seen=True)

    def reread(self, read: RangeResult, reason: str, at: Instant) -> list[Effect]:
        """The prefix was read again; what was missed is derived from the difference."""
        if self._held:
            self._held.append(partial(self._reread, read, reason))
            return []
        self._reread(read, reason, at)
        return self._done(at)

    def _reread(self, read: RangeResult, reason: str, at: Instant) -> None:
        new, changes = membership.reread(
            self._keys, self._state, read.kvs, read.revision, read.cluster_id
        )
        if self._precedes_answer(new):
            self._held.append(partial(self._reread, read, reason))
            return
        if read.cluster_id != self._state.cluster_id:
            self._note(
                _ERROR,
                "another etcd cluster answers than before: its data was replaced, or an endpoint "
                "belongs elsewhere; taking its content as the truth",
            )
        elif read.revision < self._state.revision:
            self._note(
                _ERROR,
                "etcd went back from revision %d to %d, as if restored from a backup: epochs from "
                "before may come again, so raise the epoch that your storage keeps by hand",
                self._state.revision,
                read.revision,
            )
        self._comparison.reread()
        self._advance(new, changes, at, seen=False)
        # Somebody else may have been the owner in between: ownership is dated anew.
        self._owned_since, self._published = {}, None
        self._departures.found(new, at.mono)

    def _precedes_answer(self, new: State) -> bool:
        """Whether the view has this node's own join before its outcome is known here.

        Such a view waits: a hook that is told of the join must find the node joined.
        """
        me = new.members.get(self._me)
        return not self._answered and me is not None and me.nonce == self._expected

    def _answer(self, at: Instant) -> None:
        """The outcome of the join is known, or does not matter any more: what waited for it."""
        self._answered = True
        held, self._held = self._held, []
        for news in held:
            news(at)

    def compare(self, read: RangeResult, number: int, at: Instant) -> list[Effect]:
        """The reading that ``ReadView`` asked for: whether the view is what etcd has."""
        wrong = self._comparison.judge(self._state, read, number, at.mono)
        if wrong:
            self.divergences += 1
            named = ", ".join(key.decode(errors="backslashreplace") for key in wrong[:_NAMED])
            if len(wrong) > _NAMED:
                named += f" and {len(wrong) - _NAMED} more"
            self._note(
                _ERROR,
                "this node's view of the cluster is not what etcd has, which is a defect of "
                "ClusterKit; please report it. Reading everything again. The keys: %s",
                named,
                ck_revision=self._state.revision,
                ck_etcd_revision=read.revision,
            )
            self._out.append(ReadAgain("the view differs from what etcd has"))
        return self._done(at)

    def lease(self, news: LeaseNews, at: Instant) -> list[Effect]:
        """The keep-alive thread's news."""
        session = self._session
        if session is None or news.session is not session:
            return []
        match news:
            case LeaseLost(_, reason):
                self._lost(reason, at)
            case LeaseDoubted(_, reason):
                self._doubted = True
                self._fence(f"no keep-alive was answered in time: {reason}", at)
            case _:
                self._doubted = False
        return self._done(at)

    def checked(self, failing: tuple[str, ...], at: Instant) -> list[Effect]:
        """These of the application's health checks fail now, and no others."""
        self._failing = failing
        return self._done(at)

    def job_ended(self, job_id: int, error: BaseException | None, at: Instant) -> list[Effect]:
        """A hook has ended."""
        self._take(self._dispatcher.ended(job_id, error, at.mono), at)
        return self._done(at)

    def tick(self, at: Instant) -> list[Effect]:
        """The time named by ``wake_at()`` has come."""
        self._take(self._dispatcher.tick(at.mono), at)
        return self._done(at)

    def stopping(self, at: Instant) -> list[Effect]:
        """The application wants to leave: nothing is owned from here on."""
        self._kit_state = KitState.DRAINING
        self._session = None
        self._settle_at = self._retry_at = None
        if self._live and not self._observer:
            # Work that follows ownership ends now, and not when etcd says that the node is gone.
            self._tell_roles((), at)
        self._live = False
        self._answer(at)
        self._take(self._dispatcher.halt(at.mono), at)
        return self._done(at)

    def roles_told(self) -> bool:
        """Whether every hook that follows ownership has heard the newest, or is out of time."""
        return not self._dispatcher.awaits("partition_role")

    def wake_at(self) -> float | None:
        """When ``tick()`` is due next."""
        times = (
            self._settle_at,
            self._retry_at,
            self._health_at,
            *(self._chores() if self._registered() else ()),
            self._dispatcher.wake_at(),
        )
        return min((t for t in times if t is not None), default=None)

    def _chores(self) -> tuple[float | None, ...]:
        """When a member next has to do something for the cluster, or for its own certainty."""
        return (
            self._departures.wake_at(),
            self._pruning.wake_at(),
            self._comparison.wake_at(),
            self._alive_at,
        )

    # -- one revision ------------------------------------------------------------------------

    def _advance(self, new: State, changes: Sequence[Change], at: Instant, *, seen: bool) -> None:
        old, old_rows = self._state, self._rows
        leaving = self._kit_state is KitState.DRAINING
        if self._expected is not None and not self._live and not leaving:
            me = new.members.get(self._me)
            self._live = me is not None and me.nonce == self._expected
        causes = [c for c in map(plan.cause_of, changes) if c is not None]
        self._state = new
        if new.epoch != old.epoch or causes:
            self._rows = ownership.rows_of(new)
            nonces = {node_id: m.nonce for node_id, m in old.members.items()}
            gains = self._holdings.advance(
                old_rows,
                self._rows,
                epoch=new.epoch,
                reset=plan.reset_nodes(nonces, new),
                gone=[n for n in old.members if n not in new.members],
            )
            if self._live:
                cause = plan.merge(causes) if causes else plan.Cause("rebalance", None)
                # Nobody begins to fetch what the view has taken away from him.
                if void := self.ledger.prune(self._rows, new):
                    self._take(self._dispatcher.withdraw(void, at.mono), at)
                self.ledger.add(gains, new, cause, at.wall)
                self._causes += causes or [cause]
                if any(isinstance(change, RebalanceRequested) for change in changes):
                    self._retry_after = _FIRST_RETRY
                if self._settle_at is None:
                    self._settle_at = at.mono + self._settle_seconds
                self._tell_roles(self._rows if self._is_me(new) else (), at)
                self._lost_partitions(gains, old_rows, at)
            else:
                self.ledger.start_from(self._rows)
        for node_id, receipt in new.receipts.items():
            if receipt is not old.receipts.get(node_id):
                self._take_receipt(node_id, receipt, at)
        for change in changes:
            if isinstance(change, Left) and change.at is None and seen:
                self._departures.saw(change, new, old_rows, at.mono, at.wall)
            event = plan.node_event(change, old_rows, new, at.wall)
            if event is not None and self._live:
                kind = _KINDS[type(event)]
                self._note(_INFO, "%s of %s", kind, event.node.id, ck_revision=new.revision)
                self._news(kind, event, at)
            self._about_me(change, at)
        session = self._session
        if session is not None and new.revision > session.revision:
            sign = self._me, self._incarnation
            if sign in old.alive and sign not in new.alive:
                self._lost("this node's sign of life was seen to go", at)
        self._report_ignored()

    def _about_me(self, change: Change, at: Instant) -> None:
        """What a change means for this node's own stay."""
        session = self._session
        if session is None or not isinstance(change, Left | Rejoined):
            return
        if change.record.node.id != self._me:
            return
        if isinstance(change, Left) and change.record.nonce == session.nonce:
            self._ended(change.reason, at)
        elif isinstance(change, Rejoined) and change.record.nonce not in (
            session.nonce,
            self._expected,
        ):
            self._ended("replaced", at)

    def _ended(self, reason: EndReason, at: Instant) -> None:
        """This node's present stay is over, and not because it left."""
        match reason:
            case "removed_by_admin":
                self._displaced(
                    "an administrator removed this node; call rejoin() or restart it", at
                )
            case "replaced":
                self._displaced("another process has taken over this node's id", at)
            case _:
                self._lost("this node's key was seen to go", at)

    def _lost(self, reason: str, at: Instant) -> None:
        session = self._session
        if session is None:
            return
        session.lose()
        self._session = None
        self._fence(reason, at)
        self._out += [Drop(session, slot=False), Register(session.nonce, 0.0)]

    def _displaced(self, reason: str, at: Instant) -> None:
        session = self._session
        if session is None:
            return
        session.lose()
        self._session = None
        self._kit_state = KitState.REMOVED
        self._fence(reason, at)
        self._out.append(Drop(session, slot=True))

    def _fence(self, reason: str, at: Instant) -> None:
        if self._fenced_news or not self._live:
            return
        self._fenced_news = True
        self._note(_WARNING, "fenced: this node owns nothing until further notice: %s", reason)
        event = FencedEvent(
            timestamp=at.wall,
            revision=self._state.revision,
            event_id=f"fenced/{self._me}/{self._expected}/{self._state.revision}",
            reason=reason,
        )
        self._news("fenced", event, at)

    def _unfence(self, session: Session, at: Instant) -> None:
        if not self._fenced_news:
            return
        self._fenced_news = False
        rejoined = session.nonce != self._owner_nonce
        self._note(_WARNING, "no longer fenced: the lease is proven to be alive")
        event = UnfencedEvent(
            timestamp=at.wall,
            revision=self._state.revision,
            event_id=f"unfenced/{self._me}/{session.nonce}/{self._state.revision}",
            rejoined=rejoined,
        )
        self._news("unfenced", event, at)

    # -- what is local to this node ----------------------------------------------------------

    def _is_me(self, state: State) -> bool:
        """Whether the member with this node's id is this process, not one before or after it."""
        me = state.members.get(self._me)
        return me is not None and me.nonce in (self._expected, self._owner_nonce)

    def _tell_roles(self, rows: Sequence[Row], at: Instant) -> None:
        """Tells how this process's roles differ from those that it was told last."""
        told, self._told_rows = self._told_rows, rows
        for change in ownership.role_changes(told, rows, self._me):
            name = partition_id(change.index)
            event = PartitionRoleEvent(
                timestamp=at.wall,
                revision=self._state.revision,
                event_id=f"partition_role/{name}/{self._me}/{self._expected}/{self._state.epoch}",
                partition_id=name,
                old_role=change.old,
                new_role=change.new,
                epoch=self._state.epoch,
            )
            self._news("partition_role", event, at)

    def _lost_partitions(self, gains: Sequence[Gain], old_rows: Sequence[Row], at: Instant) -> None:
        for gain in gains:
            last = old_rows[gain.index] if gain.index < len(old_rows) else ()
            if not gain.needs_data or not last or self._sources(gain):
                continue
            if self._holdings.keeps(gain):
                continue
            name = partition_id(gain.index)
            event = PartitionLostEvent(
                timestamp=at.wall,
                revision=self._state.revision,
                event_id=f"partition_lost/{name}/{gain.epoch}",
                partition_id=name,
                last_holders=last,
            )
            self._note(_ERROR, "no live node has the data of %s any more", name)
            self._news("partition_lost", event, at)

    def _sources(self, gain: Gain) -> list[str]:
        return self._holdings.sources(
            gain,
            self._rows[gain.index],
            old_primary=None,
            receipts=self._state.receipts,
            members=self._state.members,
        )

    def _take_receipt(self, node_id: str, receipt: Receipt, at: Instant) -> None:
        member = self._state.members.get(node_id)
        if member is None or member.nonce != receipt.nonce:
            return
        for index, keepers in self._holdings.prove(node_id, receipt.epoch):
            if self._me in keepers and self._me not in self._rows[index] and self._live:
                name = partition_id(index)
                event = PartitionDropEvent(
                    timestamp=at.wall,
                    revision=self._state.revision,
                    event_id=f"partition_drop/{name}/{self._me}/{self._state.epoch}",
                    partition_id=name,
                )
                self._news("partition_drop", event, at)

    # -- hooks -------------------------------------------------------------------------------

    def _news(self, kind: HookKind, event: Event, at: Instant) -> None:
        self._take(self._dispatcher.news(kind, event, at.mono), at)

    def _take(self, actions: Sequence[Action], at: Instant) -> None:
        """Sorts the dispatcher's actions into what concerns the ledger and what is to be done."""
        for action in actions:
            match action:
                case ChangeSettled(event, ok, error, attempts, superseded):
                    if ok:
                        self.ledger.settled(event, None, attempts)
                    elif not superseded:
                        self.ledger.settled(event, _told(error), attempts)
                case RebalanceCompleted(event, seconds, superseded):
                    self._note(_INFO, "rebalance complete after %.3f s: %s", seconds, event.trigger)
                    if not superseded and self.ledger.entries:
                        self._retry_at = at.mono + self._retry_after
                case HookFailed(job, error):
                    self._out.append(action)
                    self._hook_error(job, error, at)
                case HookTimedOut(job):
                    self._out.append(action)
                    self._hook_error(job, HookTimeoutError(f"{job.spec.name} ran out of time"), at)
                case StartJob() | CancelJob() | HookSlow():
                    self._out.append(action)
                case _:
                    pass  # ChangeDropped: still in the ledger. RebalanceStarted: known already.

    def _hook_error(self, job: Job, error: BaseException, at: Instant) -> None:
        if job.spec.kind == "hook_error":
            return  # it was logged; telling itself of its own failure would never end
        event = HookErrorEvent(
            timestamp=at.wall,
            revision=self._state.revision,
            event_id=f"hook_error/{self._me}/{job.id}/{job.event.event_id}",
            hook=job.spec.name,
            error=error,
            failed_event=job.event,
            attempt=job.attempt,
        )
        self._news("hook_error", event, at)

    def _rebalance(self, at: Instant) -> None:
        cause = plan.merge(self._causes)
        self._causes.clear()
        self._settle_at = self._retry_at = None
        self._rebalances += 1
        tried = {e.event_id for e in self.ledger.entries.values() if e.attempts}
        start, changes = self.ledger.plan(
            self._rows,
            self._state,
            self._holdings,
            cause,
            f"rebalance/{self._me}/{self._incarnation}/{self._rebalances}",
            at.wall,
        )
        self._note(
            _INFO,
            "rebalance: %s, %d partitions to move",
            start.trigger,
            start.partitions_to_move,
            ck_revision=start.revision,
        )
        self._take(self._dispatcher.rebalance(start, changes, at.mono, replayed=tried), at)

    # -- the end of every step ---------------------------------------------------------------

    def _done(self, at: Instant) -> list[Effect]:
        """Whatever follows from where things stand now; hands the effects over."""
        if self._settle_at is not None and self._settle_at <= at.mono:
            self._rebalance(at)
        if self._retry_at is not None and self._retry_at <= at.mono:
            self._retry_after = min(self._retry_after * 2, _LAST_RETRY)
            self._causes.append(plan.Cause("rebalance", None))
            self._rebalance(at)
        self._owe(at)
        registered = self._registered()
        self._follow_session(registered, at)
        self._assess(registered, at)
        if registered:
            self._out += self._departures.due(self._state, at.mono)
            self._out += self._pruning.due(self._state, at.mono, at.wall)
            self._out += self._comparison.due(at.mono)
            self._publish_checks(at)
        snapshot = self._snapshot(registered)
        # First of all: a hook that is started by this step must see what it is told of.
        out: list[Effect] = [] if snapshot is None else [Publish(snapshot)]
        out += self._out
        self._out = []
        return out

    def _registered(self) -> bool:
        """Whether the view has this node's present registration in it."""
        session, me = self._session, self._state.members.get(self._me)
        if session is None or me is None:
            return False
        return me.nonce == session.nonce and self._state.revision >= session.revision

    def _owe(self, at: Instant) -> None:
        """Gives a receipt when nothing is owed; else sees to it that it is delivered again."""
        session = self._session
        if not self.ledger.entries:
            self._retry_at, self._retry_after = None, _FIRST_RETRY
        if session is None or not self._registered():
            return
        if not self.ledger.owes(self._me):
            self._initial_copies_of = session.nonce
        if not self.ledger.entries:
            receipt = Receipt(session.nonce, self._state.epoch)
            if receipt != self._receipt:
                self._receipt = receipt
                self._out.append(WriteReceipt(session, receipt))

    def _publish_checks(self, at: Instant) -> None:
        """Writes the failing checks into the sign of life until etcd is seen to have them."""
        session = self._session
        seen = self._state.alive.get((self._me, self._incarnation))
        self._alive_at = None
        if session is None or seen is None:
            return
        if seen.failing_checks == self._failing:
            self._alive_retry = _FIRST_ALIVE
            return
        if self._alive_after <= at.mono:
            self._out.append(WriteAlive(session, self._incarnation, self._failing))
            self._alive_after = at.mono + self._alive_retry
            self._alive_retry = min(self._alive_retry * 2, _LAST_ALIVE)
        self._alive_at = self._alive_after

    def _follow_session(self, registered: bool, at: Instant) -> None:
        session = self._session
        if registered and session is not None:
            if self._kit_state is not KitState.DRAINING:
                self._kit_state = KitState.FENCED if self._doubted else KitState.JOINED
            if not self._doubted:
                self._unfence(session, at)
        elif self._kit_state is KitState.JOINED and not self._observer:
            self._kit_state = KitState.FENCED

    def _assess(self, registered: bool, at: Instant) -> None:
        # A node sees its own join before it knows that the join was applied: no reason to worry.
        waiting = not registered and self._kit_state is not KitState.JOINING
        fenced = self._live and not self._observer and (self._doubted or waiting)
        failing = self.ledger.failing()
        last = self._assessed
        same = last is not None and last[0] is self._state and last[1:] == (fenced, failing)
        if same and (self._health_at is None or at.mono < self._health_at):
            return
        self._assessed = self._state, fenced, failing
        found = health.assess(self._state, now=at.wall, fenced=fenced, owed_failing=failing)
        ends = health.retention_ends(self._state, at.wall)
        self._health_at = None if ends is None else at.mono + ends.total_seconds()
        before, self._health = self._health, found
        if before is None or not self._live or self._kit_state is KitState.DRAINING:
            return
        if (before.status, before.unhealthy_node_ids) == (found.status, found.unhealthy_node_ids):
            return
        self._health_changes += 1
        self._note(_INFO, "the cluster is %s", found.status, ck_revision=self._state.revision)
        event = ClusterHealthEvent(
            timestamp=at.wall,
            revision=self._state.revision,
            event_id=f"health/{self._me}/{self._incarnation}/{self._health_changes}",
            healthy_nodes=found.healthy_nodes,
            unhealthy_nodes=found.unhealthy_nodes,
            total_nodes=found.total_nodes,
            status=found.status,
            unhealthy_node_ids=found.unhealthy_node_ids,
        )
        self._news("cluster_health_change", event, at)

    def _snapshot(self, registered: bool) -> Snapshot | None:
        """The snapshot if it differs from the last one."""
        session = self._session if registered else None
        assert self._health is not None
        initial = session is not None and self._initial_copies_of == session.nonce
        last = self._published
        if (
            last is not None
            and last.state is self._state
            and last.kit_state is self._kit_state
            and last.session is session
            and last.initial_copies_done == initial
            and last.health == self._health
        ):
            return None
        if session is not None and session.nonce != self._owner_nonce:
            self._owner_nonce, self._owned_since = session.nonce, {}
        if last is None or last.rows is not self._rows or last.session is not session:
            self._owned_since = {
                index: self._owned_since.get(index, self._state.epoch)
                for index, row in enumerate(self._rows)
                if session is not None and row and row[0] == self._me
            }
        self._published = Snapshot(
            kit_state=self._kit_state,
            view=view_of(self._state, self._rows),
            rows=self._rows,
            epoch=self._state.epoch,
            session=session,
            owned_since=self._owned_since,
            initial_copies_done=initial,
            health=self._health,
            state=self._state,
        )
        return self._published

    def _report_ignored(self) -> None:
        for key, why in self._state.ignored.items():
            if key not in self._reported_keys:
                self._reported_keys.add(key)
                self._note(
                    _WARNING, "ignoring the key %r, which is foreign or damaged: %s", key, why
                )

    def _note(self, level: int, message: str, *args: object, **extra: object) -> None:
        self._out.append(Note(level, message, args, extra))


def _told(error: BaseException | None) -> str:
    return "its hooks failed" if error is None else f"{type(error).__name__}: {error}"
