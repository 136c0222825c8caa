"""The assignment that follows the states is the one that each state has by itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

from hypothesis import given
from hypothesis import strategies as st

from clusterkit.core.balance import place
from clusterkit.core.membership import State
from clusterkit.core.ownership import Assignment, rows_of
from clusterkit.core.placement import Candidate
from clusterkit.core.records import ClusterConfig, Cordon, NodeRecord, Process
from clusterkit.model import Node

T0 = datetime(2026, 1, 1, tzinfo=UTC)
NODES = "abcdefg"
CONFIG = ClusterConfig(24, 2, "crc32", 1, 7)


def member(node_id: str, weight: int, zone: str | None, active: bool) -> NodeRecord:
    nothing = MappingProxyType[str, str]({})
    state = "active" if active else "draining"
    node = Node(node_id, "h:1", nothing, zone, weight, nothing, "i", state, T0)
    return NodeRecord(node, "n", "memory", None, False, Process())


MEMBERS = st.builds(
    member,
    st.sampled_from(NODES),
    st.sampled_from([0, 50, 100, 100, 300]),
    st.sampled_from([None, "x", "y"]),
    st.sampled_from([True, True, True, False]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), MEMBERS),
        st.tuples(st.sampled_from(["go", "cordon", "uncordon"]), st.sampled_from(NODES)),
        st.tuples(
            st.just("settings"),
            st.builds(
                replace,
                st.just(CONFIG),
                replication_factor=st.integers(1, 3),
                balance_percent=st.sampled_from([None, None, 100, 125]),
                balance_primaries=st.booleans(),
            ),
        ),
    ),
    max_size=20,
)


@given(STEPS)
def test_it_is_what_each_state_has_by_itself(steps: list[tuple[str, object]]) -> None:
    state = State(1, 1, config=CONFIG)
    assignment = Assignment()
    for what, value in steps:
        members, cordons = dict(state.members), dict(state.cordons)
        config = state.config
        if isinstance(value, NodeRecord):
            members[value.node.id] = value
        elif isinstance(value, ClusterConfig):
            config = value
        elif isinstance(value, str):
            if what == "go":
                members.pop(value, None)
            elif what == "cordon":
                cordons[value] = Cordon("", T0)
            else:
                cordons.pop(value, None)
        state = replace(state, members=members, cordons=cordons, config=config)
        before = assignment.rows
        rows = assignment.follow(state)
        assert tuple(rows) == rows_of(state)
        assert rows is not before or tuple(rows) == tuple(before)
        assert assignment.follow(state) is rows
        assert config is not None
        holders = [
            m.node
            for n, m in members.items()
            if m.node.state == "active" and m.node.weight and n not in cordons
        ]
        if holders:
            placed = place(
                [Candidate(node.id, node.weight, node.zone) for node in holders],
                partitions=config.partitions,
                replication_factor=config.replication_factor,
                cluster_seed=config.seed,
                balance_percent=config.balance_percent,
                balance_primaries=config.balance_primaries,
            )
            assert (tuple(rows), assignment.relaxed) == (placed.rows, placed.relaxed)


def test_without_a_config_there_is_none() -> None:
    assignment = Assignment()
    assert assignment.follow(State(1, 1)) == ()
