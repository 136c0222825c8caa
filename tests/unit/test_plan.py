"""Which events follow from a change: node events, causes, and the ledger, one rule at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Literal

import pytest

from clusterkit.core.holdings import Holdings
from clusterkit.core.ledger import Ledger
from clusterkit.core.local_events import drop_events
from clusterkit.core.membership import (
    Change,
    ConfigChanged,
    Joined,
    Left,
    RebalanceRequested,
    Rejoined,
    State,
    Updated,
)
from clusterkit.core.placement import Row
from clusterkit.core.plan import (
    Cause,
    cause_of,
    held_by,
    merge,
    node_event,
    reset_nodes,
)
from clusterkit.core.records import (
    Alive,
    ClusterConfig,
    Departure,
    EndReason,
    NodeRecord,
    Process,
    RebalanceRequest,
    Receipt,
    Registration,
)
from clusterkit.events import (
    ChangeReason,
    NodeJoinEvent,
    NodeLeaveEvent,
    NodeRejoinEvent,
    PartitionChangeEvent,
    RebalanceEvent,
)
from clusterkit.model import Node, OwedMove

T0 = datetime(2024, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
NOW = T0 + 10 * HOUR
JOIN = Cause("node_join", "b")


def member(node_id: str, previous: Departure | None = None, nonce: str = "n1") -> NodeRecord:
    nothing = MappingProxyType[str, str]({})
    node = Node(node_id, "h:1", nothing, None, 100, nothing, "i", "active", T0 + 2 * HOUR)
    return NodeRecord(node, nonce, "memory", previous, not previous, Process())


def past(at: datetime | None, reason: EndReason = "graceful_shutdown") -> Departure:
    return Departure(Registration("n0", "i0", T0), reason, at, 0, (1, 12))


def state(*members: NodeRecord, revision: int = 9) -> State:
    alive = {(m.node.id, m.node.incarnation): Alive(m.nonce) for m in members}
    return State(revision, 1, members={m.node.id: m for m in members}, alive=alive)


A, B, C = member("a"), member("b"), member("c")
ABC = state(A, B, C)


# -- causes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, expected",
    [
        (Joined(A), Cause("node_join", "a")),
        (Rejoined(A, replaced=False), Cause("node_rejoin", "a")),
        (Rejoined(A, replaced=True), Cause("node_rejoin", "a")),
        (Left(A, "health_check_failure", None), Cause("node_leave", "a")),
        (Updated(A, placement=True), Cause("config_change", "a")),
        (Updated(A, placement=False), None),
        (ConfigChanged(ClusterConfig(1, 1, "crc32", 1, 0)), Cause("config_change", None)),
        (RebalanceRequested(RebalanceRequest("b", "why", T0)), Cause("manual", "b")),
    ],
)
def test_what_a_change_calls_for(change: Change, expected: Cause | None) -> None:
    assert cause_of(change) == expected


@pytest.mark.parametrize(
    "causes, reason, node_id",
    [
        ([("node_join", "a")], "node_join", "a"),
        ([("node_join", "a"), ("node_join", "a")], "node_join", "a"),
        ([("node_join", "a"), ("node_join", "b")], "node_join", None),
        ([("node_leave", "a"), ("node_rejoin", "a")], "rebalance", "a"),
        ([("node_leave", "a"), ("manual", "b")], "rebalance", None),
        ([("config_change", None), ("config_change", "a")], "config_change", None),
    ],
)
def test_several_causes_as_one(
    causes: list[tuple[ChangeReason, str | None]], reason: ChangeReason, node_id: str | None
) -> None:
    assert merge(Cause(*c) for c in causes) == Cause(reason, node_id)


# -- node events ---------------------------------------------------------------------------------

ROWS: tuple[Row, ...] = (("a", "b"), ("b", "a"), ("c", "b"), ())


def test_a_join() -> None:
    assert node_event(Joined(A), ROWS, ABC, NOW) == NodeJoinEvent(
        timestamp=A.node.joined_at,
        revision=9,
        event_id="node_join/a/n1",
        node=A.node,
        cluster_size=3,
        is_bootstrap=True,
    )


@pytest.mark.parametrize(
    "left_at, offline",
    [
        (T0, 2 * HOUR),
        (T0 + 5 * HOUR, timedelta(0)),  # two clocks: never below zero
        (None, None),
    ],
)
def test_a_rejoin(left_at: datetime | None, offline: timedelta | None) -> None:
    back = member("a", past(left_at))
    assert node_event(Rejoined(back, replaced=False), ROWS, ABC, NOW) == NodeRejoinEvent(
        timestamp=back.node.joined_at,
        revision=9,
        event_id="node_rejoin/a/n1",
        node=back.node,
        offline_duration=offline,
        last_seen_at=left_at,
        partitions_before_leave=("partition-1", "partition-12"),
    )


@pytest.mark.parametrize("at", [T0, None])
def test_a_leave(at: datetime | None) -> None:
    assert node_event(Left(B, "removed_by_admin", at), ROWS, ABC, NOW) == NodeLeaveEvent(
        timestamp=at or NOW,
        revision=9,
        event_id="node_leave/b/n1",
        node=B.node,
        reason="removed_by_admin",
        partitions_owned=("partition-1",),
        partitions_replica=("partition-0", "partition-2"),
    )


def test_what_a_leaver_held_is_the_same_with_the_rows_since_and_without() -> None:
    gone = replace(ABC, members={n: m for n, m in ABC.members.items() if n != "b"})
    since = tuple(tuple(n for n in row if n != "b") for row in ROWS)
    plain = node_event(Left(B, "removed_by_admin", None), ROWS, gone, NOW)
    assert node_event(Left(B, "removed_by_admin", None), ROWS, gone, NOW, rows=since) == plain
    # Back in the same revision, it holds what it held.
    left = Left(B, "removed_by_admin", None)
    assert node_event(left, ROWS, ABC, NOW, rows=ROWS) == plain


def test_no_other_change_is_a_node_event() -> None:
    for change in (
        Updated(A, placement=True),
        ConfigChanged(ClusterConfig(1, 1, "crc32", 1, 0)),
        RebalanceRequested(RebalanceRequest("b", "why", T0)),
    ):
        assert node_event(change, ROWS, ABC, NOW) is None


def test_what_a_node_holds() -> None:
    assert held_by("b", ROWS) == ([1], [0, 2])
    assert held_by("x", ROWS) == ([], [])


def test_reset_are_the_members_with_another_registration_than_before() -> None:
    old = {"a": "n0", "b": "n1", "gone": "n1"}
    assert reset_nodes(old, ABC) == {"a"}


# -- the ledger ----------------------------------------------------------------------------------


class Books:
    """A ledger with its holdings, from one assignment to the next."""

    def __init__(self, *rows: str, only: str | None = None) -> None:
        self.ledger = Ledger()
        self.holdings = Holdings()
        self.rows: tuple[Row, ...] = ()
        self.only = only
        self.state = replace(ABC, members=dict(ABC.members))
        self.epoch = 0
        if rows:
            self.rows = tuple(tuple(r) for r in rows)
            self.ledger.start_from(self.rows, self.holdings)

    def to(self, *rows: str, cause: Cause = JOIN, now: datetime = T0) -> None:
        old, self.rows = self.rows, tuple(tuple(r) for r in rows)
        self.epoch += 1
        gains = self.holdings.advance(old, self.rows, epoch=self.epoch, reset=(), gone=())
        self.ledger.prune(self.rows, self.state)
        self.ledger.add(gains, self.state, cause, now, only=self.only)
        self.ledger.known(self.rows)

    def pending(self, index: int, node_id: str) -> bool:
        return self.ledger.pending_for(index, node_id, self.rows[index])

    def plan(self) -> tuple[RebalanceEvent, list[PartitionChangeEvent]]:
        return self.ledger.plan(self.rows, self.state, self.holdings, JOIN, "id", NOW)

    def changes(self) -> Mapping[tuple[str, str], PartitionChangeEvent]:
        return {(e.partition_id, e.copy_to_node.id): e for e in self.plan()[1]}


def test_an_event_has_what_there_is_to_say() -> None:
    books = Books("ab", "ba")
    books.to("cb", "ba")
    assert books.plan() == (
        RebalanceEvent(
            timestamp=NOW,
            revision=9,
            event_id="id",
            trigger="node_join",
            trigger_node_id="b",
            partitions_to_move=1,
            nodes_affected=("a", "c"),
        ),
        [
            PartitionChangeEvent(
                timestamp=T0,
                revision=9,
                event_id="partition_change/partition-0/c/n1/1",
                partition_id="partition-0",
                copy_from_nodes=(A.node, B.node),
                copy_to_node=C.node,
                needs_data=True,
                change_reason="node_join",
                old_primary="a",
                new_primary="c",
            )
        ],
    )


def test_the_first_assignment_has_no_primary_before() -> None:
    books = Books()
    books.to("a")
    ((_, event),) = books.changes().items()
    assert (event.old_primary, event.new_primary, event.copy_from_nodes) == (None, "a", ())


def test_what_was_there_before_this_node_is_no_change() -> None:
    books = Books("ab", "bc")
    start, changes = books.plan()
    assert (changes, start.partitions_to_move, start.nodes_affected) == ([], 0, ())


def test_events_are_in_the_order_of_the_partitions_the_primary_first() -> None:
    books = Books(*["a"] * 12)
    books.to(*["ba"] * 2, *["a"] * 8, *["cba"] * 2)
    assert [(e.partition_id, e.copy_to_node.id) for e in books.plan()[1]] == [
        ("partition-0", "b"),
        ("partition-1", "b"),
        ("partition-10", "c"),
        ("partition-10", "b"),
        ("partition-11", "c"),
        ("partition-11", "b"),
    ]


def test_a_promotion_moves_nothing_but_affects_both_primaries() -> None:
    books = Books("ab")
    books.to("ba")
    start, (event,) = books.plan()
    assert (event.needs_data, event.old_primary, event.new_primary) == (False, "a", "b")
    assert (start.partitions_to_move, start.nodes_affected) == (0, ("a", "b"))


def test_a_partition_with_two_new_holders_moves_once() -> None:
    books = Books("a", "a")
    books.to("bc", "a")
    assert books.plan()[0].partitions_to_move == 1


def test_what_no_hook_asks_for_is_counted_and_not_made() -> None:
    every, mine = Books("a", "a", "ab", "ab"), Books("a", "a", "ab", "ab")
    mine.only = "b"
    for books in (every, mine):
        books.to("c", "b", "ba", "ac")
        books.to("b", "c", "ba", "ac")  # some of it is void before it is told
    start, events = every.plan()
    assert not mine.ledger.empty
    assert mine.plan() == (start, [e for e in events if e.copy_to_node.id == "b"])
    assert (start.partitions_to_move, start.nodes_affected) == (3, ("a", "b", "c"))
    for event in every.plan()[1]:
        mine.ledger.settled(event, None, 1)
    assert mine.ledger.empty
    assert mine.plan()[0].partitions_to_move == 0, "they are told once"


@pytest.mark.parametrize("down, moving", [("", 1), ("a", 1), ("ab", 0)])
def test_of_what_is_only_counted_a_kept_copy_moves_if_there_is_a_better_one(
    down: str, moving: int
) -> None:
    """As for what is made: c has kept its copy from before, and a has the newest, b perhaps."""
    every, mine = Books("ac", "a"), Books("ac", "a")
    mine.only = "a"
    for books in (every, mine):
        books.to("ab", "a")
        books.plan()
        books.to("ac", "a")
        alive = {k: v for k, v in books.state.alive.items() if k[0] not in down}
        books.state = replace(books.state, alive=alive)
    start, events = mine.plan()
    assert (start, events) == (every.plan()[0], [])
    assert start.partitions_to_move == moving


def test_which_gains_need_a_copy_for_certain() -> None:
    holdings = Holdings()
    rows: list[list[Row]] = [[("a", "c")] * 2, [("a", "b")] * 2, [("a", "c"), ("d", "a")]]
    holdings.assume(rows[0], dict.fromkeys("ac", "n1"), {n: Receipt("n1", 1) for n in "ac"}, 1)
    holdings.advance(rows[0], rows[1], epoch=2, reset=(), gone=())
    assert holdings.moved(rows[1]) == ({0, 1}, {"b"}, [])
    kept, newcomer = holdings.advance(rows[1], rows[2], epoch=3, reset=(), gone=())
    assert (kept.node_id, newcomer.node_id) == ("c", "d")
    assert holdings.moved(rows[2]) == ({1}, {"d"}, [kept])
    holdings.prove("d", 3)
    assert holdings.moved(rows[2]) == ({1}, {"d"}, [kept]), "it had to move, and has arrived"
    holdings.mark()
    assert holdings.moved(rows[2]) == (set(), set(), [])
    last: list[Row] = [("a", "c"), ("a", "d")]
    (promoted,) = holdings.advance(rows[2], last, epoch=4, reset=(), gone=())
    assert not promoted.needs_data
    assert holdings.moved(last) == (set(), set(), []), "a promotion moves nothing"


def test_what_arrived_before_it_was_counted_and_went_again_does_not_count() -> None:
    books = Books("a", "a", only="x")
    books.to("b", "b")
    books.holdings.prove("b", books.epoch)
    books.to("c", "b")
    books.holdings.prove("c", books.epoch)
    books.to("a", "b")
    start, _ = books.plan()
    assert (start.partitions_to_move, start.nodes_affected) == (2, ("a", "b"))
    assert books.plan()[0].partitions_to_move == 0


def test_what_is_only_counted_is_counted_once_and_not_what_was_there_before() -> None:
    books = Books("a", "a", "a", only="x")
    books.to("b", "a", "a")
    books.ledger.start_from(books.rows, books.holdings)
    books.to("b", "b", "a")
    assert books.plan()[0].partitions_to_move == 1
    books.to("b", "b", "b")
    assert books.plan()[0].partitions_to_move == 1


def test_after_etcd_went_back_what_is_gained_is_counted_by_the_smaller_epochs() -> None:
    books = Books("a", only="x")
    books.epoch = 1000
    books.to("ab")
    books.plan()
    books.epoch = 10
    books.holdings.lower(10)
    books.to("abc")
    assert books.plan()[0].partitions_to_move == 1


# -- this node's own -----------------------------------------------------------------------------


def moved() -> Holdings:
    """a and b have held a partition; c has taken it over from a, and has yet to say so."""
    holdings = Holdings()
    receipts = {n: Receipt("n1", 1) for n in "ab"}
    holdings.assume([("a", "b")], dict.fromkeys("abc", "n1"), receipts, 1)
    holdings.advance([("a", "b")], [("c", "b")], epoch=2, reset=(), gone=())
    return holdings


@pytest.mark.parametrize(
    "me, giver, nonce, dropped",
    [
        ("a", "c", "n1", ["partition-0"]),
        ("b", "c", "n1", []),  # a holder still
        ("d", "c", "n1", []),  # never had it
        ("a", "c", "n0", []),  # of a stay before
        ("a", "d", "n1", []),  # no member
    ],
)
def test_a_copy_may_go_when_those_that_hold_it_have_said_so(
    me: str, giver: str, nonce: str, dropped: list[str]
) -> None:
    rows: list[Row] = [("c", "b")]
    events = drop_events(me, giver, Receipt(nonce, 2), rows, ABC, moved(), NOW)
    assert [e.partition_id for e in events] == dropped


def test_a_receipt_of_before_frees_nothing() -> None:
    rows: list[Row] = [("c", "b")]
    assert list(drop_events("a", "c", Receipt("n1", 1), rows, ABC, moved(), NOW)) == []


def test_what_succeeded_never_comes_again_and_the_rest_does_with_its_id() -> None:
    books = Books("a", "a", "a")
    books.to("b", "b", "b")
    first = books.changes()
    books.ledger.settled(first["partition-0", "b"], None, 1)
    books.ledger.settled(first["partition-1", "b"], "ValueError: no", 3)
    again = books.changes()
    assert sorted(again) == [("partition-1", "b"), ("partition-2", "b")]
    for pair, event in again.items():
        assert replace(event, old_primary="a") == first[pair]
    assert books.ledger.owed() == (
        OwedMove("partition-1", T0, 3, "ValueError: no"),
        OwedMove("partition-2", T0, 0, None),
    )
    assert books.ledger.failing()
    books.ledger.settled(again["partition-1", "b"], None, 1)
    assert not books.ledger.failing()
    assert list(books.changes()) == [("partition-2", "b")]


def test_attempts_add_up() -> None:
    books = Books("a")
    books.to("b")
    for _ in range(2):
        books.ledger.settled(books.changes()["partition-0", "b"], "E", 2)
    assert books.ledger.owed()[0].attempts == 4


def test_a_newer_change_of_the_pair_takes_the_place_of_one_that_is_owed() -> None:
    books = Books("ab")
    books.to("ac", cause=Cause("node_join", "c"))
    old = books.changes()["partition-0", "c"]
    books.to("ca", cause=Cause("node_leave", "b"), now=NOW)
    new = books.changes()["partition-0", "c"]
    assert new.event_id != old.event_id
    assert (new.needs_data, new.change_reason, new.timestamp) == (True, "rebalance", NOW)
    books.ledger.settled(old, None, 1)  # too late: this is not what is owed any more
    assert list(books.changes()) == [("partition-0", "c")]
    books.ledger.settled(new, None, 1)
    assert books.changes() == {}


def test_a_promotion_of_what_has_not_been_copied_yet_still_needs_data() -> None:
    # Its receipt is out: others think that it has the data; but here its event is still owed.
    books = Books("ab")
    books.to("ac")
    books.plan()
    books.holdings.prove("c", books.epoch)
    books.to("ca")
    event = books.changes()["partition-0", "c"]
    assert event.needs_data
    assert event.old_primary == "a"


def test_the_primary_before_is_the_one_of_the_last_plan() -> None:
    books = Books("ab")
    books.to("ca")
    books.to("ba")  # in the same burst: nobody was told of c
    assert books.changes()["partition-0", "b"].old_primary == "a"
    books.to("ab")
    assert books.changes()["partition-0", "a"].old_primary == "b"


def test_what_no_longer_concerns_anybody_is_forgotten() -> None:
    books = Books("a", "a", "a")
    books.to("b", "c", "bc")
    members = {"a": A, "b": B, "c": member("c", nonce="n2")}
    books.state = replace(books.state, members=members)
    forgotten = books.ledger.prune((("a",), ("c",), ("b", "c")), books.state)
    # The first went elsewhere; the next two are owed to a stay of c that is over.
    assert forgotten == {
        "partition_change/partition-0/b/n1/1",
        "partition_change/partition-1/c/n1/1",
        "partition_change/partition-2/c/n1/1",
    }
    assert list(books.ledger.entries) == [(2, "b")]
    books.state = replace(books.state, members={"a": A})
    books.ledger.prune((("a",), ("c",), ("b", "c")), books.state)
    assert books.ledger.entries == {}


def test_what_the_fewest_have_comes_first() -> None:
    books = Books("ab", "b", "ab", "")
    books.to("abc", "bc", "abc", "c")
    order = [(e.partition_id, len(e.copy_from_nodes)) for e in books.plan()[1]]
    assert order == [
        ("partition-3", 0),
        ("partition-1", 1),
        ("partition-0", 2),
        ("partition-2", 2),
    ]


def test_what_was_interrupted_counts_as_delivered_and_nothing_else_does() -> None:
    books = Books("a", "a")
    books.to("b", "b")
    events = books.changes()
    first, second = (events[f"partition-{i}", "b"] for i in range(2))

    def delivered() -> set[int]:
        return {index for (index, _), entry in books.ledger.entries.items() if entry.delivered}

    books.ledger.interrupted(replace(first, event_id="of another change"))
    books.ledger.interrupted(replace(first, partition_id="partition-9"))
    books.ledger.interrupted(replace(first, partition_id="no partition"))
    assert delivered() == set()
    books.ledger.interrupted(second)
    assert delivered() == {1}
    books.ledger.settled(first, "it failed", 1)
    assert delivered() == {0, 1}


def test_who_is_affected() -> None:
    books = Books("ab", "ab", "ab")
    books.to("ab", "ac", "ba")
    assert books.plan()[0].nodes_affected == ("a", "b", "c"), "a leaver, a joiner and a promotion"
    books = Books("ab", "abc")
    books.to("ab", "ab")
    assert books.plan()[0].nodes_affected == ("a", "c"), "who hands its copy over"
    books = Books("ab", only="b")
    books.to("cb")
    assert books.plan()[0].nodes_affected == ("a", "c"), "who is only counted, too"


def test_what_is_only_counted_and_was_superseded_is_forgotten() -> None:
    books = Books("ba", "ba", only="x")
    books.to("bc", "bc")
    assert not books.ledger.empty
    books.to("b", "bc")
    assert not books.ledger.empty, "one is left"
    assert books.plan()[0].partitions_to_move == 1
    assert books.ledger.empty
    books.to("bc", "bc")
    books.to("b", "b")
    assert not books.ledger.empty, "the receipt comes with the rebalance"
    assert books.plan()[0].partitions_to_move == 0, "they went again before it"
    books.to("bc")
    assert not books.ledger.empty
    books.ledger.start_from((("b",),), books.holdings)
    assert books.ledger.empty, "what is taken as given is no change"


def test_of_two_who_wait_for_each_other_one_gives_up_when_it_has_asked_in_vain() -> None:
    books = Books("a")
    books.to("ab")
    books.to("bc")
    books.state = replace(books.state, members={"b": B, "c": C})
    first = books.changes()["partition-0", "b"]
    assert first.copy_from_nodes == (C.node,)
    assert books.changes()["partition-0", "b"].copy_from_nodes == (C.node,), "nothing was tried"
    books.ledger.settled(first, "it had nothing", 1)
    assert books.changes()["partition-0", "b"].copy_from_nodes == ()
    assert books.changes()["partition-0", "c"].copy_from_nodes == (B.node,)


def test_who_owes() -> None:
    books = Books("a", "a")
    books.to("b", "ac")
    ledger = books.ledger
    assert [ledger.owes(n) for n in "abcx"] == [False, True, True, False]
    assert books.pending(0, "b")
    assert not books.pending(1, "b")
    ledger.settled(books.changes()["partition-0", "b"], None, 1)
    assert not ledger.owes("b")
    books.to("a", "a")
    assert [ledger.owes(n) for n in "abc"] == [True, False, False]


def test_what_the_ledger_does_not_know_yet_is_pending_if_it_will_be_owed() -> None:
    ledger = Ledger()
    ledger.start_from((("a", "b"),), Holdings())
    assert not ledger.pending_for(0, "a", ("a", "b"))
    assert not ledger.pending_for(0, "a", ("a", "c")), "another's replica is nothing to it"
    assert ledger.pending_for(0, "c", ("a", "c"))
    assert ledger.pending_for(0, "b", ("b", "a")), "a promotion has hooks of its own"
    assert not ledger.pending_for(0, "a", ("b", "a")), "to hand it over has none"
    assert ledger.pending_for(1, "a", ("a",)), "a partition that it has never heard of"
    ledger.known((("a", "c"),))
    assert not ledger.pending_for(0, "c", ("a", "c"))


def test_an_event_of_no_partition_settles_nothing() -> None:
    books = Books("a")
    books.to("b")
    event = books.changes()["partition-0", "b"]
    books.ledger.settled(replace(event, partition_id="partition-x"), None, 1)
    assert books.pending(0, "b")


def test_sources_are_those_of_today() -> None:
    books = Books("ab")
    books.to("cb")
    assert books.changes()["partition-0", "c"].copy_from_nodes == (A.node, B.node)
    books.state = replace(books.state, members={"b": B, "c": C})
    assert books.changes()["partition-0", "c"].copy_from_nodes == (B.node,)


# -- who has lost what it held -------------------------------------------------------------------


@pytest.mark.parametrize(
    "storage, reason, reset",
    [
        ("memory", "replaced", {"a"}),
        ("disk", "replaced", set()),  # the slot was held for it
        ("disk", "health_check_failure", {"a"}),  # it missed writes
    ],
)
def test_who_starts_again_without_data(
    storage: Literal["memory", "disk"], reason: EndReason, reset: set[str]
) -> None:
    before = Departure(Registration("old", "i0", A.node.joined_at), reason, None, 0)
    again = replace(A, nonce="new", storage=storage, previous=before)
    assert reset_nodes({"a": "old", "b": B.nonce}, state(again, B)) == reset


def test_a_node_that_is_down_gives_nothing() -> None:
    down = replace(ABC, alive={k: v for k, v in ABC.alive.items() if k[0] != "a"})
    holdings, ledger = Holdings(), Ledger()
    gains = holdings.advance([("a", "b")], [("c", "a", "b")], epoch=2, reset=(), gone=())
    ledger.add(gains, down, Cause("node_join", "c"), T0)
    _, (event,) = ledger.plan([("c", "a", "b")], down, holdings, Cause("node_join", "c"), "r", T0)
    assert [node.id for node in event.copy_from_nodes] == ["b"]
