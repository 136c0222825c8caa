from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal, localcontext
from fractions import Fraction
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

import pytest

from clusterkit.core import placement
from clusterkit.core.costs import LOG_BITS, cost, log2_fixed
from clusterkit.core.hashing import SeedBlock
from clusterkit.core.placement import MAX_WEIGHT, Candidate, Row, assign

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "placement.json").read_text(encoding="utf-8")
)
ZONED = [("x", "y", None)[i % 3] for i in range(12)]


def cluster(*weights: int, zones: Sequence[str | None] = ()) -> list[Candidate]:
    return [
        Candidate(f"node-{i}", weight, zones[i] if zones else None)
        for i, weight in enumerate(weights)
    ]


# The slow reference: the words of the docstrings one by one, sharing no code with the package.


def reference_seed(name: str, cluster_seed: int, domain: str) -> int:
    person = {"node": b"ck-node", "partition": b"ck-partition"}[domain]
    key = bytes((cluster_seed >> 8 * i) % 256 for i in range(8))
    digest = blake2b(name.encode(), digest_size=8, key=key, person=person).digest()
    return sum(byte << 8 * i for i, byte in enumerate(digest))


def reference_score(seed: int) -> int:
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        seed ^= seed // 2**33
        seed = seed * multiplier % 2**64
    return seed ^ seed // 2**33


def reference_assign(
    candidates: Sequence[Candidate], partitions: int, replication_factor: int, cluster_seed: int
) -> tuple[Row, ...]:
    usable = [c for c in candidates if c.weight > 0]
    weighted = len({c.weight for c in usable}) > 1
    rows = []
    for index in range(partitions):
        seed = reference_seed(f"partition-{index}", cluster_seed, "partition")
        ranking = []
        for node in usable:
            score = reference_score(seed ^ reference_seed(node.id, cluster_seed, "node"))
            with localcontext() as context:
                context.prec = 50
                share = -(Decimal(score + 1) / 2**64).ln() / node.weight if weighted else Decimal()
            ranking.append((share, -score, node.id, node.zone))
        ranking.sort(key=lambda entry: entry[:3])
        row: list[str] = []
        used: Counter[str] = Counter()
        while ranking and len(row) < replication_factor:
            # A node without a zone is alone in its own, so while it can be picked, nobody is there.
            fewest = min(used[zone] if zone is not None else 0 for *_, zone in ranking)
            pick = next(e for e in ranking if (used[e[3]] if e[3] is not None else 0) == fewest)
            ranking.remove(pick)
            row.append(pick[2])
            if pick[3] is not None:
                used[pick[3]] += 1
        rows.append(tuple(row))
    return tuple(rows)


@pytest.mark.parametrize("case", GOLDEN["assign"], ids=lambda case: case["name"])
def test_golden_rows(case: dict[str, Any]) -> None:
    rows = assign(
        [Candidate(*node) for node in case["candidates"]],
        partitions=case["partitions"],
        replication_factor=case["replication_factor"],
        cluster_seed=int(case["cluster_seed"], 16),
    )
    assert [list(row) for row in rows] == case["rows"]


@pytest.mark.parametrize(
    "nodes",
    [
        cluster(*[100] * 10),
        cluster(*[100] * 45),
        cluster(0, 1, 2, 3, 100, 100, 100, 1000, 5000, MAX_WEIGHT),
        cluster(*range(100, 140)),
        cluster(*[100] * 12, zones=["a", "b", "c", "d"] * 3),
        cluster(*[100] * 12, zones=["a"] * 9 + ["b", "c", "c"]),
        cluster(*[100] * 12, zones=["a"] * 12),
        cluster(*[100] * 12, zones=ZONED),
        cluster(*[50, 100, 200, 0] * 3, zones=ZONED),
        cluster(*[50, 100, 200, 0] * 3, zones=["a", "a", "b"] * 4),
    ],
)
@pytest.mark.parametrize("replication_factor", [1, 2, 3, 5, 40])
def test_as_the_reference(nodes: list[Candidate], replication_factor: int) -> None:
    rows = assign(nodes, partitions=40, replication_factor=replication_factor, cluster_seed=77)
    assert rows == reference_assign(nodes, 40, replication_factor, 77)


def test_random_clusters_as_the_reference() -> None:
    random = Random(4)
    for _ in range(60):
        nodes = [
            Candidate(
                f"n{i}", random.choice([0, 1, 100, 100, 300]), random.choice(["a", "b", "c", None])
            )
            for i in range(random.randint(0, 9))
        ]
        factor, seed = random.randint(1, 6), random.getrandbits(64)
        rows = assign(nodes, partitions=9, replication_factor=factor, cluster_seed=seed)
        assert rows == reference_assign(nodes, 9, factor, seed), nodes


def test_log2_fixed_golden() -> None:
    for x, expected in GOLDEN["log2_fixed"]:
        assert log2_fixed(int(x, 16)) == int(expected, 16), x


def test_log2_fixed_is_the_logarithm_rounded_down() -> None:
    random = Random(1)
    borders = [(1024 + i << 54) + d for i in range(0, 1024, 31) for d in (-1, 0, 1)]
    others = [random.getrandbits(random.randint(1, 64)) + 1 for _ in range(1000)]
    with localcontext() as context:
        context.prec = 60
        for x in (*borders, *others, 2**64 - 1):
            exact = Decimal(x).ln() / Decimal(2).ln() * 2**LOG_BITS
            if x & x - 1:  # of a power of two Decimal's logarithm may fall just short
                assert log2_fixed(x) == int(exact), x
    for exponent in range(65):
        assert log2_fixed(1 << exponent) == exponent << LOG_BITS


def test_cost_never_decreases_as_the_score_falls() -> None:
    random = Random(2)
    starts = [random.getrandbits(64) for _ in range(300)]
    starts += [(1024 + i << 54) - 8 for i in range(1024)]  # where the logarithm's table goes on
    for start in starts:
        costs = [cost(score, 100) for score in range(min(start, 2**64 - 16), start + 16)[:16]]
        assert costs == sorted(costs, reverse=True), start


def test_costs_compare_as_exact_quotients_do() -> None:
    random = Random(3)
    for _ in range(2000):
        # Scores whose quotients are as near as weights of this size let them be.
        w, v = random.randint(1, MAX_WEIGHT), random.randint(MAX_WEIGHT - 50, MAX_WEIGHT)
        score = random.getrandbits(64)
        other = random.choice([score, score ^ 1, random.getrandbits(64)])
        one = Fraction((64 << LOG_BITS) - log2_fixed(score + 1), w)
        two = Fraction((64 << LOG_BITS) - log2_fixed(other + 1), v)
        assert (cost(score, w) > cost(other, v)) == (one > two)
        assert (cost(score, w) == cost(other, v)) == (one == two)


def test_only_the_ratios_of_weights_matter() -> None:
    shape = {"partitions": 200, "replication_factor": 3, "cluster_seed": 8}
    weights = (1, 2, 3, 5, 8, 13, 21)
    rows = assign(cluster(*weights), **shape)
    assert assign(cluster(*(1000 * w for w in weights)), **shape) == rows
    assert assign(cluster(*[1] * 7), **shape) == assign(cluster(*[MAX_WEIGHT] * 7), **shape)


def test_equal_weights_rank_as_none() -> None:
    # A node of another weight sends all others through the logarithm; leave it out of the rows.
    shape = {"partitions": 500, "cluster_seed": 9}
    plain = assign(cluster(*[100] * 8), replication_factor=8, **shape)
    odd = Candidate("odd", 1, None)
    weighted = assign([*cluster(*[100] * 8), odd], replication_factor=9, **shape)
    assert tuple(tuple(n for n in row if n != "odd") for row in weighted) == plain


def test_colliding_seeds_rank_by_id(monkeypatch: pytest.MonkeyPatch) -> None:
    def collide(names: Iterable[str], cluster_seed: int, domain: str) -> list[int]:
        twins = ("twin" if name in ("a", "b") else name for name in names)
        return [reference_seed(name, cluster_seed, domain) for name in twins]

    monkeypatch.setattr(placement, "seeds64", collide)
    for odd in (100, 50):  # without weights, and with
        nodes = [Candidate(n, 100, None) for n in "bca"] + [Candidate("d", odd, None)]
        for row in assign(nodes, partitions=50, replication_factor=4, cluster_seed=1):
            assert set(row) == set("abcd")
            assert row.index("b") == row.index("a") + 1


def test_nobody_who_may_hold() -> None:
    for nodes in ([], cluster(0, 0)):
        rows = assign(nodes, partitions=3, replication_factor=2, cluster_seed=0)
        assert rows == ((), (), ())


def test_a_zone_changes_no_primary() -> None:
    shape = {"partitions": 300, "replication_factor": 3, "cluster_seed": 3}
    free = assign(cluster(*[100] * 12), **shape)
    zoned = assign(cluster(*[100] * 12, zones=["a"] * 6 + ["b"] * 6), **shape)
    assert [row[0] for row in free] == [row[0] for row in zoned]
    assert free != zoned


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="node 'node-0' is among the candidates twice"):
        assign(cluster(1) * 2, partitions=1, replication_factor=1, cluster_seed=0)
    with pytest.raises(ValueError, match="partitions is 0, replication_factor is 2"):
        assign([], partitions=0, replication_factor=2, cluster_seed=0)
    with pytest.raises(ValueError, match="replication_factor is 0"):
        assign([], partitions=1, replication_factor=0, cluster_seed=0)
    with pytest.raises(ValueError, match="cluster_seed is -1"):
        assign(cluster(1), partitions=1, replication_factor=1, cluster_seed=-1)
    for weight in (-1, MAX_WEIGHT + 1):
        with pytest.raises(ValueError, match=f"node 'n' has weight {weight}"):
            Candidate("n", weight, None)


@pytest.mark.parametrize("kept", [1, 6, 52])
def test_keys_that_are_alike_leave_it_to_whole_scores(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = cluster(*[100] * 9)
    rows = assign(nodes, partitions=700, replication_factor=3, cluster_seed=1)
    alike = 0

    def coarse(block: SeedBlock, repeated: int) -> tuple[float, ...]:
        nonlocal alike
        scores = block._lanes.unpack(block._mixed(repeated))
        keys = tuple(float(score >> 64 - kept) for score in scores)
        alike += len(keys) - len(set(keys))
        return keys

    monkeypatch.setattr(SeedBlock, "keys", coarse)
    assert assign(nodes, partitions=700, replication_factor=3, cluster_seed=1) == rows
    assert bool(alike) == (kept < 52)
