"""The assignment that follows its nodes is always the one that is made anew."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from random import Random
from typing import Literal

import pytest

from clusterkit.core import columns, placement
from clusterkit.core.columns import Columns
from clusterkit.core.hashing import seed64
from clusterkit.core.incremental import Incremental
from clusterkit.core.placement import MAX_WEIGHT, Candidate, assign

ZONES: tuple[tuple[str | None, ...], ...] = (
    (None,),
    ("a",),
    ("a", "b"),
    ("a", "b", None),
    tuple("abcdefg"),
)
WEIGHTS = ((100,), (100,), (50, 100, 200), (0, 1, 100, MAX_WEIGHT))
ARITHMETIC = pytest.mark.parametrize("arithmetic", ["plain", "numpy"])


def use(arithmetic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes either serve however small the problem is."""
    if arithmetic == "numpy":
        pytest.importorskip("numpy")
    monkeypatch.setattr(placement, "VECTOR_PAYS", 1 if arithmetic == "numpy" else 1 << 60)


def churn(random: Random, eras: int, steps: int) -> int:
    """Clusters of every kind, each for some steps; returns how many passes were full ones."""
    followed = Incremental()
    for _ in range(eras):
        shape = {
            "partitions": random.choice([1, 5, 12, 30]),
            "replication_factor": random.randint(1, 4),
            "cluster_seed": random.getrandbits(64),
        }
        zones, weights = random.choice(ZONES), random.choice(WEIGHTS)
        nodes: dict[str, Candidate] = {}
        for _ in range(steps):
            for _ in range(random.choice([1, 1, 1, 2])):
                step(random, nodes, zones, weights)
            before = followed.rows
            was = tuple(before)
            changed = followed.assign(nodes.values(), **shape)
            now = assign(nodes.values(), **shape)
            assert followed.rows == now
            assert tuple(before) == was  # whoever still looks at it sees what he saw
            if changed is not None:
                assert list(changed) == [i for i, row in enumerate(now) if row != was[i]]
    return followed.full_passes


def step(
    random: Random,
    nodes: dict[str, Candidate],
    zones: tuple[str | None, ...],
    weights: tuple[int, ...],
) -> None:
    """A node comes, goes, or is another one than it was."""
    kind = random.random()
    some = f"n{random.randrange(40)}"
    node = some if kind < 0.45 or not nodes else random.choice(sorted(nodes))
    if 0.45 <= kind < 0.8:
        nodes.pop(node, None)
    else:
        nodes[node] = Candidate(node, random.choice(weights), random.choice(zones))


def test_ten_thousand_steps_are_as_if_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    use("plain", monkeypatch)
    assert churn(Random(5), eras=100, steps=100) < 4000


def test_numpys_steps_are_as_if_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    use("numpy", monkeypatch)
    assert churn(Random(6), eras=30, steps=60) < 900


def test_the_arithmetic_may_change_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numpy")
    monkeypatch.setattr(placement, "VECTOR_PAYS", 150)
    churn(Random(7), eras=20, steps=60)


@ARITHMETIC
def test_a_join_and_a_leave_in_a_large_cluster_place_nothing_anew(
    arithmetic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(arithmetic, monkeypatch)
    shape = {"partitions": 200, "replication_factor": 3, "cluster_seed": 4}
    for nodes in (
        [Candidate(f"n{i}", 100, None) for i in range(30)],
        [Candidate(f"n{i}", 100, "abcde"[i % 5]) for i in range(30)],
        [Candidate(f"n{i}", 100, "ab"[i % 2]) for i in range(30)],
        [Candidate(f"n{i}", 100 + i, None) for i in range(30)],
    ):
        followed = Incremental()
        followed.assign(nodes[1:], **shape)
        joined = followed.change([nodes[0]])
        assert followed.rows == assign(nodes, **shape)
        assert joined is not None
        assert 0 < len(joined) < 100
        assert followed.change([], ["n0"]) == joined
        assert followed.rows == assign(nodes[1:], **shape)
        assert followed.change([Candidate("n1", 5000, nodes[1].zone)]) is not None
        assert followed.change([], ["nobody"]) == ()
        assert followed.full_passes == 1


@ARITHMETIC
def test_a_newcomer_of_a_zone_that_was_used_up_enters_every_row(
    arithmetic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(arithmetic, monkeypatch)
    shape = {"partitions": 50, "replication_factor": 3, "cluster_seed": 4}
    nodes = [Candidate(f"n{i}", 100, "a") for i in range(20)]
    followed = Incremental()
    followed.assign(nodes, **shape)
    nodes.append(Candidate("new", 100, "b"))
    followed.assign(nodes, **shape)
    assert followed.rows == assign(nodes, **shape)
    assert all("new" in row for row in followed.rows)


@ARITHMETIC
def test_nodes_of_one_seed_rank_by_id(arithmetic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(arithmetic, monkeypatch)

    def collide(name: str, cluster_seed: int, domain: str) -> int:
        twin = domain == "node" and name in ("n3", "n7", "n9")
        return seed64("twin" if twin else name, cluster_seed, domain)  # type: ignore[arg-type]

    def collide_all(
        names: Iterable[str], cluster_seed: int, domain: Literal["partition", "node"]
    ) -> list[int]:
        return [collide(name, cluster_seed, domain) for name in names]

    monkeypatch.setattr(placement, "seeds64", collide_all)
    monkeypatch.setattr(columns, "seed64", collide)
    shape = {"partitions": 60, "replication_factor": 3, "cluster_seed": 4}
    nodes = {f"n{i}": Candidate(f"n{i}", 100, None) for i in range(10)}
    followed = Incremental()
    followed.assign(nodes.values(), **shape)
    random = Random(1)
    for _ in range(60):
        step(random, nodes, (None,), (100,))
        followed.assign(nodes.values(), **shape)
        assert followed.rows == expected(nodes, monkeypatch, shape)


def expected(
    nodes: Mapping[str, Candidate], monkeypatch: pytest.MonkeyPatch, shape: dict[str, int]
) -> tuple[placement.Row, ...]:
    with monkeypatch.context() as plain:
        plain.setattr(placement, "VECTOR_PAYS", 1 << 60)
        return assign(nodes.values(), **shape)


def test_an_error_changes_nothing() -> None:
    shape = {"partitions": 10, "replication_factor": 2, "cluster_seed": 4}
    nodes = [Candidate(f"n{i}", 100, None) for i in range(5)]
    followed = Incremental()
    with pytest.raises(RuntimeError, match="nothing was assigned yet"):
        followed.change(nodes)
    followed.assign(nodes, **shape)
    rows = followed.rows
    with pytest.raises(ValueError, match="node 'n0' is among the candidates twice"):
        followed.assign([*nodes, nodes[0]], **shape)
    with pytest.raises(ValueError, match="partitions is 0"):
        followed.assign(nodes, partitions=0, replication_factor=2, cluster_seed=4)
    with pytest.raises(ValueError, match="cluster_seed is -1"):
        followed.assign(nodes, partitions=10, replication_factor=2, cluster_seed=-1)
    assert followed.rows is rows
    assert followed.assign(nodes, **shape) == ()
    assert followed.rows is rows


def test_numpy_is_loaded_by_large_problems_only() -> None:
    pytest.importorskip("numpy")
    program = """
import sys
import clusterkit
from clusterkit.core.placement import VECTOR_PAYS, Candidate, assign
nodes = [Candidate(f"n{i}", 100, None) for i in range(100)]
assign(nodes, partitions=VECTOR_PAYS // 100 - 1, replication_factor=3, cluster_seed=0)
assert "numpy" not in sys.modules
assign(nodes, partitions=VECTOR_PAYS // 100, replication_factor=3, cluster_seed=0)
assert "numpy" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_numpy_large_problems_are_placed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [Candidate(f"n{i}", 100, None) for i in range(20)]
    shape = {"partitions": 50, "replication_factor": 3, "cluster_seed": 4}
    rows = assign(nodes, **shape)
    monkeypatch.setattr(placement, "VECTOR_PAYS", 1)
    monkeypatch.setitem(sys.modules, "numpy", None)  # so an import fails
    placement._numpy_loads.cache_clear()
    try:
        assert not placement.vector_pays(1)
        assert assign(nodes, **shape) == rows
        followed = Incremental()
        followed.assign(nodes[1:], **shape)
        followed.change(nodes[:1])
        assert followed.rows == rows
        assert type(followed._columns) is Columns
    finally:
        placement._numpy_loads.cache_clear()
