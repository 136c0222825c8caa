"""The composition root: the one place that knows which parts a running kit is made of."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from .config import Options
from .core import membership
from .core.forecast import Alteration, Layout, forecast
from .core.keys import Keys
from .core.ledger import Ledger
from .core.membership import State
from .core.ownership import ALGORITHM_VERSION, rows_of
from .core.records import ClusterConfig, Cordon
from .core.spread import Balance
from .engine.administration import Administration
from .engine.balances import Balances
from .engine.checks import Checks, HealthCheck
from .engine.clock import SystemClock
from .engine.dispatcher import Dispatcher
from .engine.executors import Executors
from .engine.identity import this_process
from .engine.join import Profile
from .engine.machine import Machine
from .engine.measure import Measure
from .engine.removal import Removal, remove
from .engine.runner import Attendant, Runner
from .engine.snapshot import Snapshot, view_of
from .errors import ClusterKitError
from .etcd import EtcdStore, TLSFiles
from .hooks import HookSpec
from .metrics import Metrics, MetricsSink
from .model import ClusterView, Stats
from .planning import Plan
from .ports import Clock, Store


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a kit, from a start to a stop, and what its lookups need of it."""

    cluster: str
    node_id: str
    runner: Runner
    ledger: Ledger
    dispatcher: Dispatcher
    clock: Clock
    stop_timeout: float
    ready_when_fenced: bool
    balances: Balances

    def balance(self, snapshot: Snapshot) -> Balance:
        """How many partitions each node holds. Counted anew only when the assignment changed."""
        return self.balances.of(snapshot.rows)

    def measure(self, metrics: Metrics) -> None:
        """Has somebody collect measurements as well, from now on."""
        self.runner.add_sink(self.attach(metrics))

    def attach(self, metrics: Metrics) -> MetricsSink:
        """Begins a collection of this run's measurements."""
        return metrics.attach(self.cluster, self.node_id, self.stats)

    def stats(self) -> Stats:
        """The figures of this run, also before it knows of a cluster, and after its end."""
        snapshot, now = self.runner.snapshot, self.clock.monotonic()
        dispatcher = self.dispatcher
        oldest = dispatcher.oldest_queued()
        balance = self.balances.of(() if snapshot is None else snapshot.rows)
        session = None if snapshot is None else snapshot.session
        answered_in = None if session is None else session.answered_in
        states = Counter(() if snapshot is None else _states_of(snapshot))
        return Stats(
            revision=0 if snapshot is None else snapshot.view.revision,
            rebalances=dispatcher.rebalances,
            hooks_running=dispatcher.running,
            hooks_queued=dispatcher.queued,
            hook_failures=dispatcher.failures,
            watch_restarts=self.runner.watch_restarts,
            divergences=self.runner.divergences,
            hook_queue_age=timedelta(seconds=0.0 if oldest is None else max(0.0, now - oldest)),
            hooks_stuck=len(dispatcher.zombies),
            owed=len(self.ledger.entries),
            nodes=0 if snapshot is None else len(snapshot.view.nodes),
            unhealthy_nodes=0 if snapshot is None else snapshot.health.unhealthy_nodes,
            primaries=balance.primaries.get(self.node_id, 0),
            replicas=balance.replicas.get(self.node_id, 0),
            fencing_in=timedelta(seconds=0.0 if session is None else session.remaining(now)),
            active_nodes=states.total() - states["draining"],
            draining_nodes=states["draining"],
            partitions=balance.partitions,
            unowned=balance.unowned,
            view_age=timedelta(
                seconds=0.0 if snapshot is None else max(0.0, now - self.runner.view_since)
            ),
            keep_alive=None if answered_in is None else timedelta(seconds=answered_in),
        )


def _states_of(snapshot: Snapshot) -> Iterator[str]:
    """The states of the members that are well."""
    unhealthy = frozenset(snapshot.health.unhealthy_node_ids)
    return (n.state for n in snapshot.view.nodes.values() if n.id not in unhealthy)


def store_of(options: Options) -> EtcdStore:
    """The etcd that the options name. Connects when it is first used."""
    tls = options.tls
    password = options.password
    return EtcdStore(
        options.endpoints,
        tls=None
        if tls is None
        else TLSFiles(ca=tls.ca, cert=tls.cert, key=tls.key, server_name=tls.server_name),
        username=options.username,
        password=None if password is None else password.get_secret_value(),
        connect_timeout=options.connect_timeout.total_seconds(),
    )


def node(
    options: Options,
    specs: tuple[HookSpec, ...],
    loop: asyncio.AbstractEventLoop | None,
    checks: tuple[HealthCheck, ...] = (),
    metrics: Iterable[Metrics] = (),
    attendant: Attendant | None = None,
    *,
    store: Store | None = None,
    clock: Clock | None = None,
) -> Run:
    """A node that will join, with its hooks and health checks.

    What is a coroutine runs on ``loop``, or on a private one where there is none. ``metrics`` are
    collected besides those of the options, and ``attendant`` begins and ends with the run.
    ``store`` and ``clock`` are for tests, in place of etcd and of the machine's.

    Raises:
        OptionError: There is no address.
    """
    address = options.require_address()
    ttl = options.lease_ttl.total_seconds()
    profile = Profile(
        node_id=options.node_id,
        address=address,
        services=options.services,
        zone=options.zone,
        weight=options.weight,
        labels=options.labels,
        incarnation=secrets.token_hex(16),
        storage=options.storage,
        on_conflict=options.on_conflict,
        ttl_seconds=int(ttl),
        grace_seconds=int(options.restart_grace.total_seconds()),
        fence_margin=options.fence_margin.total_seconds(),
        process=this_process(),
        config=ClusterConfig(
            partitions=options.partitions,
            replication_factor=options.replication_factor,
            key_hash=options.key_hash,
            algorithm_version=ALGORITHM_VERSION,
            seed=secrets.randbits(64),
            balance_percent=None if options.balance is None else round(options.balance * 100),
            balance_primaries=options.balance_primaries,
        ),
    )
    return _assemble(options, profile, specs, loop, checks, metrics, attendant, store, clock)


def observer(options: Options, specs: tuple[HookSpec, ...]) -> Run:
    """A run that watches, fires hooks, and joins nothing."""
    return _assemble(options, None, specs, None)


def read_cluster(options: Options) -> tuple[ClusterView, Mapping[str, Cordon]]:
    """The cluster as it is now, and its cordons, by one reading; nothing is joined or kept.

    Raises:
        StoreError: etcd cannot be asked.
        ClusterKitError: There is no such cluster.
    """
    state = _read(options)
    return view_of(state, rows_of(state)), state.cordons


def _read(options: Options) -> State:
    keys = Keys.of(options.prefix, options.cluster)
    store = store_of(options)
    try:
        read = store.range(keys.root, timeout=options.connect_timeout.total_seconds())
    finally:
        store.close()
    state = membership.read(keys, read.kvs, read.revision, read.cluster_id)
    if state.config is None:
        raise ClusterKitError(
            f"there is no cluster {options.cluster!r} under {options.prefix!r} in etcd at "
            f"{', '.join(options.endpoints)}: no node has ever joined it. Check --cluster, "
            "--prefix and --endpoints."
        )
    return state


def read_layout(options: Options) -> Layout:
    """What the assignment of a cluster is made of, by one reading.

    Raises:
        StoreError: etcd cannot be asked.
        ClusterKitError: There is no such cluster.
    """
    return Layout.of(_read(options))


def plan_of(layout: Layout, change: Alteration) -> Plan:
    """What a change would do.

    Raises:
        ClusterKitError: It does not fit the layout, or a number is out of its range.
    """
    try:
        return forecast(layout, change)
    except ValueError as problem:
        raise ClusterKitError(f"that cannot be planned: {problem}") from problem


def remove_node(options: Options, node_id: str) -> Removal:
    """Removes a node from the cluster, whether or not its process still runs.

    Every other node sees it leave with the reason ``removed_by_admin``. The process, if it runs,
    owns nothing from the moment that it sees this, and stays out until its ``rejoin()`` or restart.

    Raises:
        ClusterKitError: It is no member.
        StoreError: etcd cannot be asked.
    """
    store = store_of(options)
    try:
        return remove(
            store,
            Keys.of(options.prefix, options.cluster),
            SystemClock(),
            node_id,
            options.connect_timeout.total_seconds(),
        )
    finally:
        store.close()


@contextlib.contextmanager
def administration(options: Options) -> Iterator[Administration]:
    """What an administrator may change in the cluster that the options name."""
    store = store_of(options)
    try:
        yield Administration(
            store,
            Keys.of(options.prefix, options.cluster),
            SystemClock(),
            options.connect_timeout.total_seconds(),
        )
    finally:
        store.close()


def _assemble(
    options: Options,
    profile: Profile | None,
    specs: tuple[HookSpec, ...],
    loop: asyncio.AbstractEventLoop | None,
    checks: tuple[HealthCheck, ...] = (),
    more_metrics: Iterable[Metrics] = (),
    attendant: Attendant | None = None,
    store: Store | None = None,
    clock: Clock | None = None,
) -> Run:
    keys = Keys.of(options.prefix, options.cluster)
    clock = SystemClock() if clock is None else clock
    hook_timeout, migration_timeout = options.hook_timeout, options.migration_timeout
    # An observer has no name in the cluster; no node can have an empty one.
    node_id = "" if profile is None else profile.node_id
    incarnation = secrets.token_hex(16) if profile is None else profile.incarnation
    dispatcher = Dispatcher(
        specs,
        incarnation=incarnation,
        max_concurrent=options.max_concurrent_hooks,
        max_moves=options.max_moves_in_flight,
        hook_timeout=None if hook_timeout is None else hook_timeout.total_seconds(),
        migration_timeout=None if migration_timeout is None else migration_timeout.total_seconds(),
        slow_after=options.slow_hook_after.total_seconds(),
    )
    machine = Machine(
        keys=keys,
        node_id=node_id,
        incarnation=incarnation,
        dispatcher=dispatcher,
        settle_seconds=options.settle_time.total_seconds(),
        overdue_seconds=None if migration_timeout is None else migration_timeout.total_seconds(),
        observer=profile is None,
    )
    context = contextvars.copy_context()
    connect_timeout = options.connect_timeout.total_seconds()
    collectors = [*more_metrics] if options.metrics is None else [options.metrics, *more_metrics]

    balances = Balances()

    def attaching(metrics: Metrics) -> Callable[[], MetricsSink]:
        return lambda: run.attach(metrics)

    runner = Runner(
        store=store_of(options) if store is None else store,
        clock=clock,
        keys=keys,
        machine=machine,
        profile=profile,
        executors=lambda report: Executors(report, loop=loop, context=context),
        connect_timeout=connect_timeout,
        call_timeout=connect_timeout,
        checks=lambda report: Checks(report, loop=loop, context=context),
        measure=Measure(*map(attaching, collectors), prepare=balances.of),
        attendant=attendant,
    )
    for check in checks:
        runner.add_check(check)
    run = Run(
        cluster=options.cluster,
        node_id=node_id,
        runner=runner,
        ledger=machine.ledger,
        dispatcher=dispatcher,
        clock=clock,
        stop_timeout=options.drain_timeout.total_seconds(),
        ready_when_fenced=options.ready_when_fenced,
        balances=balances,
    )
    return run
