"""Hooks of every form: where they run, what they may do, and whom they may not disturb."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial

import pytest

from clusterkit import (
    ClusterKit,
    Event,
    HookErrorEvent,
    HookRegistrationError,
    Hooks,
    KitState,
    KitStateError,
    NodeJoinEvent,
    NodeRejoinEvent,
    OwnershipError,
    PartitionChangeEvent,
    RebalanceEvent,
    WaitTimeoutError,
    hook_context,
)
from clusterkit import sync as threads

from .support import PARTITIONS, SECONDS, Cluster, Face, Member, Recorder, agree, eventually


class Application:
    """Hooks of every form that Python knows."""

    def __init__(self) -> None:
        self.loops: dict[str, asyncio.AbstractEventLoop] = {}
        self.threads: dict[str, str] = {}

    def plain(self, name: str, _: NodeJoinEvent) -> None:
        self.threads[name] = threading.current_thread().name

    async def coroutine(self, name: str, _: NodeJoinEvent) -> None:
        self.loops[name] = asyncio.get_running_loop()

    def bound(self, event: NodeJoinEvent) -> None:
        self.plain("bound", event)

    async def bound_coroutine(self, event: NodeJoinEvent) -> None:
        await self.coroutine("bound coroutine", event)

    def register(self, hooks: Hooks) -> None:
        @hooks.on_node_join
        def plain(event: NodeJoinEvent) -> None:
            self.plain("def", event)

        @hooks.on_node_join()
        async def coroutine(event: NodeJoinEvent) -> None:
            await self.coroutine("async def", event)

        class AsyncCallable:
            async def __call__(_, event: NodeJoinEvent) -> None:  # noqa: N805
                await self.coroutine("callable", event)

        hooks.on_node_join(lambda event: self.coroutine("lambda", event))
        hooks.on_node_join(partial(self.plain, "partial"))
        hooks.on_node_join(partial(self.coroutine, "partial coroutine"))
        hooks.on_node_join(self.bound)
        hooks.on_node_join(self.bound_coroutine)
        hooks.on_node_join(AsyncCallable())


PLAIN = {"def", "partial", "bound"}
COROUTINES = {"async def", "callable", "lambda", "partial coroutine", "bound coroutine"}


def test_every_form_of_hook_runs_where_it_should(cluster: Cluster) -> None:
    application = Application()
    hooks = Hooks()
    application.register(hooks)
    cluster.node("a", hooks=hooks)
    eventually(lambda: (set(application.threads), set(application.loops)) == (PLAIN, COROUTINES))
    assert all(name.startswith("clusterkit-hook") for name in application.threads.values())
    assert len(set(application.loops.values())) == 1
    if cluster.face == "asyncio":
        assert application.loops["async def"] is cluster.loop.loop


def test_a_kit_is_a_registry_and_takes_others_in(cluster: Cluster) -> None:
    told: list[str] = []
    early, later = Hooks(), Hooks()
    early.on_node_join(lambda e: told.append("early"))
    member = cluster.member("a", hooks=early)
    member.kit.on_node_join(lambda e: told.append("kit"))
    later.on_node_join(lambda e: told.append("later"))
    member.kit.include(later)
    early.on_node_join(lambda e: told.append("early again"))
    member.start()
    eventually(lambda: len(told) == 4)
    assert sorted(told) == ["early", "early again", "kit", "later"]


def test_a_hook_registered_too_late_is_told_what_to_do(cluster: Cluster) -> None:
    hooks = Hooks()
    member = cluster.node("a", hooks=hooks)
    for registry in (member.kit, hooks):
        with pytest.raises(HookRegistrationError, match=r"before start\(\)") as caught:
            registry.on_node_join(lambda e: None)
        assert "ClusterKit(hooks=" in str(caught.value)
    member.stop()
    recorder = Recorder()
    member.kit.include(recorder)
    member.start()
    recorder.one(NodeRejoinEvent)


def test_a_late_hook_is_told_of_the_present_state_first(cluster: Cluster) -> None:
    module = Hooks()
    one, two = cluster.node("a", hooks=module), cluster.node("b")
    agree([one, two])
    joins: list[tuple[str, bool]] = []
    fetched: list[tuple[str, bool]] = []

    @module.on_node_join(late=True)
    def joined(event: NodeJoinEvent) -> None:
        joins.append((event.node.id, hook_context().replayed))

    @one.kit.on_partition_change(mine=True, late=True)
    async def fetch(event: PartitionChangeEvent) -> None:
        fetched.append((event.partition_id, hook_context().replayed))

    held = {p.id for p in one.kit.my_partitions()}
    eventually(lambda: len(fetched) == len(held))
    assert {name for name, _ in fetched} == held
    eventually(lambda: len(joins) == 2)
    cluster.node("c")
    eventually(lambda: len(joins) == 3)
    assert sorted(joins) == [("a", True), ("b", True), ("c", False)]
    agree([one, two])


def test_waiting_for_all_copies_of_the_cluster(cluster: Cluster) -> None:
    release = threading.Event()
    one, two = cluster.member("a"), cluster.member("b")

    @two.kit.on_partition_change(mine=True)
    def fetch(event: PartitionChangeEvent) -> None:
        assert release.wait(SECONDS)

    one.start()
    one.wait_converged()
    two.start()
    eventually(lambda: "b" in one.kit.cluster.nodes)
    with pytest.raises(WaitTimeoutError, match=r"present assignment: b$"):
        one.wait_converged(0.3)
    release.set()
    for member in (one, two):
        member.wait_converged()
    assert all(two.kit.is_ready(p) for p in two.kit.my_partitions())


def test_a_hook_that_raises_disturbs_nobody(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    member = cluster.member("a")

    class AppError(Exception):
        pass

    @member.kit.on_node_join
    def broken(event: NodeJoinEvent) -> None:
        raise AppError("the plain one")

    @member.kit.on_node_join
    async def broken_coroutine(event: NodeJoinEvent) -> None:
        raise AppError("the coroutine")

    @member.kit.on_rebalance_start
    def leaves(event: RebalanceEvent) -> None:
        raise SystemExit(1)

    member.kit.include(recorder)
    member.start()
    recorder.rebalanced("node_join", "a")
    eventually(lambda: len(recorder.of(HookErrorEvent)) == 3)
    member.wait_ready()
    assert {str(e.error) for e in recorder.of(HookErrorEvent)} == {
        "the plain one",
        "the coroutine",
        "1",
    }
    for name in ("broken", "broken_coroutine", "leaves"):
        assert any(name in e.hook for e in recorder.of(HookErrorEvent))
        logged = [r for r in caplog.records if r.exc_info and f"{name} raised" in r.getMessage()]
        assert len(logged) == 1
        assert f"in {name}" in caplog.text  # the line of the traceback
    assert member.kit.stats().hook_failures == 3
    assert len(recorder.changes()) == PARTITIONS


def test_at_most_fifty_at_once_and_urgent_news_is_never_behind_them(
    threads_cluster: Cluster,
) -> None:
    gate = threading.Event()
    lock = threading.Lock()
    running: Counter[str] = Counter()
    most = 0
    told: list[str] = []
    member = threads_cluster.member("a", partitions=128)

    @member.kit.on_partition_change
    def migrate(event: PartitionChangeEvent) -> None:
        nonlocal most
        with lock:
            running["now"] += 1
            most = max(most, running["now"])
        gate.wait(SECONDS)
        with lock:
            running["now"] -= 1

    @member.kit.on_node_join
    def joined(event: NodeJoinEvent) -> None:
        with lock:
            assert running["now"] <= 48
            told.append(event.node.id)

    member.start()
    eventually(lambda: running["now"] == 48)
    assert member.kit.stats().hooks_running == 48
    threads_cluster.node("b", partitions=128)
    eventually(lambda: told == ["a", "b"])
    gate.set()
    eventually(lambda: not member.kit.owed())
    assert most == 48


def test_a_hook_that_blocks_does_not_delay_others(cluster: Cluster) -> None:
    gate = threading.Event()
    recorder = Recorder()
    member = cluster.member("a", hooks=recorder)

    @member.kit.on_partition_change(partitions=["partition-0"])
    def stuck(event: PartitionChangeEvent) -> None:
        gate.wait(SECONDS)

    try:
        member.start()
        eventually(lambda: [m.partition_id for m in member.kit.owed()] == ["partition-0"])
        eventually(lambda: len(recorder.changes()) == PARTITIONS)
        cluster.node("b")
        eventually(lambda: [e.node.id for e in recorder.of(NodeJoinEvent)] == ["a", "b"])
        assert not member.kit.readiness().ready
        assert not member.kit.is_ready("partition-0")
    finally:
        gate.set()
    eventually(lambda: not member.kit.owed())
    member.wait_ready()


def test_filters(cluster: Cluster) -> None:
    told: dict[str, list[Event]] = {"mine": [], "partitions": [], "reasons": [], "join": []}
    member = cluster.member("a")
    member.kit.on_partition_change(mine=True)(told["mine"].append)
    member.kit.on_partition_change(partitions={"partition-1", "partition-2"})(
        told["partitions"].append
    )
    member.kit.on_partition_change(reasons={"node_leave"})(told["reasons"].append)
    member.kit.on_node_join(mine=True)(told["join"].append)
    recorder = Recorder()
    member.kit.include(recorder)
    member.start()
    recorder.rebalanced("node_join", "a")
    b = cluster.node("b")
    recorder.rebalanced("node_join", "b")
    agree([member, b])
    b.stop()
    recorder.rebalanced("node_leave", "b")
    eventually(lambda: not member.kit.owed())
    everything = recorder.changes()

    def same(name: str, wanted: Callable[[PartitionChangeEvent], bool]) -> bool:
        ids = {e.event_id for e in everything if wanted(e)}
        return ids == {e.event_id for e in told[name]} and bool(ids)

    assert same("mine", lambda e: e.copy_to_node.id == "a")
    assert same("partitions", lambda e: e.partition_id in ("partition-1", "partition-2"))
    assert same("reasons", lambda e: e.change_reason == "node_leave")
    assert [e.node.id for e in told["join"] if isinstance(e, NodeJoinEvent)] == ["a"]


def test_a_failed_migration_stays_owed_and_comes_again_by_itself(cluster: Cluster) -> None:
    runs: list[tuple[str, int, bool]] = []
    member = cluster.member("a")

    @member.kit.on_partition_change(partitions={"partition-5"})
    def migrate(event: PartitionChangeEvent) -> None:
        context = hook_context()
        assert context.event_id == event.event_id
        runs.append((event.event_id, context.attempt, context.replayed))
        if len(runs) < 2:
            raise OSError("the source is away")

    member.start()
    owed = eventually(lambda: [m for m in member.kit.owed() if m.error is not None])
    assert [(m.partition_id, m.attempts) for m in owed] == [("partition-5", 1)]
    assert "the source is away" in str(owed[0].error)
    with pytest.raises(WaitTimeoutError, match="initial copies") as caught:
        member.wait_ready(0.1)
    assert "0.1" in str(caught.value)
    assert member.kit.health().status == "degraded"
    member.wait_ready()  # the back-off has brought it again
    assert member.kit.owed() == ()
    assert len(runs) == 2
    assert runs[0][0] == runs[1][0]
    assert [replayed for _, _, replayed in runs] == [False, True]
    assert member.kit.health().status == "healthy"


def has_completed(recorder: Recorder, trigger: str) -> bool:
    return any(e.trigger == trigger for e in recorder.completes)


def test_rebalance_delivers_again_what_is_owed_on_every_node(threads_cluster: Cluster) -> None:
    broken = threading.Event()
    broken.set()
    runs: dict[str, list[PartitionChangeEvent]] = {"a": [], "b": []}

    def migrate(node_id: str, event: PartitionChangeEvent) -> None:
        if broken.is_set():
            raise OSError("not yet")
        runs[node_id].append(event)

    members: list[Member] = []
    recorders = [Recorder(), Recorder()]
    for node_id, recorder in zip(runs, recorders, strict=True):
        member = threads_cluster.member(node_id, partitions=4, hooks=recorder)
        member.kit.on_partition_change(mine=True)(partial(migrate, node_id))
        member.start()
        members.append(member)
    # Some have failed so often by now that the back-off alone would take long.
    owed = eventually(
        lambda: [m.kit.owed() for m in members] if all(m.kit.owed() for m in members) else None
    )
    eventually(lambda: all(o.error for m in members for o in m.kit.owed()))
    ids = {e.event_id for r in recorders for e in r.changes()}
    broken.clear()
    members[1].rebalance("the source is back")
    for recorder in recorders:
        eventually(partial(has_completed, recorder, "manual"))
    eventually(lambda: not any(m.kit.owed() for m in members))
    assert owed
    assert runs["a"]
    assert len(runs["b"]) == 4
    assert {e.event_id for told in runs.values() for e in told} <= ids


def test_retries_of_one_hook(cluster: Cluster) -> None:
    attempts: list[tuple[int, str]] = []
    recorder = Recorder()
    member = cluster.member("a", hooks=recorder)

    @member.kit.on_partition_change(partitions={"partition-5"}, retries=2, retry_on=(OSError,))
    async def migrate(event: PartitionChangeEvent) -> None:
        attempts.append((hook_context().attempt, event.event_id))
        if len(attempts) < 3:
            raise OSError("the source is away")

    member.start()
    member.wait_ready()
    assert [n for n, _ in attempts] == [1, 2, 3]
    assert len({event_id for _, event_id in attempts}) == 1
    assert len(recorder.of(HookErrorEvent)) == 2


def test_what_a_newer_rebalance_interrupts_is_told_again_as_replayed(cluster: Cluster) -> None:
    """In the pause between two attempts, after which a delivery begins anew."""
    member = cluster.member("a", partitions=1)
    runs: list[tuple[int, bool, str]] = []
    well = threading.Event()

    @member.kit.on_partition_change(retries=100)
    def copy(event: PartitionChangeEvent) -> None:
        context = hook_context()
        runs.append((context.attempt, context.replayed, event.event_id))
        if not well.is_set():
            raise OSError("the source is away")

    member.start()
    eventually(lambda: len(runs) >= 3)
    assert not any(replayed for _, replayed, _ in runs)
    member.rebalance()
    eventually(lambda: (1, True) in {(attempt, replayed) for attempt, replayed, _ in runs})
    well.set()
    agree([member])
    assert len({event_id for _, _, event_id in runs}) == 1


def every_lookup(kit: threads.ClusterKit | ClusterKit) -> None:
    """Calls whatever does not block, on a kit that holds everything."""
    assert kit.node_id == "a"
    assert kit.state is KitState.JOINED
    p = kit.partition_for("key")
    assert p in kit.partitions()
    assert kit.partition(p.id) == p
    assert kit.partitions_of("a") == kit.my_partitions()
    assert kit.nodes_for(p)[0] == kit.serving(p)
    assert isinstance(kit.is_primary(p), bool)
    assert isinstance(kit.is_replica(p), bool)
    assert isinstance(kit.is_ready(p), bool)
    with suppress(OwnershipError), kit.guard(p) as guard:
        assert guard.check() == guard.epoch
    assert kit.cluster.nodes["a"].id == "a"
    assert kit.health().total_nodes >= 1
    assert kit.readiness().fencing_in > timedelta(0)
    assert kit.stats().hooks_running >= 1
    kit.owed()
    with pytest.raises(HookRegistrationError):
        kit.on_node_join(lambda e: None)


async def every_call(kit: ClusterKit) -> None:
    every_lookup(kit)
    with pytest.raises(KitStateError):
        await kit.start()
    with suppress(WaitTimeoutError):
        await kit.wait_ready(0.01)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(kit.wait_stopped(), 0.01)
    assert await kit.rebalance("from inside a hook") > 0


def every_call_blocking(kit: threads.ClusterKit) -> None:
    every_lookup(kit)
    with pytest.raises(KitStateError):
        kit.start()
    with suppress(WaitTimeoutError):
        kit.wait_ready(0.01)
    assert not kit.wait_stopped(0.01)
    assert kit.rebalance("from inside a hook") > 0


HOOKS = ["node_join", "rebalance_start", "partition_change", "rebalance_complete"]


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("form", ["def", "async def"])
def test_every_method_may_be_called_from_a_hook(cluster: Cluster, form: str, kind: str) -> None:
    member = cluster.member("a", partitions=1)
    ended: list[Event] = []

    def plain(event: Event, *_: object) -> None:
        if ended:
            return  # the rebalance that the first run asked for
        kit = member.kit.blocking if isinstance(member.kit, ClusterKit) else member.kit
        every_call_blocking(kit)
        ended.append(event)

    async def coroutine(event: Event, *_: object) -> None:
        if ended:
            return
        if isinstance(member.kit, ClusterKit):
            await every_call(member.kit)
        else:
            every_call_blocking(member.kit)
        ended.append(event)

    recorder = Recorder()
    member.kit.include(recorder)
    getattr(member.kit, f"on_{kind}")(plain if form == "def" else coroutine)
    member.start()
    eventually(lambda: ended or recorder.of(HookErrorEvent))
    assert not recorder.of(HookErrorEvent)
    # Asked for within the settle time of the join, the two are taken together.
    eventually(lambda: {"manual", "rebalance"} & {e.trigger for e in recorder.completes})
    agree([member])


@pytest.mark.parametrize("how", ["stop", "request_stop"])
@pytest.mark.parametrize("form", ["def", "async def"])
@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_may_stop_the_kit(cluster: Cluster, form: str, how: str, kind: str) -> None:
    member = cluster.member("a", partitions=1)
    called: list[str] = []
    survivor = cluster.node("b", partitions=1)

    def plain(*_: object) -> None:
        called.append("before")
        if how == "request_stop":
            member.kit.request_stop()
        elif isinstance(member.kit, ClusterKit):
            member.kit.blocking.stop()
        else:
            member.kit.stop()
        called.append("after")

    async def coroutine(*_: object) -> None:
        if how == "stop" and isinstance(member.kit, ClusterKit):
            called.append("before")
            await member.kit.stop()
            called.append("after")
        else:
            plain()

    getattr(member.kit, f"on_{kind}")(plain if form == "def" else coroutine)
    member.start()
    member.wait_stopped()
    assert called[:2] == ["before", "after"]
    assert member.kit.state is KitState.STOPPED
    eventually(lambda: set(survivor.kit.cluster.nodes) == {"b"})


@pytest.mark.parametrize("form", ["def", "async def"])
def test_running_hooks_end_with_the_kit(
    cluster: Cluster, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []
    member = cluster.member("a")

    async def coroutine(event: NodeJoinEvent) -> None:
        said.append("begins")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            said.append("ends")
            raise

    def plain(event: NodeJoinEvent) -> None:
        context = hook_context()
        said.append("begins")
        eventually(lambda: context.cancelled)
        said.append("ends")

    @member.kit.on_rebalance_start
    def waits_for_the_first(event: RebalanceEvent) -> None:
        said.append("started")

    chosen: Callable[[NodeJoinEvent], Awaitable[None] | None]
    chosen = plain if form == "def" else coroutine
    member.kit.on_node_join(chosen)
    member.start()
    eventually(lambda: said == ["begins"])
    member.stop()
    assert said == ["begins", "ends"]
    # That a hook was told to end, or never came to its turn, is no failure of its own.
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


@pytest.mark.parametrize("form", ["def", "async def"])
def test_a_hook_out_of_time_is_reported_and_the_others_go_on(cluster: Cluster, form: str) -> None:
    recorder = Recorder()
    member = cluster.member("a", hooks=recorder)
    done = threading.Event()

    def plain(event: NodeJoinEvent) -> None:
        context = hook_context()
        assert context.deadline is not None
        eventually(lambda: context.cancelled)
        done.set()

    async def coroutine(event: NodeJoinEvent) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            done.set()

    chosen: Callable[[NodeJoinEvent], Awaitable[None] | None]
    chosen = plain if form == "def" else coroutine
    member.kit.on_node_join(timeout=0.1, name="slow one")(chosen)
    member.start()
    assert done.wait(SECONDS)
    error = recorder.one(HookErrorEvent)
    assert error.hook == "slow one"
    assert isinstance(error.error, TimeoutError)
    assert isinstance(error.failed_event, NodeJoinEvent)
    recorder.rebalanced("node_join", "a")


def test_a_blocked_loop_delays_its_own_hooks_and_nothing_else(etcd_endpoint: str) -> None:
    """The application's loop is blocked for longer than the TTL: the node stays a member."""
    cluster = Cluster(etcd_endpoint, "asyncio")
    try:
        told: list[str] = []
        member = cluster.member("a", lease_ttl=2)
        member.kit.on_node_join(lambda e: told.append(e.node.id))
        member.start()
        survivor = cluster.node("b", face="threads")
        recorder = Recorder()
        other = cluster.node("c", face="threads", hooks=recorder)
        eventually(lambda: told == ["a", "b", "c"])

        async def block() -> None:
            threading.Event().wait(3)  # this is the fault, not a synchronisation

        cluster.loop.run(block())
        assert member.kit.state is KitState.JOINED
        assert set(survivor.kit.cluster.nodes) == {"a", "b", "c"}
        assert other.kit.health().status == "healthy"
        assert "node_leave" not in recorder.kinds()
    finally:
        cluster.close()


def face_of(member: Member) -> Face:
    return "asyncio" if isinstance(member.kit, ClusterKit) else "threads"


def test_hooks_run_in_the_context_that_started_the_kit(cluster: Cluster) -> None:
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant")
    found: dict[str, str] = {}
    member = cluster.member("a")

    @member.kit.on_node_join
    def plain(event: NodeJoinEvent) -> None:
        found["plain"] = tenant.get()
        tenant.set("changed")

    @member.kit.on_node_join
    async def coroutine(event: NodeJoinEvent) -> None:
        found["coroutine"] = tenant.get()

    def start() -> None:
        tenant.set("blue")
        if face_of(member) == "threads":
            member.start()

    async def start_on_loop() -> None:
        tenant.set("blue")
        assert isinstance(member.kit, ClusterKit)
        await member.kit.start()

    if face_of(member) == "threads":
        contextvars.copy_context().run(start)
    else:
        cluster.loop.run(start_on_loop())
    eventually(lambda: len(found) == 2)
    assert found == {"plain": "blue", "coroutine": "blue"}
