"""The node's state machine: from news to snapshots, hooks and writes. It decides and does nothing.

The runner owns it and tells it, one after the other, what the watch, the keep-alive thread, the
hooks and the clock have to say. Each method returns the effects that the runner carries out, in
order. Nothing here blocks, reads a clock or starts a thread, so a test can lead it through any
history, in virtual time.

One revision passes through it like this: ``membership`` makes the new state and the changes; if an
input of the assignment changed, ``ownership`` makes the rows follow; the snapshot is swapped; the
node hooks are dispatched at once; then ``passages`` finds who gains what, and the ledger takes that
in; and ``settle_seconds`` after the first change of a burst the ledger is made into one rebalance.

Its parts, each of one idea: ``stay`` is this node's own membership, ``passages`` what a new
assignment means, ``delivery`` what hooks are told, ``receipts`` what others are told of that,
``assessment`` the health, ``departures``, ``pruning`` and ``comparison`` the chores of a member.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from ..core import membership, plan
from ..core.hashing import partition_id
from ..core.keys import Keys
from ..core.membership import Change, Joined, Left, Rejoined, State
from ..core.ownership import Assignment
from ..core.placement import Row
from ..core.wording import named
from ..events import Event, NodeJoinEvent, NodeLeaveEvent, NodeRejoinEvent
from ..hooks import HookKind, HookSpec
from ..model import KitState
from ..ports import RangeResult, WatchBatch
from .assessment import Assessment
from .comparison import Comparison
from .delivery import Delivery
from .departures import Departures
from .dispatcher import Dispatcher
from .effects import ERROR, INFO, WARNING, Effect, Instant, Outbox, Publish, ReadAgain
from .passages import Passages
from .pruning import Pruning
from .receipts import Receipts
from .session import LeaseNews, Session
from .sign_of_life import SignOfLife
from .snapshot import Snapshots
from .stay import Stay

_KINDS: dict[type[Event], HookKind] = {
    NodeJoinEvent: "node_join",
    NodeRejoinEvent: "node_rejoin",
    NodeLeaveEvent: "node_leave",
}


class Machine:
    """One node, or an observer that joins nothing (``observer=True``).

    Attributes:
        ledger: What this node's partition-change hooks have still to be told of.
        divergences: How often the view was found to be not what etcd has.
    """

    def __init__(
        self,
        *,
        keys: Keys,
        node_id: str,
        incarnation: str,
        dispatcher: Dispatcher,
        settle_seconds: float,
        overdue_seconds: float | None = None,
        observer: bool = False,
    ) -> None:
        self._keys = keys
        self._me = node_id
        self._observer = observer
        self._out = Outbox()
        self._delivery = Delivery(
            dispatcher,
            self._out,
            node_id=node_id,
            incarnation=incarnation,
            settle_seconds=settle_seconds,
        )
        self.ledger = self._delivery.ledger
        self._stay = Stay(
            self._delivery, self._out, node_id=node_id, incarnation=incarnation, observer=observer
        )
        self._assessment = Assessment(
            self._delivery,
            self._out,
            node_id=node_id,
            incarnation=incarnation,
            overdue_seconds=overdue_seconds,
        )
        self._sign_of_life = SignOfLife(node_id, incarnation)
        self._receipts = Receipts(self.ledger, node_id)
        self._departures = Departures(node_id)
        self._pruning = Pruning(node_id)
        self._comparison = Comparison(keys, node_id)
        self._snapshots = Snapshots(node_id)
        self._passages = Passages(self._delivery, self._stay, self._out, node_id=node_id)
        self._state = State(0, 0)
        self._assignment = Assignment()
        self._rows: Sequence[Row] = ()
        self._answered = True  # whether the outcome of this node's newest join is known
        self._held: list[Callable[[Instant], None]] = []  # news that waits for that outcome
        self._reported_keys: set[bytes] = set()
        self._relaxed: tuple[int, ...] = ()
        self.divergences = 0

    # -- what it is told: the cluster ----------------------------------------------------------

    def begin(self, read: RangeResult, at: Instant) -> list[Effect]:
        """The first reading of the prefix: what is there already is state, not change."""
        self._state = membership.read(self._keys, read.kvs, read.revision, read.cluster_id)
        self._delivery.revision = read.revision
        self._rows = self._assignment.follow(self._state)
        self._report_relaxed()
        self._passages.begin(self._state, self._rows)
        self._departures.found(self._state, at.mono)
        self._pruning.begin(at.mono)
        self._comparison.begin(at.mono)
        self._stay.observe()
        self._report_ignored()
        return self._done(at)

    def changed(self, batch: WatchBatch, at: Instant) -> list[Effect]:
        """One whole revision."""
        return self._tell(partial(self._change, batch), at)

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
        return self._tell(partial(self._reread, read), at)

    def _reread(self, read: RangeResult, at: Instant) -> None:
        self._passages.settle(at)
        new, changes = membership.reread(
            self._keys, self._state, read.kvs, read.revision, read.cluster_id
        )
        if self._precedes_answer(new):
            self._held.append(partial(self._reread, read))
            return
        if read.cluster_id != self._state.cluster_id or read.revision < self._state.revision:
            self._stay.restored(new, at)
            self._receipts.begin()
            self._passages.restored(new)
        if read.cluster_id != self._state.cluster_id:
            self._out.note(
                ERROR,
                "another etcd cluster answers than before: its data was replaced, or an endpoint "
                "belongs elsewhere; taking its content as the truth",
            )
        elif read.revision < self._state.revision:
            self._out.note(
                ERROR,
                "etcd went back from revision %d to %d, as if restored from a backup: epochs from "
                "before may come again, so raise the epoch that your storage keeps by hand",
                self._state.revision,
                read.revision,
            )
        self._comparison.reread()
        self._advance(new, changes, at, seen=False)
        self._snapshots.forget()
        self._departures.found(new, at.mono)

    def compare(self, read: RangeResult, number: int, at: Instant) -> list[Effect]:
        """The reading that ``ReadView`` asked for: whether the view is what etcd has."""
        self._passages.settle(at)
        wrong = self._comparison.judge(self._state, read, number, at.mono)
        if wrong:
            self.divergences += 1
            self._out.note(
                ERROR,
                "this node's view of the cluster is not what etcd has, which is a defect of "
                "ClusterKit; please report it. Reading everything again. The keys: %s",
                named([key.decode(errors="backslashreplace") for key in wrong]),
                ck_revision=self._state.revision,
                ck_etcd_revision=read.revision,
            )
            self._out.add(ReadAgain("the view differs from what etcd has"))
        return self._done(at)

    # -- what it is told: this node ------------------------------------------------------------

    def expect(self, nonce: str) -> None:
        """A join under this nonce is about to be sent."""
        self._stay.expected = nonce
        self._answered = False

    def registered(self, session: Session, at: Instant) -> list[Effect]:
        """The join was applied. The view may have it already, or will."""
        self._passages.settle(at)
        if self._stay.state is not KitState.DRAINING:  # else whoever stops it ends this stay too
            self._stay.begin(session)
            self._receipts.begin()
        self._answer(at)
        self._stay.see_past(self._state, at)
        return self._done(at)

    def register_failed(
        self, after: str, error: Exception, displaced: bool, at: Instant
    ) -> list[Effect]:
        """Joining again failed; it is tried again unless somebody else's will is against it."""
        self._passages.settle(at)
        self._answer(at)
        self._stay.register_failed(after, error, displaced)
        return self._done(at)

    def lease(self, news: LeaseNews, at: Instant) -> list[Effect]:
        """The keep-alive thread's news."""
        self._passages.settle(at)
        self._stay.lease(news, at)
        return self._done(at)

    def checked(self, failing: tuple[str, ...], at: Instant) -> list[Effect]:
        """These of the application's health checks fail now, and no others."""
        self._passages.settle(at)
        self._sign_of_life.failing = failing
        return self._done(at)

    def jobs_ended(
        self, ends: Iterable[tuple[int, BaseException | None]], at: Instant
    ) -> list[Effect]:
        """Runs of hooks have ended, each with an error, or well."""
        self._passages.settle(at)
        self._delivery.jobs_ended(ends, at)
        return self._done(at)

    def hook_added(self, spec: HookSpec, at: Instant) -> list[Effect]:
        """A hook that is registered only now: it is told of the present state first."""
        self._passages.settle(at)
        self._delivery.late(spec, self._present(spec.kind, at), at)
        return self._done(at)

    def _present(self, kind: HookKind, at: Instant) -> Iterator[Event]:
        if not self._stay.live:
            return  # all that is to be told of is still to come
        if kind == "fenced" and self._stay.fenced_news is not None:
            yield self._stay.fenced_news
        elif kind == "cluster_health_change" and self._assessment.health is not None:
            yield self._assessment.present(self._state, at)
        yield from self._passages.present(kind, self._state, self._rows, at)

    def tick(self, at: Instant) -> list[Effect]:
        """The time named by ``wake_at()`` has come."""
        self._passages.settle(at)
        self._delivery.tick(at)
        return self._done(at)

    def stopping(self, at: Instant) -> list[Effect]:
        """The application wants to leave: nothing is owned from here on."""
        self._passages.settle(at)
        if self._stay.live and not self._observer:
            # Work that follows ownership ends now, and not when etcd says that the node is gone.
            self._passages.tell_roles((), self._state, at)
        self._stay.leave()
        self._answer(at)
        self._delivery.halt(at)
        return self._done(at)

    def roles_told(self) -> bool:
        """Whether every hook that follows ownership has heard the newest, or is out of time."""
        return not self._delivery.awaits("partition_role")

    def wake_at(self) -> float | None:
        """When ``tick()`` is due next."""
        times = [self._passages.wake_at(), self._delivery.wake_at(), self._assessment.wake_at()]
        if self._stay.registered(self._state) is not None:
            # What a member has to do for the cluster, or for its own certainty.
            chores = self._departures, self._pruning, self._comparison, self._sign_of_life
            times += [chore.wake_at() for chore in chores]
        return min((t for t in times if t is not None), default=None)

    # -- a view may come before the answer to the join that it shows -----------------------------

    def _tell(self, news: Callable[[Instant], None], at: Instant) -> list[Effect]:
        if self._held:
            self._held.append(news)
            return []
        news(at)
        return self._done(at)

    def _precedes_answer(self, new: State) -> bool:
        """Whether the view has this node's own join before its outcome is known here.

        Such a view waits: a hook that is told of the join must find the node joined.
        """
        me = new.members.get(self._me)
        return not self._answered and me is not None and me.nonce == self._stay.expected

    def _answer(self, at: Instant) -> None:
        """The outcome of the join is known, or does not matter any more: what waited for it."""
        self._answered = True
        held, self._held = self._held, []
        for news in held:
            news(at)

    # -- one revision ------------------------------------------------------------------------

    def _advance(self, new: State, changes: Sequence[Change], at: Instant, *, seen: bool) -> None:
        self._passages.settle(at)
        old, old_rows = self._state, self._rows
        stay = self._stay
        stay.see_join(new)
        causes = [c for c in map(plan.cause_of, changes) if c is not None]
        self._state = new
        self._delivery.revision = new.revision
        if new.epoch != old.epoch or causes:
            self._rows = self._assignment.follow(new)
            self._report_relaxed()
        self._passages.note(old, new, old_rows, self._rows, causes, at, seen=seen)
        if not self._only_others(changes):
            self._passages.settle(at)
        for change in changes:
            if isinstance(change, Left) and change.at is None and seen:
                self._departures.saw(change, new, (old_rows, self._rows), at.mono, at.wall)
            event = plan.node_event(change, old_rows, new, at.wall, rows=self._rows)
            if event is not None and stay.live:
                kind = _KINDS[type(event)]
                self._out.note(INFO, "%s of %s", kind, event.node.id, ck_revision=new.revision)
                self._delivery.news(kind, event, at)
            stay.see(change, at)
        stay.see_sign_of_life(old, new, at)
        self._report_ignored()

    def _only_others(self, changes: Sequence[Change]) -> bool:
        """Whether other nodes came or went, and that is all: their hooks are not kept waiting."""
        return (
            self._stay.live
            and bool(changes)
            and all(
                isinstance(change, Joined | Rejoined | Left) and change.record.node.id != self._me
                for change in changes
            )
        )

    # -- the end of every step ---------------------------------------------------------------

    def _done(self, at: Instant) -> list[Effect]:
        """Whatever follows from where things stand now; hands the effects over."""
        state, stay = self._state, self._stay
        session = stay.registered(state)
        settled = self._passages.settled
        if settled:
            self._passages.due(state, self._rows, at)
        if settled and session is not None:
            self._receipts.give(session, state, self._out)
        stay.follow(state, at)
        tell = stay.live and stay.state is not KitState.DRAINING
        self._assessment.assess(
            state,
            lost=self._passages.lost,
            fenced=stay.fenced(state),
            tell=tell,
            hold=not settled,  # a change and what is lost by it are one piece of news
            at=at,
        )
        if session is not None:
            self._out.add(
                *self._departures.due(state, at.mono),
                *self._pruning.due(state, at.mono, at.wall),
                *self._comparison.due(at.mono),
            )
            self._sign_of_life.publish(session, state, self._out, at)
        assert self._assessment.health is not None
        snapshot = self._snapshots.next(
            state,
            self._rows,
            kit_state=stay.state,
            session=session,
            initial_copies_done=self._receipts.initial_copies_done(session),
            was_ready=self._receipts.ever_done,
            health=self._assessment.health,
        )
        # First of all: a hook that is started by this step must see what it is told of.
        first: list[Effect] = [] if snapshot is None else [Publish(snapshot)]
        return first + self._out.take()

    def _report_relaxed(self) -> None:
        relaxed = self._assignment.relaxed
        if relaxed != self._relaxed:
            self._relaxed = relaxed
            self._out.note(
                WARNING if relaxed else INFO,
                "%d partitions are placed outside the bound of 'balance', since zones and bound do "
                "not go together here%s",
                len(relaxed),
                f": {named([partition_id(index) for index in relaxed])}" if relaxed else "",
                ck_revision=self._state.revision,
            )

    def _report_ignored(self) -> None:
        for key, why in self._state.ignored.items():
            if key not in self._reported_keys:
                self._reported_keys.add(key)
                self._out.note(
                    WARNING, "ignoring the key %r, which is foreign or damaged: %s", key, why
                )
