"""Node hooks come before the books are written up, and nothing is decided on old books."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

import pytest

from clusterkit.core.membership import State
from clusterkit.core.records import Alive, NodeRecord, Process, Receipt
from clusterkit.engine.delivery import Delivery
from clusterkit.engine.dispatcher import Dispatcher
from clusterkit.engine.effects import Effect, Instant, Note, Outbox, Publish, WriteReceipt
from clusterkit.engine.jobs import StartJobs
from clusterkit.engine.passages import SECONDS, Passages
from clusterkit.engine.stay import Stay
from clusterkit.events import (
    Event,
    PartitionChangeEvent,
    PartitionDropEvent,
    PartitionLostEvent,
)
from clusterkit.hooks import Hooks
from clusterkit.model import KitState, Node
from tests.support.sim import SETTLE, Life, Simulation


@pytest.fixture
def sim() -> Iterator[Simulation]:
    simulation = Simulation()
    yield simulation
    assert simulation.faults == []
    simulation.close()


def settled(sim: Simulation, *node_ids: str) -> list[Life]:
    lives = [sim.start(node_id) for node_id in node_ids]
    sim.settle()
    return lives


class Steps:
    """What a node was told in each step, and how its books stood right after."""

    def __init__(self, life: Life) -> None:
        self.effects: list[list[Effect]] = []
        self.pending: list[set[int]] = []
        self.entered: list[set[int]] = []
        self._life = life
        self._tell = life.tell
        life.tell = self.tell  # type: ignore[method-assign] # watched from outside

    def tell(self, effects: Sequence[Effect]) -> None:
        self._tell(effects)
        snapshot, ledger, me = self._life.snapshot, self._life.machine.ledger, self._life.node_id
        assert snapshot is not None
        self.effects.append(list(effects))
        held = {i for i, row in enumerate(snapshot.rows) if me in row}
        self.pending.append({i for i in held if ledger.pending_for(i, me, snapshot.rows[i])})
        self.entered.append({index for index, node_id in ledger.entries if node_id == me})

    def of_leave(self) -> int:
        """The step that started the hook of a leave."""
        return next(
            number
            for number, effects in enumerate(self.effects)
            for effect in effects
            if isinstance(effect, StartJobs)
            and any(job.spec.kind == "node_leave" for job in effect.jobs)
        )


def test_the_hook_of_a_leave_starts_with_the_view_and_before_the_books(sim: Simulation) -> None:
    a, _, c = settled(sim, "a", "b", "c")
    steps = Steps(a)
    c.leave()
    sim.run_for(SETTLE / 2)
    number = steps.of_leave()
    assert any(isinstance(effect, Publish) for effect in steps.effects[number])
    assert not steps.entered[number], "the ledger comes later"
    assert steps.pending[number], "but nothing that was gained counts as ready"
    assert steps.entered[-1] == steps.pending[number], "and then the ledger has just that"


def test_the_books_are_written_up_soon_and_by_themselves(sim: Simulation) -> None:
    a, _, c = settled(sim, "a", "b", "c")
    c.leave()
    steps = Steps(a)
    until = sim.clock.monotonic() + SETTLE / 2
    while not any(steps.entered) and sim.clock.monotonic() < until:
        sim.run_for(SECONDS / 2)
    assert any(steps.entered)
    learned = steps.of_leave()
    entered = next(number for number, found in enumerate(steps.entered) if found)
    assert entered == learned + 1, "the next step, whatever it is about"


def test_no_receipt_is_given_on_old_books(sim: Simulation) -> None:
    a, _, c = settled(sim, "a", "b", "c")
    a.mode = "never"
    steps = Steps(a)
    c.leave()
    sim.run_for(SETTLE * 2)
    assert not any(isinstance(e, WriteReceipt) for effects in steps.effects for e in effects)
    sim.settle()


def test_a_second_leave_finds_the_books_of_the_first(sim: Simulation) -> None:
    a, _, c, d = settled(sim, "a", "b", "c", "d")
    steps = Steps(a)
    c.leave()
    d.leave()
    sim.run_for(SETTLE / 2)
    first, last = steps.of_leave(), steps.pending[-1]
    assert last == steps.entered[-1]
    assert last > steps.pending[first], "what the first leave brought, and more"
    sim.settle()


def test_what_concerns_the_node_itself_is_written_up_at_once(sim: Simulation) -> None:
    a, _ = settled(sim, "a", "b")
    steps = Steps(a)
    sim.remove("a")
    sim.run_for(0.1)
    step = next(
        effects
        for effects in steps.effects
        for effect in effects
        if isinstance(effect, Publish) and effect.snapshot.kit_state is KitState.REMOVED
    )
    started = {j.spec.kind for e in step if isinstance(e, StartJobs) for j in e.jobs}
    assert "partition_role" in started, "work that follows ownership ends now"


# -- one passage, by hand ---------------------------------------------------------------------

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def member(node_id: str) -> NodeRecord:
    nothing = MappingProxyType[str, str]({})
    node = Node(node_id, "h:1", nothing, None, 100, nothing, f"i-{node_id}", "active", T0)
    return NodeRecord(node, "n", "memory", None, False, Process())


class Desk:
    """Passages with all that they work on, told of rows such as ``["ab", "ba"]``."""

    def __init__(self, *rows: str, receipts: Mapping[str, int]) -> None:
        hooks = Hooks()
        for register in (
            hooks.on_partition_change,
            hooks.on_partition_role,
            hooks.on_partition_drop,
            hooks.on_partition_lost,
        ):
            register(lambda event: None)
        self.out = Outbox()
        dispatcher = Dispatcher(hooks._specs(), incarnation="i-a")
        delivery = Delivery(
            dispatcher, self.out, node_id="a", incarnation="i-a", settle_seconds=0.0
        )
        self.stay = Stay(delivery, self.out, node_id="a", incarnation="i-a", observer=True)
        self.stay.observe()
        self.stay.expected = "n"
        self.passages = Passages(delivery, self.stay, self.out, node_id="a")
        self.now = 10.0
        self.state = State(1, 1, members={n: member(n) for n in "abc"}, membership_revision=1)
        self.state = self.signed(receipts)
        self.rows = tuple(map(tuple, rows))
        self.passages.begin(self.state, self.rows)

    def at(self) -> Instant:
        return Instant(self.now, T0)

    def signed(self, receipts: Mapping[str, int]) -> State:
        given = {n: Receipt("n", epoch) for n, epoch in receipts.items()}
        alive = {(n, f"i-{n}"): Alive("n") for n in self.state.members}
        return replace(self.state, receipts={**self.state.receipts, **given}, alive=alive)

    def to(
        self, *rows: str, without: str = "", receipts: Mapping[str, int] | None = None
    ) -> list[Event]:
        """Passes on, and gives the events of all hooks that this has started."""
        old, old_rows = self.state, self.rows
        if rows:
            self.rows = tuple(map(tuple, rows))
        members = {n: m for n, m in old.members.items() if n not in without}
        revision = old.membership_revision + bool(rows)
        self.state = replace(
            self.signed(receipts or {}),
            revision=old.revision + 1,
            membership_revision=revision,
            members=members,
        )
        self.passages.note(old, self.state, old_rows, self.rows, (), self.at())
        self.passages.settle(self.at())
        self.passages.due(self.state, self.rows, self.at())
        effects = self.out.take()
        self.notes = [e.message % e.args for e in effects if isinstance(e, Note)]
        return [
            job.event for effect in effects if isinstance(effect, StartJobs) for job in effect.jobs
        ]


def changes(events: Iterable[Event]) -> list[tuple[str | None, tuple[str, ...]]]:
    return [
        (e.old_primary, tuple(n.id for n in e.copy_from_nodes))
        for e in events
        if isinstance(e, PartitionChangeEvent)
    ]


ALL = {"a": 9 << 32, "b": 9 << 32, "c": 9 << 32}


def test_a_passage_waits_for_a_moment_and_not_for_long() -> None:
    desk = Desk("ab", receipts=ALL)
    assert desk.passages.settled
    assert desk.passages.wake_at() is None
    new = replace(desk.state, revision=2, membership_revision=2)
    desk.passages.note(desk.state, new, desk.rows, (("b", "c"),), (), desk.at())
    due = desk.passages.wake_at()
    assert due is not None
    assert desk.now < due < desk.now + 0.01
    assert not desk.passages.settled
    desk.passages.settle(desk.at())
    assert desk.passages.settled


def test_a_revision_that_changes_nothing_here_opens_no_passage() -> None:
    desk = Desk("ab", receipts=ALL)
    new = replace(desk.state, revision=2)
    desk.passages.note(desk.state, new, desk.rows, desk.rows, (), desk.at())
    assert desk.passages.settled


def test_the_first_assignment_is_what_changes_are_told_from() -> None:
    assert changes(Desk("bc", receipts=ALL).to("ac")) == [("b", ("b", "c"))]


def test_of_the_first_assignment_only_those_with_a_receipt_are_sure_to_have_the_data() -> None:
    desk = Desk("bc", receipts={"c": 9 << 32})
    assert changes(desk.to("ac")) == [("b", ("c", "b"))]


def test_receipts_from_before_a_restored_backup_are_not_awaited() -> None:
    desk = Desk("bc", receipts={"c": 9 << 32})
    desk.passages.restored(replace(desk.state, membership_revision=0))
    desk.to(receipts={"b": 1 << 16})
    assert changes(desk.to("ac")) == [("b", ("b", "c"))], "its receipt is enough"


def test_what_came_before_the_own_join_is_state() -> None:
    desk = Desk("bc", receipts=ALL)
    desk.stay.live = False
    assert desk.to("cb") == []
    desk.stay.live = True
    assert changes(desk.to("ab")) == [("c", ("c", "b"))]


def test_a_copy_may_be_dropped_once_its_holders_have_given_their_receipts() -> None:
    desk = Desk("ab", receipts=ALL)
    assert not [e for e in desk.to("bc") if isinstance(e, PartitionDropEvent)], "not yet"
    (drop,) = desk.to(receipts={"b": 10 << 32, "c": 10 << 32})
    assert isinstance(drop, PartitionDropEvent)
    assert drop.partition_id == "partition-0"


def test_before_the_own_join_nothing_is_dropped() -> None:
    desk = Desk("ab", receipts=ALL)
    desk.to("bc")
    desk.stay.live = False
    assert desk.to(receipts={"b": 10 << 32, "c": 10 << 32}) == []


def test_what_nobody_has_any_more_is_lost() -> None:
    desk = Desk("b", receipts=ALL)
    lost = [e for e in desk.to("c", without="b") if isinstance(e, PartitionLostEvent)]
    assert [(e.partition_id, e.last_holders) for e in lost] == [("partition-0", ("b",))]


def test_all_that_a_change_has_lost_is_one_line_of_the_log() -> None:
    desk = Desk(*["b"] * 12, "a", receipts=ALL)
    lost = [e for e in desk.to(*["c"] * 12, "a", without="b") if isinstance(e, PartitionLostEvent)]
    assert len(lost) == 12
    (line,) = [note for note in desk.notes if note.startswith("no live node")]
    named = ", ".join(f"partition-{index}" for index in range(10))
    assert line == f"no live node has the data of these partitions any more: {named} and 2 more"
