"""The demo's store: what a copy and a write that cross must not lose."""

from __future__ import annotations

from clusterkit.cli.demo.store import PartitionStore

P = "partition-1"


def test_the_newest_version_wins_in_any_order() -> None:
    store = PartitionStore()
    store.copy_in(P, 5, {"k": (5, 2, "copied")})
    assert store.put(P, "k", (5, 3), "written")
    store.copy_in(P, 5, {"k": (5, 2, "copied"), "other": (5, 1, "x")})
    assert store.get(P, "k") == "written"
    assert store.get(P, "other") == "x"


def test_a_write_that_is_older_than_what_is_there_is_refused() -> None:
    store = PartitionStore()
    assert store.put(P, "k", (5, 3), "new")
    assert not store.put(P, "k", (5, 2), "old")
    assert store.get(P, "k") == "new"


def test_a_served_copy_keeps_older_epochs_from_writing() -> None:
    store = PartitionStore()
    store.copy_in(P, 5, {})
    assert store.put(P, "before", (5, 1), "x")
    assert store.copy_out(P, 6) == (True, {"before": (5, 1, "x")})
    # The copy lacks this write, so acknowledging it would lose it.
    assert not store.put(P, "after", (5, 2), "x")
    assert store.put(P, "after", (6, 1), "x")
    assert store.put("partition-2", "after", (5, 2), "x")


def test_a_part_is_not_taken_for_the_whole() -> None:
    store = PartitionStore()
    store.put(P, "k", (5, 1), "x")
    assert store.copy_out(P, 5) == (False, {"k": (5, 1, "x")})
    store.copy_in(P, 5, {})
    assert store.copy_out(P, 5) == (True, {"k": (5, 1, "x")})
    store.clear()
    assert store.copy_out(P, 5) == (False, {})
    assert store.keys() == 0


def test_what_came_back_meanwhile_is_not_dropped() -> None:
    store = PartitionStore()
    store.copy_in(P, 5, {"k": (4, 1, "x")})
    store.drop(P, 4)
    assert store.get(P, "k") == "x"
    store.drop(P, 6)
    assert store.get(P, "k") is None
    assert store.copy_out(P, 6) == (False, {})


def test_a_cleared_store_still_refuses_old_epochs() -> None:
    store = PartitionStore()
    store.put(P, "k", (6, 1), "x")
    store.clear()
    assert not store.put(P, "k", (5, 9), "late")


def test_versions_grow() -> None:
    store = PartitionStore()
    assert store.next_version(5) < store.next_version(5) < store.next_version(6)
