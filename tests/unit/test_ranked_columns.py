"""Rows that know who ranks behind them: what they hold, and what they know, is never wrong."""

from __future__ import annotations

from random import Random

import pytest

from clusterkit.core import placement
from clusterkit.core.incremental import Incremental
from clusterkit.core.placement import Candidate, Row, assign

pytest.importorskip("numpy")

import numpy as np

from clusterkit.core import _ranked_columns
from clusterkit.core._ranked_columns import RankedColumns


def holders(nodes: list[Candidate], count: int, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    with monkeypatch.context() as plain:
        plain.setattr(placement, "VECTOR_PAYS", 1 << 60)
        return list(assign(nodes, partitions=80, replication_factor=count, cluster_seed=3))


@pytest.mark.parametrize("bits", [31, 60])  # with 60 most scores are alike in what is left
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("at_once", [1, 1 << 15])
def test_rows_and_spares_are_those_of_a_full_pass(
    bits: int, count: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    low = np.array((1 << bits) - 1, np.uint64)
    monkeypatch.setattr(placement, "VECTOR_PAYS", 0)
    monkeypatch.setattr(_ranked_columns, "LOW", low)
    monkeypatch.setattr(_ranked_columns, "HIGH", ~low)
    monkeypatch.setattr(_ranked_columns, "CACHED", at_once)
    random = Random(bits + count)
    nodes = [Candidate(f"n{i}", 100, None) for i in range(24)]
    followed = Incremental()
    followed.assign(nodes, partitions=80, replication_factor=count, cluster_seed=3)
    known = 0
    for number in range(40):
        going = random.sample(nodes, min(random.choice((0, 1, 1, 2)), len(nodes) - count - 1))
        coming = [Candidate(f"new{number}-{i}", 100, None) for i in range(random.choice((0, 1, 2)))]
        before = followed.rows
        old = list(before)
        changed = followed.change(coming, [node.id for node in going])
        nodes = [node for node in nodes if node not in going] + coming
        expected = holders(nodes, count, monkeypatch)
        assert list(followed.rows) == expected
        assert list(before) == old
        if changed is not None:
            assert list(changed) == [i for i in range(80) if old[i] != expected[i]]
        columns = followed._columns
        if columns is None:
            continue
        assert isinstance(columns, RankedColumns)
        further = holders(nodes, count + 1, monkeypatch)
        for slot, row in zip(columns._held[:, -1].tolist(), further, strict=True):
            if slot != -1:
                known += 1
                assert columns._slots.ids[slot] == row[-1]
    assert known > 40


def test_a_spare_moves_up_and_is_looked_for_where_it_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placement, "VECTOR_PAYS", 0)
    looked: list[int] = []
    completed = RankedColumns._completed

    def watched(self: RankedColumns, keys, touched):  # type: ignore[no-untyped-def]
        looked.append(len(touched))
        return completed(self, keys, touched)

    monkeypatch.setattr(RankedColumns, "_completed", watched)
    nodes = [Candidate(f"n{i}", 100, None) for i in range(40)]
    followed = Incremental()
    followed.assign(nodes, partitions=200, replication_factor=3, cluster_seed=3)
    followed.change([Candidate("new", 100, None)])
    followed.change([], ["new"])
    assert looked == []  # each row that it had entered knew whom it had pushed out
    followed.change([], ["n7"])
    (first,) = looked
    followed.change([nodes[7]])
    followed.change([], ["n7"])
    assert looked == [first]
    assert followed.full_passes == 1
