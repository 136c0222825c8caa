"""Plans, sources and ids over sequences of assignments that nobody chose.

``histories`` are states as membership makes them, with rows from the real ``assign``. ``Follower``
is what the engine does with each. ``Truth`` tracks independently who really has which data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from random import Random
from types import MappingProxyType

from hypothesis import given
from hypothesis import strategies as st

from clusterkit.core.holdings import Gain, Holdings
from clusterkit.core.membership import State
from clusterkit.core.ownership import rows_of
from clusterkit.core.placement import Row
from clusterkit.core.plan import Cause, Ledger, reset_nodes
from clusterkit.core.records import ClusterConfig, NodeRecord, Process, Receipt
from clusterkit.events import PartitionChangeEvent
from clusterkit.model import Node

PARTITIONS = 6
NODES = "abcd"
T0 = datetime(2024, 1, 1, tzinfo=UTC)
CAUSE = Cause("node_join", None)


@dataclass
class World:
    """The cluster's states, one revision after another."""

    factor: int
    serial: int = 0

    def __post_init__(self) -> None:
        config = ClusterConfig(PARTITIONS, self.factor, "crc32", 1, 7)
        self.state = State(1, 1, config, membership_revision=1)

    def then(self, verb: str, node_id: str) -> State:
        """What follows; ``copied``: all hooks of the node have succeeded, and it says so."""
        self.serial += 1
        old = self.state
        new = replace(old, revision=old.revision + 1)
        members, receipts = dict(old.members), dict(old.receipts)
        here = members.get(node_id)
        if verb == "join" and here is None:
            members[node_id] = self.member(node_id, 100)
        elif verb == "restart" and here is not None:
            members[node_id] = self.member(node_id, here.node.weight)
        elif verb == "leave" and here is not None:
            del members[node_id]
            receipts.pop(node_id, None)
        elif verb == "weight" and here is not None:
            weight = {100: 0, 0: 300, 300: 100}[here.node.weight]
            members[node_id] = replace(here, node=replace(here.node, weight=weight))
        elif verb == "copied" and here is not None:
            receipts[node_id] = Receipt(here.nonce, old.epoch)
        # Only a leave and a receipt do not put ``membership``.
        put = verb in ("join", "restart", "weight") and members != old.members
        self.state = replace(
            new,
            members=members,
            receipts=receipts,
            membership_revision=new.revision if put else old.membership_revision,
        )
        return self.state

    def member(self, node_id: str, weight: int) -> NodeRecord:
        nothing = MappingProxyType[str, str]({})
        inc = f"i{self.serial}"
        zone = "x" if node_id in "ab" else None
        node = Node(node_id, "h:1", nothing, zone, weight, nothing, inc, "active", T0)
        return NodeRecord(node, f"n{self.serial}", "memory", None, False, Process())


@st.composite
def histories(draw: st.DrawFn) -> list[State]:
    world = World(draw(st.integers(1, 3)))
    verbs = st.sampled_from(["join", "join", "leave", "restart", "weight", "copied", "copied"])
    steps = draw(st.lists(st.tuples(verbs, st.sampled_from(NODES)), min_size=2, max_size=16))
    return [world.state, *(world.then(verb, node_id) for verb, node_id in steps)]


class Follower:
    """What a node makes of each state, in the order in which the engine does it."""

    def __init__(self, first: State) -> None:
        self.state = first
        self.rows: tuple[Row, ...] = rows_of(first)
        self.holdings = Holdings()
        self.ledger = Ledger()
        self.ledger.start_from(self.rows)

    def step(self, new: State) -> list[Gain]:
        old, old_rows, self.state = self.state, self.rows, new
        gains: list[Gain] = []
        if new.epoch != old.epoch:
            self.rows = rows_of(new)
            gains = self.holdings.advance(
                old_rows,
                self.rows,
                epoch=new.epoch,
                reset=reset_nodes({n: m.nonce for n, m in old.members.items()}, new),
                gone=[n for n in old.members if n not in new.members],
            )
            self.ledger.prune(self.rows, new)
            self.ledger.add(gains, new, CAUSE, T0 + timedelta(seconds=new.revision))
        for node_id, receipt in new.receipts.items():
            known = receipt is old.receipts.get(node_id)
            if not known and new.members[node_id].nonce == receipt.nonce:
                self.holdings.prove(node_id, receipt.epoch)
        return gains

    def plan(self) -> list[PartitionChangeEvent]:
        return self.ledger.plan(self.rows, self.state, self.holdings, CAUSE, "id", T0)[1]


# -- sources -------------------------------------------------------------------------------------


class Truth:
    """Who has each partition's data, given whose hooks have succeeded."""

    def __init__(self) -> None:
        self.has: list[set[str]] = [set() for _ in range(PARTITIONS)]
        self.since: dict[tuple[int, str], int] = {}
        """For a holder without the data: the epoch of the change that made it need it."""

    def change(self, old: Follower, new: State) -> set[tuple[int, str]]:
        """Passes to the next state; which (partition, node) need data by it."""
        lost = {n for n, m in old.state.members.items() if new.members.get(n) != m}
        lost = {n for n in lost if n not in new.members or self.restarted(old.state, new, n)}
        needy: set[tuple[int, str]] = set()
        for index, row in enumerate(rows_of(new)):
            before = old.rows[index]
            has = self.has[index] = self.has[index] - lost
            taking = {n for n in row if n not in before or n in lost}
            back = has & taking
            for node_id in taking:
                # A copy that was let go of is the best that there is, or it is outdated.
                if node_id in has and has == back:
                    continue
                needy.add((index, node_id))
                self.since[index, node_id] = new.epoch
            self.has[index] = has - {n for i, n in needy if i == index}
            self.rest(index, row)
        return needy

    @staticmethod
    def restarted(old: State, new: State, node_id: str) -> bool:
        return old.members[node_id].node.incarnation != new.members[node_id].node.incarnation

    def copied(self, node_id: str, rows: tuple[Row, ...]) -> None:
        for index, row in enumerate(rows):
            if node_id in row:
                self.has[index].add(node_id)
                self.rest(index, row)

    def rest(self, index: int, row: Row) -> None:
        """Once all holders have the data, those who let go of it may delete it."""
        if row and self.has[index].issuperset(row):
            self.has[index] = set(row)

    def sources(self, gain: Gain, row: Row) -> tuple[set[str], set[str]]:
        """Those who have the data; those who may have a part, as an earlier change asked them."""
        have = self.has[gain.index] - {gain.node_id}
        lacking = set(row) - self.has[gain.index] - {gain.node_id}
        return have, {n for n in lacking if self.since[gain.index, n] < gain.epoch}


def with_truth(history: list[State]) -> Iterator[tuple[Follower, list[Gain], Truth]]:
    follower, truth = Follower(history[0]), Truth()
    for new in history[1:]:
        old = follower.state
        needy = truth.change(follower, new) if new.epoch != old.epoch else set()
        gains = follower.step(new)
        assert {(g.index, g.node_id) for g in gains if g.needs_data} >= needy
        for node_id, receipt in new.receipts.items():
            if receipt != old.receipts.get(node_id):
                truth.copied(node_id, follower.rows)
        yield follower, gains, truth
        if new.revision % 3:
            follower.plan()


@given(histories())
def test_who_needs_data_is_who_has_not_got_it(history: list[State]) -> None:
    for follower, gains, truth in with_truth(history):
        for gain in gains:
            row = follower.rows[gain.index]
            assert gain.node_id in row
            assert gain.needs_data == (gain.node_id not in truth.has[gain.index])


@given(histories())
def test_the_sources_are_all_who_have_the_data_before_any_who_may_have_a_part(
    history: list[State],
) -> None:
    for follower, _, truth in with_truth(history):
        state = follower.state
        for entry in follower.ledger.entries.values():
            row = follower.rows[entry.gain.index]
            found = follower.holdings.sources(
                entry.gain,
                row,
                old_primary=entry.old_primary,
                receipts=state.receipts,
                members=state.members,
            )
            have, partly = truth.sources(entry.gain, row)
            assert len(found) == len(set(found))
            assert set(found[: len(have)]) == have
            assert set(found[len(have) :]) == partly
            assert have <= state.members.keys()
            if entry.old_primary in have:
                assert found[0] == entry.old_primary


@given(histories())
def test_all_memory_of_motion_ends_with_the_motion(history: list[State]) -> None:
    follower = Follower(history[0])
    for new in history[1:]:
        follower.step(new)
    for node_id in follower.state.members:
        follower.holdings.prove(node_id, follower.state.epoch)
    if all(follower.rows):
        assert vars(follower.holdings) == vars(Holdings())


# -- plans ---------------------------------------------------------------------------------------


@given(histories(), st.randoms(use_true_random=False))
def test_the_moves_of_a_plan_lead_from_the_old_holders_to_the_new(
    history: list[State], random: Random
) -> None:
    follower = Follower(history[0])
    planned = follower.rows
    for new in history[1:]:
        follower.step(new)
        if random.random() < 0.5:
            continue  # the burst goes on
        events = follower.plan()
        pairs = [(e.partition_id, e.copy_to_node.id) for e in events]
        assert len(pairs) == len(set(pairs))
        for index, row in enumerate(follower.rows):
            name = f"partition-{index}"
            before = planned[index]
            targets = {node_id for p, node_id in pairs if p == name}
            assert {n for n in before if n in row} | targets == set(row)
            if row and row[:1] != before[:1]:
                assert row[0] in targets
        for event in events:
            assert event.copy_to_node not in event.copy_from_nodes
            assert all(new.members[n.id].node == n for n in event.copy_from_nodes)
            assert new.members[event.copy_to_node.id].node == event.copy_to_node
            assert event.new_primary == follower.rows[int(event.partition_id[10:])][0]
        planned = follower.rows


@given(histories(), st.randoms(use_true_random=False))
def test_what_is_owed_comes_again_under_its_id_until_it_succeeds(
    history: list[State], random: Random
) -> None:
    follower = Follower(history[0])
    owed: dict[tuple[int, str], str | None] = {}  # None: not delivered yet
    ids: set[str] = set()
    for new in history[1:]:
        old = follower.state
        gains = follower.step(new)
        for index, node_id in list(owed):
            same = (
                node_id in new.members and new.members[node_id].nonce == old.members[node_id].nonce
            )
            if not same or node_id not in follower.rows[index]:
                del owed[index, node_id]
        owed |= {(g.index, g.node_id): None for g in gains}
        for _ in range(random.randrange(3)):
            events = follower.plan()
            found = {(int(e.partition_id[10:]), e.copy_to_node.id): e for e in events}
            assert found.keys() == owed.keys()
            for pair, event in found.items():
                known = owed[pair]
                # The same change has the same id each time, and a new one has an id of its own.
                assert event.event_id == known if known else event.event_id not in ids
                ids.add(event.event_id)
                owed[pair] = event.event_id
                match random.choice(["succeeds", "fails", "superseded"]):
                    case "succeeds":
                        follower.ledger.settled(event, None, 1)
                        del owed[pair]
                    case "fails":
                        follower.ledger.settled(event, "Error: no", 1)
                    case _:
                        pass


@given(histories(), st.randoms(use_true_random=False))
def test_nodes_that_plan_at_different_moments_give_a_change_the_same_id(
    history: list[State], random: Random
) -> None:
    eager, lazy, last = (Follower(history[0]) for _ in range(3))
    newest: dict[tuple[str, str], str] = {}
    ids: set[str] = set()
    for new in history[1:]:
        for follower in (eager, lazy, last):
            follower.step(new)
        for event in eager.plan():
            newest[event.partition_id, event.copy_to_node.id] = event.event_id
            ids.add(event.event_id)
            eager.ledger.settled(event, None, 1)
        if random.random() < 0.3:
            for event in lazy.plan():
                assert event.event_id in ids
                if random.random() < 0.5:
                    lazy.ledger.settled(event, None, 1)
    for follower in (lazy, last):
        for event in follower.plan():
            assert event.event_id == newest[event.partition_id, event.copy_to_node.id]
