"""What placement with caps and with even primaries promises, over clusters that nobody chose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from math import ceil
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from clusterkit.core.balance import Placed, place
from clusterkit.core.placement import MAX_WEIGHT, Candidate, Row, assign
from clusterkit.core.primaries import balance_primaries

weights = st.sampled_from([0, 1, 50, 100, 100, 100, 300, MAX_WEIGHT])
zones = st.sampled_from([None, "", "a", "b", "c"])
names = st.text("abcdef-0123456789", min_size=1, max_size=8)
percents = st.sampled_from([100, 101, 110, 125, 150, 200])


@st.composite
def clusters(
    draw: st.DrawFn, zone: st.SearchStrategy[str | None] = zones
) -> tuple[list[Candidate], dict[str, Any]]:
    """Nodes of one weight or many, without zones or with; and the settings for ``assign``."""
    ids = draw(st.lists(names, max_size=10, unique=True))
    weight = draw(st.sampled_from([weights, st.just(100)]))
    zone = draw(st.sampled_from([zone, st.none()]))
    return [Candidate(i, draw(weight), draw(zone)) for i in ids], {
        "partitions": draw(st.sampled_from([1, 3, 12, 30])),
        "replication_factor": draw(st.integers(1, 6)),
        "cluster_seed": draw(st.integers(0, 2**64 - 1)),
    }


Cluster = tuple[list[Candidate], dict[str, Any]]


def holders(rows: Sequence[Row]) -> list[set[str]]:
    return [set(row) for row in rows]


def plain_caps(cluster: Cluster, percent: int) -> dict[str, int]:
    """The caps that the docstring of ``place`` promises for nodes without zones."""
    nodes = [n for n in cluster[0] if n.weight]
    partitions = cluster[1]["partitions"]
    left = Fraction(partitions * min(cluster[1]["replication_factor"], len(nodes)))
    result = {}
    # The heaviest first: once one has what it can hold, the others share what is left.
    nodes.sort(key=lambda node: -node.weight)
    for at, node in enumerate(nodes):
        share = min(left * node.weight / sum(n.weight for n in nodes[at:]), Fraction(partitions))
        left -= share
        result[node.id] = min(partitions, ceil(share * percent / 100))
    return result


def zone_counts(nodes: Sequence[Candidate], row: Row) -> list[int]:
    zone = {n.id: f"alone {n.id}" if n.zone is None else f"zone {n.zone}" for n in nodes}
    return sorted(Counter(zone[node] for node in row).values())


@given(clusters(), percents, st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(
    cluster: Cluster, percent: int, primaries: bool, random: Random
) -> None:
    nodes, shape = cluster
    shuffled = list(nodes)
    random.shuffle(shuffled)
    one, other = (
        place(iter(n), **shape, balance_percent=percent, balance_primaries=primaries)
        for n in (nodes, shuffled)
    )
    assert one == other


@given(clusters(), percents, st.booleans())
def test_each_partition_has_as_many_distinct_holders_as_there_can_be(
    cluster: Cluster, percent: int, primaries: bool
) -> None:
    nodes, shape = cluster
    usable = {n.id for n in nodes if n.weight}
    placed = place(nodes, **shape, balance_percent=percent, balance_primaries=primaries)
    assert len(placed.rows) == shape["partitions"]
    for row in placed.rows:
        assert len(row) == len(set(row)) == min(shape["replication_factor"], len(usable))
        assert usable.issuperset(row)


@given(clusters(zone=st.none()), percents)
def test_without_zones_every_cap_holds(cluster: Cluster, percent: int) -> None:
    placed = place(cluster[0], **cluster[1], balance_percent=percent)
    assert placed.relaxed == ()
    load = Counter(node for row in placed.rows for node in row)
    for node, cap in plain_caps(cluster, percent).items():
        assert load[node] <= cap


@given(clusters(), percents)
def test_with_zones_what_is_beyond_a_cap_is_told(cluster: Cluster, percent: int) -> None:
    placed = place(cluster[0], **cluster[1], balance_percent=percent)
    assert list(placed.relaxed) == sorted(set(placed.relaxed))
    load = Counter(node for row in placed.rows for node in row)
    told = Counter(node for p in placed.relaxed for node in placed.rows[p])
    for node, cap in plain_caps(cluster, percent).items():
        assert load[node] - told[node] <= cap


@given(clusters(), percents, st.booleans())
def test_rows_that_are_not_relaxed_are_spread_as_assign_spreads_them(
    cluster: Cluster, percent: int, primaries: bool
) -> None:
    nodes, shape = cluster
    placed = place(nodes, **shape, balance_percent=percent, balance_primaries=primaries)
    for p, (row, plain) in enumerate(zip(placed.rows, assign(nodes, **shape), strict=True)):
        if p not in placed.relaxed:
            assert zone_counts(nodes, row) == zone_counts(nodes, plain)


@given(clusters())
def test_where_no_cap_binds_the_rows_are_those_of_assign(cluster: Cluster) -> None:
    nodes, shape = cluster
    total = sum(n.weight for n in nodes)
    for percent in (100 * shape["partitions"] * max(total, 1), 10**30):
        assert place(nodes, **shape, balance_percent=percent) == Placed(assign(nodes, **shape), ())


@given(clusters(), percents)
def test_holders_stand_in_the_order_of_their_ranking(cluster: Cluster, percent: int) -> None:
    nodes, shape = cluster
    for p, row in enumerate(place(nodes, **shape, balance_percent=percent).rows):
        others = [n for n in nodes if n.id in row]
        alone = assign(others, **shape)
        assert alone[p] == row


@given(clusters(), st.none() | percents)
def test_even_primaries_change_no_holders_and_no_order(
    cluster: Cluster, percent: int | None
) -> None:
    nodes, shape = cluster
    plain = place(nodes, **shape, balance_percent=percent)
    placed = place(nodes, **shape, balance_percent=percent, balance_primaries=True)
    assert placed.relaxed == plain.relaxed
    for old, new in zip(plain.rows, placed.rows, strict=True):
        assert new[1:] == tuple(node for node in old if node not in new[:1])
        assert set(new) == set(old)


@given(clusters())
def test_primaries_are_even_where_every_node_holds_everything(cluster: Cluster) -> None:
    nodes, shape = cluster
    shape["replication_factor"] = 10
    led = Counter(row[0] for row in place(nodes, **shape, balance_primaries=True).rows if row)
    total = sum(n.weight for n in nodes)
    for node in nodes:
        if node.weight:
            share = Fraction(shape["partitions"] * node.weight, total)
            assert abs(led[node.id] - share) < 1


@given(clusters())
def test_primaries_that_are_even_stay(cluster: Cluster) -> None:
    nodes, shape = cluster
    rows = place(nodes, **shape, balance_primaries=True).rows
    assert balance_primaries(rows, {n.id: n.weight for n in nodes if n.weight}) == rows
