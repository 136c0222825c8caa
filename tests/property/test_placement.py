"""What placement promises about movement, spread and balance, over clusters that nobody chose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from clusterkit.core.placement import MAX_WEIGHT, Candidate, Row, assign

PARTITIONS = 12

weights = st.sampled_from([0, 1, 50, 100, 100, 100, 300, MAX_WEIGHT])
zones = st.sampled_from([None, "a", "b", "c", "d"])
names = st.text("abcdef-0123456789", min_size=1, max_size=8)
factors = st.integers(1, 6)
seeds = st.integers(0, 2**64 - 1)


@st.composite
def clusters(
    draw: st.DrawFn,
    weight: st.SearchStrategy[int] = weights,
    zone: st.SearchStrategy[str | None] = zones,
    least: int = 0,
) -> list[Candidate]:
    """Nodes of one weight or many, without zones or with."""
    ids = draw(st.lists(names, min_size=least, max_size=10, unique=True))
    weight = draw(st.sampled_from([weight, st.just(100)]))
    zone = draw(st.sampled_from([zone, st.none()]))
    return [Candidate(i, draw(weight), draw(zone)) for i in ids]


def place(nodes: Iterable[Candidate], factor: int, seed: int) -> tuple[Row, ...]:
    return assign(nodes, partitions=PARTITIONS, replication_factor=factor, cluster_seed=seed)


def kept_in_order(one: Row, other: Row, nodes: Sequence[Candidate], but: str) -> bool:
    """Whether the holders that both rows share stand in one order, as far as that is promised.

    Without zones that is the whole row, with them each zone's part of it. ``but`` is the node
    whose own place may change.
    """
    zone = {n.id: n.zone for n in nodes}
    common = (set(one) & set(other)) - {but}
    ones = [n for n in one if n in common]
    others = [n for n in other if n in common]
    if not any(zone.values()):
        return ones == others
    parts = {zone[n] for n in common} - {None}
    return all(
        [n for n in ones if zone[n] == z] == [n for n in others if zone[n] == z] for z in parts
    )


@given(clusters(), factors, seeds, st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(
    nodes: list[Candidate], factor: int, seed: int, random: Random
) -> None:
    shuffled = list(nodes)
    random.shuffle(shuffled)
    assert place(shuffled, factor, seed) == place(nodes, factor, seed)


@given(clusters(), factors, seeds)
def test_each_partition_has_as_many_distinct_holders_as_there_can_be(
    nodes: list[Candidate], factor: int, seed: int
) -> None:
    usable = {n.id for n in nodes if n.weight}
    rows = place(nodes, factor, seed)
    assert len(rows) == PARTITIONS
    for row in rows:
        assert len(row) == len(set(row)) == min(factor, len(usable))
        assert usable.issuperset(row)


@given(clusters(least=1), factors, seeds)
def test_a_join_or_leave_moves_only_what_that_node_gains_or_held(
    nodes: list[Candidate], factor: int, seed: int
) -> None:
    node = nodes[0].id
    without, having = place(nodes[1:], factor, seed), place(nodes, factor, seed)
    for absent, present in zip(without, having, strict=True):
        if node not in present:
            assert present == absent
            continue
        assert set(present) - set(absent) == {node}
        assert len(set(absent) - set(present)) <= 1
        assert kept_in_order(absent, present, nodes, node)
        assert present[0] in (node, *absent[:1])


@given(clusters(least=1), weights, factors, seeds)
def test_a_weight_moves_only_to_the_node_that_grew(
    nodes: list[Candidate], weight: int, factor: int, seed: int
) -> None:
    low, high = sorted((weight, nodes[0].weight))
    node = nodes[0].id
    lighter = place([replace(nodes[0], weight=low), *nodes[1:]], factor, seed)
    heavier = place([replace(nodes[0], weight=high), *nodes[1:]], factor, seed)
    for before, after in zip(lighter, heavier, strict=True):
        assert set(after) - set(before) <= {node}
        assert node in after or node not in before
        assert len(set(before) - set(after)) <= 1
        assert kept_in_order(before, after, nodes, node)
        assert after[:1] == before[:1] or after[0] == node


@given(clusters(least=1), zones, factors, seeds)
def test_a_node_that_changes_its_zone_changes_one_holder_at_most(
    nodes: list[Candidate], zone: str | None, factor: int, seed: int
) -> None:
    old = place(nodes, factor, seed)
    new = place([replace(nodes[0], zone=zone), *nodes[1:]], factor, seed)
    for before, after in zip(old, new, strict=True):
        assert before[:1] == after[:1]
        assert len(set(before) - set(after)) == len(set(after) - set(before)) <= 1


@given(clusters(), factors, seeds)
def test_a_higher_replication_factor_only_adds(
    nodes: list[Candidate], factor: int, seed: int
) -> None:
    for short, long in zip(place(nodes, factor, seed), place(nodes, factor + 1, seed), strict=True):
        assert long[: len(short)] == short


@given(clusters(), factors, seeds)
def test_zones_are_used_as_evenly_as_their_sizes_allow(
    nodes: list[Candidate], factor: int, seed: int
) -> None:
    zone_of = {n.id: n.zone or f"only {n.id}" for n in nodes if n.weight}
    sizes = Counter(zone_of.values())
    for row in place(nodes, factor, seed):
        used = Counter(zone_of[node] for node in row)
        assert len(used) == min(len(row), len(sizes))
        fullest = max(used.values(), default=0)
        for zone, size in sizes.items():
            assert used[zone] >= min(size, fullest - 1)
        # And at no point of the row either, so that a shorter row would be as even.
        for end in range(1, len(row) + 1):
            assert len({zone_of[node] for node in row[:end]}) == min(end, len(sizes))


# Statistics: the seeds are fixed, so these hold or fail once and for all.


def excess(counts: Counter[str], expected: dict[str, float]) -> float:
    """Chi-squared over its degrees of freedom: about 1 for a fair draw."""
    return sum((counts[n] - e) ** 2 / e for n, e in expected.items()) / (len(expected) - 1)


def test_primaries_and_replicas_are_balanced_as_by_a_fair_draw() -> None:
    nodes = [Candidate(f"pod-{i}", 100, None) for i in range(10)]
    primaries, pairs = [], []
    for seed in range(20):
        rows = assign(nodes, partitions=4096, replication_factor=2, cluster_seed=seed)
        primaries.append(excess(Counter(a for a, _ in rows), {n.id: 409.6 for n in nodes}))
        expected = {f"{a.id} {b.id}": 4096 / 90 for a in nodes for b in nodes if a is not b}
        pairs.append(excess(Counter(f"{a} {b}" for a, b in rows), expected))
    # Standard deviations of the means: 0.105 and 0.034.
    assert 0.7 < sum(primaries) / 20 < 1.3
    assert 0.9 < sum(pairs) / 20 < 1.1
    assert max(primaries) < 3.5  # of one: 0.47


def test_primaries_follow_the_weights() -> None:
    shares = [10, 50, 100, 100, 150, 200, 400, 990]
    nodes = [Candidate(f"pod-{i}", weight, "ab"[i % 2]) for i, weight in enumerate(shares)]
    expected = {n.id: 4096 * n.weight / sum(shares) for n in nodes}
    results = []
    for seed in range(20):
        rows = assign(nodes, partitions=4096, replication_factor=1, cluster_seed=seed)
        results.append(excess(Counter(row[0] for row in rows), expected))
    assert 0.6 < sum(results) / 20 < 1.4  # standard deviation of the mean: 0.12
    assert max(results) < 3.5
