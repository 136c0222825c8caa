"""Whose receipts are overdue: epochs, receipts and times by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

from clusterkit.core.membership import State, Stored
from clusterkit.core.records import Alive, NodeRecord, Process, Receipt
from clusterkit.engine.overdue import Overdue
from clusterkit.model import Node

NOW = datetime(2024, 1, 1, tzinfo=UTC)


def cluster(revision: int, members: Mapping[str, int], receipts: Mapping[str, int]) -> State:
    """Members by the revisions of their keys, and the revisions that their receipts are for."""
    nothing = MappingProxyType[str, str]({})
    state = State(
        revision,
        1,
        membership_revision=revision,
        members={
            node_id: NodeRecord(
                Node(node_id, "h:1", nothing, None, 100, nothing, "i", "active", NOW),
                f"n{node_id}",
                "memory",
                None,
                False,
                Process(),
            )
            for node_id in members
        },
        stored={node_id: Stored(mod, 1) for node_id, mod in members.items()},
        alive={(node_id, "i"): Alive("n") for node_id in members},
    )
    return with_receipts(state, receipts)


def with_receipts(state: State, receipts: Mapping[str, int]) -> State:
    return replace(
        state,
        receipts={
            n: Receipt(f"n{n}", replace(state, membership_revision=r).epoch)
            for n, r in receipts.items()
        },
    )


def test_a_node_without_a_receipt_in_time_is_found_until_it_gives_one() -> None:
    overdue = Overdue(60)
    state = cluster(5, {"a": 1, "b": 2, "c": 5}, {"a": 5, "b": 4})
    overdue.follow(state, 100)
    assert overdue.wake_at() == 160
    overdue.follow(state, 159.9)
    assert list(overdue.nodes) == []
    overdue.follow(state, 160)
    assert list(overdue.nodes) == ["b", "c"]
    assert overdue.wake_at() is None
    state = with_receipts(state, {"a": 5, "b": 4, "c": 5})
    overdue.follow(state, 170)
    assert list(overdue.nodes) == ["b"]
    overdue.follow(with_receipts(state, {"a": 5, "b": 5, "c": 5}), 180)
    assert list(overdue.nodes) == []


def test_who_is_in_time_is_never_found() -> None:
    overdue = Overdue(60)
    overdue.follow(cluster(5, {"a": 1}, {"a": 4}), 0)
    state = cluster(5, {"a": 1}, {"a": 5})
    overdue.follow(state, 1)
    overdue.follow(state, 60)
    assert list(overdue.nodes) == []
    assert overdue.wake_at() is None
    overdue.follow(cluster(6, {"a": 1}, {"a": 5}), 100)
    assert overdue.wake_at() == 160


def test_who_always_follows_though_late_is_not_found() -> None:
    overdue = Overdue(60)
    for second in range(0, 1_000, 20):
        # Each assignment takes three newer ones until its receipt comes.
        state = cluster(second + 100, {"a": 1}, {"a": second + 40})
        overdue.follow(state, second)
        assert list(overdue.nodes) == []


def test_who_is_stuck_is_found_through_any_number_of_changes() -> None:
    overdue = Overdue(60)
    for second in range(0, 121, 20):
        overdue.follow(
            cluster(second + 100, {"a": 1, "b": 1}, {"a": 99, "b": second + 100}), second
        )
    assert list(overdue.nodes) == ["a"]


def test_who_came_later_has_its_time() -> None:
    overdue = Overdue(60)
    overdue.follow(cluster(5, {"a": 1}, {"a": 4}), 0)
    # A new stay of "a" has its key anew, and "b" joins.
    state = cluster(7, {"a": 6, "b": 7}, {})
    overdue.follow(state, 59)
    overdue.follow(state, 60)
    assert list(overdue.nodes) == []
    overdue.follow(state, 120)
    assert list(overdue.nodes) == ["a", "b"]


def test_who_is_gone_or_shows_no_sign_of_life_is_another_matter() -> None:
    overdue = Overdue(60)
    state = cluster(5, {"a": 1, "b": 1}, {})
    overdue.follow(state, 0)
    overdue.follow(replace(state, alive={("a", "i"): Alive("n")}), 60)
    assert list(overdue.nodes) == ["a"]
    overdue.follow(cluster(8, {"b": 1}, {}), 61)
    assert list(overdue.nodes) == []


def test_a_receipt_of_an_earlier_stay_does_not_count() -> None:
    overdue = Overdue(60)
    state = cluster(5, {"a": 1}, {})
    state = replace(state, receipts={"a": Receipt("another", state.epoch)})
    overdue.follow(state, 0)
    overdue.follow(state, 60)
    assert list(overdue.nodes) == ["a"]


def test_an_etcd_that_was_restored_begins_anew() -> None:
    overdue = Overdue(60)
    overdue.follow(cluster(50, {"a": 1}, {}), 0)
    overdue.follow(cluster(50, {"a": 1}, {}), 60)
    assert list(overdue.nodes) == ["a"]
    overdue.follow(cluster(20, {"a": 1}, {"a": 20}), 61)
    assert list(overdue.nodes) == []
    assert overdue.wake_at() == 121


def test_without_a_limit_nobody_is_found() -> None:
    overdue = Overdue(None)
    overdue.follow(cluster(5, {"a": 1}, {}), 0)
    overdue.follow(cluster(5, {"a": 1}, {}), 1e9)
    assert list(overdue.nodes) == []
    assert overdue.wake_at() is None
