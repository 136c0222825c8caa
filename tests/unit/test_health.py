"""How the cluster is: one table of states and verdicts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import pytest

from clusterkit.core.health import UNHEALTHY_RETENTION, assess, retention_ends, unhealthy_nodes
from clusterkit.core.membership import State
from clusterkit.core.records import (
    Alive,
    ClusterConfig,
    Departure,
    EndReason,
    History,
    NodeRecord,
    Process,
    Registration,
)
from clusterkit.model import Node

NOW = datetime(2024, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
STAY = Registration("n", "i", NOW)


def member(node_id: str) -> NodeRecord:
    nothing = MappingProxyType[str, str]({})
    node = Node(node_id, "h:1", nothing, None, 100, nothing, "i", "active", NOW)
    return NodeRecord(node, "n", "memory", None, False, Process())


def ended(reason: EndReason, ago: timedelta | None) -> History:
    return History(None, (Departure(STAY, reason, None if ago is None else NOW - ago, 0),))


def cluster(
    members: str,
    *,
    silent: Collection[str] = (),
    failing: Mapping[str, tuple[str, ...]] | None = None,
    history: Mapping[str, History] | None = None,
    factor: int = 2,
) -> State:
    """Members by their one-letter ids, all alive and well but those that are named."""
    alive = {
        (node_id, "i"): Alive("n", (failing or {}).get(node_id, ()))
        for node_id in members
        if node_id not in silent
    }
    return State(
        9,
        1,
        ClusterConfig(8, factor, "crc32", 1, 7),
        members={node_id: member(node_id) for node_id in members},
        alive=alive,
        history=history or {},
    )


EXPIRED = ended("health_check_failure", MINUTE)
STOPPED = ended("graceful_shutdown", MINUTE)
REMOVED = ended("removed_by_admin", MINUTE)
OPEN = History(STAY, ())

CASES: list[tuple[str, State, str, str, int]] = [
    # what, state, status, unhealthy, total
    ("all well", cluster("abc"), "healthy", "", 3),
    ("nobody", cluster(""), "healthy", "", 0),
    ("a single node, which cannot hold two copies", cluster("a"), "healthy", "", 1),
    ("one check fails", cluster("abc", failing={"b": ("db",)}), "degraded", "b", 3),
    ("one shows no sign of life", cluster("abc", silent="c"), "degraded", "c", 3),
    ("one expired", cluster("ab", history={"c": EXPIRED}), "degraded", "c", 3),
    ("one expired, not written down", cluster("ab", history={"c": OPEN}), "degraded", "c", 3),
    (
        "one expired long ago",
        cluster("ab", history={"c": ended("health_check_failure", UNHEALTHY_RETENTION)}),
        "healthy",
        "",
        2,
    ),
    (
        "one expired, nobody knows when",
        cluster("ab", history={"c": ended("health_check_failure", None)}),
        "healthy",
        "",
        2,
    ),
    ("one stopped", cluster("ab", history={"c": STOPPED}), "healthy", "", 2),
    ("one removed", cluster("ab", history={"c": REMOVED}), "healthy", "", 2),
    (
        "one expired and is back",
        cluster("abc", history={"c": replace(EXPIRED, open=STAY)}),
        "healthy",
        "",
        3,
    ),
    ("half of them", cluster("a", history={"b": EXPIRED}), "critical", "b", 2),
    ("most of them", cluster("abc", silent="ab"), "critical", "ab", 3),
    ("three of five are a majority", cluster("abcde", silent="ab"), "degraded", "ab", 5),
]


@pytest.mark.parametrize(
    "state, status, unhealthy, total", [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_the_verdict(state: State, status: str, unhealthy: str, total: int) -> None:
    found = assess(state, now=NOW, fenced=False, owed_failing=False)
    assert found.status == status
    assert found.unhealthy_node_ids == tuple(unhealthy)
    assert (found.unhealthy_nodes, found.total_nodes) == (len(unhealthy), total)
    assert found.healthy_nodes == total - len(unhealthy)
    assert bool(found.reasons) == (status != "healthy")


def test_what_this_node_knows_of_itself() -> None:
    state = cluster("abc")
    owing = assess(state, now=NOW, fenced=False, owed_failing=True)
    assert owing.status == "degraded"
    assert owing.unhealthy_node_ids == ()
    fenced = assess(state, now=NOW, fenced=True, owed_failing=True)
    assert fenced.status == "critical"
    assert len(fenced.reasons) == 2


def test_what_is_lost_and_what_is_overdue_are_told_by_name() -> None:
    state = cluster("abc")
    found = assess(state, now=NOW, fenced=False, owed_failing=False, overdue=("c", "a"))
    assert (found.status, found.unhealthy_node_ids) == ("degraded", ())
    assert found.reasons == ("partition-change hooks are overdue on a, c",)
    found = assess(state, now=NOW, fenced=False, owed_failing=False, lost={10, 2})
    assert (found.status, found.unhealthy_node_ids) == ("critical", ())
    assert found.reasons == ("no live node has the data of partition-2, partition-10",)
    many = assess(state, now=NOW, fenced=False, owed_failing=False, lost=range(64))
    assert many.reasons[0].endswith("partition-8, partition-9 and 54 more")


def test_fewer_holders_than_asked_for_is_told_if_nodes_enough_are_known() -> None:
    told = "2 nodes for 3 holders a partition"
    missing = cluster("ab", history={"c": EXPIRED}, factor=3)
    assert told in assess(missing, now=NOW, fenced=False, owed_failing=False).reasons
    small = cluster("ab", factor=3)
    assert assess(small, now=NOW, fenced=False, owed_failing=False).status == "healthy"


def test_the_reasons_are_in_words_and_in_the_order_of_the_ids() -> None:
    state = cluster("dca", failing={"c": ("db", "disk")}, silent="d", history={"b": OPEN})
    assert list(unhealthy_nodes(state, NOW).items()) == [
        ("b", "its lease expired"),
        ("c", "its health checks fail: db, disk"),
        ("d", "it shows no sign of life"),
    ]


def test_an_older_incarnations_sign_of_life_does_not_count() -> None:
    state = cluster("ab")
    state = replace(state, alive={**state.alive, ("b", "old"): Alive("o")})
    assert unhealthy_nodes(state, NOW) == {}
    state = replace(state, alive={("a", "i"): Alive("n"), ("b", "old"): Alive("o")})
    assert list(unhealthy_nodes(state, NOW)) == ["b"]


def test_the_end_of_a_retention_is_when_the_verdict_next_changes_by_itself() -> None:
    history = {"b": EXPIRED, "c": ended("health_check_failure", 3 * MINUTE)}
    state = cluster("ade", history=history)
    left = retention_ends(state, NOW)
    assert left == UNHEALTHY_RETENTION - 3 * MINUTE
    for later, expected in ((left - timedelta.resolution, ["b", "c"]), (left, ["b"])):
        assert list(unhealthy_nodes(state, NOW + later)) == expected
    assert retention_ends(state, NOW + left) == 2 * MINUTE
    assert retention_ends(state, NOW + left + 2 * MINUTE) is None


@pytest.mark.parametrize(
    "history",
    [
        ended("graceful_shutdown", MINUTE),
        ended("health_check_failure", None),
        History(None, ()),
        OPEN,
        replace(EXPIRED, open=STAY),  # whatever ended before, it is gone again, and still missed
    ],
)
def test_nothing_else_changes_by_itself(history: History) -> None:
    assert retention_ends(cluster("ab", history={"c": history}), NOW) is None
    assert retention_ends(cluster("abc", history={"c": EXPIRED}), NOW) is None


@pytest.mark.parametrize(
    "when", [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, tzinfo=UTC)]
)
def test_no_time_that_somebody_wrote_stops_the_verdict(when: datetime) -> None:
    departure = Departure(STAY, "health_check_failure", when, 0)
    state = cluster("ab", history={"c": History(None, (departure,))})
    assert assess(state, now=NOW, fenced=False, owed_failing=False).total_nodes in (2, 3)
    left = retention_ends(state, NOW)
    assert left is None or left > timedelta(0)
