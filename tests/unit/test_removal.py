"""An administrator's removal, on a store in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from clusterkit.core.records import Departure
from clusterkit.engine.join import Joiner
from clusterkit.engine.removal import remove
from clusterkit.errors import ClusterKitError, StoreTimeoutError, StoreUnavailableError
from clusterkit.ports import Put, Txn
from clusterkit.testing.clock import VirtualClock
from clusterkit.testing.memory import MemoryServer, MemoryStore
from tests.support.bench import KEYS, FaultyStore, first, profile, raising, state_of

CLOCK = VirtualClock()


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    with MemoryServer(VirtualClock()) as server:
        yield FaultyStore(MemoryStore(server))


def join(store: FaultyStore, node_id: str, nonce: str) -> None:
    joiner = Joiner(store, KEYS, CLOCK, profile(node_id), 1.0)
    joiner.join(nonce, after=None, cancelled=threading.Event())


def last(store: FaultyStore, node_id: str) -> Departure:
    return state_of(store).history[node_id].departures[-1]


def test_one_revision_ends_the_stay_and_says_why(store: FaultyStore) -> None:
    join(store, "a", "n1")
    join(store, "b", "n2")
    before = state_of(store)
    removal = remove(store, KEYS, CLOCK, "a", 1.0)
    after = state_of(store)
    assert after.revision == before.revision + 1 == removal.revision
    assert set(after.members) == {"b"}
    assert after.alive == before.alive  # never ours to delete
    assert after.history["a"].open is None
    end = last(store, "a")
    assert (end.registration.nonce, end.reason, end.left_revision) == ("n1", "removed_by_admin", 0)
    assert end.left_at == CLOCK.now()
    assert end.partitions == tuple(range(8))
    assert removal.partitions == tuple(f"partition-{i}" for i in range(8))
    assert removal.node == before.members["a"].node
    assert after.epoch != before.epoch


def test_what_changed_meanwhile_is_read_again(store: FaultyStore) -> None:
    join(store, "a", "n1")
    store.next("txn", first(lambda: join(store, "a", "n2")))
    remove(store, KEYS, CLOCK, "a", 1.0)
    ends = state_of(store).history["a"].departures
    found = [(d.registration.nonce, d.reason) for d in ends]
    assert found == [("n1", "replaced"), ("n2", "removed_by_admin")]
    assert not state_of(store).members


def test_a_lost_answer_is_no_failure_if_it_was_done(store: FaultyStore) -> None:
    join(store, "a", "n1")
    store.next("txn", raising(StoreTimeoutError("no answer"), applied=True))
    assert remove(store, KEYS, CLOCK, "a", 1.0).revision == state_of(store).revision
    assert len(state_of(store).history["a"].departures) == 1


def test_a_failure_is_told_if_it_was_not_done(store: FaultyStore) -> None:
    join(store, "a", "n1")
    store.next("txn", raising(StoreUnavailableError("nobody there")))
    with pytest.raises(StoreUnavailableError):
        remove(store, KEYS, CLOCK, "a", 1.0)
    assert set(state_of(store).members) == {"a"}


def test_who_is_no_member_cannot_be_removed(store: FaultyStore) -> None:
    join(store, "a", "n1")
    join(store, "b", "n2")
    with pytest.raises(ClusterKitError, match=r"'c' .* does not know it.* members are: a, b"):
        remove(store, KEYS, CLOCK, "c", 1.0)
    remove(store, KEYS, CLOCK, "a", 1.0)
    with pytest.raises(ClusterKitError, match=r"it left at .* \(removed_by_admin\)"):
        remove(store, KEYS, CLOCK, "a", 1.0)
    store.revoke(state_of(store).stored["b"].lease, timeout=1)
    with pytest.raises(ClusterKitError, match=r"lease has expired already.* nobody"):
        remove(store, KEYS, CLOCK, "b", 1.0)


def test_a_damaged_key_is_named(store: FaultyStore) -> None:
    store.txn(Txn((), (Put(KEYS.node("a"), b"\xff"),)), timeout=1)
    with pytest.raises(ClusterKitError, match="nodes/a' in etcd cannot be understood"):
        remove(store, KEYS, CLOCK, "a", 1.0)
