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

from clusterkit.core.holdings import Holdings
from clusterkit.core.ledger import Ledger
from clusterkit.core.membership import State
from clusterkit.core.motion import Gain
from clusterkit.core.ownership import rows_of
from clusterkit.core.placement import Row
from clusterkit.core.plan import Cause, reset_nodes
from clusterkit.core.records import Alive, ClusterConfig, NodeRecord, Process, Receipt
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
            alive={(n, m.node.incarnation): Alive(m.nonce) for n, m in members.items()},
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


@dataclass(frozen=True)
class History:
    """Steps rather than states, so that a failure can be read."""

    factor: int
    steps: tuple[tuple[str, str], ...]

    def states(self) -> Iterator[State]:
        world = World(self.factor)
        yield world.state
        for verb, node_id in self.steps:
            yield world.then(verb, node_id)


VERBS = ["join", "join", "leave", "restart", "weight", "copied", "copied"]
histories = st.builds(
    History,
    st.integers(1, 3),
    st.lists(
        st.tuples(st.sampled_from(VERBS), st.sampled_from(NODES)), min_size=2, max_size=16
    ).map(tuple),
)


class Follower:
    """What a node makes of each state, in the order in which the engine does it."""

    def __init__(self, first: State, *, only: str | None = None) -> None:
        self.state = first
        self.only = only
        self.rows: tuple[Row, ...] = rows_of(first)
        self.holdings = Holdings()
        self.ledger = Ledger()
        self.ledger.start_from(self.rows, self.holdings)

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
            since = T0 + timedelta(seconds=new.revision)
            self.ledger.add(gains, new, CAUSE, since, only=self.only)
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
        self.had: list[set[str]] = [set() for _ in range(PARTITIONS)]
        """Who had all of it once since the partition was last at rest, and keeps it."""
        self.part: list[dict[str, int]] = [{} for _ in range(PARTITIONS)]
        """Who let go of it without having said that it has it, and may: a holder since when."""
        self.lacks: list[dict[str, int]] = [{} for _ in range(PARTITIONS)]
        """The holders that have yet to say that they have it: since which epoch."""
        self.fresh: set[int] = set()
        """The partitions of which nobody has said to have anything since nobody alive had any."""

    def change(self, old: Follower, new: State) -> None:
        """Passes to the next state."""
        lost = {
            n
            for n, m in old.state.members.items()
            if n not in new.members or new.members[n].node.incarnation != m.node.incarnation
        }
        for index, row in enumerate(rows_of(new)):
            before = set(old.rows[index]) - lost
            had, part, lacks = self.had[index], self.part[index], self.lacks[index]
            had -= lost
            for node_id in lost:
                lacks.pop(node_id, None)
                part.pop(node_id, None)
            if not (had or part or before) and row:
                self.fresh.add(index)
            for node_id in before - set(row):
                since = lacks.pop(node_id, None)
                if since is not None and node_id not in had:
                    part.setdefault(node_id, since)
            # Whoever let go of it missed writes, unless nobody else is left who could have any.
            untouched = not before and not part and had <= set(row)
            for node_id in set(row) - before:
                if not (untouched and node_id in had):
                    lacks[node_id] = new.epoch
            self.rest(index, row)

    def copied(self, node_id: str, rows: tuple[Row, ...]) -> None:
        """All hooks of the node have succeeded."""
        for index, row in enumerate(rows):
            if node_id in row and self.lacks[index].pop(node_id, None) is not None:
                self.had[index].add(node_id)
                self.fresh.discard(index)
                self.part[index].pop(node_id, None)
                self.rest(index, row)

    def rest(self, index: int, row: Row) -> None:
        """Once all holders have the data, those who let go of it may delete it."""
        if row and not self.lacks[index]:
            self.had[index], self.part[index] = set(row), {}

    def sources(self, gain: Gain, *, again: bool, row: Row) -> tuple[set[str], set[str]]:
        """Those who have the data, and those who may have it or a part of it.

        ``again``: only those that cannot wait for this very node in their turn.
        """
        me = gain.node_id
        had, part, lacks = self.had[gain.index], self.part[gain.index], self.lacks[gain.index]

        def rank(node_id: str) -> int:
            return 0 if node_id in had else part.get(node_id, lacks[node_id])

        mine = rank(me) if me in lacks else gain.epoch
        others = lacks.keys() - {me}
        if again or gain.index in self.fresh:
            partly = {n for n in others if rank(n) < mine or (rank(n) == mine == 0 and n < me)}
        else:
            partly = {n for n in others if rank(n) == 0 or lacks[n] != lacks.get(me)}
        return had - lacks.keys() - {me}, partly | (part.keys() - {me} - set(row))


def with_truth(history: History) -> Iterator[tuple[Follower, list[Gain], Truth]]:
    first, *rest = history.states()
    follower, truth = Follower(first), Truth()
    for new in rest:
        old = follower.state
        if new.epoch != old.epoch:
            truth.change(follower, new)
        gains = follower.step(new)
        for node_id, receipt in new.receipts.items():
            if receipt != old.receipts.get(node_id):
                truth.copied(node_id, follower.rows)
        yield follower, gains, truth
        if new.revision % 3:
            follower.plan()


@given(histories)
def test_who_needs_data_is_who_has_not_got_it(history: History) -> None:
    for follower, gains, truth in with_truth(history):
        for gain in gains:
            assert gain.node_id in follower.rows[gain.index]
            assert gain.needs_data == (gain.node_id in truth.lacks[gain.index])


@given(histories, st.booleans())
def test_the_sources_are_all_who_have_the_data_before_any_who_may_have_it(
    history: History, again: bool
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
                again=again,
            )
            have, partly = truth.sources(entry.gain, row=row, again=again)
            assert len(found) == len(set(found))
            assert set(found[: len(have)]) == have
            assert set(found[len(have) :]) == partly
            assert have <= state.members.keys()
            if entry.old_primary in have:
                assert found[0] == entry.old_primary


@given(histories)
def test_a_holder_without_a_source_has_no_copy_itself_and_nor_has_anybody(
    history: History,
) -> None:
    for follower, _, truth in with_truth(history):
        for event in follower.plan():
            index, target = int(event.partition_id[10:]), event.copy_to_node.id
            # What others have copied long ago may still be news to this node's own hooks.
            waits = target in truth.lacks[index]
            if waits and event.needs_data and not event.copy_from_nodes:
                assert target not in truth.had[index]
                assert truth.had[index] <= truth.lacks[index].keys()


@given(histories)
def test_no_two_holders_that_asked_in_vain_are_named_to_each_other(history: History) -> None:
    for follower, _, truth in with_truth(history):
        for entry in follower.ledger.entries.values():
            entry.attempts += 1
        edges = {
            (e.partition_id, e.copy_to_node.id, source.id)
            for e in follower.plan()
            for source in e.copy_from_nodes
            if {e.copy_to_node.id, source.id} <= truth.lacks[int(e.partition_id[10:])].keys()
        }
        assert not edges & {(name, source, target) for name, target, source in edges}


@given(histories)
def test_only_what_present_holders_have_gained_in_their_present_stays_is_owed(
    history: History,
) -> None:
    first, *rest = history.states()
    follower = Follower(first)
    for new in rest:
        follower.step(new)
        for (index, node_id), entry in follower.ledger.entries.items():
            assert node_id in follower.rows[index]
            assert new.members[node_id].nonce == entry.nonce


@given(histories)
def test_what_is_only_counted_is_as_many_as_what_would_be_told(history: History) -> None:
    first, *rest = history.states()
    for length in range(1, len(rest) + 1):
        told, counted = Follower(first), Follower(first, only="nobody")
        for new in rest[:length]:
            told.step(new)
            counted.step(new)
        moves = []
        for follower in (told, counted):
            start, _ = follower.ledger.plan(
                follower.rows, follower.state, follower.holdings, CAUSE, "id", T0
            )
            moves.append(start.partitions_to_move)
        assert moves[0] == moves[1]


@given(histories)
def test_all_memory_of_motion_ends_with_the_motion(history: History) -> None:
    first, *rest = history.states()
    follower = Follower(first)
    for new in rest:
        follower.step(new)
    for node_id in follower.state.members:
        follower.holdings.prove(node_id, follower.state.epoch)
    follower.holdings.mark()  # what was gained has been counted
    if all(follower.rows):
        assert vars(follower.holdings) == vars(Holdings())


# -- plans ---------------------------------------------------------------------------------------


@given(histories, st.randoms(use_true_random=False))
def test_the_moves_of_a_plan_lead_from_the_old_holders_to_the_new(
    history: History, random: Random
) -> None:
    first, *rest = history.states()
    follower = Follower(first)
    planned = follower.rows
    for new in rest:
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


@given(histories, st.randoms(use_true_random=False))
def test_what_is_owed_comes_again_under_its_id_until_it_succeeds(
    history: History, random: Random
) -> None:
    first, *rest = history.states()
    follower = Follower(first)
    owed: dict[tuple[int, str], str | None] = {}  # None: not delivered yet
    ids: set[str] = set()
    for new in rest:
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


@given(histories, st.randoms(use_true_random=False))
def test_nodes_that_plan_at_different_moments_give_a_change_the_same_id(
    history: History, random: Random
) -> None:
    first, *rest = history.states()
    eager, lazy, last = (Follower(first) for _ in range(3))
    newest: dict[tuple[str, str], str] = {}
    ids: set[str] = set()
    for new in rest:
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
