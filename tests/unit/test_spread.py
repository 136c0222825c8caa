"""The counts of an assignment are those that one gets by looking at each node."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clusterkit.core.plan import held_by
from clusterkit.core.rows import Rows
from clusterkit.core.spread import Balance, balance_after, balance_of
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


@given(
    st.lists(st.sampled_from(("", "a", "ab", "bca")).map(tuple), min_size=40, max_size=60),
    st.lists(
        st.dictionaries(
            st.integers(0, 39), st.sampled_from(("", "b", "ca", "dab")).map(tuple), max_size=3
        ),
        max_size=4,
    ),
)
def test_counts_follow_what_is_replaced(
    first: list[tuple[str, ...]], changes: list[dict[int, tuple[str, ...]]]
) -> None:
    rows = old = Rows(first)
    balance = balance_of(rows)
    for replaced in changes:
        rows = rows.replaced(replaced)
        assert balance_after(balance, old, rows) == balance_of(rows)
    assert balance_after(balance, old, list(rows)) == balance_of(rows)  # nothing in common


def test_where_few_rows_changed_no_other_is_looked_at() -> None:
    old = Rows([("a", "b")] * 10_000)
    new = old.replaced({7: ("c",), 9_999: ("b", "a")})
    wrong = Balance(10_000, {"a": 3}, {"b": 3}, 9_997)  # so what comes is from these
    assert balance_after(wrong, old, new) == Balance(
        10_000, {"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 1}, 9_997
    )


def test_long_assignments_are_counted_in_parts() -> None:
    few = [("a", "b"), ("b",), ()] * 10_000
    many = [(f"n{i}", f"n{i + 1}") for i in range(30_000)]
    assert balance_of(few) == Balance(30_000, {"a": 10_000, "b": 10_000}, {"b": 10_000}, 10_000)
    assert balance_of(many).primaries == {f"n{i}": 1 for i in range(30_000)}
    assert balance_of(many).replicas == {f"n{i + 1}": 1 for i in range(30_000)}


def test_an_assignment_is_counted_once() -> None:
    balances = Balances()
    first, second = (("a", "b"),), (("b",),)
    counted = balances.of(first)
    assert balances.of(first) is counted
    assert balances.of(second).primaries == {"b": 1}
    assert balances.of(first) == counted
