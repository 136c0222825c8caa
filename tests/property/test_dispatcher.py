"""The dispatcher under random traffic: what it promises holds whatever comes, in any order.

Traffic (news, rebalances, ends, failures, time) comes from hypothesis; the validators below look
only at the actions, and keep their own books.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from clusterkit.engine.dispatcher import Dispatcher
from clusterkit.engine.jobs import (
    Action,
    CancelJob,
    ChangeDropped,
    ChangeSettled,
    HookFailed,
    HookSlow,
    HookTimedOut,
    Job,
    RebalanceCompleted,
    RebalanceStarted,
    StartJobs,
)
from clusterkit.events import (
    ClusterHealthEvent,
    Event,
    FencedEvent,
    NodeJoinEvent,
    NodeLeaveEvent,
    PartitionChangeEvent,
    RebalanceEvent,
    UnfencedEvent,
)
from clusterkit.hooks import HookCancelledError, HookKind, Hooks
from clusterkit.model import Node

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NODES = ("node-0", "node-1", "node-2")
PARTITIONS = tuple(f"partition-{n}" for n in range(4))
MAX, RESERVED, TIMEOUT, SLOW, GRACE = 4, 1, 30.0, 5.0, 5.0


def node(node_id: str) -> Node:
    return Node(node_id, "h:1", {}, None, 100, {}, f"i-{node_id}", "active", NOW)


@dataclass
class Change:
    """What the validators know of one partition change."""

    rebalance: str
    started: bool = False
    settled: bool = False


@dataclass
class Passage:
    """What the validators know of one rebalance."""

    waits_for: set[tuple[str, str]]  # (event, hook) of node news from before it
    begun: float | None = None
    completed: bool = False
    superseded: bool = False


class DispatcherMachine(RuleBasedStateMachine):
    @initialize(
        retries=st.integers(0, 2),
        two=st.booleans(),
        node_hooks=st.integers(1, 2),
        filtered=st.booleans(),
    )
    def begin(self, retries: int, two: bool, node_hooks: int, filtered: bool) -> None:
        hooks = Hooks()

        def shared(event: Event) -> None: ...

        def on_change(event: Event) -> None: ...
        def on_change_too(event: Event) -> None: ...
        def on_start(event: Event) -> None: ...
        def on_done(event: Event, duration: timedelta) -> None: ...
        def on_news(event: Event) -> None: ...

        # `shared` is registered for two kinds: its runs must never overlap.
        hooks.on_node_join(retries=retries, name="shared")(shared)
        hooks.on_node_leave(name="shared")(shared)
        if node_hooks == 2:
            hooks.on_node_leave(name="leave-too")(on_news)
        hooks.on_cluster_health_change(name="health")(lambda e: None)
        hooks.on_fenced(name="fenced")(lambda e: None)
        hooks.on_unfenced(name="unfenced")(lambda e: None)
        hooks.on_rebalance_start(name="start")(on_start)
        if two:
            hooks.on_rebalance_start(name="start-too")(lambda e: None)
        hooks.on_rebalance_complete(name="done", timeout=3)(on_done)
        hooks.on_partition_change(retries=retries, name="change")(on_change)
        if two:
            hooks.on_partition_change(
                name="change-too", partitions=PARTITIONS[:2] if filtered else None, mine=filtered
            )(on_change_too)
        self.specs = hooks._specs()
        self.dispatcher = Dispatcher(
            self.specs,
            incarnation=f"i-{NODES[0]}",
            max_concurrent=MAX,
            reserved=RESERVED,
            hook_timeout=TIMEOUT,
            migration_timeout=TIMEOUT * 2,
            slow_after=SLOW,
            grace=GRACE,
        )
        self.now = 0.0
        self.ids = itertools.count()
        self.running: dict[int, Job] = {}
        self.zombies: dict[int, tuple[Job, float]] = {}
        self.cancelled: set[int] = set()
        self.started_at: dict[int, float] = {}
        self.retrying: set[tuple[str, str]] = set()
        self.news_order: list[tuple[str, str, str | None]] = []  # event, hook, subject
        self.news_over: set[tuple[str, str]] = set()
        self.rebalance_hooks: list[tuple[str, str]] = []
        self.lost_place: set[tuple[str, str]] = set()
        self.changes: dict[str, Change] = {}
        self.passages: dict[str, Passage] = {}
        self.latest: str | None = None
        self.runs: Counter[tuple[str, str]] = Counter()
        self.failures = 0

    # -- traffic ----------------------------------------------------------------------------

    @rule(who=st.sampled_from(NODES), joins=st.booleans())
    def node_news(self, who: str, joins: bool) -> None:
        number = next(self.ids)
        event: NodeJoinEvent | NodeLeaveEvent
        if joins:
            event = NodeJoinEvent(
                node=node(who),
                cluster_size=1,
                is_bootstrap=False,
                timestamp=NOW,
                revision=number,
                event_id=f"join-{number}",
            )
        else:
            event = NodeLeaveEvent(
                node=node(who),
                reason="graceful_shutdown",
                partitions_owned=(),
                partitions_replica=(),
                timestamp=NOW,
                revision=number,
                event_id=f"leave-{number}",
            )
        self.tell_news("node_join" if joins else "node_leave", event, who)

    @rule(fenced=st.booleans())
    def fencing_news(self, fenced: bool) -> None:
        number = next(self.ids)
        event: FencedEvent | UnfencedEvent
        if fenced:
            event = FencedEvent(
                reason="x", timestamp=NOW, revision=number, event_id=f"fenced-{number}"
            )
        else:
            event = UnfencedEvent(
                rejoined=False, timestamp=NOW, revision=number, event_id=f"unfenced-{number}"
            )
        self.tell_news("fenced" if fenced else "unfenced", event, "fencing")

    @rule()
    def health_news(self) -> None:
        number = next(self.ids)
        event = ClusterHealthEvent(
            healthy_nodes=1,
            unhealthy_nodes=0,
            total_nodes=1,
            status="healthy",
            unhealthy_node_ids=(),
            timestamp=NOW,
            revision=number,
            event_id=f"health-{number}",
        )
        self.tell_news("cluster_health_change", event, None)

    def tell_news(self, kind: HookKind, event: Event, subject: str | None) -> None:
        for spec in self.specs:
            if spec.kind == kind:
                self.news_order.append((event.event_id, spec.name, subject))
        self.take(self.dispatcher.news(kind, event, self.now))

    @rule(
        moves=st.lists(st.tuples(st.sampled_from(PARTITIONS), st.sampled_from(NODES)), max_size=8)
    )
    def rebalance(self, moves: list[tuple[str, str]]) -> None:
        number = next(self.ids)
        event = RebalanceEvent(
            trigger="manual",
            trigger_node_id=None,
            partitions_to_move=len(moves),
            nodes_affected=(),
            timestamp=NOW,
            revision=number,
            event_id=f"rebalance-{number}",
        )
        changes = []
        for order, (partition, target) in enumerate(moves):
            change = PartitionChangeEvent(
                partition_id=partition,
                copy_from_nodes=(),
                copy_to_node=node(target),
                needs_data=True,
                change_reason="manual",
                old_primary=None,
                new_primary=target,
                timestamp=NOW,
                revision=number,
                event_id=f"change-{number}-{order}",
            )
            changes.append(change)
            self.changes[change.event_id] = Change(event.event_id)
        if self.latest is not None:
            self.passages[self.latest].superseded = True
        waits_for = {
            (event_id, hook)
            for event_id, hook, subject in self.news_order
            if subject in NODES
            and (event_id, hook) not in self.news_over
            and (event_id, hook) not in self.lost_place
        }
        self.latest = event.event_id
        self.passages[event.event_id] = Passage(waits_for)
        self.take(self.dispatcher.rebalance(event, changes, self.now))

    @precondition(lambda self: self.running or self.zombies)
    @rule(data=st.data(), how=st.sampled_from(("ok", "ok", "raise", "cancelled", "exit")))
    def end(self, data: st.DataObject, how: str) -> None:
        job_id = data.draw(st.sampled_from(sorted({*self.running, *self.zombies})))
        error: BaseException | None = None
        if how == "raise":
            error = ValueError("x")
        elif how == "exit":
            error = SystemExit(3)
        elif how == "cancelled" and job_id in self.cancelled:
            error = HookCancelledError("told to")
        self.finish(job_id, error)

    def finish(self, job_id: int, error: BaseException | None) -> None:
        job = self.running.pop(job_id, None)
        if job is not None:
            key = (job.event.event_id, job.spec.name)
            quiet = job_id in self.cancelled and isinstance(error, HookCancelledError)
            again = (
                isinstance(error, Exception)
                and job.attempt <= job.spec.retries
                and job_id not in self.cancelled
            )
            actions = self.dispatcher.ended([(job_id, error)], self.now)
            failed = [a for a in actions if isinstance(a, HookFailed)]
            if error is None or quiet:
                assert not failed
            else:
                assert failed == [HookFailed(job, error, again)]
                self.failures += 1
            if again:
                self.retrying.add(key)
            else:
                self.news_over.add(key)
            self.take(actions)
        else:
            self.zombies.pop(job_id)
            self.take(self.dispatcher.ended([(job_id, error)], self.now))

    @rule(seconds=st.sampled_from((0.0, 0.1, 1.0, 5.0, 31.0, 61.0)))
    def time_passes(self, seconds: float) -> None:
        until = self.now + seconds
        while (wake := self.dispatcher.wake_at()) is not None and wake <= until:
            assert wake >= self.now, "a tick was missed"
            self.now = wake
            self.take(self.dispatcher.tick(self.now))
            after = self.dispatcher.wake_at()
            assert after is None or after > self.now, "a tick must use up its deadlines"
        self.now = until
        self.take(self.dispatcher.tick(self.now))

    # -- validators -------------------------------------------------------------------------

    def take(self, actions: Iterable[Action]) -> None:
        self.note_who_lost_their_place()
        for action in actions:
            match action:
                case StartJobs(jobs):
                    for job in jobs:
                        self.on_start(job)
                case CancelJob(job_id, reason):
                    assert reason in ("superseded", "timeout")
                    assert job_id in self.running or job_id in self.zombies
                    self.cancelled.add(job_id)
                case HookTimedOut(job):
                    assert job.timeout is not None
                    assert self.now >= self.started_at[job.id] + job.timeout
                    self.zombies[job.id] = (self.running.pop(job.id), self.now)
                    self.news_over.add((job.event.event_id, job.spec.name))
                    self.failures += 1
                case HookSlow(job):
                    assert self.now >= self.started_at[job.id] + SLOW
                case ChangeSettled(event, ok, error, attempts, superseded):
                    self.on_over(event)
                    assert ok == (error is None and not superseded)
                    assert attempts > 0 or isinstance(error, TimeoutError) or ok
                case ChangeDropped(event):
                    assert not self.changes[event.event_id].started
                    assert self.passages[self.changes[event.event_id].rebalance].superseded
                    self.on_over(event)
                case RebalanceStarted(event):
                    self.on_rebalance_started(event)
                case RebalanceCompleted(event, duration, superseded):
                    passage = self.passages[event.event_id]
                    assert passage.begun is not None
                    assert not passage.completed, "one complete for each start"
                    assert duration == self.now - passage.begun
                    assert superseded == passage.superseded
                    passage.completed = True
                    self.add_rebalance_hooks("rebalance_complete", event)
                    for change in self.changes.values():
                        assert change.settled or change.rebalance != event.event_id
                case HookFailed():
                    pass

    def on_over(self, event: PartitionChangeEvent) -> None:
        change = self.changes[event.event_id]
        assert not change.settled, "settled or dropped once"
        change.settled = True

    def on_rebalance_started(self, event: RebalanceEvent) -> None:
        passage = self.passages[event.event_id]
        assert event.event_id == self.latest, "a superseded rebalance never begins"
        assert passage.begun is None
        passage.begun = self.now
        for waited in passage.waits_for:
            assert waited in self.news_over or waited in self.lost_place, (
                "node hooks from before a rebalance are over when it starts"
            )
        self.add_rebalance_hooks("rebalance_start", event)
        for other_id, other in self.passages.items():
            if other_id != event.event_id and other.begun is not None and not other.completed:
                # It may overlap with its predecessor only after the grace: something that
                # holds that up still runs, or is out of time and has not ended.
                assert any(
                    job.event.event_id in self.changes or job.spec.kind.startswith("rebalance")
                    for job in (*self.running.values(), *(job for job, _ in self.zombies.values()))
                )

    def add_rebalance_hooks(self, kind: HookKind, event: RebalanceEvent) -> None:
        self.rebalance_hooks += [
            (event.event_id, spec.name) for spec in self.specs if spec.kind == kind
        ]
        self.note_who_lost_their_place()

    def on_start(self, job: Job) -> None:
        key = (job.event.event_id, job.spec.name)
        alive = [*self.running.values(), *(job for job, _ in self.zombies.values())]
        assert job.attempt == (self.runs[key] + 1), "attempts are counted"
        assert job.attempt == 1 or key in self.retrying
        self.runs[key] += 1
        self.retrying.discard(key)
        if isinstance(job.event, PartitionChangeEvent):
            self.on_change_start(job, alive)
        else:
            assert all(other.spec.fn != job.spec.fn for other in alive), "one at a time"
        if (job.event.event_id, job.spec.name) in {(e, h) for e, h, _ in self.news_order}:
            self.on_news_start(job)
        self.running[job.id] = job
        self.started_at[job.id] = self.now
        running_changes = sum(
            isinstance(one.event, PartitionChangeEvent) for one in self.running.values()
        )
        assert len(self.running) <= MAX
        assert running_changes <= MAX - RESERVED
        if isinstance(job.event, PartitionChangeEvent):
            assert len(self.zombies) < MAX

    def on_change_start(self, job: Job, alive: list[Job]) -> None:
        assert isinstance(job.event, PartitionChangeEvent)
        change = self.changes[job.event.event_id]
        assert not change.settled
        assert (
            job.spec.name == "change"
            or not job.spec.mine
            or (job.event.copy_to_node.id == NODES[0] and job.event.partition_id in PARTITIONS[:2])
        )
        for other in alive:
            assert (
                not isinstance(other.event, PartitionChangeEvent)
                or other.event.partition_id != job.event.partition_id
            ), "one at a time for a partition"
        passage = self.passages[change.rebalance]
        assert passage.begun is not None
        assert not passage.completed
        assert not passage.superseded
        for other in self.running.values():
            key = (other.event.event_id, other.spec.name)
            assert (
                other.spec.kind != "rebalance_start"
                or other.event.event_id != change.rebalance
                or key in self.lost_place
            ), "start hooks are over before partitions move"
        for event_id, hook in self.rebalance_hooks:
            if event_id == change.rebalance and hook.startswith("start"):
                key = (event_id, hook)
                assert key in self.news_over or key in self.lost_place
        change.started = True

    def on_news_start(self, job: Job) -> None:
        subject = next(s for e, h, s in self.news_order if e == job.event.event_id)
        for event_id, hook, other_subject in self.news_order:
            if (event_id, hook) == (job.event.event_id, job.spec.name):
                break
            over = (event_id, hook) in self.news_over
            if hook == job.spec.name:
                assert over, "one hook's runs come in order"
            elif subject is not None and subject == other_subject:
                late = {(event_id, hook), (job.event.event_id, job.spec.name)}
                assert over or late & self.lost_place, "news of one subject come in order"

    @invariant()
    def note_who_lost_their_place(self) -> None:
        """What waits behind a stuck run runs when it can, and has no place in the order."""
        stuck = {job.spec.name for job, since in self.zombies.values() if self.now >= since + GRACE}
        if stuck:
            waiting = [(event_id, hook) for event_id, hook, _ in self.news_order]
            self.lost_place |= {
                (event_id, hook)
                for event_id, hook in (*waiting, *self.rebalance_hooks)
                if hook in stuck and (event_id, hook) not in self.news_over
            }

    @invariant()
    def books_agree(self) -> None:
        assert self.dispatcher.running == len(self.running)
        assert self.dispatcher.failures == self.failures
        assert sorted(self.dispatcher.zombies) == sorted(
            job.spec.name for job, _ in self.zombies.values()
        )
        open_news = sum(
            (event_id, hook) not in self.news_over
            and all(
                (j.event.event_id, j.spec.name) != (event_id, hook) for j in self.running.values()
            )
            for event_id, hook, _ in self.news_order
        )
        running_changes = {
            job.event.event_id
            for job in self.running.values()
            if isinstance(job.event, PartitionChangeEvent)
        }
        open_changes = sum(
            not change.settled and event_id not in running_changes
            for event_id, change in self.changes.items()
        )
        assert self.dispatcher.queued >= open_news + open_changes

    def teardown(self) -> None:
        """Everything that runs ends well, and time passes: then nothing may be left over."""
        if not hasattr(self, "dispatcher"):
            return
        for _ in range(10_000):
            self.note_who_lost_their_place()
            if self.running or self.zombies:
                self.finish(min({*self.running, *self.zombies}), None)
            elif (wake := self.dispatcher.wake_at()) is not None:
                self.now = max(self.now, wake)
                self.take(self.dispatcher.tick(self.now))
            else:
                break
        assert self.dispatcher.idle
        assert self.dispatcher.queued == 0
        assert self.dispatcher.running == 0
        assert not self.dispatcher._news._lanes
        assert not self.dispatcher._changes._occupants
        assert all(change.settled for change in self.changes.values())
        assert {(e, h) for e, h, _ in self.news_order} <= self.news_over, "no news is lost"
        for passage in self.passages.values():
            assert passage.completed == (passage.begun is not None)
        if self.latest is not None:
            assert self.passages[self.latest].completed
        for event_id, passage in self.passages.items():
            for kind in ("rebalance_start", "rebalance_complete"):
                for spec in self.specs:
                    if spec.kind == kind:
                        assert self.runs[event_id, spec.name] == (passage.begun is not None)


# To shrink a failure takes long, and is worth it.
TestDispatcher = pytest.mark.timeout(600)(DispatcherMachine.TestCase)
TestDispatcher.settings = settings(max_examples=150, stateful_step_count=50)
