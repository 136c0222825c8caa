"""The dispatcher, one promise a test; tests/property checks them under random traffic."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any

import pytest

from clusterkit.engine.dispatcher import Dispatcher
from clusterkit.engine.jobs import (
    Action,
    CancelJob,
    ChangeDropped,
    ChangeSettled,
    HookFailed,
    HookSlow,
    HookTimedOut,
    HookTimeoutError,
    Job,
    RebalanceCompleted,
    RebalanceStarted,
    StartJobs,
)
from clusterkit.events import (
    ChangeReason,
    FencedEvent,
    NodeJoinEvent,
    NodeLeaveEvent,
    PartitionChangeEvent,
    PartitionDropEvent,
    PartitionRoleEvent,
    RebalanceEvent,
    UnfencedEvent,
)
from clusterkit.hooks import HookCancelledError, Hooks, HookSpec
from clusterkit.model import Node

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ids = itertools.count(1)


def node(node_id: str) -> Node:
    return Node(node_id, "h:1", {}, None, 100, {}, f"i-{node_id}", "active", NOW)


def joined(who: str) -> NodeJoinEvent:
    return NodeJoinEvent(
        node=node(who),
        cluster_size=1,
        is_bootstrap=False,
        timestamp=NOW,
        revision=1,
        event_id=f"join-{who}-{next(ids)}",
    )


def left(who: str) -> NodeLeaveEvent:
    return NodeLeaveEvent(
        node=node(who),
        reason="graceful_shutdown",
        partitions_owned=(),
        partitions_replica=(),
        timestamp=NOW,
        revision=1,
        event_id=f"leave-{who}-{next(ids)}",
    )


def fenced() -> FencedEvent:
    return FencedEvent(reason="x", timestamp=NOW, revision=1, event_id=f"fenced-{next(ids)}")


def unfenced() -> UnfencedEvent:
    return UnfencedEvent(
        rejoined=False, timestamp=NOW, revision=1, event_id=f"unfenced-{next(ids)}"
    )


def role(partition: int) -> PartitionRoleEvent:
    return PartitionRoleEvent(
        partition_id=f"partition-{partition}",
        old_role=None,
        new_role="primary",
        epoch=1,
        timestamp=NOW,
        revision=1,
        event_id=f"role-{partition}-{next(ids)}",
    )


def passage(name: str = "r") -> RebalanceEvent:
    return RebalanceEvent(
        trigger="node_join",
        trigger_node_id=None,
        partitions_to_move=0,
        nodes_affected=(),
        timestamp=NOW,
        revision=1,
        event_id=name,
    )


def change(
    partition: int, target: str = "me", reason: ChangeReason = "node_join", epoch: int = 1
) -> PartitionChangeEvent:
    return PartitionChangeEvent(
        partition_id=f"partition-{partition}",
        copy_from_nodes=(),
        copy_to_node=node(target),
        needs_data=True,
        change_reason=reason,
        old_primary=None,
        new_primary=target,
        timestamp=NOW,
        revision=1,
        event_id=f"change-{partition}-{target}-{epoch}",
    )


class Lab:
    """A dispatcher and the time; what it answered, and what it has running."""

    def __init__(
        self,
        hooks: Hooks,
        *,
        max_concurrent: int = 50,
        reserved: int = 2,
        hook_timeout: float | None = 30.0,
        migration_timeout: float | None = 600.0,
        max_moves: int | None = None,
    ) -> None:
        self.dispatcher = Dispatcher(
            hooks._specs(),
            incarnation="i-me",
            max_concurrent=max_concurrent,
            reserved=reserved,
            hook_timeout=hook_timeout,
            migration_timeout=migration_timeout,
            max_moves=max_moves,
        )
        self.now = 100.0
        self.log: list[Action] = []
        self.running: dict[str, list[Job]] = {}

    def take(self, actions: Iterable[Action]) -> list[Action]:
        actions = list(actions)
        self.log += actions
        for action in actions:
            if isinstance(action, StartJobs):
                for job in action.jobs:
                    self.running.setdefault(job.spec.name, []).append(job)
        return actions

    def join(self, event: NodeJoinEvent) -> list[Action]:
        return self.take(self.dispatcher.news("node_join", event, self.now))

    def leave(self, event: NodeLeaveEvent) -> list[Action]:
        return self.take(self.dispatcher.news("node_leave", event, self.now))

    def fence(self) -> list[Action]:
        return self.take(self.dispatcher.news("fenced", fenced(), self.now))

    def unfence(self) -> list[Action]:
        return self.take(self.dispatcher.news("unfenced", unfenced(), self.now))

    def rebalance(
        self, *changes: PartitionChangeEvent, name: str = "r", replayed: tuple[str, ...] = ()
    ) -> list[Action]:
        return self.take(
            self.dispatcher.rebalance(passage(name), changes, self.now, replayed=replayed)
        )

    def end(self, name: str, error: BaseException | None = None) -> list[Action]:
        """Ends the oldest run of a hook."""
        job = self.running[name].pop(0)
        return self.take(self.dispatcher.ended([(job.id, error)], self.now))

    def partition(self, job: Job) -> int:
        assert isinstance(job.event, PartitionChangeEvent)
        return int(job.event.partition_id.removeprefix("partition-"))

    def of_partition(self, partition: int) -> Job:
        """The run of the change hook for a partition."""
        return next(job for job in self.running["change"] if self.partition(job) == partition)

    def end_of(self, job: Job, error: BaseException | None = None) -> list[int]:
        """Ends one run; the partitions whose changes start then."""
        self.running[job.spec.name].remove(job)
        actions = self.take(self.dispatcher.ended([(job.id, error)], self.now))
        started = [j for a in actions if isinstance(a, StartJobs) for j in a.jobs]
        return [self.partition(j) for j in started if j.spec.name == "change"]

    def sleep(self, seconds: float) -> list[Action]:
        self.now += seconds
        return self.take(self.dispatcher.tick(self.now))

    def names(self) -> list[str]:
        """Who runs."""
        return sorted(name for name, jobs in self.running.items() for _ in jobs)


def starts(actions: Iterable[Action]) -> list[str]:
    return [
        job.spec.name for action in actions if isinstance(action, StartJobs) for job in action.jobs
    ]


def of(kind: type[Action], actions: Iterable[Action]) -> list[Action]:
    return [action for action in actions if isinstance(action, kind)]


def noop(*args: object) -> None: ...


def all_hooks() -> Hooks:
    hooks = Hooks()
    hooks.on_node_join(name="join")(lambda e: None)
    hooks.on_node_leave(name="leave")(lambda e: None)
    hooks.on_rebalance_start(name="start")(lambda e: None)
    hooks.on_partition_change(name="change")(lambda e: None)
    hooks.on_rebalance_complete(name="complete")(lambda e, d: None)
    hooks.on_fenced(name="fenced")(lambda e: None)
    return hooks


# -- news -----------------------------------------------------------------------------------


def test_news_about_different_nodes_by_different_hooks_run_together() -> None:
    lab = Lab(all_hooks())
    assert starts(lab.join(joined("a"))) == ["join"]
    assert starts(lab.leave(left("b"))) == ["leave"]
    assert starts(lab.fence()) == ["fenced"]


def test_news_about_one_node_come_one_after_another() -> None:
    lab = Lab(all_hooks())
    lab.join(joined("a"))
    assert starts(lab.leave(left("a"))) == []
    assert starts(lab.end("join", ValueError())) == ["leave"]


def test_news_of_fencing_come_one_after_another_and_wait_for_no_other() -> None:
    hooks = all_hooks()
    hooks.on_unfenced(name="unfenced")(lambda e: None)
    lab = Lab(hooks)
    lab.join(joined("me"))
    assert starts(lab.fence()) == ["fenced"]
    assert starts(lab.unfence()) == [], "a flag set by one and cleared by the other ends cleared"
    assert starts(lab.fence()) == []
    assert starts(lab.end("fenced")) == ["unfenced"]
    assert starts(lab.end("unfenced")) == ["fenced"]


def test_one_function_never_runs_beside_itself_whatever_it_is_registered_for() -> None:
    class Service:
        def changed(self, event: object) -> None: ...

    service = Service()
    hooks = Hooks()
    hooks.on_node_join(name="join")(service.changed)
    hooks.on_node_leave(name="leave")(service.changed)
    lab = Lab(hooks)
    lab.join(joined("a"))
    assert starts(lab.leave(left("b"))) == []
    assert starts(lab.end("join")) == ["leave"]


def test_a_callable_that_cannot_be_hashed_is_a_hook_too() -> None:
    class Unhashable:
        __hash__ = None  # type: ignore[assignment]  # the usual way to say so

        def __call__(self, event: object) -> None: ...

    hooks = Hooks()
    hooks.on_fenced(Unhashable())
    lab = Lab(hooks)
    assert len(starts(lab.fence())) == 1
    assert starts(lab.fence()) == []


def test_mine_is_about_this_node() -> None:
    hooks = Hooks()
    hooks.on_node_join(mine=True, name="join")(noop)
    lab = Lab(hooks)
    assert lab.join(joined("other")) == []
    assert starts(lab.join(joined("me"))) == ["join"]


def test_extra_arguments_reach_the_hook() -> None:
    lab = Lab(all_hooks())
    event = fenced()
    (action,) = lab.dispatcher.news("fenced", event, 0.0, "more")
    assert isinstance(action, StartJobs)
    assert [job.args for job in action.jobs] == [(event, "more")]


# -- one rebalance --------------------------------------------------------------------------


def test_the_order_of_one_rebalance() -> None:
    lab = Lab(all_hooks())
    lab.join(joined("a"))
    assert lab.rebalance(change(1), change(2), change(1, "other")) == []
    lab.now += 1
    assert starts(lab.leave(left("b"))) == ["leave"]  # news from after it does not matter
    actions = lab.end("join")
    assert of(RebalanceStarted, actions) == [RebalanceStarted(passage())]
    assert starts(actions) == ["start"]
    lab.now += 2
    assert starts(lab.end("start")) == ["change", "change"]
    assert [j.event.event_id for j in lab.running["change"]] == ["change-1-me-1", "change-2-me-1"]
    actions = lab.end("change")
    assert of(ChangeSettled, actions) == [ChangeSettled(change(1), True, None, 1)]
    assert starts(actions) == ["change"], "the next of the same partition"
    lab.end("change")
    lab.now += 3
    actions = lab.end("change")
    assert of(RebalanceCompleted, actions) == [RebalanceCompleted(passage(), 5.0, False)]
    assert starts(actions) == ["complete"]
    assert lab.running["complete"][0].args == (passage(), timedelta(seconds=5))
    assert not lab.dispatcher.idle
    lab.end("complete")
    lab.end("leave")
    assert lab.dispatcher.idle
    assert lab.dispatcher.rebalances == 1


def test_a_rebalance_waits_until_what_is_to_be_dropped_is_gone() -> None:
    hooks = Hooks()
    hooks.on_partition_drop(name="drop")(noop)
    hooks.on_partition_change(name="change")(noop)
    lab = Lab(hooks)
    drop = PartitionDropEvent(
        timestamp=NOW, revision=1, event_id="drop", partition_id="partition-0"
    )
    lab.take(lab.dispatcher.news("partition_drop", drop, lab.now))
    assert lab.names() == ["drop"]
    assert lab.rebalance(change(0)) == []
    assert starts(lab.end("drop")) == ["change"]


def test_without_changes_and_hooks_a_rebalance_starts_and_completes_all_the_same() -> None:
    lab = Lab(Hooks())
    assert lab.rebalance() == [
        RebalanceStarted(passage()),
        RebalanceCompleted(passage(), 0.0, False),
    ]
    assert lab.dispatcher.idle
    actions = lab.rebalance(change(1))
    assert actions[0] == ChangeSettled(change(1), True, None, 0), "nobody wants it"


def test_hooks_of_one_change_run_in_their_order_and_one_failure_stops_no_other() -> None:
    hooks = Hooks()
    for name in ("first", "second"):
        hooks.on_partition_change(name=name)(noop)
    lab = Lab(hooks)
    assert starts(lab.rebalance(change(1))) == ["first"]
    error = ValueError("x")
    actions = lab.end("first", error)
    assert starts(actions) == ["second"]
    assert isinstance(actions[0], HookFailed)
    assert actions[0].error is error
    assert not actions[0].will_retry
    assert of(ChangeSettled, lab.end("second")) == [ChangeSettled(change(1), False, error, 1)]


@pytest.mark.parametrize(
    "event, wanted",
    [
        (change(1), ["all", "mine", "one", "why"]),
        (change(1, "other"), ["all", "one", "why"]),
        (change(2, reason="manual"), ["all", "mine"]),
        (change(2, "other", reason="manual"), ["all"]),
    ],
)
def test_filters_of_partition_changes(event: PartitionChangeEvent, wanted: list[str]) -> None:
    hooks = Hooks()
    hooks.on_partition_change(name="all")(noop)
    hooks.on_partition_change(name="mine", mine=True)(noop)
    hooks.on_partition_change(name="one", partitions=["partition-1"])(noop)
    hooks.on_partition_change(name="why", reasons=["node_join"])(noop)
    lab = Lab(hooks)
    seen = starts(lab.rebalance(event))
    while lab.names():
        seen += starts(lab.end(lab.names()[0]))
    assert seen == wanted


def test_an_empty_filter_wants_nothing() -> None:
    hooks = Hooks()
    hooks.on_partition_change(partitions=[])(noop)
    assert starts(Lab(hooks).rebalance(change(1))) == []


@pytest.mark.parametrize("mine, interest", [([], "none"), ([True], "mine"), ([True, False], "all")])
def test_interest_tells_which_changes_need_not_be_built(mine: list[bool], interest: str) -> None:
    hooks = Hooks()
    for value in mine:
        hooks.on_partition_change(mine=value)(noop)
    assert Lab(hooks).dispatcher.change_interest == interest


def test_it_tells_of_which_kinds_there_are_hooks_late_ones_too() -> None:
    hooks = Hooks()
    hooks.on_node_join(noop)
    dispatcher = Lab(hooks).dispatcher
    assert dispatcher.wants("node_join")
    assert not dispatcher.wants("partition_role")
    late = Hooks()
    late.on_partition_role(noop)
    dispatcher.late(late._specs()[0], (), 0.0)
    assert dispatcher.wants("partition_role")


def test_replayed_changes_say_so() -> None:
    lab = Lab(all_hooks())
    lab.rebalance(change(1), change(2), replayed=("change-2-me-1",))
    lab.end("start")
    assert [job.replayed for job in lab.running["change"]] == [False, True]


# -- slots ----------------------------------------------------------------------------------


def test_changes_leave_slots_for_news() -> None:
    lab = Lab(all_hooks(), max_concurrent=4, reserved=2)
    lab.rebalance(*(change(n) for n in range(10)))
    assert starts(lab.end("start")) == ["change"] * 2
    assert starts(lab.join(joined("a"))) == ["join"]
    assert starts(lab.fence()) == ["fenced"]
    assert starts(lab.leave(left("b"))) == [], "four run"
    assert lab.dispatcher.running == 4
    assert lab.dispatcher.queued == 9
    assert starts(lab.end("change")) == ["leave"], "news go first"
    assert starts(lab.end("join")) == ["change"]


def test_a_budget_of_moves_is_for_what_brings_data_here() -> None:
    lab = Lab(all_hooks(), max_moves=2)
    promoted = replace(change(9), needs_data=False)
    lab.rebalance(*(change(n) for n in range(4)), *(change(n, "b") for n in (4, 5)), promoted)
    lab.end("start")
    targets = [lab.partition(job) for job in lab.running["change"]]
    assert sorted(targets) == [0, 1, 4, 5, 9], "others' changes and promotions do not count"
    job = next(job for job in lab.running["change"] if lab.partition(job) == 4)
    assert lab.end_of(job) == [], "what does not count frees nothing"
    assert lab.end_of(lab.of_partition(0)) == [2]
    assert lab.end_of(lab.of_partition(2), ValueError()) == [3]
    assert lab.end_of(lab.of_partition(1)) == []


def test_a_move_that_was_called_off_leaves_its_place_to_the_next() -> None:
    lab = Lab(all_hooks(), max_moves=1)
    lab.rebalance(change(1), change(2), change(3))
    lab.end("start")
    lab.take(lab.dispatcher.withdraw({"change-2-me-1"}, lab.now))
    assert lab.end_of(lab.of_partition(1)) == [3]


def test_one_slot_serves_all() -> None:
    lab = Lab(all_hooks(), max_concurrent=1, reserved=2)
    lab.rebalance(change(1))
    assert starts(lab.end("start")) == ["change"]


# -- superseding ----------------------------------------------------------------------------


def test_a_newer_rebalance_drops_what_is_queued_and_tells_what_runs() -> None:
    lab = Lab(all_hooks(), max_concurrent=4)
    lab.rebalance(change(1), change(2), change(3), change(1, "other"), name="old")
    lab.end("start")
    assert lab.names() == ["change", "change"]
    actions = lab.rebalance(change(1, epoch=2), name="new")
    assert of(ChangeDropped, actions) == [
        ChangeDropped(change(3)),
        ChangeDropped(change(1, "other")),
    ]
    assert [a.reason for a in actions if isinstance(a, CancelJob)] == ["superseded"] * 2
    assert starts(actions) == []
    # One ends because it was told to, which is no failure; the other had done its work.
    actions = lab.end("change", HookCancelledError("told"))
    assert not of(HookFailed, actions)
    assert starts(actions) == []
    (settled,) = of(ChangeSettled, actions)
    assert isinstance(settled, ChangeSettled)
    assert (settled.ok, settled.superseded) == (False, True)
    actions = lab.end("change")
    assert of(ChangeSettled, actions) == [ChangeSettled(change(2), True, None, 1)]
    assert of(RebalanceCompleted, actions) == [RebalanceCompleted(passage("old"), 0.0, True)]
    assert starts(actions) == ["complete"]
    assert starts(lab.end("complete")) == ["start"], "the newer one begins when the old is over"
    assert starts(lab.end("start")) == ["change"]
    assert lab.dispatcher.failures == 0


def test_a_newer_rebalance_takes_over_what_runs_and_is_still_wanted() -> None:
    lab = Lab(all_hooks(), max_concurrent=4)
    lab.rebalance(change(1), change(2), change(3), name="old")
    lab.end("start")
    actions = lab.rebalance(change(1), change(3), change(4), name="new")
    assert [a.reason for a in actions if isinstance(a, CancelJob)] == ["superseded"]
    assert lab.dispatcher.queued == 2, "change 3, which was dropped and is back, and change 4"
    assert not of(RebalanceCompleted, actions), "change 2, which nobody wants, still runs"
    lab.running["change"].reverse()
    actions = lab.end("change", HookCancelledError("told"))
    assert of(RebalanceCompleted, actions) == [RebalanceCompleted(passage("old"), 0.0, True)]
    assert starts(lab.end("complete")) == ["start"]
    assert starts(lab.end("start")) == ["change"], "two slots for changes, one of them taken"
    actions = lab.end("change")
    assert of(ChangeSettled, actions) == [ChangeSettled(change(1), True, None, 1)]
    assert starts(actions) == ["change"], "and never change 1 a second time"
    lab.end("change")
    actions = lab.end("change")
    assert of(RebalanceCompleted, actions) == [RebalanceCompleted(passage("new"), 0.0, False)]


def test_what_was_taken_over_is_told_to_end_when_a_third_does_not_want_it() -> None:
    lab = Lab(all_hooks())
    lab.rebalance(change(1), change(2), name="first")
    lab.end("start")
    lab.rebalance(change(1), change(2), name="second")
    assert lab.dispatcher.queued == 0, "no change is queued beside its own run"
    actions = lab.rebalance(change(2), name="third")
    (cancel,) = of(CancelJob, actions)
    assert cancel == CancelJob(lab.running["change"][0].id, "superseded")
    lab.end("change", HookCancelledError("told"))
    lab.end("complete")
    lab.end("start")
    actions = lab.end("change")
    assert of(RebalanceCompleted, actions) == [RebalanceCompleted(passage("third"), 0.0, False)]


def test_what_is_void_is_dropped_from_its_queue_and_told_to_end_if_it_runs() -> None:
    lab = Lab(all_hooks(), max_concurrent=4)
    lab.rebalance(change(1), change(2), change(3), change(4), name="r")
    lab.end("start")
    void = {change(n).event_id for n in (1, 3)}
    actions = lab.take(lab.dispatcher.withdraw(void, lab.now))
    assert of(ChangeDropped, actions) == [ChangeDropped(change(3))]
    (cancel,) = of(CancelJob, actions)
    assert cancel == CancelJob(lab.running["change"][0].id, "superseded")
    assert starts(lab.end("change", HookCancelledError("told"))) == ["change"]
    lab.end("change")
    actions = lab.end("change")
    assert of(RebalanceCompleted, actions) == [RebalanceCompleted(passage("r"), 0.0, False)]


def test_a_halt_ends_every_rebalance_and_no_news() -> None:
    lab = Lab(all_hooks(), max_concurrent=3)
    lab.rebalance(change(1), change(2), name="old")
    lab.end("start")
    lab.rebalance(change(3), name="new")
    actions = lab.take(lab.dispatcher.halt(lab.now))
    assert of(ChangeDropped, actions) == [ChangeDropped(change(3))]
    assert starts(lab.end("change", HookCancelledError("told"))) == ["complete"]
    assert starts(lab.fence()) == ["fenced"]
    lab.end("complete")
    lab.end("fenced")
    assert lab.dispatcher.idle


def test_news_of_different_partitions_run_together_and_are_awaited_by_kind() -> None:
    hooks = Hooks()
    hooks.on_partition_role(name="role", timeout=5)(lambda e: None)
    lab = Lab(hooks)
    for partition in (1, 2, 1):
        lab.take(lab.dispatcher.news("partition_role", role(partition), lab.now))
    assert lab.names() == ["role", "role"]
    assert lab.dispatcher.awaits("partition_role")
    assert not lab.dispatcher.awaits("fenced")
    assert starts(lab.end("role")) == ["role"]
    lab.end("role")
    assert lab.dispatcher.awaits("partition_role")
    lab.sleep(6)
    assert not lab.dispatcher.awaits("partition_role"), "nobody waits for one that is out of time"


def test_a_rebalance_that_had_not_begun_leaves_no_trace() -> None:
    lab = Lab(all_hooks())
    lab.join(joined("a"))
    lab.rebalance(change(1), name="first")
    actions = lab.rebalance(change(2), name="second")
    assert actions == [ChangeDropped(change(1))]
    actions = lab.end("join")
    assert of(RebalanceStarted, actions) == [RebalanceStarted(passage("second"))]


def test_after_the_grace_the_newer_rebalance_overlaps_but_not_in_a_partition() -> None:
    lab = Lab(all_hooks())
    lab.rebalance(change(1), name="old")
    lab.end("start")
    lab.sleep(5)  # it is slow, which is said, and there is nothing else to wake up for
    lab.rebalance(change(1, epoch=2), change(2), name="new")
    assert lab.dispatcher.wake_at() == lab.now + 5
    assert starts(lab.sleep(4.9)) == []
    lab.rebalance(change(1, epoch=3), change(2), name="newest")
    actions = lab.sleep(0.1)
    assert starts(actions) == ["start"], "the wait is not begun anew"
    assert of(RebalanceStarted, actions) == [RebalanceStarted(passage("newest"))]
    assert starts(lab.end("start")) == ["change"]
    assert lab.running["change"][-1].event == change(2)
    actions = lab.end("change")
    assert starts(actions) == ["change", "complete"] or starts(actions) == ["complete", "change"]
    assert lab.running["change"][-1].event == change(1, epoch=3)
    assert of(RebalanceCompleted, actions) == [RebalanceCompleted(passage("old"), 10.0, True)]


def test_a_rebalance_superseded_while_its_start_hooks_run_completes_without_changes() -> None:
    lab = Lab(all_hooks())
    lab.rebalance(change(1), name="old")
    assert of(ChangeDropped, lab.rebalance(name="new")) == [ChangeDropped(change(1))]
    assert starts(lab.end("start")) == ["complete"]
    assert starts(lab.end("complete")) == ["start"]


def test_a_superseded_change_is_not_retried_and_its_other_hooks_do_not_run() -> None:
    hooks = Hooks()
    hooks.on_partition_change(name="first", retries=3)(noop)
    hooks.on_partition_change(name="second")(noop)
    lab = Lab(hooks)
    lab.rebalance(change(1), change(2), name="old")
    lab.end("first", ValueError())  # waits for its retry
    actions = lab.rebalance(name="new")
    assert [a.event for a in actions if isinstance(a, ChangeSettled)] == [change(1)]
    actions = lab.end("first", OSError())
    (failed,) = of(HookFailed, actions)
    assert isinstance(failed, HookFailed)
    assert not failed.will_retry
    assert starts(actions) == []
    lab.sleep(60)
    assert lab.dispatcher.idle


# -- failures -------------------------------------------------------------------------------


def test_retries_wait_longer_each_time_and_are_counted() -> None:
    hooks = Hooks()
    hooks.on_partition_change(name="change", retries=9, retry_on=(OSError,))(noop)
    lab = Lab(hooks)
    lab.rebalance(change(1))
    waits = []
    for _ in range(9):
        (failed,) = lab.end("change", OSError())
        assert isinstance(failed, HookFailed)
        assert failed.will_retry
        assert lab.dispatcher.running == 0
        wake = lab.dispatcher.wake_at()
        assert wake is not None
        waits.append(round(wake - lab.now, 6))
        assert starts(lab.sleep(wake - lab.now)) == ["change"]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert lab.running["change"][0].attempt == 10
    error = OSError()
    assert of(ChangeSettled, lab.end("change", error)) == [
        ChangeSettled(change(1), False, error, 10)
    ]
    assert lab.dispatcher.failures == 10


def test_only_errors_that_are_named_are_retried() -> None:
    hooks = Hooks()
    hooks.on_fenced(name="fenced", retries=3, retry_on=(OSError,))(noop)
    lab = Lab(hooks)
    lab.fence()
    (failed,) = lab.end("fenced", ValueError())
    assert isinstance(failed, HookFailed)
    assert not failed.will_retry
    lab.fence()
    (failed,) = lab.end("fenced", ConnectionError())
    assert isinstance(failed, HookFailed)
    assert failed.will_retry


def test_an_exit_is_not_retried() -> None:
    hooks = Hooks()
    hooks.on_fenced(name="fenced", retries=3)(noop)
    lab = Lab(hooks)
    lab.fence()
    (failed,) = lab.end("fenced", SystemExit())
    assert isinstance(failed, HookFailed)
    assert not failed.will_retry


def test_the_end_of_an_unknown_job_is_ignored() -> None:
    lab = Lab(all_hooks())
    lab.fence()
    job = lab.running["fenced"][0]
    lab.end("fenced")
    assert lab.dispatcher.ended([(job.id, ValueError())], lab.now) == []
    assert lab.dispatcher.failures == 0


# -- time -----------------------------------------------------------------------------------


def test_a_slow_hook_is_said_once() -> None:
    lab = Lab(all_hooks())
    lab.fence()
    assert lab.dispatcher.wake_at() == lab.now + 5
    assert lab.sleep(4.9) == []
    assert lab.sleep(0.1) == [HookSlow(lab.running["fenced"][0])]
    assert lab.sleep(1) == []
    lab.end("fenced")
    assert lab.dispatcher.wake_at() is None


@pytest.mark.parametrize(
    "given, seconds", [({}, 30.0), ({"timeout": 3}, 3.0), ({"timeout": None}, None)]
)
def test_time_outs_of_news(given: dict[str, float | None], seconds: float | None) -> None:
    hooks = Hooks()
    hooks._add("fenced", noop, **given)  # type: ignore[arg-type]  # a dict says less than the call
    lab = Lab(hooks)
    lab.fence()
    (jobs,) = lab.running.values()
    assert jobs[0].timeout == seconds
    actions = lab.sleep(29.9)
    assert bool(of(HookTimedOut, actions)) == (seconds == 3.0)
    assert bool(of(HookTimedOut, lab.sleep(0.1))) == (seconds == 30.0)


def test_a_hook_out_of_time_gives_its_slot_back_and_nobody_waits_for_it() -> None:
    lab = Lab(all_hooks(), max_concurrent=1)
    lab.join(joined("a"))
    lab.rebalance()
    (job,) = lab.running["join"]
    actions = lab.sleep(30)
    assert actions[:2] == [HookTimedOut(job), CancelJob(job.id, "timeout")]
    assert starts(actions) == ["start"]
    assert lab.dispatcher.zombies == ("join",)
    assert lab.dispatcher.failures == 1
    assert starts(lab.join(joined("b"))) == []
    lab.end("start")
    lab.end("complete")
    assert starts(lab.end("join", ValueError())) == ["join"], "its own lane opens when it ends"
    assert lab.dispatcher.failures == 1
    assert not lab.dispatcher.zombies


def test_a_partition_opens_again_when_its_hook_has_really_ended() -> None:
    lab = Lab(all_hooks())
    lab.rebalance(change(1), name="old")
    lab.end("start")
    actions = lab.sleep(600)
    (settled,) = of(ChangeSettled, actions)
    assert isinstance(settled, ChangeSettled)
    assert not settled.ok
    assert isinstance(settled.error, HookTimeoutError)
    assert starts(actions) == ["complete"]
    lab.end("complete")
    lab.rebalance(change(1, epoch=2), name="new")
    assert starts(lab.end("start")) == []
    assert starts(lab.end("change")) == ["change"]


def test_the_other_hooks_of_a_change_run_when_the_one_out_of_time_has_ended() -> None:
    hooks = Hooks()
    hooks.on_partition_change(name="first", timeout=10)(noop)
    hooks.on_partition_change(name="second")(noop)
    lab = Lab(hooks)
    lab.rebalance(change(1))
    assert not of(ChangeSettled, lab.sleep(10))
    assert starts(lab.end("first", HookCancelledError("told"))) == ["second"]
    (settled,) = of(ChangeSettled, lab.end("second"))
    assert isinstance(settled, ChangeSettled)
    assert isinstance(settled.error, HookTimeoutError)


def test_a_change_behind_its_hook_out_of_time_is_queued_until_the_next_one_starts() -> None:
    hooks = Hooks()
    hooks.on_partition_change(name="first", timeout=10)(noop)
    hooks.on_partition_change(name="second")(noop)
    lab = Lab(hooks)
    lab.rebalance(change(1))
    assert lab.dispatcher.queued == 0
    lab.sleep(10)
    assert lab.dispatcher.queued == 1
    lab.end("first")
    assert (lab.dispatcher.queued, lab.names()) == (0, ["second"])


def test_of_several_failures_of_a_change_the_first_is_told() -> None:
    hooks = Hooks()
    for name in ("first", "second", "third"):
        hooks.on_partition_change(name=name)(noop)
    lab = Lab(hooks)
    lab.rebalance(change(1))
    lab.end("first", ValueError("one"))
    lab.end("second", ValueError("two"))
    (settled,) = of(ChangeSettled, lab.end("third"))
    assert isinstance(settled, ChangeSettled)
    assert (settled.ok, str(settled.error), settled.superseded) == (False, "one", False)


def test_ends_of_unknown_jobs_hide_no_others() -> None:
    lab = Lab(all_hooks())
    lab.join(joined("a"))
    (job,) = lab.running.pop("join")
    lab.join(joined("a"))
    assert starts(lab.dispatcher.ended([(4711, None), (job.id, None)], lab.now)) == ["join"]


def test_what_was_run_before_it_was_superseded_is_replayed() -> None:
    hooks = Hooks()
    hooks.on_partition_change(name="change", retries=1)(noop)
    lab = Lab(hooks)
    lab.rebalance(change(1), change(2), name="old")
    lab.end("change", ValueError())  # waits for its next attempt
    lab.end("change")
    lab.rebalance(change(1), change(2, epoch=2), name="new")
    replayed = {job.event.event_id: job.replayed for job in lab.running["change"]}
    assert replayed == {change(1).event_id: True, change(2, epoch=2).event_id: False}


def test_the_oldest_of_what_is_queued() -> None:
    lab = Lab(all_hooks(), max_concurrent=1)
    assert lab.dispatcher.oldest_queued() is None
    lab.join(joined("a"))
    assert lab.dispatcher.oldest_queued() is None, "it runs"
    lab.sleep(1)
    lab.fence()
    lab.sleep(1)
    lab.fence()
    assert lab.dispatcher.oldest_queued() == 101
    lab.end("join")
    assert lab.dispatcher.oldest_queued() == 102
    lab.rebalance(change(1))
    lab.sleep(1)
    for _ in range(3):
        lab.end(lab.names()[0])
    assert (lab.names(), lab.dispatcher.oldest_queued()) == (["change"], None)


def test_what_waits_for_a_stuck_hook_of_its_partition_fails_and_others_go_on() -> None:
    hooks = Hooks()
    hooks.on_partition_change(name="first", timeout=10)(noop)
    hooks.on_partition_change(name="second")(noop)
    lab = Lab(hooks)
    lab.rebalance(change(1), change(1, "other"), name="old")
    lab.sleep(10)
    actions = lab.sleep(5)
    assert [a.ok for a in actions if isinstance(a, ChangeSettled)] == [False, False]
    assert of(RebalanceCompleted, actions)
    actions = lab.rebalance(change(1, epoch=2), name="new")
    (settled,) = of(ChangeSettled, actions)
    assert isinstance(settled, ChangeSettled)
    assert "'first'" in str(settled.error)
    assert settled.attempts == 0
    lab.end("first")
    assert starts(lab.rebalance(change(1, epoch=3), name="newest")) == ["first"]


def test_news_behind_a_stuck_hook_hold_up_nobody_and_are_not_lost() -> None:
    hooks = all_hooks()
    hooks.on_node_join(name="join-too")(lambda e: None)
    lab = Lab(hooks)
    lab.join(joined("a"))
    lab.join(joined("b"))
    lab.rebalance()
    assert not of(RebalanceStarted, lab.sleep(30)), "it may end any moment"
    actions = lab.sleep(5)
    assert starts(actions) == ["join-too"], "the second hook, of the first news"
    lab.end("join-too")
    assert starts(lab.leave(left("a"))) == ["leave"]
    actions = lab.end("join-too")
    assert of(RebalanceStarted, actions)
    lab.end("start")
    lab.end("complete")
    lab.end("leave")
    lab.join(joined("c"))
    lab.rebalance(name="next")
    assert of(RebalanceStarted, lab.end("join-too")), "it does not wait for 'join' of c"
    seen = []
    while lab.running["join"]:
        seen.append(lab.running["join"][0].event.event_id.rsplit("-", 1)[0])
        lab.end("join")
    assert seen == ["join-a", "join-b", "join-c"]


def test_news_behind_a_stuck_hook_come_in_order_when_it_ends_and_later_news_wait_again() -> None:
    hooks = all_hooks()
    hooks.on_node_join(name="join-too")(lambda e: None)
    lab = Lab(hooks)
    lab.join(joined("a"))
    lab.join(joined("a"))
    lab.sleep(30)
    lab.sleep(5)
    assert lab.names() == ["join", "join-too"]
    lab.end("join-too")
    assert lab.names() == ["join", "join-too"], "of the second news"
    assert starts(lab.end("join")) == ["join"], "of the second news, late"
    assert starts(lab.leave(left("a"))) == []
    assert starts(lab.end("join-too")) == ["leave"]
    lab.end("leave")
    lab.join(joined("a"))
    assert lab.names() == ["join"], "its second hook waits for the first again"
    lab.end("join")
    assert lab.names() == ["join"]
    assert starts(lab.end("join")) == ["join-too"]
    assert not lab.dispatcher.idle
    lab.end("join-too")
    assert lab.dispatcher.idle


def test_to_claim_to_be_cancelled_is_a_failure_of_who_was_not() -> None:
    lab = Lab(all_hooks())
    lab.fence()
    assert of(HookFailed, lab.end("fenced", HookCancelledError("by itself")))


def test_changes_stop_starting_when_too_many_threads_hang() -> None:
    lab = Lab(all_hooks(), max_concurrent=3, reserved=1, migration_timeout=10)
    lab.rebalance(*(change(n) for n in range(10)))
    lab.end("start")
    assert len(starts(lab.sleep(10))) == 2
    assert len(starts(lab.sleep(10))) == 0, "four hang"
    assert lab.dispatcher.zombies == ("change",) * 4
    assert lab.dispatcher.queued == 6
    assert starts(lab.fence()) == ["fenced"], "news still run"
    lab.end("change")
    assert starts(lab.end("change")) == ["change", "change"]


def test_a_tick_at_the_wrong_time_does_no_harm() -> None:
    lab = Lab(all_hooks())
    assert lab.sleep(1000) == []
    lab.fence()
    assert lab.sleep(0) == []


# -- hooks that come late -------------------------------------------------------------------


def late(register: Callable[[Hooks], object]) -> HookSpec:
    hooks = Hooks()
    register(hooks)
    (spec,) = hooks._specs()
    return spec


def late_change() -> HookSpec:
    return late(lambda h: h.on_partition_change(name="late", mine=True)(lambda e: None))


def test_a_late_hook_is_told_of_what_is_there_and_the_others_are_not() -> None:
    lab = Lab(all_hooks())
    spec = late(lambda h: h.on_node_join(name="late")(lambda e: None))
    actions = lab.take(lab.dispatcher.late(spec, [joined("a"), joined("b")], lab.now))
    assert starts(actions) == ["late"]
    assert lab.running["late"][0].replayed
    assert starts(lab.end("late")) == ["late"]
    lab.end("late")
    assert lab.dispatcher.idle
    assert starts(lab.join(joined("c"))) == ["join"]
    assert starts(lab.end("join")) == ["late"], "from now on it hears of all, in its place"
    assert not lab.running["late"][0].replayed


def test_a_late_hook_that_is_known_already_is_told_nothing_twice() -> None:
    lab = Lab(all_hooks())
    spec = late(lambda h: h.on_node_join(name="late")(lambda e: None))
    lab.dispatcher.late(spec, [], lab.now)
    assert lab.dispatcher.late(spec, [joined("a")], lab.now) == []
    lab.join(joined("b"))
    lab.end("join")
    assert lab.names() == ["late"]


def test_the_replays_of_a_late_hook_run_in_their_partitions_lanes_and_settle_nothing() -> None:
    lab = Lab(all_hooks())
    lab.rebalance(change(1))
    lab.end("start")
    assert lab.names() == ["change"]
    replays = [change(1), change(2), change(3, target="another")]
    assert starts(lab.take(lab.dispatcher.late(late_change(), replays, lab.now))) == ["late"]
    assert [e.partition_id for e in lab.dispatcher.replaying()] == ["partition-1", "partition-2"]
    settled = of(ChangeSettled, lab.end("change"))
    assert len(settled) == 1, "of the hook that was there"
    assert lab.names() == ["complete", "late", "late"]
    assert all(job.replayed for job in lab.running["late"])
    quiet = [*lab.end("late", ValueError("no luck")), *lab.end("late")]
    assert not of(ChangeSettled, quiet)
    assert not of(RebalanceCompleted, quiet)
    assert len(of(HookFailed, quiet)) == 1
    lab.end("complete")
    assert lab.dispatcher.replaying() == []
    assert lab.dispatcher.idle


def test_a_rebalance_waits_in_its_lanes_for_the_replays_of_a_late_hook() -> None:
    lab = Lab(all_hooks())
    lab.take(lab.dispatcher.late(late_change(), [change(1)], lab.now))
    lab.rebalance(change(1, epoch=2), change(2, epoch=2))
    lab.end("start")
    assert lab.names() == ["change", "late"], "of partition 2, and the replay of partition 1"
    assert starts(lab.end("late")) == ["change"]


def test_replays_of_what_is_no_longer_held_are_withdrawn_and_a_halt_ends_all() -> None:
    lab = Lab(all_hooks(), max_concurrent=3, reserved=2)
    replays = [change(n) for n in range(4)]
    lab.take(lab.dispatcher.late(late_change(), replays, lab.now))
    assert lab.names() == ["late"]
    gone = [replays[0].event_id, replays[1].event_id]
    assert len(of(CancelJob, lab.take(lab.dispatcher.withdraw(gone, lab.now)))) == 1
    lab.end("late", HookCancelledError("withdrawn"))
    assert [job.event.event_id for job in lab.running["late"]] == [replays[2].event_id]
    assert of(CancelJob, lab.take(lab.dispatcher.halt(lab.now)))
    assert lab.dispatcher.queued == 0
    lab.end("late", HookCancelledError("halted"))
    assert lab.dispatcher.idle


# -- cost -----------------------------------------------------------------------------------


def drive(dispatcher: Dispatcher, changes: list[PartitionChangeEvent]) -> int:
    pending = dispatcher.rebalance(passage(), changes, 0.0)
    done = 0
    while pending:
        more: list[Action] = []
        for action in pending:
            if isinstance(action, StartJobs):
                done += len(action.jobs)
                more += dispatcher.ended([(job.id, None) for job in action.jobs], 0.0)
        pending = more
    return done


def test_the_cost_of_a_change_does_not_grow_with_their_number() -> None:
    """Counted in lines, which no busy machine changes; `make bench` has the time."""
    hooks = Hooks()
    hooks.on_partition_change(noop)

    def lines(count: int) -> float:
        changes = [change(n) for n in range(count)]
        dispatcher = Dispatcher(hooks._specs(), incarnation="i-me")
        seen = 0

        def see(frame: FrameType, what: str, arg: object) -> Callable[..., Any]:
            nonlocal seen
            seen += 1
            return see

        before = sys.gettrace()
        sys.settrace(see)
        try:
            done = drive(dispatcher, changes)
        finally:
            sys.settrace(before)
        assert done == count
        return seen / count

    assert lines(10_000) < 1.1 * lines(500)
