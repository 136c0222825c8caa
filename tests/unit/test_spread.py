"""The counts of an assignment are those that one gets by looking at each node."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clusterkit.core.plan import held_by
from clusterkit.core.spread import balance_of
from clusterkit.engine.balances import Balances

NODES = "abcd"
ROWS = st.lists(
    st.permutations(NODES).flatmap(lambda row: st.integers(0, 4).map(lambda n: tuple(row[:n])))
)


@given(ROWS)
def test_the_counts_are_those_of_each_node(rows: list[tuple[str, ...]]) -> None:
    balance = balance_of(rows)
    assert balance.partitions == len(rows)
    assert balance.unowned == rows.count(())
    for node in NODES:
        owned, replica = held_by(node, rows)
        assert balance.primaries.get(node, 0) == len(owned)
        assert balance.replicas.get(node, 0) == len(replica)
    assert 0 not in (*balance.primaries.values(), *balance.replicas.values())


@given(st.integers(1, 3), st.integers(0, 2000))
def test_many_rows_of_few_kinds_too(kinds: int, count: int) -> None:
    rows = [tuple(NODES[i % kinds :][:2]) for i in range(count)]
    balance = balance_of(rows)
    for node in NODES:
        owned, replica = held_by(node, rows)
        assert balance.primaries.get(node, 0) == len(owned)
        assert balance.replicas.get(node, 0) == len(replica)


def test_an_assignment_is_counted_once() -> None:
    balances = Balances()
    first, second = (("a", "b"),), (("b",),)
    counted = balances.of(first)
    assert balances.of(first) is counted
    assert balances.of(second).primaries == {"b": 1}
    assert balances.of(first) == counted
