"""A whole cluster in one process: kits on a store in memory, or on an etcd.

In memory nothing is started and no port is opened, and with a :class:`VirtualClock` no time has to
go by either::

    with LocalCluster(clock=VirtualClock()) as cluster:
        a, b, c = cluster.start(3)
        a.crash()
        cluster.advance(15)                       # its lease is over, and nobody has waited
        cluster.wait_converged()
        assert sorted(b.cluster.nodes) == ["node-2", "node-3"]

The kits are real ones, with their threads, hooks and deadlines; what is put in their place is the
store, and the clock if one is given. Between each kit and its store stands a
:class:`~clusterkit.testing.FaultPlan`.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING, Self, Unpack, overload

from clusterkit import _compose, kit, sync
from clusterkit._base import KitBase, behind, seconds_of
from clusterkit.errors import KitStateError, WaitTimeoutError
from clusterkit.hooks import Duration
from clusterkit.model import KitState
from clusterkit.ports import Clock, Store

from .clock import VirtualClock
from .embedded import free_port
from .faults import FaultPlan, FaultyStore
from .memory import MemoryServer, MemoryStore

if TYPE_CHECKING:
    from clusterkit.config import Options, OptionsDict

__all__ = ["AsyncLocalKit", "LocalCluster", "LocalKit", "memory_kit"]

_PAUSE_SECONDS = 0.005  # between two looks at a condition
_STEP_SECONDS = 0.05  # of virtual time, for each of those pauses
_CATCH_UP_SECONDS = 5.0
_LOOK_SECONDS = 0.02
_STOP_SECONDS = 5.0


class _Local(KitBase):
    """What the local kits of both faces have in common."""

    local: LocalCluster
    faults: FaultPlan
    address: str

    def __init__(self, local: LocalCluster, **options: Unpack[OptionsDict]) -> None:
        super().__init__(**options)
        self.local = local
        self.faults = FaultPlan()
        self.address = str(options["address"])
        self._memory: MemoryStore | None = None  # that of the newest run

    def cut_off(self) -> None:
        """Nothing gets through between this node and its store, until ``heal()``."""
        self.faults.cut_off()

    def heal(self) -> None:
        """Ends ``cut_off()``: the node finds its lease alive, or joins again."""
        self.faults.heal()

    def _store_of(self, options: Options) -> Store:
        store = self.local._store(options)
        self._memory = store if isinstance(store, MemoryStore) else None
        return FaultyStore(store, self.faults, clock=self.local.clock)

    def _clock_of(self) -> Clock | None:
        return self.local.clock

    def _is_running(self) -> bool:
        return self.state not in (KitState.NEW, KitState.STOPPED)

    def _catch_up(self) -> None:
        """Waits until the threads of this kit have seen the time, and what has come of it."""
        run, memory = self._run, self._memory
        if run is None or memory is None:
            return
        deadline = time.monotonic() + _CATCH_UP_SECONDS
        while not (memory.wait_seen(_LOOK_SECONDS) and run.runner.catch_up(_LOOK_SECONDS)):
            # A call that hangs ends by the clock, and the clock waits for this.
            if self.faults.hanging or time.monotonic() > deadline:
                return


class LocalKit(_Local, sync.ClusterKit):
    """A kit of a :class:`LocalCluster`, with the face for threads.

    Attributes:
        local: The cluster that it belongs to.
        faults: What goes wrong between this node and its store, in this run and the next ones.
        address: ``127.0.0.1`` and a port that was free, unless given. Nothing listens there.
    """

    def crash(self) -> None:
        """Ends this node without a farewell: the others learn of it when its lease is over.

        Its hooks are told to end, as no thread can simply be made to vanish. It can be started
        again, and is then a new process with the same node id.
        """
        self.faults.cut_off()
        try:
            self.stop(timeout=0)
        finally:
            self.faults.heal()


class AsyncLocalKit(_Local, kit.ClusterKit):
    """A kit of a :class:`LocalCluster`, with the face for asyncio.

    Attributes:
        local: The cluster that it belongs to.
        faults: What goes wrong between this node and its store, in this run and the next ones.
        address: ``127.0.0.1`` and a port that was free, unless given. Nothing listens there.
    """

    async def crash(self) -> None:
        """Ends this node without a farewell: the others learn of it when its lease is over."""
        self.faults.cut_off()
        try:
            await self.stop(timeout=0)
        finally:
            self.faults.heal()


class LocalCluster(Sequence[LocalKit]):
    """Kits of this process that are one cluster. A sequence of those with the face for threads.

    Args:
        endpoint: The etcd that they use, under a prefix of their own; None for one in memory.
        clock: Time, where they use none; then ``advance`` lets it pass. None for the machine's.
        options: What all kits are given, unless they are given something else. By default they
            have 16 partitions on two nodes each, settle after 0.05 s, and read no variables.

    Raises:
        ValueError: Both are given: the leases of an etcd do not go by a clock of this process.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        clock: VirtualClock | None = None,
        **options: Unpack[OptionsDict],
    ) -> None:
        if endpoint is not None and clock is not None:
            raise ValueError("a clock can be given for a store in memory only, not for etcd")
        self.clock = clock
        self._defaults: OptionsDict = {
            "cluster": "test",
            "prefix": f"/clusterkit-test/{uuid.uuid4().hex}",
            "partitions": 16,
            "replication_factor": 2,
            "settle_time": 0.05,
            "environ": {},
        }
        if endpoint is not None:
            self._defaults["endpoints"] = endpoint
        self._defaults.update(options)
        self._server = MemoryServer(clock) if endpoint is None else None
        self._numbers = count(1)
        self._kits: list[LocalKit] = []
        self._async_kits: list[AsyncLocalKit] = []

    # -- its kits ----------------------------------------------------------------------------

    def kit(self, node_id: str | None = None, /, **options: Unpack[OptionsDict]) -> LocalKit:
        """A kit that has not been started: give it its hooks, and start it.

        Args:
            node_id: ``node-1`` and so on, unless given.
            **options: See :class:`clusterkit.OptionsDict`.
        """
        made = LocalKit(self, **self._options(node_id, options))
        self._kits.append(made)
        return made

    def async_kit(
        self, node_id: str | None = None, /, **options: Unpack[OptionsDict]
    ) -> AsyncLocalKit:
        """The same with the face for asyncio: enter it with ``async with``.

        The methods of this class block: call them with ``await asyncio.to_thread(...)``.
        """
        made = AsyncLocalKit(self, **self._options(node_id, options))
        self._async_kits.append(made)
        return made

    def start(
        self,
        n: int,
        *,
        setup: Callable[[LocalKit], object] | None = None,
        **options: Unpack[OptionsDict],
    ) -> list[LocalKit]:
        """Adds ``n`` kits, starts them one after another, and waits until the cluster converges.

        Args:
            n: How many.
            setup: Is called with each kit before it is started, such as to register its hooks.
            **options: See :class:`clusterkit.OptionsDict`.

        Raises:
            ClusterKitError: One could not join.
            WaitTimeoutError: The cluster did not converge within 30 s; the text says who is behind.
        """
        kits = [self.kit(**options) for _ in range(n)]
        for made in kits:
            if setup is not None:
                setup(made)
            made.start()
        self.wait_converged()
        return kits

    def __len__(self) -> int:
        return len(self._kits)

    @overload
    def __getitem__(self, index: int) -> LocalKit: ...
    @overload
    def __getitem__(self, index: slice) -> list[LocalKit]: ...
    def __getitem__(self, index: int | slice) -> LocalKit | list[LocalKit]:
        return self._kits[index]

    # -- time --------------------------------------------------------------------------------

    def advance(self, seconds: Duration) -> None:
        """Lets virtual time pass: leases are kept alive, or run out, and what is due is begun.

        It passes in steps of a sixth of the shortest ``lease_ttl`` at most, and after each the
        kits have seen it. Hooks run on threads of their own, and may be under way when this
        returns: wait for what they do with ``wait_until`` or ``wait_converged``. Health checks
        go by the machine's time.

        Raises:
            KitStateError: The cluster has no clock of its own.
        """
        if self.clock is None:
            raise KitStateError(
                "this cluster goes by the machine's time; make it with clock=VirtualClock()",
                state=KitState.NEW,
            )
        end = self.clock.monotonic() + seconds_of(seconds)
        while (left := end - self.clock.monotonic()) > 0:
            ttls = [k._resolved().lease_ttl.total_seconds() for k in self._running()]
            self.clock.advance(min([left, *(ttl / 6 for ttl in ttls)]))
            for running in self._running():
                running._catch_up()

    def wait_until(
        self, condition: Callable[[], object], timeout: Duration = 30, *, what: str = ""
    ) -> None:
        """Waits until something is true. Virtual time passes meanwhile, faster than the machine's.

        Args:
            condition: Is called again and again, on the thread that calls.
            timeout: Seconds of the machine's time.
            what: What is waited for, for the error.

        Raises:
            WaitTimeoutError: It did not become true in time.
        """
        deadline = time.monotonic() + seconds_of(timeout)
        never = threading.Event()
        while not condition():
            if time.monotonic() > deadline:
                raise WaitTimeoutError(f"not within {timeout} s: {what or condition!r}")
            never.wait(_PAUSE_SECONDS)
            if self.clock is not None:
                self.advance(_STEP_SECONDS)

    def wait_converged(self, timeout: Duration = 30) -> None:
        """Waits until all kits that run agree on the cluster, and all hooks have succeeded.

        Those that are cut off are left out, and so are those that an administrator has removed.

        Raises:
            WaitTimeoutError: Not in time; the text says what is missing.
        """
        try:
            self.wait_until(lambda: not self._missing(), timeout)
        except WaitTimeoutError:
            raise WaitTimeoutError(
                f"the cluster had not converged after {timeout} s: {self._missing()}"
            ) from None

    # -- its end -----------------------------------------------------------------------------

    def close(self) -> None:
        """Stops every kit that still runs, and the store. Idempotent."""
        # All of them at once: none is to see the others go, and to mourn for their partitions.
        ends = [k._end(_STOP_SECONDS) for k in (*self._kits, *self._async_kits)]
        for run in ends:
            if run is not None:
                run.join()
        if self._server is not None:
            self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- within ------------------------------------------------------------------------------

    def _options(self, node_id: str | None, given: OptionsDict) -> OptionsDict:
        options: OptionsDict = {**self._defaults, **given}
        options["node_id"] = node_id or given.get("node_id") or f"node-{next(self._numbers)}"
        options.setdefault("address", f"127.0.0.1:{free_port()}")
        return options

    def _store(self, options: Options) -> Store:
        return _compose.store_of(options) if self._server is None else MemoryStore(self._server)

    def _running(self) -> Iterator[_Local]:
        return (k for k in (*self._kits, *self._async_kits) if k._is_running())

    def _missing(self) -> str:
        """Why the cluster has not converged; empty if it has."""
        kits = [
            k
            for k in self._running()
            if not k.faults.is_cut_off and k.state is not KitState.REMOVED
        ]
        for each in kits:
            if each.state is not KitState.JOINED:
                return f"{each.node_id} is {str(each.state)!r}"
        snapshots = [each._snapshot() for each in kits]
        ids = {each.node_id for each in kits}
        for each, snapshot in zip(kits, snapshots, strict=True):
            if unseen := ids - set(snapshot.view.nodes):
                return f"{each.node_id} does not see {', '.join(sorted(unseen))}"
            if late := behind(snapshot):
                return f"hooks have not all succeeded, or not ended, on {', '.join(late)}"
        if len({snapshot.epoch for snapshot in snapshots}) > 1:
            return "the nodes are at different epochs"
        return ""


def memory_kit(
    node_id: str = "node-1",
    /,
    *,
    clock: VirtualClock | None = None,
    **options: Unpack[OptionsDict],
) -> LocalKit:
    """A kit that needs no etcd: a cluster of one node, with a store in memory. Not started.

    For tests of one node's hooks and lookups, and to try things out. More nodes join it by
    ``kit.local.kit()``; with a clock its time passes in ``kit.local.advance()``.

    Args:
        node_id: Its name.
        clock: Time that a test moves; None for the machine's.
        **options: See :class:`clusterkit.OptionsDict`.
    """
    return LocalCluster(clock=clock).kit(node_id, **options)
