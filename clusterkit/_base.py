"""What both faces share: the registry of hooks, and the lookups.

Lookups read one immutable snapshot. They take no lock, do no I/O, never block, and may be called
from any thread and from inside any hook.

What a kit is made of (gRPC, pydantic, the engine) is loaded by what first needs it, ``start()`` as
a rule: a module that makes a kit, for others to import, costs them no more than the class.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Unpack
from zlib import crc32

from ._options_dict import refuse_unknown
from .core.hashing import SPREAD, partition_index
from .engine.lookup import Lookup
from .errors import (
    ClusterKitError,
    FencedError,
    HookRegistrationError,
    KitStateError,
    NotOwnerError,
    OptionError,
    UnknownPartitionError,
    WaitTimeoutError,
)
from .events import Role
from .hooks import Duration, Hooks, HookSpec
from .model import (
    ClusterHealth,
    ClusterView,
    Guard,
    Key,
    KitState,
    Node,
    OwedMove,
    Partition,
    PartitionRef,
    Readiness,
    Stats,
)

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

    from ._asgi import ASGIApplication
    from ._compose import Run
    from ._options_dict import OptionsDict
    from .admin.app import Admin
    from .config import Options
    from .engine.checks import HealthCheck
    from .engine.runner import Attendant, Runner
    from .engine.snapshot import Snapshot
    from .planning import Plan, PlannedNode
    from .ports import Clock, Store

_FORKED = (
    "this process was forked from the one that started the kit, which goes on there; here it may "
    "do nothing. Fork before the kit is started, or start processes with 'spawn'"
)


class KitBase(Hooks):
    """The options, the hooks and the lookups of a kit."""

    def __init__(self, **options: Unpack[OptionsDict]) -> None:
        """Remembers the options; their values are checked by ``start()``.

        Args:
            **options: See :class:`clusterkit.OptionsDict`. What is not given is read from
                ``CLUSTERKIT_<NAME>`` variables, and else has a default.

        Raises:
            OptionError: There is no option of a name.
        """
        super().__init__()
        refuse_unknown(options)
        self._given = options
        self._options: Options | None = None
        self._run: Run | None = None
        self._lookup = Lookup()  # the run's; of one that knows nothing, before the first
        self._starting = threading.Lock()
        self._stop_early = False
        self._health_checks: dict[str, HealthCheck] = {}
        self._admin: Admin | None = None
        if (hooks := options.get("hooks")) is not None:
            self.include(hooks)

    # -- what the kit is ---------------------------------------------------------------------

    @property
    def node_id(self) -> str:
        """This node's id.

        Raises:
            OptionError: The kit was not started yet, and an option cannot work.
        """
        return self._resolved().node_id

    @property
    def state(self) -> KitState:
        """The state of the kit; see :class:`KitState` for how one follows from another."""
        run = self._run
        if run is None:
            return KitState.NEW
        return run.runner.state

    @property
    def cluster(self) -> ClusterView:
        """The cluster as of the newest revision that this node has applied."""
        return self._snapshot().view

    # -- lookups -----------------------------------------------------------------------------

    def partition_for(self, key: Key, /) -> Partition:
        """The partition that a key belongs to, with its holders. A lookup, not a permission."""
        # Without a call that it can do without: this is in the path of each request of an
        # application. So what ``key_indexer`` does is written out for the usual key, and whatever
        # is out of the ordinary goes the long way.
        text, made, partitions = self._lookup.quick
        try:
            if type(key) is text:
                found = made[(crc32(key.encode()) * SPREAD >> 32) % partitions]
                if found is not None:
                    return found
            elif type(key) is bytes and text is str:
                found = made[(crc32(key) * SPREAD >> 32) % partitions]
                if found is not None:
                    return found
        except UnicodeEncodeError:
            pass
        find = self._lookup.find
        return self._snapshot().view.partition_for(key) if find is None else find(key)

    def partition(self, partition_id: str, /) -> Partition:
        """The partition with that id.

        Raises:
            UnknownPartitionError: There is none.
        """
        snapshot = self._snapshot()
        return snapshot.view.partitions[_index(partition_id, snapshot)]

    def partitions(self) -> tuple[Partition, ...]:
        """All partitions, in the order of their indexes."""
        return tuple(self._snapshot().view.partitions)

    def partitions_of(self, node_id: str, /) -> tuple[Partition, ...]:
        """The partitions that a node holds, as primary or replica."""
        return _held(self._snapshot(), node_id, None)

    def my_partitions(self, *, role: Role | None = None) -> tuple[Partition, ...]:
        """The partitions that this node holds; with ``role`` those it has that role for."""
        return _held(self._snapshot(), self.node_id, role)

    def nodes_for(self, p: PartitionRef, /) -> tuple[Node, ...]:
        """The holders of a partition, the primary first."""
        return self._partition(p).nodes

    def serving(self, p: PartitionRef, /) -> Node | None:
        """The node that serves a partition: its primary. None if nobody does."""
        return self._partition(p).primary

    # -- ownership ---------------------------------------------------------------------------

    def is_primary(self, p: PartitionRef, /) -> bool:
        """Whether this node is the primary now, and can prove that its lease is alive."""
        run, snapshot = self._running(), self._snapshot()
        row = snapshot.rows[_index(p, snapshot)]
        return bool(row) and row[0] == run.node_id and _proven(run, snapshot)

    def is_replica(self, p: PartitionRef, /) -> bool:
        """Whether this node is a holder other than the primary, and its lease is proven."""
        run, snapshot = self._running(), self._snapshot()
        return run.node_id in snapshot.rows[_index(p, snapshot)][1:] and _proven(run, snapshot)

    def is_ready(self, p: PartitionRef, /) -> bool:
        """Whether this node holds the partition and all its hooks for it have succeeded."""
        run, snapshot = self._running(), self._snapshot()
        index = _index(p, snapshot)
        row = snapshot.rows[index]
        holds = snapshot.session is not None and run.node_id in row
        return holds and not run.ledger.pending_for(index, run.node_id, row)

    def guard(self, p: PartitionRef, /) -> Guard:
        """A permission to act as the owner of a partition, with its epoch.

        Raises:
            FencedError: This node cannot prove that its lease is alive.
            NotOwnerError: Another node is the primary.
        """
        run, snapshot = self._running(), self._snapshot()
        index = _index(p, snapshot)
        since = _owned_since(run, snapshot, index)

        def check() -> int:
            if run.runner.forked:
                raise FencedError(
                    _FORKED, partition_id=snapshot.view.partitions[index].id, epoch=snapshot.epoch
                )
            newer = self._snapshot()
            if _owned_since(run, newer, index) != since:
                raise NotOwnerError(
                    f"{newer.view.partitions[index].id} had another owner in the meantime; "
                    "take a new guard",
                    partition_id=newer.view.partitions[index].id,
                    epoch=newer.epoch,
                    owner=newer.view.partitions[index].primary,
                )
            return newer.epoch

        def remaining() -> timedelta:
            return timedelta(0) if run.runner.forked else _remaining(run, self._snapshot())

        return Guard(snapshot.view.partitions[index], snapshot.epoch, check, remaining)

    # -- how it is ---------------------------------------------------------------------------

    def health(self) -> ClusterHealth:
        """The health of the cluster, seen from this node."""
        return self._snapshot().health

    def add_health_check(
        self,
        name: str,
        check: Callable[[], object],
        *,
        interval: Duration = 10,
        timeout: Duration = 5,
    ) -> None:
        """Has this node call ``check`` now and then, and tell the cluster when it fails.

        It fails if it raises, returns False, or takes longer than ``timeout``. While one fails, the
        node is unhealthy in every node's ``health()``, and ``on_cluster_health_change`` fires
        everywhere. It keeps its partitions and its readiness: what follows is the application's.

        Args:
            name: What the others are told; one check for each name.
            check: ``def``, called on a worker thread, or ``async def``, on the loop of the hooks.
            interval: From the start of one run to the start of the next, seconds.
            timeout: Seconds until a run counts as failed. It is not started again before it ends.

        Before and after ``start()``; the checks run while the kit does.

        Raises:
            HookRegistrationError: The name is taken or empty, or ``check`` cannot be called.
            OptionError: A time is not more than zero.
        """
        if not name or not callable(check):
            raise HookRegistrationError(
                f"a health check needs a name and something that can be called; {name!r} and "
                f"{check!r} were given"
            )
        for option, given in (("interval", interval), ("timeout", timeout)):
            if not seconds_of(given) > 0:
                raise OptionError(
                    f"{option}={given!r} of the health check {name!r} cannot work: it must be more "
                    "than 0 seconds",
                    option=option,
                    value=given,
                )
        from .engine.checks import HealthCheck

        added = HealthCheck(name, check, seconds_of(interval), seconds_of(timeout))
        with self._starting:
            if name in self._health_checks:
                raise HookRegistrationError(
                    f"there is a health check {name!r} already; give this one another name"
                )
            self._health_checks[name] = added
            if self._run is not None:
                self._run.runner.add_check(added)

    def readiness(self) -> Readiness:
        """Whether this node should get traffic. Never raises: before the start it is not ready.

        With the option ``ready_when_fenced`` a node that was ready stays so while it is fenced,
        as when etcd is down: it owns nothing, and may serve what needs no ownership.
        """
        run = self._run
        snapshot = None if run is None else run.runner.snapshot
        if run is not None and run.runner.forked:
            return Readiness(False, (_FORKED,), timedelta(0))
        if run is None or snapshot is None or self.state in (KitState.NEW, KitState.STOPPED):
            return Readiness(False, (f"the kit is {self.state}",), timedelta(0))
        reasons: list[str] = []
        in_doubt = snapshot.kit_state in (KitState.JOINED, KitState.FENCED)
        if run.ready_when_fenced and snapshot.was_ready and in_doubt and not _proven(run, snapshot):
            return Readiness(True, (), timedelta(0))
        if snapshot.session is None:
            reasons.append(f"not a member of the cluster: the kit is {self.state}")
        elif not _proven(run, snapshot):
            reasons.append("fenced: the lease cannot be proven to be alive")
        elif not snapshot.initial_copies_done:
            reasons.append("the initial copies of its partitions have not all succeeded")
        return Readiness(not reasons, tuple(reasons), _remaining(run, snapshot))

    def plan(
        self,
        *,
        add: Mapping[str, PlannedNode] | None = None,
        remove: Collection[str] = (),
        weights: Mapping[str, int] | None = None,
        cordon: Collection[str] = (),
        uncordon: Collection[str] = (),
        replication_factor: int | None = None,
        balance: float | None = None,
        balance_primaries: bool | None = None,
    ) -> Plan:
        """What a change of nodes or settings would move. Nothing is changed, and nothing written.

        It takes the cluster to be at rest: every holder has its data. For 1,024 partitions and a
        hundred nodes it computes for some tens of milliseconds, on the thread that calls.

        Args:
            add: Nodes that would join, by id.
            remove: The ids of those that would leave.
            weights: New weights, by id.
            cordon: The ids of those that would hold nothing.
            uncordon: The ids of those that might again.
            replication_factor: Another number of holders.
            balance: Another bound on a node's load, in times its fair share; 0 for none.
            balance_primaries: Whether primaries would be evened out.

        Raises:
            ClusterKitError: It names a node that is not there, or adds one that is, or there is no
                cluster yet.
            OptionError: A number is out of its range.
        """
        from ._compose import plan_of
        from .config import balance_percent_of
        from .core.forecast import Alteration, Layout

        state = self._snapshot().state
        if state.config is None:
            raise ClusterKitError("there is nothing to plan yet: no node has joined the cluster")
        change = Alteration(
            add=add or {},
            remove=remove,
            weights=weights or {},
            cordon=cordon,
            uncordon=uncordon,
            replication_factor=replication_factor,
            balance_percent=None if balance is None else balance_percent_of(balance or "none"),
            balance_primaries=balance_primaries,
        )
        return plan_of(Layout.of(state), change)

    def stats(self) -> Stats:
        """Counters since the start, and the length of queues."""
        self._snapshot()
        return self._running().stats()

    def owed(self) -> tuple[OwedMove, ...]:
        """The partition changes whose hooks have not all succeeded here yet."""
        return self._running().ledger.owed()

    def asgi(self) -> ASGIApplication:
        """An ASGI application that tells about this node and its cluster; read only.

        Mount it into a server of your own, or set the option ``admin`` to have the kit serve it by
        itself. It may be made before ``start()``, and then answers that the kit has not begun. Its
        paths are in ``docs/admin.md``. What hooks do is counted for its ``/metrics`` from the first
        call of this on. Needs the extra ``[admin]``.

        Raises:
            ClusterKitError: The extra is not installed.
        """
        with self._starting:
            known = self._admin
            admin = self._administration("ck.asgi()")
            run = self._run
            if known is None and run is not None and run.runner.alive:
                run.measure(admin.metrics)  # it began without
        return admin.application()

    def request_stop(self) -> None:
        """Asks the kit to leave and stop; returns at once. Safe in a signal handler and a hook.

        Before the first start it makes that start one that stops again at once.
        """
        run = self._run
        if run is None:
            self._stop_early = True  # a signal may come before the start has got this far
        elif not run.runner.forked:
            run.runner.request_stop(run.stop_timeout)

    # -- for the faces -----------------------------------------------------------------------

    def _begin(self, loop: asyncio.AbstractEventLoop | None, attempt: Attempt) -> None:
        """Starts a new run. Blocks until it has joined."""
        self._refuse_if_forked(self._run)
        with self._starting:
            if self._run is not None and not self._run.runner.ended.done():
                raise KitStateError(
                    f"the kit is started already (it is {self.state}); stop() it first, or make "
                    "another one for another cluster",
                    state=self.state,
                )
            self._options = None  # read anew: the environment may have changed since the last run
            options = self._resolved()
            # First of all, so that no hook is registered without an error and never fires.
            self._seal("the kit has been started")
            try:
                run = self._assemble(options, loop)
            except BaseException:
                self._unseal()
                raise
            self._run, self._lookup = run, run.runner.lookup
        run.runner.ended.add_done_callback(lambda _: self._unseal())
        attempt.made(run)
        try:
            run.runner.start()
        finally:
            stop_early, self._stop_early = self._stop_early, False
        if stop_early:
            self.request_stop()

    def _added_late(self, spec: HookSpec) -> None:
        with self._starting:
            if self._run is not None and not self._run.runner.forked:
                self._run.runner.add_hook(spec)

    def _assemble(self, options: Options, loop: asyncio.AbstractEventLoop | None) -> Run:
        from . import _compose

        server = None if options.admin is None else self._server(options.admin)
        return _compose.node(
            options,
            self._specs(),
            loop,
            tuple(self._health_checks.values()),
            () if self._admin is None else (self._admin.metrics,),
            server,
            store=self._store_of(options),
            clock=self._clock_of(),
        )

    def _store_of(self, options: Options) -> Store | None:
        """What a kit of ``clusterkit.testing`` asks in place of etcd; anew for each run."""
        return None

    def _clock_of(self) -> Clock | None:
        """What a kit of ``clusterkit.testing`` goes by in place of the machine's clock."""
        return None

    def _server(self, address: str) -> Attendant:
        admin = self._administration(f"the option admin={address!r}")
        try:
            from .admin.server import AdminServer  # uvicorn, for who serves by the kit alone
        except ModuleNotFoundError as e:
            raise _no_extra(f"the option admin={address!r}", e) from e
        return AdminServer(admin.application(), address)

    def _administration(self, wanted: str) -> Admin:
        if self._admin is None:
            try:
                from .admin.app import Admin  # starlette and prometheus_client, for who asks
            except ModuleNotFoundError as e:
                raise _no_extra(wanted, e) from e
            self._admin = Admin(self)
        return self._admin

    def _end(self, timeout: Duration | None) -> Runner | None:
        """Asks the run to stop, and gives it, to wait for; None if there is none to wait for.

        There never was one, or it is a hook that asks.
        """
        run = self._run
        if run is None or run.runner.forked:
            return None
        from .engine.executors import in_hook

        run.runner.request_stop(run.stop_timeout if timeout is None else seconds_of(timeout))
        return None if in_hook() else run.runner

    def _when_ready(self) -> Future[None]:
        return self._running().runner.when(lambda _: self.readiness().ready)

    def _not_ready(self, timeout: Duration | None) -> WaitTimeoutError:
        reasons = "; ".join(self.readiness().reasons) or "it has just become ready"
        return WaitTimeoutError(f"not ready after {timeout} s: {reasons}")

    def _when_converged(self) -> Future[None]:
        return self._running().runner.when(lambda s: s.session is not None and not behind(s))

    def _not_converged(self, timeout: Duration | None) -> WaitTimeoutError:
        snapshot = self._snapshot()
        missing = ", ".join(behind(snapshot)) or "none any more"
        where = "" if snapshot.session is not None else f"; this node is {self.state}"
        return WaitTimeoutError(
            f"the cluster had not converged after {timeout} s{where}. The nodes whose hooks have "
            f"not all succeeded for the present assignment: {missing}"
        )

    def _resolved(self) -> Options:
        if self._options is None:
            from .config import Options

            self._options = Options.resolve(**self._given)
        return self._options

    def _running(self) -> Run:
        run = self._run
        if run is None:
            raise KitStateError(
                "the kit has not been started: before asking it, enter it with 'with' "
                "(clusterkit.sync) or 'async with' (clusterkit), or call start(), which asyncio "
                "has to await",
                state=KitState.NEW,
            )
        self._refuse_if_forked(run)
        return run

    def _refuse_if_forked(self, run: Run | None) -> None:
        if run is not None and run.runner.forked:
            raise KitStateError(_FORKED, state=KitState.STOPPED)

    def _snapshot(self) -> Snapshot:
        snapshot = self._running().runner.snapshot
        if snapshot is None:
            raise KitStateError(
                "the kit is starting and knows nothing of the cluster yet; wait for start()",
                state=KitState.JOINING,
            )
        return snapshot

    def _partition(self, p: PartitionRef) -> Partition:
        snapshot = self._snapshot()
        return snapshot.view.partitions[_index(p, snapshot)]


def behind(snapshot: Snapshot) -> list[str]:
    """The members that have no receipt for the present assignment."""
    state = snapshot.state
    return [
        node_id
        for node_id, member in sorted(state.members.items())
        if (receipt := state.receipts.get(node_id)) is None
        or receipt.nonce != member.nonce
        or receipt.epoch < snapshot.epoch
    ]


def _no_extra(wanted: str, error: ModuleNotFoundError) -> ClusterKitError:
    package = (error.name or "").partition(".")[0]
    if package == __package__:
        raise error  # nothing that could be installed
    return ClusterKitError(
        f"{wanted} needs the package {package!r}, which is not installed; install it with: "
        "pip install 'clusterkit[admin]'"
    )


class Attempt:
    """One call of ``start()``, which its caller may give up while another thread carries it out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._run: Run | None = None
        self._given_up = False

    def made(self, run: Run) -> None:
        """There is a run that can be stopped."""
        with self._lock:
            self._run = run
            if self._given_up:
                run.runner.request_stop(0.0)

    def give_up(self) -> None:
        """Stops what this attempt has started or will start, and nothing else."""
        with self._lock:
            self._given_up = True
            if self._run is not None:
                self._run.runner.request_stop(0.0)


def seconds_of(duration: Duration) -> float:
    """A length of time in seconds."""
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


def _index(p: PartitionRef, snapshot: Snapshot) -> int:
    if isinstance(p, Partition):
        index = p.index
    else:
        # Whoever does not check types may pass a key, or an index.
        found = partition_index(str(p))
        if found is None:
            raise UnknownPartitionError(
                f"{p!r} is not a partition: give an id such as 'partition-0', or a Partition; "
                "for an application's key ask partition_for(key) first"
            )
        index = found
    if index >= len(snapshot.rows):
        raise UnknownPartitionError(
            f"there is no partition-{index}: the cluster has {len(snapshot.rows)} partitions"
        )
    return index


def _held(snapshot: Snapshot, node_id: str, role: Role | None) -> tuple[Partition, ...]:
    partitions = snapshot.view.partitions
    match role:
        case None:
            return tuple(partitions[i] for i, row in enumerate(snapshot.rows) if node_id in row)
        case "primary":
            return tuple(partitions[i] for i, row in enumerate(snapshot.rows) if node_id in row[:1])
        case _:
            return tuple(partitions[i] for i, row in enumerate(snapshot.rows) if node_id in row[1:])


def _proven(run: Run, snapshot: Snapshot) -> bool:
    session = snapshot.session
    return session is not None and session.proven(run.clock.monotonic())


def _remaining(run: Run, snapshot: Snapshot) -> timedelta:
    session = snapshot.session
    seconds = 0.0 if session is None else session.remaining(run.clock.monotonic())
    return timedelta(seconds=seconds)


def _owned_since(run: Run, snapshot: Snapshot, index: int) -> int:
    partition = snapshot.view.partitions[index]
    if not _proven(run, snapshot):
        raise FencedError(
            f"node {run.node_id!r} may not act for {partition.id}: it cannot prove that its lease "
            f"is alive (the kit is {snapshot.kit_state})",
            partition_id=partition.id,
            epoch=snapshot.epoch,
        )
    since = snapshot.owned_since.get(index)
    if since is None:
        owner = partition.primary
        raise NotOwnerError(
            f"node {run.node_id!r} may not act for {partition.id}: "
            + (f"its primary is {owner.id!r} at {owner.address}" if owner else "it has no primary"),
            partition_id=partition.id,
            epoch=snapshot.epoch,
            owner=owner,
        )
    return since
