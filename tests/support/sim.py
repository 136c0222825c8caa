"""A cluster without threads: real machines, dispatchers and joiners on one store and one clock.

The simulator is the world around them. It delivers the store's revisions to each node when its
delay says so, renews leases, carries out effects, and plays the application: hooks that succeed,
fail, are slow or never end, in virtual time, and that copy data from where their events say. What
happened is recorded; ``checks.py`` beside this module judges the records.

Everything happens on the thread that calls, in the order of virtual time, so a history that failed
once fails again.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Literal, TypeAlias

from clusterkit.core import codec
from clusterkit.core.hashing import partition_index
from clusterkit.core.keys import Keys
from clusterkit.core.placement import Row
from clusterkit.core.records import (
    ClusterConfig,
    Departure,
    NodeRecord,
    Process,
    RebalanceRequest,
    Receipt,
)
from clusterkit.engine.comparison import ReadView
from clusterkit.engine.departures import CloseHistory
from clusterkit.engine.dispatcher import Dispatcher
from clusterkit.engine.effects import (
    Drop,
    Effect,
    Instant,
    Note,
    Publish,
    ReadAgain,
    Register,
    WriteAlive,
    WriteReceipt,
)
from clusterkit.engine.errands import alive_txn, history_txn, prune_txn, receipt_txn
from clusterkit.engine.jobs import Action, CancelJob, HookTimedOut, Job, StartJobs
from clusterkit.engine.join import DisplacedError, Joiner, Profile
from clusterkit.engine.machine import Machine
from clusterkit.engine.pruning import PruneHistory
from clusterkit.engine.session import LeaseDoubted, LeaseLost, LeaseProven, Session
from clusterkit.engine.snapshot import Snapshot
from clusterkit.errors import ClusterKitError, NodeIdConflictError, StoreError
from clusterkit.events import Event, PartitionChangeEvent, PartitionDropEvent, RebalanceEvent
from clusterkit.hooks import HookCancelledError, HookKind, Hooks, HookSpec
from clusterkit.model import KitState
from clusterkit.ports import Compare, Delete, Put, Txn, WatchBatch
from clusterkit.testing.clock import VirtualClock
from clusterkit.testing.memory import MemoryServer, MemoryStore

Mode: TypeAlias = Literal["ok", "fails", "slow", "never"]
Registered: TypeAlias = tuple[str, str]
"""A node id and the nonce of its stay."""

TTL = 6
MARGIN = 1.0
SETTLE = 0.25
SLOTS, RESERVED = 4, 1
HOOK_TIMEOUT, MIGRATION_TIMEOUT = 10.0, 20.0
_CALL = 1.0


class CopyError(Exception):
    """None of the sources that the event names has the data."""


@dataclass(eq=False)
class Call:
    """One run of one hook. Places are counted over the whole simulation."""

    job: Job
    place: int
    mode: Mode
    ended: int | None = None
    ended_revision: int | None = None
    timed_out: int | None = None
    error: BaseException | None = None

    @property
    def kind(self) -> HookKind:
        return self.job.spec.kind

    @property
    def event(self) -> Event:
        return self.job.event

    @property
    def over(self) -> int | None:
        """When it ended or ran out of time."""
        places = [p for p in (self.ended, self.timed_out) if p is not None]
        return min(places, default=None)


@dataclass
class Plan:
    """One rebalance that a dispatcher was told of."""

    place: int
    event: RebalanceEvent
    wanted: frozenset[str]


class _VirtualEvent(threading.Event):
    """Waiting for it lets the simulation go on."""

    def __init__(self, sim: Simulation) -> None:
        super().__init__()
        self._sim = sim

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set():
            assert timeout is not None
            self._sim.run_for(timeout)
        return self.is_set()


class _Recorder(Dispatcher):
    """The real dispatcher, and a record of the rebalances that it is told of."""

    def __init__(self, life: Life) -> None:
        super().__init__(
            _hooks(),
            incarnation=life.incarnation,
            max_concurrent=SLOTS,
            reserved=RESERVED,
            hook_timeout=HOOK_TIMEOUT,
            migration_timeout=MIGRATION_TIMEOUT,
        )
        self._life, self._sim = life, life.sim
        self.plans: list[Plan] = []

    def news(self, kind: HookKind, event: Event, now: float, *args: object) -> list[Action]:
        if isinstance(event, PartitionDropEvent):
            self._sim.may_drop(self._life, event)
        return super().news(kind, event, now, *args)

    def rebalance(
        self,
        event: RebalanceEvent,
        changes: Sequence[PartitionChangeEvent],
        now: float,
        *,
        replayed: Collection[str] = (),
    ) -> list[Action]:
        wanted = frozenset(change.event_id for change in changes)
        self.plans.append(Plan(self._sim.place(), event, wanted))
        return super().rebalance(event, changes, now, replayed=replayed)


def _hooks() -> tuple[HookSpec, ...]:
    """A hook for everything. One function hears of all nodes, so it hears in one order."""
    hooks = Hooks()

    def on_node(event: Event) -> None: ...
    def on_complete(event: RebalanceEvent, duration: timedelta) -> None: ...

    hooks.on_node_join(on_node)
    hooks.on_node_rejoin(on_node)
    hooks.on_node_leave(on_node)
    hooks.on_rebalance_complete(on_complete)
    for register in (
        hooks.on_rebalance_start,
        hooks.on_partition_change,
        hooks.on_cluster_health_change,
        hooks.on_partition_role,
        hooks.on_partition_drop,
        hooks.on_partition_lost,
        hooks.on_fenced,
        hooks.on_unfenced,
        hooks.on_hook_error,
    ):
        register(lambda event: None)
    return hooks._specs()


@dataclass(frozen=True)
class Step:
    """One advance of a machine, from one revision to another; ``expected`` is its newest stay."""

    old: int
    new: int
    expected: str


class Life:
    """One process of a node, from its start to its end."""

    def __init__(self, sim: Simulation, node_id: str, *, replication: int) -> None:
        self.sim = sim
        self.node_id = node_id
        self.incarnation = f"inc-{sim.number()}"
        self.store = MemoryStore(sim.server)
        self.dispatcher = _Recorder(self)
        self.machine = Machine(
            keys=sim.keys,
            node_id=node_id,
            incarnation=self.incarnation,
            dispatcher=self.dispatcher,
            settle_seconds=SETTLE,
        )
        self.machine._comparison._every = sim.compare_every
        profile = Profile(
            node_id=node_id,
            address=f"{node_id}:1",
            services=MappingProxyType({}),
            zone=None,
            weight=100,
            labels=MappingProxyType({}),
            incarnation=self.incarnation,
            storage="memory",
            on_conflict="takeover",
            ttl_seconds=TTL,
            grace_seconds=0,
            fence_margin=MARGIN,
            process=Process(),
            config=ClusterConfig(sim.partitions, replication, "blake2b", 1, 7),
        )
        self.joiner = Joiner(self.store, sim.keys, sim.clock, profile, _CALL)
        self.cancelled = _VirtualEvent(sim)
        self.mode: Mode = "ok"
        self.delay = 0.0
        self.late_news = 0.0  # how long the news of an own join takes from the joiner
        self.running = True
        self.begun = self.reached = False
        self.next = 0  # the first batch of the log that it has not been given
        self.revision = 0
        self.steps: list[Step] = []
        self.calls: list[Call] = []
        self.notes: list[str] = []
        self.levels: list[tuple[int, str]] = []  # the same, with how urgent each is
        self.receipts: list[WriteReceipt] = []
        self.pruned: list[str] = []
        self.doubts: list[str] = []
        self.alive_writes: list[tuple[float, tuple[str, ...]]] = []
        self.registers = 0
        self.open: dict[int, Call] = {}
        self.snapshot: Snapshot | None = None
        self.session: Session | None = None
        self.doubted = False
        self.expected = ""
        self.receipt: WriteReceipt | None = None

    # -- its life ----------------------------------------------------------------------------

    def start(self) -> None:
        """Joins; the rest of the simulation goes on meanwhile."""
        try:
            read = self.store.range(self.sim.keys.root, timeout=_CALL)
        except StoreError:
            self.running = False  # cut off before it began
            return
        self.revision = read.revision
        self.next = len(self.sim.log)
        self.tell(self.machine.begin(read, self.at()))
        self.begun = self.reached = True
        self._join(None)

    def _join(self, after: str | None) -> None:
        nonce = f"n{self.sim.number()}"
        self.machine.expect(nonce)
        self.expected = nonce
        try:
            session = self.joiner.join(nonce, after=after, cancelled=self.cancelled)
        except ClusterKitError as e:
            if self.running and after is not None:
                displaced = isinstance(e, DisplacedError | NodeIdConflictError)
                self.tell(self.machine.register_failed(after, e, displaced, self.at()))
            elif after is None:
                self.running = False
            return
        if not self.running:
            return
        self.session, self.doubted = session, False
        self.sim.after(TTL / 3, lambda: self._keep(session))
        self.sim.after(
            self.late_news,
            lambda: self.tell(self.machine.registered(session, self.at())),
            self,
        )

    def leave(self) -> None:
        self.tell(self.machine.stopping(self.at()))
        session, self.session = self.session, None
        self.running = False
        self.cancelled.set()
        if session is not None and not session.lost:
            with contextlib.suppress(StoreError):  # cut off: the lease will expire
                self.joiner.leave(session, ())

    def crash(self) -> None:
        self.running = False
        self.session = None
        self.cancelled.set()

    def cut_off(self) -> None:
        self.store.cut_off()
        self.reached = False

    def heal(self) -> None:
        self.store.reconnect()
        self.reached = self.begun
        self.sim.deliver_soon(self)

    def at(self) -> Instant:
        return Instant(self.sim.clock.monotonic(), self.sim.clock.now())

    # -- news --------------------------------------------------------------------------------

    def deliver(self, upto: int) -> None:
        """Gives the machine the batches of the log before ``upto``."""
        while self.running and self.reached and self.next < upto:
            batch = self.sim.log[self.next]
            self.next += 1
            if batch.revision > self.revision:
                self.steps.append(Step(self.revision, batch.revision, self.expected))
                self.revision = batch.revision
                self.tell(self.machine.changed(batch, self.at()))

    def reread(self) -> None:
        """A reading in place of the watch."""
        if not self.reached:
            return
        read = self.store.range(self.sim.keys.root, timeout=_CALL)
        self.steps.append(Step(self.revision, read.revision, self.expected))
        self.revision = read.revision
        self.tell(self.machine.reread(read, "simulated", self.at()))

    def _keep(self, session: Session) -> None:
        """The keep-alive thread, as the real one decides: by the time of sending."""
        if not self.running or self.session is not session:
            return
        now = self.sim.clock.monotonic()
        again = TTL / 3
        try:
            ttl = self.store.keep_alive(session.lease_id, timeout=_CALL)
        except StoreError as e:
            if not self.doubted and not session.proven(now):
                self.doubted = True
                self.tell(self.machine.lease(LeaseDoubted(session, str(e)), self.at()))
            again = min(0.3, session.remaining(now) or 0.3)
        else:
            if ttl <= 0:
                session.lose()
                self.session = None
                self.tell(self.machine.lease(LeaseLost(session, "expired"), self.at()))
                return
            session.renewed(now, ttl)
            if self.doubted:
                self.doubted = False
                self.tell(self.machine.lease(LeaseProven(session), self.at()))
        self.sim.after(again, lambda: self._keep(session))

    # -- effects -----------------------------------------------------------------------------

    def tell(self, effects: Sequence[Effect]) -> None:
        """Carries out what the machine answered, and sees to its next waking."""
        for effect in effects:
            self._carry_out(effect)
        wake_at = self.machine.wake_at()
        if wake_at is not None and self.running:
            self.sim.at(wake_at, self._tick, self)
        self.sim.collect()

    def _tick(self) -> None:
        wake_at = self.machine.wake_at()
        if wake_at is not None and wake_at <= self.sim.clock.monotonic():
            self.tell(self.machine.tick(self.at()))

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case StartJobs(jobs):
                for job in jobs:
                    self._run_hook(job)
            case CancelJob(job_id, reason):
                call = self.open.get(job_id)
                if call is not None and call.mode == "slow":
                    self.sim.after(0.0, lambda: self._end(call, HookCancelledError(reason)), self)
            case HookTimedOut(job):
                self.open[job.id].timed_out = self.sim.place()
            case Publish(snapshot):
                self.snapshot = snapshot
                self.sim.published(snapshot)
            case WriteReceipt():
                self.receipt = effect
                self.receipts.append(effect)
                self.sim.check_receipt(self.node_id, effect.receipt)
                self.sim.after(0.01, lambda: self._write_receipt(effect), self)
            case CloseHistory():
                txn = history_txn(self.sim.keys, effect)
                self.sim.after(0.01, lambda: self._write(txn), self)
            case WriteAlive():
                self.alive_writes.append((self.sim.clock.monotonic(), effect.failing))
                sign = alive_txn(self.sim.keys, self.node_id, effect)
                self.sim.after(0.01, lambda: self._write(sign), self)
            case ReadView(number):
                self.sim.after(0.01, lambda: self._compare(number), self)
            case ReadAgain(reason):
                self.doubts.append(reason)
                self.sim.after(0.01, self.reread, self)
            case PruneHistory():
                pruning = prune_txn(self.sim.keys, effect)
                self.pruned.append(effect.node_id)
                self.sim.after(0.01, lambda: self._write(pruning), self)
            case Register(after, delay):
                self.registers += 1
                self.sim.after(delay, lambda: self._join(after), self)
            case Drop(session):
                if self.session is session:
                    self.session = None
                self.sim.after(0.01, lambda: self._revoke(session), self)
            case Note(level, message, args):
                self.notes.append(message % args)
                self.levels.append((level, message % args))
            case _:
                pass

    def _write_receipt(self, write: WriteReceipt) -> None:
        """As often as it takes, unless there is a newer one."""
        if self.receipt is not write or write.session.lost:
            return
        if not self._write(receipt_txn(self.sim.keys, self.node_id, write)):
            self.sim.after(0.5, lambda: self._write_receipt(write), self)

    def _write(self, txn: Txn) -> bool:
        try:
            self.store.txn(txn, timeout=_CALL)
        except StoreError:
            return False
        self.sim.collect()
        return True

    def _compare(self, number: int) -> None:
        with contextlib.suppress(StoreError):
            read = self.store.range(self.sim.keys.root, timeout=_CALL)
            self.sim.after(
                0.3, lambda: self.tell(self.machine.compare(read, number, self.at())), self
            )

    def _revoke(self, session: Session) -> None:
        try:
            self.store.revoke(session.lease_id, timeout=_CALL)
        except StoreError:
            return
        self.sim.collect()

    # -- the application ---------------------------------------------------------------------

    def _run_hook(self, job: Job) -> None:
        call = Call(job, self.sim.place(), self.mode)
        self.calls.append(call)
        self.open[job.id] = call
        seconds = {"ok": 0.01, "fails": 0.01, "slow": 7.0, "never": None}[call.mode]
        if seconds is not None:
            failure = CopyError("told to fail") if call.mode == "fails" else None
            self.sim.after(seconds, lambda: self._end(call, failure), self)

    def _end(self, call: Call, error: BaseException | None) -> None:
        if call.ended is not None:
            return
        call.ended, call.ended_revision = self.sim.place(), self.revision
        del self.open[call.job.id]
        if error is None:
            error = self._work(call)
        call.error = error
        self.tell(self.machine.jobs_ended([(call.job.id, error)], self.at()))

    def _work(self, call: Call) -> BaseException | None:
        match call.event:
            # Another process of this id may have taken it over: what that one gets is not here.
            case PartitionChangeEvent(copy_to_node=node) as event if (
                node.incarnation == self.incarnation
            ):
                return self.sim.copy(event)
            case PartitionDropEvent() as event:
                self.sim.drop(self, event)
        return None

    def events(self, kind: HookKind) -> list[Event]:
        """What the hook of a kind was called with, in order."""
        return [call.event for call in self.calls if call.kind == kind]

    def release(self) -> None:
        """Hooks that never end do so after all, and from now on all succeed."""
        self.mode = "ok"
        for call in list(self.open.values()):
            self.sim.after(0.0, lambda call=call: self._end(call, None), self)  # type: ignore[misc]  # mypy cannot infer a default's type


@dataclass
class Simulation:
    """The world of the nodes."""

    partitions: int = 8
    compare_every: float = 300.0
    clock: VirtualClock = field(default_factory=VirtualClock)

    def __post_init__(self) -> None:
        self.server = MemoryServer(self.clock)
        self.keys = Keys.of("/clusterkit", "sim")
        self.lives: list[Life] = []
        self.log: list[WatchBatch] = []
        self.members: dict[int, dict[str, NodeRecord]] = {0: {}}
        self.ends: dict[str, str] = {}
        self.rows: dict[int, Sequence[Row]] = {}
        self.faults: list[str] = []
        # Who really has which partition's data, since which epoch.
        self.data: dict[Registered, dict[str, int]] = {}
        self.vouched: dict[Registered, int] = {}  # up to which epoch, by a receipt in the store
        self._admin = MemoryStore(self.server)
        self._watch = self._admin.watch(self.keys.root, 2)
        self._numbers = itertools.count(1)
        self._places = itertools.count(1)
        self._heap: list[tuple[float, int, Callable[[], object], Life | None]] = []

    # -- time --------------------------------------------------------------------------------

    def number(self) -> int:
        return next(self._numbers)

    def place(self) -> int:
        """The place of something that happens now, in the order of everything that happens."""
        return next(self._places)

    def at(self, when: float, action: Callable[[], object], life: Life | None = None) -> None:
        """Does something at a time; not if the life that it belongs to is over by then."""
        heapq.heappush(self._heap, (when, self.number(), action, life))

    def after(self, seconds: float, action: Callable[[], object], life: Life | None = None) -> None:
        self.at(self.clock.monotonic() + seconds, action, life)

    def run_for(self, seconds: float) -> None:
        """Lets time pass. Whatever happens in it may let time pass itself."""
        until = self.clock.monotonic() + seconds
        while self._heap and self._heap[0][0] <= until:
            when, _, action, life = heapq.heappop(self._heap)
            self._advance_to(when)
            if life is None or life.running:
                action()
                self.collect()
        self._advance_to(until)

    def _advance_to(self, when: float) -> None:
        self.clock.advance(max(0.0, when - self.clock.monotonic()))
        self.collect()

    # -- the store's truth -------------------------------------------------------------------

    def collect(self) -> None:
        """Takes in what has changed in the store, and sends it on its way to every node."""
        if self.log and self.log[-1].revision == self.server.revision:
            return
        self.server.progress()
        for batch in self._watch:
            if not batch.events:
                break
            self.log.append(batch)
            self._take(batch)
        for life in self.lives:
            if life.running:
                self.deliver_soon(life)

    def deliver_soon(self, life: Life) -> None:
        upto = len(self.log)
        if life.next < upto:
            self.after(life.delay, lambda: life.deliver(upto), life)

    def _take(self, batch: WatchBatch) -> None:
        members = dict(self.members[max(self.members)])
        written: dict[str, Departure] = {}
        for event in batch.events:
            parsed = self.keys.parse(event.kv.key)
            if parsed is not None and parsed.kind == "history" and event.kind == "put":
                past = codec.decode_history(event.kv.value)
                written.update({d.registration.nonce: d for d in past.departures})
        for event in batch.events:
            parsed = self.keys.parse(event.kv.key)
            if parsed is not None and parsed.kind == "applied" and event.kind == "put":
                receipt = codec.decode_receipt(event.kv.value)
                self.vouched[parsed.node_id, receipt.nonce] = receipt.epoch
            if parsed is None or parsed.kind not in ("nodes", "alive"):
                continue
            if parsed.kind == "alive":
                if event.kind == "delete":
                    self._check_fenced(parsed.node_id, parsed.incarnation)
                continue
            before = members.pop(parsed.node_id, None)
            if event.kind == "put":
                members[parsed.node_id] = codec.decode_node(parsed.node_id, event.kv.value)
                if before is not None:
                    self.ends[before.nonce] = "replaced"
            elif before is not None:
                end = written.get(before.nonce)
                self.ends[before.nonce] = "health_check_failure" if end is None else end.reason
        self.members[batch.revision] = members

    def members_at(self, revision: int) -> dict[str, NodeRecord]:
        """The members as of a revision, whether or not it changed anything of the cluster."""
        return self.members[max(r for r in self.members if r <= revision)]

    def check_receipt(self, node_id: str, receipt: Receipt) -> None:
        """A receipt is true: its node has what it held then."""
        mine = self.data.get((node_id, receipt.nonce), {})
        for index, row in enumerate(self.rows[receipt.epoch]):
            if node_id in row and f"partition-{index}" not in mine:
                self.faults.append(f"{node_id} gave a receipt, and lacks partition-{index}")

    def _check_fenced(self, node_id: str, incarnation: str) -> None:
        for life in self.lives:
            session = life.session if life.running and life.incarnation == incarnation else None
            if session is not None and session.proven(self.clock.monotonic()):
                self.faults.append(f"{node_id} believed in its lease after it had ended")

    def published(self, snapshot: Snapshot) -> None:
        rows = self.rows.setdefault(snapshot.epoch, snapshot.rows)
        if rows != snapshot.rows:
            self.faults.append(f"epoch {snapshot.epoch} has two assignments")

    # -- the application's data --------------------------------------------------------------

    def alive(self) -> dict[str, Registered]:
        """The registrations of the members whose processes run."""
        newest = self.members[max(self.members)]
        running = {life.incarnation for life in self.lives if life.running}
        return {
            node_id: (node_id, member.nonce)
            for node_id, member in newest.items()
            if member.node.incarnation in running
        }

    def copy(self, event: PartitionChangeEvent) -> CopyError | None:
        """The work of a hook whose target this node is: a copy works only from who has the data."""
        *_, node_id, nonce, epoch = event.event_id.split("/")
        partition, gained = event.partition_id, int(epoch)
        mine = self.data.setdefault((node_id, nonce), {})
        alive = self.alive()
        if not event.needs_data:
            if partition not in mine and (node_id, nonce) in alive.values():
                self.faults.append(f"{node_id} was told to have {partition}, and has not")
            return None
        if partition in mine:
            return None
        index = partition_index(partition)
        assert index is not None
        for source in event.copy_from_nodes:
            stay = alive.get(source.id)
            if stay is None:
                return CopyError(f"{source.id} does not answer")
            if partition in self.data.get(stay, {}):
                mine[partition] = gained
                return None
        for source in event.copy_from_nodes:
            holder = self.life(source.id)
            owed = None if holder is None else holder.machine.ledger.entries.get((index, source.id))
            # Of two that wait for data only one is named to the other in the end.
            if holder is None or owed is not None:
                return CopyError(f"{source.id} has yet to get {partition} itself")
        # Nobody has it, and nobody will: the application begins anew.
        for other in alive.values():
            since = self.data.get(other, {}).get(partition)
            # What no receipt vouches for yet cannot always be told from what never arrived, and a
            # node that lags may have to drop what it still has.
            vouched = since is not None and since < gained and since <= self.vouched.get(other, 0)
            holder = self.life(other[0])
            if vouched and holder is not None and holder.revision >= event.revision:
                self.faults.append(f"{node_id} began {partition} anew although {other[0]} has it")
        # Whoever gained it by now, and was not told of a source either, may begin it anew as well.
        mine[partition] = max(self.rows)
        return None

    def may_drop(self, life: Life, event: PartitionDropEvent) -> None:
        """Checks that another has the data, unless the processes of all that had it are gone."""
        index, epoch = partition_index(event.partition_id), int(event.event_id.split("/")[-1])
        assert index is not None
        alive = self.alive()
        # From here on it may be gone at any moment, so nobody may count on it.
        self.data.get((life.node_id, life.expected), {}).pop(event.partition_id, None)
        if any(event.partition_id in self.data.get(stay, {}) for stay in alive.values()):
            return
        seen = self.members_at(life.revision)
        for holder in self.rows[epoch][index]:
            if holder in seen and (holder, seen[holder].nonce) in alive.values():
                self.faults.append(f"{life.node_id} is to drop what {holder} has not got")

    def drop(self, life: Life, event: PartitionDropEvent) -> None:
        if event.partition_id in self.data.get((life.node_id, life.expected), {}):
            self.faults.append(f"{life.node_id} dropped a copy that it had got since")

    # -- what happens ------------------------------------------------------------------------

    def life(self, node_id: str) -> Life | None:
        """The newest process of a node, if it runs."""
        lives = [life for life in self.lives if life.node_id == node_id and life.running]
        return lives[-1] if lives else None

    def start(self, node_id: str, *, replication: int = 2) -> Life:
        """Starts a process; it joins now, other things go on if that takes time."""
        life = Life(self, node_id, replication=replication)
        self.lives.append(life)
        self.at(self.clock.monotonic(), life.start, life)
        return life

    def remove(self, node_id: str) -> None:
        """An administrator removes a node."""
        key, past_key = self.keys.node(node_id), self.keys.history(node_id)
        kvs = {kv.key: kv for kv in self._admin.range(self.keys.root, timeout=_CALL).kvs}
        if key not in kvs:
            return
        record = codec.decode_node(node_id, kvs[key].value)
        end = Departure(record.registration, "removed_by_admin", self.clock.now(), 0)
        past = codec.history_with(kvs[past_key].value, ended=end)
        unchanged = Compare(key, "mod", "==", kvs[key].mod_revision)
        txn = Txn((unchanged,), (Put(past_key, past), Delete(key)))
        self._admin.txn(txn, timeout=_CALL)
        self.collect()

    def rebalance(self) -> None:
        """An administrator asks for a rebalance."""
        request = RebalanceRequest("", "by hand", self.clock.now())
        put = Put(self.keys.rebalance, codec.encode_rebalance(request))
        self._admin.txn(Txn((), (put,)), timeout=_CALL)
        self.collect()

    def settle(self, seconds: float = 240.0) -> None:
        """All faults end, all hooks succeed, and time passes until nothing is left to be done."""
        for life in self.lives:
            if life.running:
                life.delay = 0.0
                life.heal()
        until = self.clock.monotonic() + seconds
        while self.clock.monotonic() < until:
            for life in self.lives:
                if life.running:
                    life.release()
            self.run_for(5.0)
            if all(map(_at_rest, filter(lambda life: life.running, self.lives))):
                return

    def close(self) -> None:
        self._watch.close()
        self.server.close()


def _at_rest(life: Life) -> bool:
    snapshot = life.snapshot
    if snapshot is None or not life.dispatcher.idle or life.machine.ledger.entries:
        return False
    if snapshot.kit_state is KitState.REMOVED:
        return True
    receipt = snapshot.state.receipts.get(life.node_id)
    caught_up = snapshot.state.revision == life.sim.log[-1].revision
    return caught_up and receipt is not None and receipt.epoch == snapshot.epoch
