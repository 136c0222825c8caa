"""Who is assigned what in a state, and what that makes of one node."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

import pytest

from clusterkit.core.membership import State
from clusterkit.core.ownership import RoleChange, role_changes, role_in, rows_of
from clusterkit.core.placement import Candidate, assign
from clusterkit.core.records import ClusterConfig, NodeRecord, Process
from clusterkit.model import Node

CONFIG = ClusterConfig(16, 2, "crc32", 1, 7)
T0 = datetime(2024, 1, 1, tzinfo=UTC)


def member(node_id: str, weight: int = 100, zone: str | None = None) -> NodeRecord:
    nothing = MappingProxyType[str, str]({})
    node = Node(node_id, "h:1", nothing, zone, weight, nothing, "i", "active", T0)
    return NodeRecord(node, "n", "memory", None, False, Process())


def state(*members: NodeRecord, config: ClusterConfig | None = CONFIG) -> State:
    return State(5, 1, config, members={m.node.id: m for m in members})


def test_the_rows_are_the_assignment_of_the_members_under_the_clusters_config() -> None:
    members = member("a"), member("b", 300, "x"), member("c", 50, "y"), member("d", 0)
    candidates = [Candidate(m.node.id, m.node.weight, m.node.zone) for m in members]
    expected = assign(candidates, partitions=16, replication_factor=2, cluster_seed=7)
    assert rows_of(state(*members)) == rows_of(state(*reversed(members))) == expected


def test_a_draining_member_holds_nothing() -> None:
    draining = replace(member("b"), node=replace(member("b").node, state="draining"))
    assert rows_of(state(member("a"), draining)) == rows_of(state(member("a"))) == (("a",),) * 16


def test_without_members_there_are_partitions_and_no_holders() -> None:
    assert rows_of(state()) == ((),) * 16


def test_without_a_config_there_are_no_partitions() -> None:
    assert rows_of(state(member("a"), config=None)) == ()


@pytest.mark.parametrize(
    "row, role", [(("a", "b"), "primary"), (("b", "a"), "replica"), (("b",), None), ((), None)]
)
def test_roles(row: tuple[str, ...], role: str | None) -> None:
    assert role_in(row, "a") == role


def test_role_changes_are_those_of_one_node_in_the_order_of_the_partitions() -> None:
    old = (("a", "b"), ("a", "b"), ("b", "a"), ("b", "c"), ("a", "b"), ("b", "a", "c"))
    new = (("a", "c"), ("b", "a"), ("b", "c"), ("a", "b"), (), ("b", "c", "a"))
    assert list(role_changes(old, new, "a")) == [
        RoleChange(1, "primary", "replica"),
        RoleChange(2, "replica", None),
        RoleChange(3, None, "primary"),
        RoleChange(4, "primary", None),
    ]


def test_the_first_rows_are_changes_from_no_role_and_the_end_of_all_to_none() -> None:
    rows = (("a",), ("b", "a"))
    assert list(role_changes((), rows, "a")) == [
        RoleChange(0, None, "primary"),
        RoleChange(1, None, "replica"),
    ]
    assert list(role_changes(rows, (), "b")) == [RoleChange(1, "primary", None)]
