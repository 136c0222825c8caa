"""Who really has the data: gains, proofs and sources, one rule at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pytest

from clusterkit.core.holdings import Holdings
from clusterkit.core.motion import Gain
from clusterkit.core.placement import Row
from clusterkit.core.records import Receipt

ALL = "abcdef"


def proven(holdings: Holdings, node_id: str, epoch: int) -> list[tuple[int, tuple[str, ...]]]:
    """What comes to rest by a receipt, with its keepers as they can be compared."""
    return [(index, tuple(keepers)) for index, keepers in holdings.prove(node_id, epoch)]


class Story:
    """One partition's holders over time. ``to("ab")`` is one change, each with the next epoch."""

    def __init__(self, *rows: str) -> None:
        self.holdings = Holdings()
        self.rows: Sequence[Row] = ()
        self.epoch = 0
        if rows:
            self.to(*rows)
            for node_id in ALL:
                self.holdings.prove(node_id, self.epoch)

    def to(
        self,
        *rows: str,
        reset: Collection[str] = (),
        gone: Collection[str] = (),
        between: Collection[str] = (),
    ) -> list[Gain]:
        old, self.rows = self.rows, tuple(tuple(row) for row in rows)
        self.epoch += 1
        return self.holdings.advance(
            old, self.rows, epoch=self.epoch, reset=reset, gone=gone, between=between
        )

    def prove(self, node_id: str, epoch: int) -> list[tuple[int, tuple[str, ...]]]:
        return proven(self.holdings, node_id, epoch)

    def sources(
        self,
        gain: Gain,
        *,
        old_primary: str | None = None,
        receipts: Mapping[str, Receipt] | None = None,
        members: Collection[str] = ALL,
        again: bool = False,
    ) -> str:
        row = self.rows[gain.index]
        found = self.holdings.sources(
            gain,
            row,
            old_primary=old_primary,
            receipts=receipts or {},
            members=members,
            again=again,
        )
        return "".join(found)


@pytest.mark.parametrize(
    "old, new, expected",
    [
        ("", "ab", [("a", True), ("b", True)]),
        ("ab", "ab", []),
        ("ab", "cb", [("c", True)]),
        ("ab", "ba", [("b", False)]),  # a promotion
        ("ab", "bc", [("b", False), ("c", True)]),
        ("ab", "ac", [("c", True)]),
        ("ab", "a", []),
        ("abc", "acb", []),  # the order of the replicas is nothing to anybody
        ("ab", "", []),
    ],
)
def test_gains(old: str, new: str, expected: list[tuple[str, bool]]) -> None:
    story = Story(old)
    gains = story.to(new)
    assert gains == [Gain(0, n, story.epoch, needs_data=needs) for n, needs in expected]


def test_gains_are_in_the_order_of_the_partitions_and_of_their_rows() -> None:
    gains = Story("ab", "ab", "ab").to("cd", "ab", "ba")
    assert [(g.index, g.node_id) for g in gains] == [(0, "c"), (0, "d"), (2, "b")]


def test_a_node_that_was_reset_gains_what_it_holds_though_no_row_changed() -> None:
    story = Story("ab", "cb", "ca")
    gains = story.to("ab", "cb", "ca", reset={"b"})
    assert [(g.index, g.node_id, g.needs_data) for g in gains] == [(0, "b", True), (1, "b", True)]


def test_a_primary_that_was_reset_gains_once() -> None:
    story = Story("ab")
    (gain,) = story.to("ab", reset={"a"})
    assert (gain.node_id, gain.needs_data, story.sources(gain)) == ("a", True, "b")


def test_a_promotion_before_the_data_has_come_still_needs_it() -> None:
    story = Story("ab")
    story.to("ac")
    (promotion,) = story.to("ca")
    assert promotion == Gain(0, "c", story.epoch, needs_data=True)
    assert story.sources(promotion) == "ab"


def test_sources_are_who_held_it_the_old_primary_first_then_the_newest_receipt() -> None:
    story = Story("abc")
    (gain,) = story.to("dbc")
    receipts = {"c": Receipt("n", 9), "a": Receipt("n", 8)}
    assert story.sources(gain, old_primary="b", receipts=receipts) == "bca"
    assert story.sources(gain, old_primary="d", receipts=receipts) == "cab"
    assert story.sources(gain, members="cd") == "c"


def test_whom_the_same_change_makes_a_holder_is_no_source() -> None:
    story = Story("ab")
    for gain in story.to("cd"):
        assert story.sources(gain) == "ab"


def test_whom_an_earlier_change_made_a_holder_comes_last_until_it_has_proved_itself() -> None:
    story = Story("ab")
    story.to("cb")
    (gain,) = story.to("cd")
    assert story.sources(gain, old_primary="c") == "abc"
    story.holdings.prove("c", story.epoch - 1)
    assert story.sources(gain, old_primary="c") == "cab"


def test_another_holder_counts_as_one_once_it_has_proved_itself_and_is_a_member() -> None:
    story = Story("a")
    (gain,) = story.to("ab")
    assert story.holdings.surely_has_source(gain, story.rows[0], ALL)
    assert not story.holdings.surely_has_source(gain, story.rows[0], "bc")
    (last,) = story.to("bc", gone="a")[-1:]
    assert last.node_id == "c"
    assert not story.holdings.surely_has_source(
        last, story.rows[0], ALL
    )  # b waits for the data itself


def test_who_held_it_before_counts_as_one_while_it_is_a_member() -> None:
    story = Story("a")
    (gain,) = story.to("b")
    assert story.sources(gain) == "a"
    assert story.holdings.surely_has_source(gain, story.rows[0], ALL)
    assert not story.holdings.surely_has_source(gain, story.rows[0], "bc")


def test_a_receipt_for_an_older_epoch_proves_nothing() -> None:
    story = Story("ab")
    story.to("cb")
    assert story.holdings.prove("c", story.epoch - 1) == []
    assert story.prove("c", story.epoch) == [(0, ("a", "b"))]
    assert story.holdings.prove("c", story.epoch) == []


def test_after_etcd_went_back_a_receipt_for_the_smaller_epoch_is_enough() -> None:
    story = Story("ab")
    story.to("cb")
    story.holdings.lower(1)
    assert story.holdings.prove("c", 0) == []
    assert [index for index, _ in story.holdings.prove("c", 1)] == [0]


def test_after_etcd_went_back_who_waited_before_ranks_before_who_comes_then() -> None:
    story = Story("a")
    story.epoch = 1000
    story.to("ab")
    story.to("ba")
    story.holdings.lower(10)
    story.epoch = 10
    (gain,) = story.to("bc", gone={"a"})[-1:]
    assert gain.node_id == "c"
    assert story.sources(gain, again=True) == "b"


def test_who_let_go_is_a_source_until_the_partition_is_at_rest() -> None:
    story = Story("ab")
    story.to("cd")
    assert story.holdings.prove("c", story.epoch) == []
    (gain,) = story.to("ce")
    assert story.sources(gain) == "abcd", "d has not said that it got any of it"
    assert story.prove("e", story.epoch) == [(0, ("a", "b", "c", "d"))]
    (gain,) = story.to("cf")
    assert story.sources(gain) == "ce"


def test_who_lost_it_before_the_data_came_is_the_last_resort() -> None:
    story = Story("ab")
    story.to("ac")
    (gain,) = story.to("ad")
    assert story.sources(gain) == "abc"


@pytest.mark.parametrize("how", ["gone and back", "reset"])
def test_a_keeper_that_lost_its_memory_is_no_source(how: str) -> None:
    # It held the partition before, holds it no more, and so no row changes when it comes back.
    story = Story("ab")
    (gain,) = story.to("cb")
    assert story.sources(gain, old_primary="a") == "ab"
    if how == "reset":
        assert story.to("cb", reset={"a"}) == []
    else:
        assert story.to("cb", gone={"a"}) == []
        assert story.to("cb") == []
    assert story.sources(gain, old_primary="a") == "b"
    assert story.prove("c", story.epoch) == [(0, ("b",))]


def test_a_keeper_that_gets_back_what_nobody_else_has_needs_no_data() -> None:
    # With one holder each: a newcomer takes the partition and crashes before it has copied it.
    story = Story("a")
    story.to("b")
    assert story.to("a", gone={"b"}) == [Gain(0, "a", story.epoch, needs_data=False)]
    (gain,) = story.to("c", gone=())
    assert story.sources(gain) == "a"


def test_two_keepers_that_get_back_what_nobody_else_has_need_no_data() -> None:
    story = Story("ab")
    story.to("cd")
    gains = story.to("abe", gone={"c", "d"})
    assert [(g.node_id, g.needs_data) for g in gains] == [("a", False), ("b", False), ("e", True)]
    assert story.sources(gains[2]) == "ab"


def test_a_keeper_that_comes_back_to_one_that_stayed_copies_what_it_missed() -> None:
    story = Story("ab")
    story.to("cb")
    (gain,) = story.to("ab", gone={"c"})
    assert (gain.needs_data, story.sources(gain)) == (True, "b")


def test_of_two_that_wait_for_data_only_one_is_named_to_the_other() -> None:
    # a becomes a holder, then b, then a again its primary: a must not wait for b, who waits for a.
    story = Story()
    (first,) = story.to("a")
    (second,) = story.to("ba")
    (promoted,) = story.to("ab")
    assert promoted.needs_data
    assert (story.sources(first), story.sources(promoted), story.sources(second)) == ("", "", "a")


def test_of_keepers_that_come_back_only_one_is_named_to_the_other_again() -> None:
    story = Story("ab")
    story.to("cd")
    gains = story.to("abc")
    assert [(g.node_id, story.sources(g)) for g in gains] == [("a", "bcd"), ("b", "acd")]
    again = [(g.node_id, story.sources(g, again=True)) for g in gains]
    assert again == [("a", "d"), ("b", "ad")]


def test_a_first_reading_of_a_cluster_without_any_receipt_ranks_from_the_first() -> None:
    holdings = Holdings()
    holdings.assume([("a",)], {"a": "a1"}, {}, 5)
    (gain,) = holdings.advance([("a",)], [("a", "b")], epoch=6, reset=(), gone=())
    holdings.advance([("a", "b")], [("c", "b", "a")], epoch=7, reset=(), gone=())

    def sources(gain: Gain) -> list[str]:
        row = ("c", "b", "a")
        return holdings.sources(gain, row, old_primary=None, receipts={}, members=ALL)

    assert sources(gain) == ["a"], "b does not wait for c, who may wait for b"
    holdings.prove("a", 7)
    assert sources(gain) == ["a", "c"]


def test_who_has_the_data_without_a_receipt_is_asked_by_one_that_is_back() -> None:
    # c never got it and went; b did get it from a, and could not say so before a went.
    story = Story("ad")
    story.to("ca", gone={"d"})
    story.to("ba")
    gains = story.to("bc", gone={"a"})
    assert [(g.node_id, story.sources(g)) for g in gains] == [("c", "b")]


def test_a_keeper_that_comes_back_beside_one_that_got_a_part_may_have_missed_writes() -> None:
    story = Story("ab")
    story.to("cd")
    story.to("ef")
    gains = story.to("ac", gone={"b", "d", "e", "f"})
    assert [(g.node_id, g.needs_data) for g in gains] == [("a", True), ("c", True)]


def test_a_keeper_that_comes_and_goes_again_still_has_what_it_had() -> None:
    story = Story("ab")
    story.to("cb")
    story.to("ab")
    (gain,) = story.to("db")
    assert story.sources(gain, old_primary="a").startswith("ab")


def test_who_began_with_nothing_and_lost_even_that_has_nothing() -> None:
    story = Story()
    story.to("ab")
    story.to("ab", reset={"a"})
    (gain,) = story.to("cb")
    assert story.sources(gain, old_primary="b") == "ba"


def test_no_holder_at_all_is_no_rest() -> None:
    # The only node drains, and the next one joins: the data is where it was.
    story = Story("a")
    story.to("")
    (gain,) = story.to("b")
    assert (gain.needs_data, story.sources(gain)) == (True, "a")
    story.to("")
    (gain,) = story.to("a")
    assert gain.needs_data, "b may have taken writes"
    assert story.sources(gain) == "b"


def test_nobody_left_gives_no_sources() -> None:
    story = Story("ab")
    gains = story.to("cd", gone={"a", "b"})
    assert [story.sources(gain) for gain in gains] == ["", ""]


def test_a_first_reading_takes_everybody_at_their_receipts() -> None:
    holdings = Holdings()
    rows: Sequence[Row] = (("a", "b"), ("b", "c"), ("c", "d"))
    nonces = {"a": "a1", "b": "b1", "c": "c1", "d": "d2"}
    receipts = {"a": Receipt("a1", 5), "b": Receipt("b1", 4), "d": Receipt("d1", 5)}
    holdings.assume(rows, nonces, receipts, 5)

    def sources(index: int) -> str:
        gain = Gain(index, "x", 6, needs_data=True)
        found = holdings.sources(gain, rows[index], old_primary=None, receipts={}, members=ALL)
        return "".join(found)

    # a has its receipt; b's is older, c has none, d's is of another stay. Where no holder has one,
    # anybody may have what was there before.
    assert [sources(i) for i in range(3)] == ["ab", "bcad", "cdab"]
    assert proven(holdings, "b", 5) == [(0, ("a", "b"))]
    assert proven(holdings, "c", 5) == [(1, ("b", "c"))]
    assert proven(holdings, "d", 5) == [(2, ("c", "d"))]
    gain = Gain(0, "x", 6, needs_data=True)
    assert holdings.sources(gain, ("x", "b"), old_primary=None, receipts={}, members=ALL) == ["b"]


def test_where_something_was_missed_any_member_may_have_what_no_holder_kept() -> None:
    story = Story("a")
    (gain,) = story.to("a", reset="a", between="abc")
    assert story.sources(gain) == "bc"
    assert not story.holdings.is_anew(0)
    story = Story("a")
    (gain,) = story.to("b", between="abc")
    assert story.sources(gain) == "ac", "who is known to have had it first"
    story = Story("ab")
    (gain,) = story.to("ac", between="abcd")
    assert story.sources(gain) == "ab", "one that holds it still has it"


def test_nothing_is_kept_of_partitions_at_rest() -> None:
    story = Story("ab", "bc")
    story.to("db", "dc")
    story.holdings.prove("d", story.epoch)
    story.holdings.mark()  # what was gained has been counted
    assert vars(story.holdings) == vars(Holdings())
