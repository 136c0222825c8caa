"""What a change would do: true to what the assignment then is, and clear about what makes none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterkit.core.forecast import Alteration, Layout, forecast
from clusterkit.core.hashing import partition_id
from clusterkit.core.records import ClusterConfig
from clusterkit.planning import NodeLoad, PlannedMove, PlannedNode

CONFIG = ClusterConfig(32, 2, "crc32", 1, 7)
ABC = Layout(CONFIG, {n: PlannedNode() for n in "abc"})


def test_nothing_changed_moves_nothing() -> None:
    plan = forecast(ABC, Alteration())
    assert (plan.moves, dict(plan.promotions), plan.lost, plan.relaxed) == ((), {}, (), ())
    assert plan.before == plan.after
    assert sum(load.copies for load in plan.before.values()) == 64


def test_a_join_is_fetched_by_the_joiner_alone() -> None:
    plan = forecast(ABC, Alteration(add={"d": PlannedNode()}))
    assert {move.node_id for move in plan.moves} == {"d"}
    assert len(plan.moves) == plan.after["d"].copies
    assert all(len(move.copy_from) == 2 for move in plan.moves)
    assert "d" not in plan.before


def test_a_leave_is_copied_from_who_is_left() -> None:
    plan = forecast(ABC, Alteration(remove=["a"]))
    assert len(plan.moves) == plan.before["a"].copies
    assert all("a" not in move.copy_from and move.copy_from for move in plan.moves)
    assert "a" not in plan.after
    assert len(plan.promotions) == plan.before["a"].primaries


def test_a_cordon_leaves_a_source_and_an_uncordon_takes_it_back() -> None:
    plan = forecast(ABC, Alteration(cordon=["a"]))
    assert plan.after["a"] == NodeLoad(0, 0)
    assert all("a" in move.copy_from for move in plan.moves)
    back = forecast(Alteration(cordon=["a"]).of(ABC), Alteration(uncordon=["a"]))
    assert back.after == plan.before


def test_who_takes_the_last_holder_away_is_told_what_is_lost() -> None:
    one = Layout(replace(CONFIG, replication_factor=1), ABC.nodes)
    plan = forecast(one, Alteration(remove=["a"]))
    assert len(plan.lost) == plan.before["a"].copies
    assert {m.copy_from for m in plan.moves if m.partition_id in plan.lost} == {()}


def test_settings_can_be_tried() -> None:
    even = forecast(ABC, Alteration(balance_primaries=True))
    assert even.moves == ()
    assert {load.primaries for load in even.after.values()} <= {10, 11}
    assert forecast(ABC, Alteration(replication_factor=3)).after["a"].copies == 32
    bound = forecast(ABC, Alteration(balance_percent=100))
    assert max(load.copies for load in bound.after.values()) <= 22
    assert forecast(
        Alteration(balance_percent=100).of(ABC), Alteration(balance_percent=0)
    ).after == (forecast(ABC, Alteration()).after)
    assert forecast(ABC, Alteration(weights={"a": 0})).after["a"].copies == 0


@pytest.mark.parametrize(
    "change,why",
    [
        (Alteration(add={"a": PlannedNode()}), "'a' is to be added and is a member"),
        (Alteration(remove=["x"]), "'x' is not in the cluster; its members are: a, b, c"),
        (Alteration(weights={"x": 1}), "'x' is not in the cluster"),
        (Alteration(cordon=["x"]), "'x' is not in the cluster"),
        (Alteration(uncordon=["a"]), "'a' is not cordoned"),
        (Alteration(weights={"a": 1_000_001}), "weight 1000001"),
        (Alteration(replication_factor=0), "at least 1"),
        (Alteration(balance_percent=50), "no room for all copies"),
    ],
)
def test_what_makes_no_sense_is_said(change: Alteration, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        forecast(ABC, change)


NODES = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.builds(
        PlannedNode,
        weight=st.integers(0, 300),
        zone=st.sampled_from([None, "x", "y", "z"]),
    ),
    min_size=1,
)


@given(
    before=NODES,
    added=NODES,
    gone=st.sets(st.sampled_from("abcdefgh")),
    settings=st.tuples(st.integers(1, 4), st.sampled_from([None, 100, 125]), st.booleans()),
)
def test_its_moves_and_promotions_turn_the_old_rows_into_the_new(
    before: dict[str, PlannedNode],
    added: dict[str, PlannedNode],
    gone: set[str],
    settings: tuple[int, int | None, bool],
) -> None:
    factor, percent, primaries = settings
    config = ClusterConfig(
        16, factor, "crc32", 1, 7, balance_percent=percent, balance_primaries=primaries
    )
    layout = Layout(config, before)
    change = Alteration(
        add={n: node for n, node in added.items() if n not in before},
        remove=[n for n in gone if n in before],
    )
    plan = forecast(layout, change)
    old, new = layout.place().rows, change.of(layout).place().rows
    for index, (was, now) in enumerate(zip(old, new, strict=True)):
        name = partition_id(index)
        sources = tuple(n for n in was if n not in gone or n in change.add)
        assert [m for m in plan.moves if m.partition_id == name] == [
            PlannedMove(name, n, "replica" if place else "primary", sources)
            for place, n in enumerate(now)
            if n not in was
        ]
        promoted = bool(was and now) and now[0] != was[0] and now[0] in was
        assert plan.promotions.get(name) == (now[0] if promoted else None)
        assert (name in plan.lost) == (bool(was) and not sources)
    for loads, rows in ((plan.before, old), (plan.after, new)):
        assert {n: load.copies for n, load in loads.items() if load.copies} == {
            n: sum(n in row for row in rows) for n in {n for row in rows for n in row}
        }
