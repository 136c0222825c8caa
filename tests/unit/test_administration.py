"""Cordons and settings, on a store in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from clusterkit.core.membership import Change, ConfigChanged, CordonChanged, read, step
from clusterkit.core.ownership import rows_of
from clusterkit.engine.administration import Administration
from clusterkit.engine.join import Joiner
from clusterkit.errors import ClusterKitError
from clusterkit.ports import Put, Txn
from clusterkit.testing.clock import VirtualClock
from clusterkit.testing.memory import MemoryServer, MemoryStore
from tests.support.bench import KEYS, FaultyStore, first, profile, remove_by_admin, state_of

CLOCK = VirtualClock()


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    with MemoryServer(VirtualClock()) as server:
        yield FaultyStore(MemoryStore(server))


@pytest.fixture
def admin(store: FaultyStore) -> Administration:
    return Administration(store, KEYS, CLOCK, 1.0)


def join(store: FaultyStore, *node_ids: str) -> None:
    for node_id in node_ids:
        joiner = Joiner(store, KEYS, CLOCK, profile(node_id), 1.0)
        joiner.join(f"nonce-{node_id}", after=None, cancelled=threading.Event())


def holders(store: FaultyStore) -> set[str]:
    return {node_id for row in rows_of(state_of(store)) for node_id in row}


def test_a_cordoned_node_is_a_member_that_holds_nothing(
    store: FaultyStore, admin: Administration
) -> None:
    join(store, "a", "b", "c")
    before = state_of(store)
    done = admin.cordon("b", "its disk fails")
    after = state_of(store)
    assert (done.changed, done.revision, done.holders) == (True, after.revision, 2)
    assert set(after.members) == {"a", "b", "c"}
    assert holders(store) == {"a", "c"}
    assert after.epoch > before.epoch
    assert after.cordons["b"].reason == "its disk fails"
    assert after.cordons["b"].since == CLOCK.now()
    again = admin.cordon("b")
    assert (again.changed, state_of(store).revision) == (False, after.revision)
    assert again.holders == 2
    undone = admin.uncordon("b")
    assert (undone.changed, undone.holders) == (True, 3)
    assert holders(store) == {"a", "b", "c"}
    assert rows_of(state_of(store)) == rows_of(before), "as if nothing had been"
    assert state_of(store).epoch > after.epoch
    assert not admin.uncordon("b").changed


def test_a_cordon_is_of_the_node_and_not_of_a_stay(
    store: FaultyStore, admin: Administration
) -> None:
    join(store, "a", "b")
    joiner = Joiner(store, KEYS, CLOCK, profile("c"), 1.0)
    session = joiner.join("nonce-c", after=None, cancelled=threading.Event())
    joiner.leave(session, (), timeout=1.0)
    admin.cordon("c")
    join(store, "c")
    assert "c" in state_of(store).members
    assert holders(store) == {"a", "b"}


def test_the_last_that_could_hold_anything_is_not_cordoned(
    store: FaultyStore, admin: Administration
) -> None:
    join(store, "a", "b")
    admin.cordon("a")
    with pytest.raises(ClusterKitError, match="no other member could take its partitions"):
        admin.cordon("b")
    remove_by_admin(store, "b")
    assert holders(store) == {"a"}, "data with a cordoned holder are better than none"
    join(store, "b")
    assert holders(store) == {"b"}


def test_nobody_knows_a_node_that_was_never_there(
    store: FaultyStore, admin: Administration
) -> None:
    join(store, "a")
    with pytest.raises(ClusterKitError, match=r"does not know it\. The members are: a"):
        admin.cordon("ghost")
    with pytest.raises(ClusterKitError, match="Cordoned are: nobody"):
        admin.uncordon("ghost")


def test_without_a_cluster_there_is_nothing_to_change(admin: Administration) -> None:
    with pytest.raises(ClusterKitError, match="no node has ever joined it"):
        admin.settings(replication_factor=2)


def test_a_config_that_cannot_be_understood_is_not_written_over(
    store: FaultyStore, admin: Administration
) -> None:
    store.txn(Txn((), (Put(KEYS.config, b"\xff"),)), timeout=1.0)
    with pytest.raises(ClusterKitError, match="cannot be understood"):
        admin.settings(replication_factor=2)
    with pytest.raises(ClusterKitError, match="cannot be understood"):
        admin.cordon("a")


def test_settings_change_what_is_named_and_nothing_else(
    store: FaultyStore, admin: Administration
) -> None:
    join(store, "a", "b", "c")
    before = state_of(store)
    assert before.config is not None
    done = admin.settings(balance_percent=125)
    assert (done.config.balance_percent, done.config.balance_primaries) == (125, False)
    assert admin.settings(balance_primaries=True).config.balance_percent == 125
    assert admin.settings(replication_factor=1).changed
    after = state_of(store)
    assert after.config == replace(
        before.config, replication_factor=1, balance_percent=125, balance_primaries=True
    )
    assert after.epoch > before.epoch
    assert not admin.settings(replication_factor=1, balance_percent=125).changed
    assert admin.settings(balance_percent=0).config.balance_percent is None


def test_a_change_made_meanwhile_is_not_undone(store: FaultyStore, admin: Administration) -> None:
    join(store, "a", "b", "c")
    other = Administration(store, KEYS, CLOCK, 1.0)
    store.next("txn", first(lambda: other.settings(balance_percent=150)))
    admin.settings(balance_primaries=True)
    config = state_of(store).config
    assert config is not None
    assert (config.balance_percent, config.balance_primaries) == (150, True)


def test_a_cordon_and_a_setting_are_changes_that_call_for_a_rebalance(
    store: FaultyStore, admin: Administration
) -> None:
    join(store, "a", "b")
    seen = store.range(KEYS.root, timeout=1.0)
    state = read(KEYS, seen.kvs, seen.revision, seen.cluster_id)
    with closing(store.watch(KEYS.root, seen.revision + 1)) as watch:
        admin.cordon("b")
        admin.settings(replication_factor=1)
        admin.uncordon("b")
        found: list[Change] = []
        while len(found) < 3:
            batch = next(iter(watch))
            state, changes = step(KEYS, state, batch)
            found += changes
    assert found[0] == CordonChanged("b", cordoned=True)
    assert isinstance(found[1], ConfigChanged)
    assert found[2] == CordonChanged("b", cordoned=False)
