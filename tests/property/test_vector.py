"""Placement with numpy is placement without it, to the last bit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterkit.core import placement
from clusterkit.core.costs import SLACK, cost, estimate
from clusterkit.core.hashing import seeds64
from clusterkit.core.placement import MAX_WEIGHT, Candidate, Ranking
from clusterkit.core.shape import Shape

pytest.importorskip("numpy")

import numpy as np

from clusterkit.core import _best, _vector

names = st.text("abcdef-0123456789", min_size=1, max_size=8)
weights = st.sampled_from([0, 1, 50, 99, 100, 100, 100, 101, 300, MAX_WEIGHT])
zones = st.sampled_from([None, "a", "b", "c", "d"])
scores = st.one_of(
    st.integers(0, 2**64 - 1),
    st.integers(0, 1000),
    st.integers(2**64 - 1000, 2**64 - 1),
    st.builds(
        lambda bit, d: min(max((1 << bit) + d, 0), 2**64 - 1),
        st.integers(0, 64),
        st.integers(-2, 2),
    ),
)


@st.composite
def clusters(draw: st.DrawFn) -> list[Candidate]:
    ids = draw(st.lists(names, max_size=40, unique=True))
    weight = draw(st.sampled_from([weights, st.just(100), st.integers(1, MAX_WEIGHT)]))
    zone = draw(st.sampled_from([zones, st.none()]))
    return [Candidate(i, draw(weight), draw(zone)) for i in ids]


@given(clusters(), st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**64 - 1))
def test_the_rows_are_those_of_plain_python(
    nodes: list[Candidate], factor: int, partitions: int, seed: int
) -> None:
    shape = Shape(partitions, factor, seed)
    ranking = Ranking.of(nodes, shape)
    assert _vector.all_rows(ranking, shape.seeds) == list(ranking.rows(shape.seeds.blocks))


@given(clusters(), st.integers(1, 4), st.integers(0, 3))
def test_blocks_of_any_size_make_the_same_rows(
    nodes: list[Candidate], factor: int, narrow: int
) -> None:
    shape = Shape(50, factor, 1)
    ranking = Ranking.of(nodes, shape)
    with (
        patch.object(_vector, "_NARROW", narrow),  # so that few count as many
        patch.object(_vector, "_WIDTH", 7),
        patch.object(_vector, "CACHED", 16),
        patch.object(_vector, "_ROOM", 90),
    ):
        rows = _vector.all_rows(ranking, shape.seeds)
    assert rows == list(ranking.rows(shape.seeds.blocks))


@given(clusters(), st.integers(1, 4), st.sets(st.integers(0, 39), max_size=6))
def test_nodes_of_one_seed_are_ranked_exactly(
    nodes: list[Candidate], factor: int, twins: set[int]
) -> None:
    alike = {nodes[i].id for i in twins if i < len(nodes)}

    def collide(
        names: Iterable[str], cluster_seed: int, domain: Literal["partition", "node"]
    ) -> list[int]:
        twins = ("twin" if name in alike else name for name in names)
        return seeds64(twins, cluster_seed, domain)

    shape = Shape(20, factor, 1)
    with patch.object(placement, "seeds64", collide):
        ranking = Ranking.of(nodes, shape)
    assert _vector.all_rows(ranking, shape.seeds) == list(ranking.rows(shape.seeds.blocks))


@given(clusters(), st.integers(1, 4))
def test_costs_that_are_too_near_are_ranked_exactly(nodes: list[Candidate], factor: int) -> None:
    shape = Shape(30, factor, 1)
    ranking = Ranking.of(nodes, shape)
    with patch.object(_vector, "SLACK", 1.0):  # then nearly all are
        rows = _vector.all_rows(ranking, shape.seeds)
    assert rows == list(ranking.rows(shape.seeds.blocks))


@given(st.lists(st.tuples(scores, st.integers(1, MAX_WEIGHT)), min_size=2, max_size=2))
def test_estimates_further_apart_than_the_slack_are_in_the_order_of_the_costs(
    pair: list[tuple[int, int]],
) -> None:
    (one, w), (other, v) = pair
    words = np.array([one, other], np.uint64)
    by_numpy = _vector.estimates(words, np.array([w, v], np.float64)).tolist()
    for a, b in ((estimate(one, w), estimate(other, v)), by_numpy):
        if a + SLACK < b:
            assert cost(one, w) < cost(other, v)
        if b + SLACK < a:
            assert cost(other, v) < cost(one, w)


def test_every_bit_of_the_order_is_that_of_whole_scores() -> None:
    random = np.random.default_rng(1)
    partitions = random.integers(0, 2**64, 3000, np.uint64)
    nodes = random.integers(0, 2**64, 50, np.uint64)
    places, unsure = _vector.leading(partitions, nodes, 4)
    whole = _vector.scores(nodes[:, np.newaxis], partitions)
    exact = np.argsort(~whole, axis=0)[:4]
    assert not unsure.any()
    assert (places == exact).all()


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=40),
    st.integers(1, 9),
    st.integers(2, 6),
    st.integers(1, 7),
)
def test_the_best_are_those_of_a_sorted_column(
    heads: list[int], count: int, stacks: int, part: int
) -> None:
    count, width = min(count, len(heads)), 3
    high = _best.lines_sorted(count)
    room, spare = np.empty(stacks * high * width, np.uint64), np.empty(stacks * width, np.uint64)
    best = _best.Best(len(heads), width, count, room, spare)
    # Three columns: as given, backwards, and one in which all differ.
    lines = np.array([heads, heads[::-1], range(len(heads))], np.uint64).T << np.uint64(31)
    numbers = np.arange(len(heads), dtype=np.uint64)[:, np.newaxis]
    for start in range(0, len(heads), part):
        best.take(lines[start : start + part], numbers[start : start + part])
    found = np.empty((count, width), np.intp)
    unsure = best.numbers(found)
    for column, places, doubt in zip(lines.T.tolist(), found.T.tolist(), unsure, strict=True):
        order = sorted(column, reverse=True)
        assert [column[place] for place in places] == order[:count]
        assert len(set(places)) == count
        assert doubt == (len(set(order[: count + 1])) < len(order[: count + 1]))
    assert not unsure[2]
