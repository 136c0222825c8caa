"""How events and views look on the command line and as JSON."""

from __future__ import annotations

import io
import json
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import pytest
from rich.console import Console

from clusterkit.cli import render
from clusterkit.cli.demo.report import Summary, summarise
from clusterkit.cli.log import PlainFormatter
from clusterkit.cli.records import describe, to_record
from clusterkit.core.records import ClusterConfig, Cordon
from clusterkit.engine.administration import Changed
from clusterkit.events import NodeRejoinEvent, PartitionChangeEvent, RebalanceEvent
from clusterkit.model import ClusterView, Node, Partition

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
CORDONS = {"b": Cordon("bad disk", NOON), "away": Cordon("", NOON)}


def _node(node_id: str) -> Node:
    return Node(
        id=node_id,
        address="127.0.0.1:1",
        services=MappingProxyType({"http": "127.0.0.1:2"}),
        zone=None,
        weight=100,
        labels=MappingProxyType({}),
        incarnation="i",
        state="active",
        joined_at=NOON,
    )


A, B, C = _node("a"), _node("b"), _node("c")
CHANGE = PartitionChangeEvent(
    timestamp=NOON,
    revision=7,
    event_id="id-1",
    partition_id="partition-3",
    copy_from_nodes=(A, B),
    copy_to_node=C,
    needs_data=True,
    change_reason="node_join",
    old_primary="a",
    new_primary="c",
)
REBALANCE = RebalanceEvent(
    timestamp=NOON,
    revision=7,
    event_id="id-2",
    trigger="manual",
    trigger_node_id=None,
    partitions_to_move=3,
    nodes_affected=("a", "b"),
)
VIEW = ClusterView(
    revision=9,
    nodes=MappingProxyType({"a": A, "b": B}),
    partitions=(
        Partition(id="partition-0", index=0, primary=A, replicas=(B,), epoch=5),
        Partition(id="partition-1", index=1, primary=B, replicas=(), epoch=5),
        Partition(id="partition-2", index=2, primary=None, replicas=(), epoch=5),
    ),
    replication_factor=2,
    _find=lambda key: Partition("partition-0", 0, A, (B,), 5),
)


def test_a_record_is_flat_and_survives_json() -> None:
    record = to_record("partition_change", CHANGE, seen_by="c")
    assert json.loads(json.dumps(record)) == {
        "event": "partition_change",
        "seen_by": "c",
        "revision": 7,
        "event_id": "id-1",
        "timestamp": "2026-01-02T12:00:00+00:00",
        "partition_id": "partition-3",
        "copy_from_nodes": ["a", "b"],
        "copy_to_node": "c",
        "needs_data": True,
        "change_reason": "node_join",
        "old_primary": "a",
        "new_primary": "c",
    }
    assert list(record)[:4] == ["event", "seen_by", "revision", "event_id"]


def test_durations_are_seconds() -> None:
    event = NodeRejoinEvent(
        timestamp=NOON,
        revision=1,
        event_id="i",
        node=A,
        offline_duration=timedelta(seconds=2.5),
        last_seen_at=None,
        partitions_before_leave=("partition-1",),
    )
    record = to_record("node_rejoin", event, seen_by="b")
    assert record["offline_duration"] == 2.5
    assert record["last_seen_at"] is None
    assert describe(record) == "a is back after 2.5 s away, held 1 partitions before"
    unknown = to_record("node_rejoin", replace(event, offline_duration=None), seen_by="b")
    assert describe(unknown) == "a is back, held 1 partitions before"
    complete = to_record(
        "rebalance_complete", REBALANCE, seen_by="b", duration=timedelta(milliseconds=1500)
    )
    assert complete["duration"] == 1.5
    assert describe(complete) == "manual, 3 partitions to move, took 1.500 s"


def test_nodes_with_what_they_hold() -> None:
    document = render.nodes_document("prod", VIEW, CORDONS)
    assert document["cluster"] == "prod"
    assert document["revision"] == 9
    held = {node["id"]: (node["primary_of"], node["replica_of"]) for node in document["nodes"]}
    assert held == {"a": (1, 0), "b": (1, 1)}
    read = json.loads(json.dumps(document))
    assert read["nodes"][0]["services"] == {"http": "127.0.0.1:2"}
    assert read["cordons"]["b"] == {"since": "2026-01-02T12:00:00+00:00", "reason": "bad disk"}


def test_partitions_of_one_node() -> None:
    every = render.partitions_document("prod", VIEW, None)["partitions"]
    assert [p["id"] for p in every] == ["partition-0", "partition-1", "partition-2"]
    assert every[2] == {"id": "partition-2", "primary": None, "replicas": [], "epoch": 5}
    of_a = render.partitions_document("prod", VIEW, "a")["partitions"]
    assert [(p["id"], p["primary"], p["replicas"]) for p in of_a] == [("partition-0", "a", ["b"])]


def test_tables_say_what_the_documents_say() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render.nodes_table("prod", VIEW, CORDONS))
    console.print(render.partitions_table("prod", VIEW, "b"))
    text = console.export_text()
    assert "prod: 2 nodes at revision 9" in text
    assert "prod: 2 partitions of b at revision 9" in text
    assert "127.0.0.1:1" in text
    assert "b is cordoned since 2026-01-02 12:00:00: bad disk" in text
    assert "away is cordoned since 2026-01-02 12:00:00\n" in text.replace(" \n", "\n")


@pytest.mark.parametrize("holders, warned", [(1, True), (2, False)])
def test_a_cordon_that_leaves_too_few_holders_is_warned_of(holders: int, warned: bool) -> None:
    done = Changed(True, 9, ClusterConfig(4, 2, "crc32", 1, 7), holders)
    warning = render.few_holders(done)
    assert (warning is not None) == warned
    if warning is not None:
        assert "only 1 of the members may hold" in warning
        assert "2 holders" in warning


def test_a_warning_is_one_line_without_a_traceback() -> None:
    record = logging.LogRecord("x", logging.WARNING, __file__, 1, "hook failed", None, None)
    vars(record)["ck_hook"] = "migrate"
    error = ValueError("no")
    record.exc_info = (ValueError, error, None)
    assert PlainFormatter().format(record) == "warning: hook failed (ValueError('no'))"


def test_many_alike_are_one_line() -> None:
    records = [
        to_record("partition_change", replace(CHANGE, event_id=f"id-{n}"), seen_by=seer)
        for n in range(5)
        for seer in ("a", "b")
    ]
    records += [
        {"event": "copied", "seen_by": "c", "keys": 2, "bytes": 30},
        {"event": "copied", "seen_by": "c", "keys": 3, "bytes": 40},
    ]
    assert summarise(records, frozenset({"a", "b"})) == [
        ("partition_change", "5 changes, reason node_join", "seen by all 2 live nodes"),
        ("copies", "2 partitions, 5 keys, 70 bytes", "received by c"),
    ]
    assert summarise(records, frozenset({"a", "b", "c"}))[0][2] == "seen by a, b"


def _summary(**changes: object) -> Summary:
    good = Summary(
        keys_written=10,
        keys_lost=0,
        writes_acknowledged=12,
        partitions_moved=3,
        bytes_moved=100,
        hooks_seen=["on_x"] * 7,
        violations=[],
        without_hooks=False,
        seconds=1.0,
    )
    return replace(good, **changes)  # type: ignore[arg-type]  # any field, to break one at a time


def test_the_demo_passes_only_if_all_is_well() -> None:
    assert _summary().passed
    assert not _summary(keys_lost=1).passed
    assert not _summary(violations=["x"]).passed
    assert not _summary(hooks_seen=["on_x"] * 6).passed


def test_the_control_passes_only_if_it_lost_keys() -> None:
    assert _summary(without_hooks=True, keys_lost=3).passed
    assert not _summary(without_hooks=True, keys_lost=0).passed
