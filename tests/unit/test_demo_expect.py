"""The demo's judge: each kind of wrong is named, and right is silent."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from clusterkit.cli.demo.expect import Expect, Violation, violations
from clusterkit.cli.records import Record

LIVE = frozenset({"a", "b"})


def _leave(seen_by: str, **changes: Any) -> dict[str, Any]:
    record = {
        "event": "node_leave",
        "seen_by": seen_by,
        "event_id": "leave-c",
        "node": "c",
        "reason": "graceful_shutdown",
    }
    return {**record, **changes}


def _move(seen_by: str, kind: str, event_id: str) -> dict[str, Any]:
    return {
        "event": kind,
        "seen_by": seen_by,
        "event_id": event_id,
        "partition_id": "partition-1",
        "trigger": "node_leave",
    }


def _texts(
    expected: Sequence[Expect], records: Sequence[Record], live: Collection[str]
) -> list[str]:
    return [violation.text for violation in violations(expected, records, live)]


LEAVE = Expect(kind="node_leave", about="c", seen_by=LIVE, fields={"reason": "graceful_shutdown"})


def test_as_expected() -> None:
    assert _texts([LEAVE], [_leave("a"), _leave("b")], LIVE) == []


def test_a_second_delivery_with_the_same_id_is_none() -> None:
    assert _texts([LEAVE], [_leave("a"), _leave("b"), _leave("a")], LIVE) == []


def test_not_seen() -> None:
    assert _texts([LEAVE], [_leave("a")], LIVE) == ["node_leave about c: not seen by b"]


def test_the_wrong_reason() -> None:
    records = [_leave("a"), _leave("b", reason="health_check_failure")]
    assert _texts([LEAVE], records, LIVE) == [
        "node_leave about c: b was told reason 'health_check_failure', expected 'graceful_shutdown'"
    ]


def test_twice() -> None:
    records = [_leave("a"), _leave("b"), _leave("b", event_id="another")]
    assert _texts([LEAVE], records, LIVE) == ["node_leave about c: seen 2 times by b"]


def test_another_node_left() -> None:
    records = [_leave("a"), _leave("b"), _leave("b", node="a", event_id="leave-a")]
    assert _texts([LEAVE], records, LIVE) == ["node_leave about a: not expected here, seen by b"]


def test_seen_by_one_who_should_not() -> None:
    only_a = Expect(kind="node_leave", seen_by=frozenset({"a"}))
    assert _texts([only_a], [_leave("a"), _leave("b")], LIVE) == [
        "node_leave: seen by b, who should not have"
    ]


def test_what_a_dead_node_said_does_not_count() -> None:
    assert _texts([LEAVE], [_leave("a"), _leave("b"), _leave("c", node="x")], LIVE) == []


def test_different_moves() -> None:
    moves = Expect(kind="partition_change", seen_by=LIVE, once=False, same_everywhere=True)
    around = [Expect(kind=kind, seen_by=LIVE) for kind in ("rebalance_start", "rebalance_complete")]
    records = [_move(node, "rebalance_start", "r") for node in sorted(LIVE)]
    records += [_move("a", "partition_change", "m1"), _move("a", "partition_change", "m2")]
    records += [_move("b", "partition_change", "m1")]
    records += [_move(node, "rebalance_complete", "r") for node in sorted(LIVE)]
    assert _texts([moves, *around], records, LIVE) == [
        "partition_change: b saw 1 of 2 different events"
    ]


def test_order() -> None:
    kinds = ("partition_change", "rebalance_start", "rebalance_complete")
    allowed = [Expect(kind=kind, seen_by=frozenset({"a"}), once=False) for kind in kinds]

    def told(*order: str) -> list[str]:
        return _texts(allowed, [_move("a", kind, "r") for kind in order], {"a"})

    assert told("rebalance_start", "partition_change", "rebalance_complete") == []
    assert told("partition_change", "rebalance_start", "rebalance_complete") == [
        "partition_change: a was told of partition-1 outside a rebalance"
    ]
    assert told("rebalance_start", "rebalance_complete", "partition_change") == [
        "partition_change: a was told of partition-1 outside a rebalance"
    ]
    assert told("rebalance_complete", "rebalance_start", "partition_change") == [
        "rebalance_complete: a was told of one that had not started",
        "rebalance_complete: a saw 1 rebalances start and not complete",
    ]


def test_only_what_is_missing_is_worth_waiting_for() -> None:
    late = violations([LEAVE], [_leave("a")], LIVE)
    assert late == [Violation("node_leave about c: not seen by b", pending=True)]
    (wrong,) = violations([LEAVE], [_leave("a"), _leave("b", reason="x")], LIVE)
    assert not wrong.pending
    (unexpected,) = violations([], [_leave("a")], LIVE)
    assert not unexpected.pending
    start = Expect(kind="rebalance_start", seen_by=frozenset({"a"}))
    (running,) = violations([start], [_move("a", "rebalance_start", "r")], {"a"})
    assert running.pending
